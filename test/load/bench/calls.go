// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	calls "github.com/Ignoramuss/orb8/internal/probe/syscall"
)

const (
	armTraced = "trace of another container"
	// callerEnv has for how long this binary, run a second time, makes system calls.
	callerEnv = "ORB8_BENCH_CALLER"
)

// callProbe traces the system calls of no process.
func (h *host) callProbe(losses *loss.Counters) (probe.Probe, error) {
	selection, err := probe.NewSelection()
	if err != nil {
		return nil, err
	}
	p := calls.New(calls.Config{Selection: selection, Apply: func(*calls.Event) {}, Losses: losses, Clock: h.clock})
	if err := p.Tell(0, calls.Wanted{PerSecond: 10_000}); err != nil {
		return nil, errors.Join(err, selection.Close())
	}
	return &callArm{p, selection}, nil
}

type callArm struct {
	*calls.Probe
	selection *probe.Selection
}

func (a *callArm) Close() error { return errors.Join(a.Probe.Close(), a.selection.Close()) }

// What a process does that is traced.
const (
	doGetpid = "getpid"
	// doAnswer are requests of 64 bytes and their answers over a pair of sockets, in one
	// thread, so that nothing ever waits: epoll_wait, read and write at one end, as in a
	// server such as Redis, write and read at the other.
	doAnswer = "request and answer"
)

// call does one of these for a while, as in "request and answer/10s", and says how often.
func call(order string) error {
	what, length, _ := strings.Cut(order, "/")
	d, err := time.ParseDuration(length)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	do, times := func() error {
		unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0) //nolint:errcheck // it has no error
		return nil
	}, 1000
	if what == doAnswer {
		if do, err = answering(); err != nil {
			return err
		}
		times = 100
	}
	n := 0
	for begin := time.Now(); time.Since(begin) < d; n += times {
		for range times {
			if err := do(); err != nil {
				return err
			}
		}
	}
	fmt.Println(n)
	return nil
}

// answering returns what asks and answers once.
func answering() (func() error, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, pair[1], &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(pair[1])}); err != nil {
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	events, buf := make([]unix.EpollEvent, 16), make([]byte, 64)
	return func() error {
		_, err := unix.Write(pair[0], buf)
		for _, step := range []func() (int, error){
			func() (int, error) { return unix.EpollWait(poll, events, -1) },
			func() (int, error) { return unix.Read(pair[1], buf) },
			func() (int, error) { return unix.Write(pair[1], buf) },
			func() (int, error) { return unix.Read(pair[0], buf) },
		} {
			if err == nil {
				_, err = step()
			}
		}
		return os.NewSyscallError("ask and answer", err)
	}, nil
}

// callLoad is what a process that does nothing but system calls has of a trace. calls are
// those, or requests.
type callLoad struct {
	do, what      string
	calls         uint64
	seconds       float64
	told, lost    uint64
	cpu, resident float64 // of the agent: percent of a core, MiB
}

func (l *callLoad) rate() float64 { return float64(l.calls) / l.seconds }

// measureCalls has the real agent trace a process that makes as many calls as it can.
func measureCalls(ctx context.Context, o options, r *report) (err error) {
	length := 5 * time.Second
	if o.quick {
		length = 2 * time.Second
	}
	h, err := newHost()
	if err != nil {
		return err
	}
	dir := filepath.Join(h.cgroupRoot(), "orb8-bench-calls")
	other := filepath.Join(h.cgroupRoot(), "orb8-bench-other")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := os.Mkdir(other, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(other)) }()
	for run := range r.effort.runs {
		say("a process that makes system calls and is traced, run %d", run+1)
		loads, err := loadCalls(ctx, o.binary, dir, other, length)
		if err != nil {
			return err
		}
		r.calls = append(r.calls, loads...)
	}
	return nil
}

func loadCalls(ctx context.Context, binary, dir, other string, length time.Duration) (all []callLoad, err error) {
	p, err := startAgent(ctx, binary)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	for _, do := range []string{doGetpid, doAnswer} {
		for _, of := range []struct {
			what   string
			traced string
			want   *orb8v1.SyscallTrace
		}{
			{notTraced, "", nil},
			{armTraced, other, &orb8v1.SyscallTrace{}},
			{"told of, 10,000 a second", dir, &orb8v1.SyscallTrace{}},
			{"told of, 100,000 a second", dir, &orb8v1.SyscallTrace{Rate: 100_000}},
			{"counted (`--summary`)", dir, &orb8v1.SyscallTrace{Summary: true}},
		} {
			l := callLoad{do: do, what: of.what}
			if err := p.traced(ctx, &l, dir, of.traced, length, of.want); err != nil {
				return nil, err
			}
			all = append(all, l)
		}
	}
	return all, nil
}

// notTraced is what the others are compared with.
const notTraced = "not traced"

// traced runs a process in a cgroup while one is traced, that or another.
func (p *process) traced(ctx context.Context, l *callLoad, dir, traced string, length time.Duration, want *orb8v1.SyscallTrace) (err error) {
	if want == nil {
		return l.run(ctx, dir, length)
	}
	conn, err := grpc.NewClient(p.api, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	want.DurationNs = int64(length + 3*time.Second)
	ctx, cancel := context.WithTimeout(ctx, length+15*time.Second)
	defer cancel()
	stream, err := orb8v1.NewOrbitAgentServiceClient(conn).Observe(ctx, &orb8v1.ObserveRequest{
		Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_SYSCALL}, Follow: true, Syscalls: want,
		Filters: []*orb8v1.Filter{{Workloads: []string{filepath.Base(traced)}}},
	})
	if err != nil {
		return err
	}
	cpu, err := p.cpuTime()
	if err != nil {
		return err
	}
	began, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- l.receive(stream, began) }()
	select {
	case <-began:
	case err := <-done:
		return fmt.Errorf("the trace ended before it began: %w", err)
	}
	if err := l.run(ctx, dir, length); err != nil {
		return err
	}
	after, err := p.cpuTime()
	if err != nil {
		return err
	}
	m, err := p.memory()
	if err != nil {
		return err
	}
	l.cpu, l.resident = 100*float64(after-cpu)/(l.seconds*float64(time.Second)), m.rss
	return <-done
}

// receive takes what a trace tells until it ends. began is closed once something is traced.
func (l *callLoad) receive(stream grpc.ServerStreamingClient[orb8v1.Event], began chan<- struct{}) error {
	for traced := false; ; {
		ev, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case len(ev.GetSyscallTargets().GetWorkloads()) > 0 && !traced:
			traced = true
			close(began)
		case ev.GetSyscall() != nil:
			l.told++
		case ev.GetLostEvents() != nil:
			l.lost += ev.GetLostEvents().GetCount()
		case ev.GetSyscallSummary() != nil:
			l.told = 0
			for _, c := range ev.GetSyscallSummary().GetCalls() {
				l.told += c.GetCalls()
			}
		}
	}
}

func (l *callLoad) run(ctx context.Context, dir string, length time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(fd)
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), callerEnv+"="+l.do+"/"+length.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	begin := time.Now()
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	l.seconds = time.Since(begin).Seconds()
	l.calls, err = strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
	return err
}

// writeCalls writes what a trace of system calls costs.
func (r *report) writeCalls(b *strings.Builder) {
	if len(r.calls) == 0 {
		return
	}
	b.WriteString("\n## System calls that are traced\n\n")
	b.WriteString("A process in a cgroup, while the real agent traces that, or another one, for a client: it does nothing but `getpid`, or asks and answers itself over a pair of sockets, with `epoll_wait`, `read` and `write` as a server such as Redis has them, `write` and `read` as its client (five calls each time, none of which waits). Told and lost are what the client got, of all stages, with the calls of the process's runtime:\n\n")
	b.WriteString("| does | trace | a second | ratio to not traced | times | calls told or counted | lost | agent's CPU | resident |\n|---|---|---|---|---|---|---|---|---|\n")
	var untraced float64
	for i := range r.calls {
		l := &r.calls[i]
		if l.what == notTraced {
			untraced = l.rate()
		}
		fmt.Fprintf(b, "| %s | %s | %.0f | %.3f | %d | %d | %d | %.0f %% | %.1f MiB |\n", l.do, l.what, l.rate(), l.rate()/untraced, l.calls, l.told, l.lost, l.cpu, l.resident)
	}
}
