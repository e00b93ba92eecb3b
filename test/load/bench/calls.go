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

// call makes system calls for a while and says how many.
func call(length string) error {
	d, err := time.ParseDuration(length)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	n := 0
	for begin := time.Now(); time.Since(begin) < d; n += 1000 {
		for range 1000 {
			unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0) //nolint:errcheck // it has no error
		}
	}
	fmt.Println(n)
	return nil
}

// callLoad is what a process that does nothing but system calls has of a trace.
type callLoad struct {
	what          string
	calls         uint64
	seconds       float64
	told, lost    uint64
	cpu, resident float64 // of the agent: percent of a core, MiB
}

func (l *callLoad) rate() float64 { return float64(l.calls) / l.seconds }

// measureCalls has the real agent trace a process that makes as many calls as it can.
func measureCalls(ctx context.Context, o options, r *report) (err error) {
	length := 10 * time.Second
	if o.quick {
		length = 2 * time.Second
	}
	h, err := newHost()
	if err != nil {
		return err
	}
	dir := filepath.Join(h.cgroupRoot(), "orb8-bench-calls")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	for run := range r.effort.runs {
		say("a process that makes system calls and is traced, run %d", run+1)
		loads, err := loadCalls(ctx, o.binary, dir, length)
		if err != nil {
			return err
		}
		r.calls = append(r.calls, loads...)
	}
	return nil
}

func loadCalls(ctx context.Context, binary, dir string, length time.Duration) (all []callLoad, err error) {
	p, err := startAgent(ctx, binary)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	for _, of := range []struct {
		what string
		want *orb8v1.SyscallTrace
	}{
		{"not traced", nil},
		{"told of, 10,000 a second", &orb8v1.SyscallTrace{}},
		{"told of, 100,000 a second", &orb8v1.SyscallTrace{Rate: 100_000}},
		{"counted (`--summary`)", &orb8v1.SyscallTrace{Summary: true}},
	} {
		l, err := p.traced(ctx, dir, length, of.want)
		if err != nil {
			return nil, err
		}
		l.what = of.what
		all = append(all, l)
	}
	return all, nil
}

// traced runs a process in a cgroup while that is traced.
func (p *process) traced(ctx context.Context, dir string, length time.Duration, want *orb8v1.SyscallTrace) (l callLoad, err error) {
	if want == nil {
		err := l.run(ctx, dir, length)
		return l, err
	}
	conn, err := grpc.NewClient(p.api, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	want.DurationNs = int64(length + 3*time.Second)
	ctx, cancel := context.WithTimeout(ctx, length+15*time.Second)
	defer cancel()
	stream, err := orb8v1.NewOrbitAgentServiceClient(conn).Observe(ctx, &orb8v1.ObserveRequest{
		Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_SYSCALL}, Follow: true, Syscalls: want,
		Filters: []*orb8v1.Filter{{Workloads: []string{filepath.Base(dir)}}},
	})
	if err != nil {
		return l, err
	}
	cpu, err := p.cpuTime()
	if err != nil {
		return l, err
	}
	began, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- l.receive(stream, began) }()
	select {
	case <-began:
	case err := <-done:
		return l, fmt.Errorf("the trace ended before it began: %w", err)
	}
	if err := l.run(ctx, dir, length); err != nil {
		return l, err
	}
	after, err := p.cpuTime()
	if err != nil {
		return l, err
	}
	m, err := p.memory()
	if err != nil {
		return l, err
	}
	l.cpu, l.resident = 100*float64(after-cpu)/(l.seconds*float64(time.Second)), m.rss
	return l, <-done
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
		case ev.GetSyscall().GetName() == "getpid":
			l.told++
		case ev.GetLostEvents() != nil:
			l.lost += ev.GetLostEvents().GetCount()
		case ev.GetSyscallSummary() != nil:
			l.told = 0
			for _, c := range ev.GetSyscallSummary().GetCalls() {
				if c.GetName() == "getpid" {
					l.told += c.GetCalls()
				}
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
	cmd.Env = append(os.Environ(), callerEnv+"="+length.String())
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
	b.WriteString("A process that does nothing but `getpid`, in a cgroup that the real agent traces for a client; told and lost are what the client got, of all stages:\n\n")
	b.WriteString("| trace | calls a second | calls | told or counted | lost | agent's CPU | resident |\n|---|---|---|---|---|---|---|\n")
	for i := range r.calls {
		l := &r.calls[i]
		fmt.Fprintf(b, "| %s | %.0f | %d | %d | %d | %.0f %% | %.1f MiB |\n", l.what, l.rate(), l.calls, l.told, l.lost, l.cpu, l.resident)
	}
}
