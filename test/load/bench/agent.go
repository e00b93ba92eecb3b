// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is the real agent, as users start it.
type process struct {
	cmd          *exec.Cmd
	api, metrics string
	log          bytes.Buffer
	waited       chan error
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return "localhost:" + port, err
}

// startAgent starts the agent and waits until it is ready.
func startAgent(ctx context.Context, binary string, args ...string) (*process, error) {
	p := &process{waited: make(chan error, 1)}
	for _, addr := range []*string{&p.api, &p.metrics} {
		var err error
		if *addr, err = freePort(); err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
	}
	p.cmd = exec.CommandContext(ctx, binary, append([]string{
		"agent", "--listen", p.api, "--metrics-listen", p.metrics,
	}, args...)...)
	p.cmd.Stderr = &p.log
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 10 * time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	go func() { p.waited <- p.cmd.Wait() }()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if _, err := p.get("/readyz"); err == nil {
			return p, nil
		}
		select {
		case err := <-p.waited:
			return nil, fmt.Errorf("the agent ended: %w\n%s", err, p.log.String())
		default:
		}
		if time.Since(begin) > 10*time.Second {
			return nil, errors.Join(errors.New("the agent is not ready after 10 s"), p.stop())
		}
	}
}

// stop ends the agent as a user would.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := <-p.waited; err != nil {
		return fmt.Errorf("stop the agent: %w\n%s", err, p.log.String())
	}
	return nil
}

func (p *process) get(path string) (string, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + p.metrics + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// flows is how many the agent's table holds.
func (p *process) flows() (int, error) {
	body, err := p.get("/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, "orb8_agent_flow_table_flows "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int(f), err
		}
	}
	return 0, errors.New("the agent's metrics have no orb8_agent_flow_table_flows")
}

// cpuTime is what the agent's threads have used so far, in user space and in
// the kernel, to the nanosecond where the kernel tells.
func (p *process) cpuTime() (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		return p.cpuTicks()
	}
	var total time.Duration
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		ran, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(ran, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}

// cpuTicks reads utime and stime, which count hundredths of a second.
func (p *process) cpuTicks() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// memory is what /proc/PID/status says, in MiB.
type memory struct{ rss, peak, anon float64 }

func (p *process) memory() (memory, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return memory{}, err
	}
	defer f.Close()
	var m memory
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), ":")
		to := map[string]*float64{"VmRSS": &m.rss, "VmHWM": &m.peak, "RssAnon": &m.anon}[name]
		if to == nil {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		if err != nil {
			return m, err
		}
		*to = kib / 1024
	}
	return m, nil
}

// idleCPU returns the agent's share of one core, in percent, with idle
// connections, each of which has both ends here.
func idleCPU(ctx context.Context, binary string, n int, settle, length time.Duration, args ...string) (share float64, err error) {
	p, err := startAgent(ctx, binary, args...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	conns, err := openConnections(n)
	if err != nil {
		return 0, err
	}
	defer conns.close()
	if err := errors.Join(conns.touch(), sleep(ctx, settle)); err != nil {
		return 0, err
	}
	if seen, err := p.flows(); err != nil {
		return 0, err
	} else if seen < 2*n {
		return 0, fmt.Errorf("the agent sees %d flows of %d", seen, 2*n)
	}
	before, err := p.cpuTime()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := sleep(ctx, length); err != nil {
		return 0, err
	}
	after, err := p.cpuTime()
	return 100 * float64(after-before) / float64(time.Since(begin)), err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// traffic keeps flows alive: half of them TCP, half UDP.
type traffic struct {
	tcp *connections
	udp []int
	in  int
}

// openTraffic opens n flows. Every connection here has both ends on this
// machine, which makes two flows.
func openTraffic(n int) (*traffic, error) {
	conns, err := openConnections(n / 4)
	if err != nil {
		return nil, err
	}
	t := &traffic{tcp: conns}
	in, port, err := bound(unix.SOCK_DGRAM)
	if err != nil {
		return t, err
	}
	t.in = in
	for range n / 4 {
		fd, err := rawSocket(unix.SOCK_DGRAM)
		if err != nil {
			return t, err
		}
		t.udp = append(t.udp, fd)
		if err := rawConnect(fd, inet4(loopback, port)); err != nil {
			return t, err
		}
	}
	return t, bounded(in)
}

func (t *traffic) touch() error {
	for _, fd := range t.udp {
		if err := errors.Join(send(fd, t.tcp.buf[:]), receive(t.in, t.tcp.buf[:])); err != nil {
			return err
		}
	}
	return t.tcp.touch()
}

func (t *traffic) close() {
	t.tcp.close()
	for _, fd := range append(t.udp, t.in) {
		_ = unix.Close(fd)
	}
}

// flowMemory is the agent's memory, at its highest while it holds flows with
// traffic in every interval, is scraped and is asked for them.
type flowMemory struct {
	memory
	flows int
}

func memoryAtFlows(ctx context.Context, binary string, n int, length time.Duration) (most flowMemory, err error) {
	p, err := startAgent(ctx, binary)
	if err != nil {
		return most, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	t, err := openTraffic(n)
	if t != nil {
		defer t.close()
	}
	if err != nil {
		return most, err
	}
	for begin := time.Now(); time.Since(begin) < length; {
		if err := errors.Join(t.touch(), sleep(ctx, 2*time.Second)); err != nil {
			return most, err
		}
		query := exec.CommandContext(ctx, binary, "flows", "--agent", p.api, "--limit", "0")
		if out, err := query.CombinedOutput(); err != nil {
			return most, fmt.Errorf("query the agent: %w\n%s", err, out)
		}
		flows, err := p.flows()
		if err != nil {
			return most, err
		}
		m, err := p.memory()
		if err != nil {
			return most, err
		}
		most.flows, most.rss = max(most.flows, flows), max(most.rss, m.rss)
		most.anon, most.peak = max(most.anon, m.anon), m.peak
	}
	if most.flows < n {
		return most, fmt.Errorf("the agent sees %d flows of %d", most.flows, n)
	}
	return most, nil
}
