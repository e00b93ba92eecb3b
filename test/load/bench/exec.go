// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	callGetpid  = "getpid"
	callRead    = "read of one byte"
	callServe   = "request and answer with epoll"
	callRedis   = "Redis: GET"
	callExec    = "fork and exec"
	armExec     = "exec probe"
	armTraced   = "trace of another pod"
	execProgram = "/bin/true"
)

// callLoads and callArms in the order of the report.
func callLoads() []string { return []string{callGetpid, callRead, callServe, callRedis, callExec} }
func callArms() []string  { return []string{armNone, armControl, armExec, armTraced} }

// callFigures are those of one run: by load and arm.
type callFigures struct {
	ratios figures
	// started and counted are programs that were started while the agent ran; lost is
	// what it says that it lost.
	started, counted, lost uint64
}

// caller makes system calls on a thread of its own.
type caller struct {
	zero, epoll  int
	client, serv int
	redis        *redis // nil if there is none
	buf          []byte
	started      uint64
}

func openCaller() (*caller, error) {
	c := &caller{buf: make([]byte, 64)}
	var err error
	if c.zero, err = unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	c.client, c.serv = pair[0], pair[1]
	if c.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c.serv)}
	if err := unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, c.serv, &ev); err != nil {
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	c.redis, err = startRedis()
	return c, err
}

func (c *caller) close() error {
	for _, fd := range []int{c.zero, c.epoll, c.client, c.serv} {
		_ = unix.Close(fd) // the process ends
	}
	return c.redis.close()
}

// loads are those that can be measured here.
func (c *caller) loads() []string {
	return slices.DeleteFunc(callLoads(), func(load string) bool { return load == callRedis && c.redis == nil })
}

// block runs a load for a while and returns the nanoseconds per operation: of the
// thread's CPU time, with that of the server if it is another process; for programs
// that are started of time.
func (c *caller) block(load string) (float64, error) {
	clocks, n, op := []int32{unix.CLOCK_THREAD_CPUTIME_ID}, 100_000, c.getpid
	switch load {
	case callRead:
		op = c.read
	case callServe:
		n, op = 20_000, c.serve
	case callRedis:
		clocks, n, op = append(clocks, c.redis.clock), 5_000, c.redis.get
	case callExec:
		clocks, n, op = []int32{unix.CLOCK_MONOTONIC}, 100, c.exec
	}
	begin, err := now(clocks)
	if err != nil {
		return 0, err
	}
	for range n {
		if err := op(); err != nil {
			return 0, fmt.Errorf("%s: %w", load, err)
		}
	}
	end, err := now(clocks)
	return float64(end-begin) / float64(n), err
}

// now is the sum of some clocks, in nanoseconds.
func now(clocks []int32) (sum int64, err error) {
	for _, clock := range clocks {
		var ts unix.Timespec
		if err := unix.ClockGettime(clock, &ts); err != nil {
			return 0, os.NewSyscallError("clock_gettime", err)
		}
		sum += ts.Nano()
	}
	return sum, nil
}

func (c *caller) getpid() error {
	_, _, errno := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func (c *caller) read() error {
	_, err := unix.Read(c.zero, c.buf[:1])
	return err
}

// serve is what a server with one thread does for a request, and its client.
func (c *caller) serve() error {
	if _, err := unix.Write(c.client, []byte("GET key:000000001\r\n")); err != nil {
		return err
	}
	var events [1]unix.EpollEvent
	if _, err := unix.EpollWait(c.epoll, events[:], -1); err != nil {
		return err
	}
	if _, err := unix.Read(c.serv, c.buf); err != nil {
		return err
	}
	if _, err := unix.Write(c.serv, []byte("$3\r\nabc\r\n")); err != nil {
		return err
	}
	_, err := unix.Read(c.client, c.buf)
	return err
}

func (c *caller) exec() error {
	c.started++
	return exec.Command(execProgram).Run()
}

// measureCalls compares system calls and programs that are started with and without
// the exec probe, and with a trace of somebody else's calls.
func measureCalls(ctx context.Context, o options, r *report) error {
	rounds, blocks := 12, 10
	if o.quick {
		rounds, blocks = 3, 4
	}
	for run := range r.effort.runs {
		say("system calls and programs with and without the agent, run %d", run+1)
		f, err := compareCalls(ctx, o.binary, rounds, blocks)
		if err != nil {
			return err
		}
		r.calls = append(r.calls, f)
	}
	return nil
}

func compareCalls(ctx context.Context, binary string, rounds, blocks int) (f callFigures, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := openCaller()
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	f.ratios, err = compareBy(callArms(), rounds, rng, func(arm string) (map[string][]float64, error) {
		return f.visit(ctx, c, binary, arm, blocks)
	})
	return f, err
}

// visit measures one arm once.
func (f *callFigures) visit(ctx context.Context, c *caller, binary, arm string, blocks int) (times map[string][]float64, err error) {
	if err := errors.Join(ctx.Err(), waitUntilAlone()); err != nil {
		return nil, err
	}
	var agent *process
	if arm == armExec || arm == armTraced {
		agent, err = startAgent(ctx, binary, "--tcp=off", "--packet=off", "--drop=off", "--gpu=off", "--kubernetes=off")
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, agent.stop()) }()
	}
	if arm == armTraced {
		stop, err := traceOther(ctx, agent.api)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	times = make(map[string][]float64)
	started := c.started
	for _, load := range c.loads() {
		if times[load], err = counted(blocks, func() (float64, error) { return c.block(load) }); err != nil {
			return nil, err
		}
	}
	if agent == nil {
		return times, nil
	}
	return times, f.count(agent, c.started-started)
}

// count waits until the agent has counted the programs that were started.
func (f *callFigures) count(agent *process, started uint64) error {
	var counted, lost uint64
	for begin := time.Now(); time.Since(begin) < dnsCountTime; time.Sleep(100 * time.Millisecond) {
		body, err := agent.get("/metrics")
		if err != nil {
			return err
		}
		counted = sum(body, "orb8_process_starts_total{", `workload="host"`) // few others start programs
		lost = sum(body, "orb8_lost_events_total{", `stage="exec_ring_full"`)
		if counted >= started {
			break
		}
	}
	f.started, f.counted, f.lost = f.started+started, f.counted+counted, f.lost+lost
	return nil
}

// traceOther traces the system calls of a container that sleeps, until stop is called.
func traceOther(ctx context.Context, api string) (stop func() error, err error) {
	resolver, err := workload.NewResolver(workload.Config{})
	if err != nil {
		return nil, err
	}
	root := resolver.Mount().Path
	if err := resolver.Close(); err != nil {
		return nil, err
	}
	container := strings.Repeat("be", 32)
	dir := filepath.Join(root, "docker-"+container+".scope")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	sleeper := exec.CommandContext(ctx, "sleep", "300")
	undo := func() error {
		err := sleeper.Process.Kill()
		_ = sleeper.Wait() // it was killed
		return errors.Join(err, os.Remove(dir))
	}
	if err := sleeper.Start(); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	procs := filepath.Join(dir, "cgroup.procs")
	if err := os.WriteFile(procs, fmt.Append(nil, sleeper.Process.Pid), 0); err != nil {
		return nil, errors.Join(err, undo())
	}
	end, err := followCalls(ctx, api, container)
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	return func() error { return errors.Join(end(), undo()) }, nil
}

// followCalls asks for the system calls of a container and returns once it is traced.
func followCalls(ctx context.Context, api, container string) (end func() error, err error) {
	conn, err := grpc.NewClient(api, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	end = func() error {
		cancel()
		return conn.Close()
	}
	stream, err := orb8v1.NewOrbitAgentServiceClient(conn).Observe(ctx, &orb8v1.ObserveRequest{
		Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_SYSCALL}, Follow: true,
		Filters:  []*orb8v1.Filter{{Containers: []string{container}}},
		Syscalls: &orb8v1.SyscallTrace{DurationNs: int64(time.Hour)},
	})
	for err == nil {
		var ev *orb8v1.Event
		if ev, err = stream.Recv(); len(ev.GetSyscallTargets().GetWorkloads()) > 0 {
			return end, nil
		}
	}
	return nil, errors.Join(err, end())
}
