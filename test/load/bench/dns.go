// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dnsServer = 53
	// dnsWindow is how many queries are on their way at most.
	dnsWindow = 64
	// dnsLanding is how long an agent may take to tell of all that was sent: a query
	// whose answer it has not seen waits for 5 s.
	dnsLanding = 15 * time.Second
)

// dnsQuery asks for the address of api.example.test.
func dnsQuery() []byte {
	q := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, label := range []string{"api", "example", "test"} {
		q = append(append(q, byte(len(label))), label...)
	}
	return append(q, 0, 0, 1, 0, 1)
}

// answerInto makes an answer of the n bytes of a query in buf, and returns its length.
func answerInto(buf []byte, n int) int {
	buf[2], buf[3], buf[7] = 0x81, 0x80, 1
	return n + copy(buf[n:], []byte{0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 198, 51, 100, 7})
}

// openResponder returns a socket on port 53 of a loopback address that has none yet, and
// where it is, in the network namespace of the calling thread.
func openResponder() (fd int, at *unix.RawSockaddrInet4, err error) {
	if fd, err = rawSocket(unix.SOCK_DGRAM); err != nil {
		return -1, nil, err
	}
	for last := byte(1); ; last++ {
		addr := [4]byte{127, 0, dnsServer, last}
		err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr, Port: dnsServer})
		if err == nil {
			return fd, inet4(addr, dnsServer), bounded(fd)
		}
		if !errors.Is(err, unix.EADDRINUSE) || last == math.MaxUint8 {
			return -1, nil, errors.Join(os.NewSyscallError("bind", err), rawClose(fd))
		}
	}
}

// ask sends the query from a socket of its own, and so from a port of its own.
func ask(server *unix.RawSockaddrInet4, query []byte) (int, error) {
	fd, err := rawSocket(unix.SOCK_DGRAM)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(rawConnect(fd, server), bounded(fd)); err != nil {
		return -1, err
	}
	return fd, send(fd, query)
}

// openDNS makes a task of which each operation is a query from a fresh port with its
// answer.
func openDNS() (*task, error) {
	server, at, err := openResponder()
	if err != nil {
		return nil, err
	}
	query, buf := dnsQuery(), make([]byte, 512)
	var id uint16
	return &task{name: dnsQueries, ops: 200, op: func() error {
		id++
		binary.BigEndian.PutUint16(query, id)
		client, err := ask(at, query)
		if err != nil {
			return err
		}
		n, from, err := unix.Recvfrom(server, buf, 0)
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if err := unix.Sendto(server, buf[:answerInto(buf, n)], 0, from); err != nil {
			return os.NewSyscallError("sendto", err)
		}
		if _, err := receiveSome(client, buf); err != nil {
			return err
		}
		return rawClose(client)
	}}, nil
}

// dnsLoad is what the agent made of a number of queries a second.
type dnsLoad struct {
	rate    int // queries a second that were wanted
	sent    uint64
	seconds float64
	dnsCounts
	cpu float64 // of one core, in percent, while they were sent
}

// dnsCounts are an agent's counters.
type dnsCounts struct {
	answered, timeout, unread uint64 // of queries, as the client's
	served                    uint64 // of queries, as the server's, of any code
	lost                      uint64 // messages, of which there are four a query
}

func (c dnsCounts) counted() uint64 { return c.answered + c.timeout + c.unread }

// dnsPair is a client and a responder in a network namespace of their own, each with a
// thread.
type dnsPair struct {
	server int
	at     *unix.RawSockaddrInet4
	done   chan error
}

// sendQueries sends rate queries a second, each from a port of its own, for so long, and
// returns how many were sent in which time. All of them are answered.
func sendQueries(ctx context.Context, rate int, length time.Duration) (sent uint64, took time.Duration, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		sent, took, err = sendHere(ctx, rate, length)
	}()
	<-done
	return sent, took, err
}

func sendHere(ctx context.Context, rate int, length time.Duration) (sent uint64, took time.Duration, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return 0, 0, os.NewSyscallError("unshare", err)
	}
	if err := loopbackUp(); err != nil {
		return 0, 0, err
	}
	p := dnsPair{done: make(chan error, 1)}
	if p.server, p.at, err = openResponder(); err != nil {
		return 0, 0, err
	}
	go func() { p.done <- p.serve() }()
	began := time.Now()
	sent, err = p.client(ctx, rate, length)
	took = time.Since(began)
	// One byte is the end.
	if fd, e := ask(p.at, []byte{0}); e != nil {
		err = errors.Join(err, e)
	} else {
		err = errors.Join(err, rawClose(fd), <-p.done)
	}
	return sent, took, err
}

// serve answers until it gets a single byte, which no query is.
func (p *dnsPair) serve() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer unix.Close(p.server)
	buf := make([]byte, 512)
	for {
		n, from, err := unix.Recvfrom(p.server, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("recvfrom", err)
		case n == 1:
			return nil
		}
		if err := unix.Sendto(p.server, buf[:answerInto(buf, n)], 0, from); err != nil {
			return os.NewSyscallError("sendto", err)
		}
	}
}

// client keeps to the rate as well as it can, and takes each answer before the query
// that is a window later.
func (p *dnsPair) client(ctx context.Context, rate int, length time.Duration) (sent uint64, err error) {
	var window [dnsWindow]int
	for i := range window {
		window[i] = -1
	}
	query, buf := dnsQuery(), make([]byte, 512)
	take := func(i int) error {
		fd := window[i]
		if fd < 0 {
			return nil
		}
		window[i] = -1
		// This may wait for the responder, so the scheduler has to know of it.
		_, err := unix.Read(fd, buf)
		for errors.Is(err, unix.EINTR) {
			_, err = unix.Read(fd, buf)
		}
		return errors.Join(os.NewSyscallError("read", err), rawClose(fd))
	}
	for began := time.Now(); ctx.Err() == nil; {
		since := time.Since(began)
		if since >= length {
			break
		}
		if due := uint64(math.Round(float64(rate) * since.Seconds())); sent >= due {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		i := int(sent % dnsWindow)
		if err := take(i); err != nil {
			return sent, err
		}
		binary.BigEndian.PutUint16(query, uint16(sent))
		if window[i], err = ask(p.at, query); err != nil {
			return sent, err
		}
		sent++
	}
	for i := range window {
		if err := take(i); err != nil {
			return sent, err
		}
	}
	return sent, ctx.Err()
}

// measureDNS has the real agent beside a client and a responder, on the same cores.
func measureDNS(ctx context.Context, o options, r *report) error {
	length := 30 * time.Second
	if o.quick {
		length = 2 * time.Second
	}
	for run := range r.effort.runs {
		for _, rate := range []int{20_000, 50_000} {
			say("%d DNS queries a second from fresh ports, run %d", rate, run+1)
			l, err := loadDNS(ctx, o.binary, rate, length)
			if err != nil {
				return err
			}
			r.dns = append(r.dns, l)
		}
	}
	return nil
}

func loadDNS(ctx context.Context, binary string, rate int, length time.Duration) (l dnsLoad, err error) {
	p, err := startAgent(ctx, binary)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	before, err := p.cpuTime()
	if err != nil {
		return l, err
	}
	l.rate = rate
	sent, took, err := sendQueries(ctx, rate, length)
	if err != nil {
		return l, err
	}
	after, err := p.cpuTime()
	if err != nil {
		return l, err
	}
	l.sent, l.seconds, l.cpu = sent, took.Seconds(), 100*float64(after-before)/float64(took)
	// Until nothing is added any more, or all is there.
	for begin := time.Now(); time.Since(begin) < dnsLanding; {
		if err := sleep(ctx, time.Second); err != nil {
			return l, err
		}
		if l.dnsCounts, err = p.dnsCounts(); err != nil {
			return l, err
		}
		if l.counted() >= sent && l.served >= sent {
			break
		}
	}
	return l, nil
}

func (p *process) dnsCounts() (c dnsCounts, err error) {
	page, err := p.get("/metrics")
	if err != nil {
		return c, err
	}
	for line := range strings.Lines(page) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		name, labels, _ := strings.Cut(series, "{")
		n := uint64(v)
		switch {
		case name == "orb8_dns_served_queries_total":
			c.served += n
		case name == "orb8_lost_events_total" && strings.Contains(labels, `stage="dns_`):
			c.lost += n
		case name != "orb8_dns_queries_total":
		case strings.Contains(labels, `rcode="timeout"`):
			c.timeout += n
		case strings.Contains(labels, `rcode="unread"`):
			c.unread += n
		default:
			c.answered += n
		}
	}
	return c, nil
}

func (r *report) writeDNS(b *strings.Builder) {
	if len(r.dns) == 0 {
		return
	}
	b.WriteString("\n## DNS\n\n")
	b.WriteString("The real agent beside a client and a responder on loopback, each a thread on the same cores; each query comes from a port of its own, so that it is a flow of its own too. Both ends are on this host: the agent reads four messages a query.\n\n")
	b.WriteString("| wanted | sent | counted | with their answer | unanswered | not known | counted at the server | messages lost | agent's CPU |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.dns {
		fmt.Fprintf(b, "| %d/s | %d in %.1f s, %.0f/s | %d | %d | %d | %d | %d | %d | %.0f %% of a core |\n", l.rate,
			l.sent, l.seconds, float64(l.sent)/l.seconds, l.counted(), l.answered, l.timeout, l.unread, l.served, l.lost, l.cpu)
	}
}

// dnsAdded is what reading DNS adds to a query, beside the packet probe.
func (r *report) dnsAdded() []float64 {
	var all []float64
	for _, f := range r.compared {
		all = append(all, f[dnsQueries][armAll].Added-f[dnsQueries][armNoDNS].Added)
	}
	return all
}
