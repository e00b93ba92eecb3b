// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/exec"
	processes "github.com/Ignoramuss/orb8/internal/process"
)

const (
	callGetpid = "getpid"
	callRead   = "read of one byte"
	startProg  = "fork, exec and exit"
	armExec    = "exec probe"
	// program is what is started.
	program = "/bin/true"
	// startsLanding is how long an agent may take to tell of all that was started.
	startsLanding = 10 * time.Second
)

// processArms are compared where processes are what costs.
func processArms() []*arm {
	return []*arm{{name: armNone}, {name: armControl}, {name: armExec, exec: true}, {name: armTraced, calls: true}}
}

// processTasks are ordinary system calls, and a program.
func processTasks() ([]*task, error) {
	zero, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	buf := make([]byte, 1)
	return []*task{
		{name: callGetpid, ops: 50_000, op: func() error {
			unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0) //nolint:errcheck // it has no error
			return nil
		}},
		{name: callRead, ops: 20_000, op: func() error {
			_, err := unix.Read(zero, buf)
			return err
		}},
		{name: startProg, ops: 10, op: startOne},
	}, nil
}

// startOne starts a program and waits for its end.
func startOne() error {
	pid, err := syscall.ForkExec(program, []string{program}, &syscall.ProcAttr{})
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	_, err = syscall.Wait4(pid, nil, 0, nil)
	for errors.Is(err, syscall.EINTR) {
		_, err = syscall.Wait4(pid, nil, 0, nil)
	}
	return err
}

// execProbe has the table of processes that an agent keeps.
func (h *host) execProbe(losses *loss.Counters) (probe.Probe, error) {
	redact, err := processes.NewRedactor("")
	if err != nil {
		return nil, err
	}
	t := processes.NewTable(processes.Config{Redact: redact.Redact, Losses: losses})
	return exec.New(exec.Config{
		Apply: func(e *processes.Event) { t.Apply(e) }, Losses: losses, Clock: h.clock, RingBytes: 1 << 20, ArgBytes: 1024,
	}), nil
}

// startLoad is what the agent made of programs that were started as fast as they could be.
type startLoad struct {
	started, counted, ended, lost uint64
	seconds                       float64
	cpu                           float64 // of the agent, of one core, in percent
	early, late                   float64 // MiB that are resident, after a sixth of the time and at the end
}

// measureStarts has the real agent beside threads that start programs.
func measureStarts(ctx context.Context, o options, r *report) error {
	length := time.Minute
	if o.quick {
		length = 3 * time.Second
	}
	for run := range r.effort.runs {
		say("programs started as fast as they can be, run %d", run+1)
		l, err := loadStarts(ctx, o.binary, length)
		if err != nil {
			return err
		}
		r.starts = append(r.starts, l)
	}
	return nil
}

func loadStarts(ctx context.Context, binary string, length time.Duration) (l startLoad, err error) {
	p, err := startAgent(ctx, binary)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	before, err := p.starts()
	if err != nil {
		return l, err
	}
	cpu, err := p.cpuTime()
	if err != nil {
		return l, err
	}
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		var err error
		l.started, err = startFor(ctx, length)
		done <- err
	}()
	if err := sleep(ctx, length/6); err != nil {
		return l, err
	}
	early, err := p.memory()
	if err = errors.Join(err, <-done); err != nil {
		return l, err
	}
	l.seconds = time.Since(began).Seconds()
	late, err := p.memory()
	if err != nil {
		return l, err
	}
	after, err := p.cpuTime()
	if err != nil {
		return l, err
	}
	l.early, l.late = early.rss, late.rss
	l.cpu = 100 * float64(after-cpu) / (l.seconds * float64(time.Second))
	err = l.land(ctx, p, before)
	return l, err
}

// land waits until nothing is added any more, or all is there.
func (l *startLoad) land(ctx context.Context, p *process, before startLoad) error {
	for begin := time.Now(); time.Since(begin) < startsLanding; {
		now, err := p.starts()
		if err != nil {
			return err
		}
		l.counted, l.ended, l.lost = now.counted-before.counted, now.ended-before.ended, now.lost-before.lost
		if l.counted >= l.started && l.ended >= l.started {
			return nil
		}
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// startFor starts programs, on as many threads as there are processors, and returns how many.
func startFor(ctx context.Context, length time.Duration) (uint64, error) {
	var (
		mu    sync.Mutex
		total uint64
		first error
		group sync.WaitGroup
	)
	for range runtime.NumCPU() {
		group.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			n, err := uint64(0), error(nil)
			for begin := time.Now(); time.Since(begin) < length && ctx.Err() == nil && err == nil; n++ {
				err = startOne()
			}
			mu.Lock()
			defer mu.Unlock()
			total, first = total+n, errors.Join(first, err)
		})
	}
	group.Wait()
	return total, first
}

// starts reads the agent's counters of all workloads: those of others start
// few programs meanwhile.
func (p *process) starts() (l startLoad, err error) {
	page, err := p.get("/metrics")
	if err != nil {
		return l, err
	}
	for line := range strings.Lines(page) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		name, labels, _ := strings.Cut(series, "{")
		switch {
		case name == "orb8_process_starts_total":
			l.counted += uint64(v)
		case name == "orb8_process_exits_total":
			l.ended += uint64(v)
		case name == "orb8_lost_events_total" && (strings.Contains(labels, `"exec_ring_full"`) || strings.Contains(labels, `"exec_share_full"`) || strings.Contains(labels, `"program_skipped"`)):
			l.lost += uint64(v)
		}
	}
	return l, nil
}

func (r *report) callAdded() []float64 {
	var all []float64
	for _, f := range r.processes {
		all = append(all, f[callGetpid][armExec].Added)
	}
	return all
}

// writeStarts writes what processes cost.
func (r *report) writeStarts(b *strings.Builder) {
	if len(r.processes) > 0 {
		b.WriteString("\n## Processes\n\n")
		b.WriteString("As above, for ordinary system calls and for programs that are started (`" + program + "`) and waited for, with the `exec` probe alone, and while the system calls of a container are traced that this is not.\n\n")
		b.WriteString("| workload | arm | ratio to none | added per operation |\n|---|---|---|---|\n")
		for _, load := range []string{callGetpid, callRead, startProg} {
			for _, arm := range []string{armNone, armControl, armExec, armTraced} {
				writeArm(b, r.processes, load, arm)
			}
		}
	}
	if len(r.starts) == 0 {
		return
	}
	b.WriteString("\nThe real agent beside as many threads as there are processors, each of which starts programs as fast as it can:\n\n")
	b.WriteString("| seconds | started | a second | starts counted | ends counted | events lost | agent's CPU | resident after a sixth of the time | at the end |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.starts {
		fmt.Fprintf(b, "| %.0f | %d | %.0f | %d | %d | %d | %.0f %% | %.1f MiB | %.1f MiB |\n",
			l.seconds, l.started, float64(l.started)/l.seconds, l.counted, l.ended, l.lost, l.cpu, l.early, l.late)
	}
}
