// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dnsPaced = "DNS, 20,000 queries a second"
	dnsFast  = "DNS, as fast as it goes"
	// dnsRate is how many queries a second are sent in paced blocks.
	dnsRate = 20_000
	// dnsWindow is how many queries are on their way in the others.
	dnsWindow   = 16
	dnsBlock    = 200 * time.Millisecond
	dnsServer   = 53
	dnsWaitTime = 2 * time.Second
)

// dnsFigures are those of one run.
type dnsFigures struct {
	ratios figures
	// tally of each load while the agent ran.
	tally map[string]*dnsTally
	// cpu is the agent's share of a core in the paced blocks, in percent.
	cpu []float64
}

// dnsTally is what was sent and counted, in queries, and what the agent says that it
// lost, in messages, of which there are four a query.
type dnsTally struct{ sent, counted, lost uint64 }

// dnsPair is a client and a responder in a network namespace of their own, each with
// a thread.
type dnsPair struct {
	client, server int
	query, reply   []byte
	id             uint16
	sent           uint64
	done           chan error
}

// openDNS makes the pair. Threads that are in a namespace stay there, and end.
func openDNS() (*dnsPair, error) {
	p := &dnsPair{done: make(chan error, 1), query: dnsQuery(), reply: make([]byte, 512)}
	opened := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := p.open()
		opened <- err
		if err == nil {
			p.done <- p.serve()
		}
	}()
	return p, <-opened
}

func (p *dnsPair) open() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if p.server, err = rawSocket(unix.SOCK_DGRAM); err != nil {
		return err
	}
	if err := unix.Bind(p.server, &unix.SockaddrInet4{Addr: loopback, Port: dnsServer}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if p.client, err = rawSocket(unix.SOCK_DGRAM); err != nil {
		return err
	}
	return errors.Join(rawConnect(p.client, inet4(loopback, dnsServer)), bounded(p.client))
}

// dnsQuery asks for the address of api.example.test.
func dnsQuery() []byte {
	q := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, label := range []string{"api", "example", "test"} {
		q = append(append(q, byte(len(label))), label...)
	}
	return append(q, 0, 0, 1, 0, 1)
}

// serve answers until the socket is shut down.
func (p *dnsPair) serve() error {
	defer unix.Close(p.server)
	buf := make([]byte, 512)
	record := []byte{0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 198, 51, 100, 7}
	for {
		n, from, err := unix.Recvfrom(p.server, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("recvfrom", err)
		case n == 1: // the end
			return nil
		}
		buf[2], buf[3], buf[7] = 0x81, 0x80, 1
		if err := unix.Sendto(p.server, append(buf[:n], record...), 0, from); err != nil {
			return os.NewSyscallError("sendto", err)
		}
	}
}

func (p *dnsPair) close() error {
	_, err := unix.Write(p.client, []byte{0})
	return errors.Join(err, <-p.done, unix.Close(p.client))
}

func (p *dnsPair) ask() error {
	p.id++
	p.sent++
	binary.BigEndian.PutUint16(p.query, p.id)
	_, err := unix.Write(p.client, p.query)
	return os.NewSyscallError("write", err)
}

// take waits for an answer; without wait it reports whether there was one.
func (p *dnsPair) take(wait bool) (bool, error) {
	flags := unix.MSG_DONTWAIT
	if wait {
		flags = 0
	}
	for {
		_, _, err := unix.Recvfrom(p.client, p.reply, flags)
		switch {
		case errors.Is(err, unix.EINTR):
		case !wait && errors.Is(err, unix.EAGAIN):
			return false, nil
		default:
			return err == nil, os.NewSyscallError("recvfrom", err)
		}
	}
}

// paced sends at dnsRate and returns the nanoseconds per answer.
func (p *dnsPair) paced() (float64, error) {
	begin := time.Now()
	asked, answered := 0, 0
	const total = dnsRate * int(dnsBlock/time.Millisecond) / 1000
	for answered < total {
		due := min(int(time.Since(begin)*dnsRate/time.Second), total)
		for ; asked < due; asked++ {
			if err := p.ask(); err != nil {
				return 0, err
			}
		}
		got, err := p.take(false)
		if err != nil {
			return 0, err
		}
		switch {
		case got:
			answered++
		case asked == total && time.Since(begin) > dnsBlock+dnsWaitTime:
			return 0, fmt.Errorf("%d of %d queries were answered", answered, total)
		default:
			time.Sleep(50 * time.Microsecond)
		}
	}
	return float64(time.Since(begin)) / float64(total), nil
}

// fast keeps dnsWindow queries on their way.
func (p *dnsPair) fast() (float64, error) {
	begin := time.Now()
	asked, answered := 0, 0
	for ; asked < dnsWindow; asked++ {
		if err := p.ask(); err != nil {
			return 0, err
		}
	}
	for answered < asked {
		if _, err := p.take(true); err != nil {
			return 0, err
		}
		answered++
		if time.Since(begin) < dnsBlock {
			if err := p.ask(); err != nil {
				return 0, err
			}
			asked++
		}
	}
	return float64(time.Since(begin)) / float64(answered), nil
}

// measureDNS compares queries a second with and without the agent.
func measureDNS(ctx context.Context, o options, r *report) error {
	rounds, blocks := 12, 5
	if o.quick {
		rounds, blocks = 2, 2
	}
	for run := range r.effort.runs {
		say("DNS with and without the agent, run %d", run+1)
		f, err := compareDNS(ctx, o.binary, rounds, blocks)
		if err != nil {
			return err
		}
		r.dns = append(r.dns, f)
	}
	return nil
}

func compareDNS(ctx context.Context, binary string, rounds, blocks int) (f dnsFigures, err error) {
	f.tally = map[string]*dnsTally{dnsPaced: {}, dnsFast: {}}
	pair, err := openDNS()
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, pair.close()) }()
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	f.ratios, err = compareBy([]string{armNone, armControl, armAll}, rounds, rng, func(arm string) (map[string][]float64, error) {
		return f.visit(ctx, pair, binary, arm, blocks)
	})
	return f, err
}

// visit measures one arm once.
func (f *dnsFigures) visit(ctx context.Context, pair *dnsPair, binary, arm string, blocks int) (times map[string][]float64, err error) {
	if err := errors.Join(ctx.Err(), waitUntilAlone()); err != nil {
		return nil, err
	}
	var agent *process
	if arm == armAll {
		if agent, err = startAgent(ctx, binary, "--interval", "1s"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, agent.stop()) }()
	}
	times = make(map[string][]float64)
	var total dnsTally
	for _, load := range []struct {
		name string
		run  func() (float64, error)
	}{{dnsPaced, pair.paced}, {dnsFast, pair.fast}} {
		used, begin, sent := f.used(agent), time.Now(), pair.sent
		if times[load.name], err = counted(blocks, load.run); err != nil {
			return nil, err
		}
		if agent == nil {
			continue
		}
		if load.name == dnsPaced {
			f.cpu = append(f.cpu, 100*float64(f.used(agent)-used)/float64(time.Since(begin)))
		}
		if err := f.count(agent, load.name, pair.sent-sent, &total); err != nil {
			return nil, err
		}
	}
	return times, nil
}

func (f *dnsFigures) used(agent *process) time.Duration {
	if agent == nil {
		return 0
	}
	used, err := agent.cpuTime()
	if err != nil {
		return 0
	}
	return used
}

// dnsCountTime is how long an agent may take to tell what it has counted and lost: it
// reads the counters of losses at each interval.
const dnsCountTime = 2 * time.Second

// count waits until the agent has counted what was sent or says why not; total is what
// it had before, and has afterwards.
func (f *dnsFigures) count(agent *process, load string, sent uint64, total *dnsTally) error {
	var now dnsTally
	for begin := time.Now(); time.Since(begin) < dnsCountTime; time.Sleep(100 * time.Millisecond) {
		body, err := agent.get("/metrics")
		if err != nil {
			return err
		}
		now.counted = sum(body, "orb8_dns_queries_total{", `workload="bench"`)
		now.lost = sum(body, "orb8_lost_events_total{", `stage="dns_`)
		if now.counted >= total.counted+sent {
			break
		}
	}
	t := f.tally[load]
	t.sent += sent
	t.counted += now.counted - total.counted
	t.lost += now.lost - total.lost
	*total = now
	return nil
}

// sum adds up the samples of a page that begin with name and hold label.
func sum(page, name, label string) uint64 {
	var n uint64
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, name) || !strings.Contains(line, label) {
			continue
		}
		if v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64); err == nil {
			n += uint64(v)
		}
	}
	return n
}
