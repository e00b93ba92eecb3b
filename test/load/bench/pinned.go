// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// pinned is one thread with a core of its own, where all that is timed runs. It
// has its own network namespace, so that what the host's firewall and other
// connections cost is not part of the figures.
type pinned struct {
	cpu   int
	calls chan func()
}

// newPinned starts the thread on the last core that this process may use and
// moves all other threads of the process to the remaining ones.
func newPinned() (*pinned, error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	cpu := lastCPU(&all)
	if rest := all; rest.Count() > 1 {
		rest.Clear(cpu)
		if err := moveThreads(&rest); err != nil {
			return nil, err
		}
	}
	p := &pinned{cpu: cpu, calls: make(chan func())}
	ready := make(chan error)
	go p.run(ready)
	return p, <-ready
}

func lastCPU(set *unix.CPUSet) int {
	last := 0
	for i := range len(set) * strconv.IntSize {
		if set.IsSet(i) {
			last = i
		}
	}
	return last
}

func moveThreads(to *unix.CPUSet) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, to); err != nil && err != unix.ESRCH {
			return os.NewSyscallError("sched_setaffinity", err)
		}
	}
	return nil
}

// run never unlocks the thread, so that it ends with the goroutine.
func (p *pinned) run(ready chan<- error) {
	runtime.LockOSThread()
	err := p.settle()
	ready <- err
	if err != nil {
		return
	}
	for f := range p.calls {
		f()
	}
}

func (p *pinned) settle() error {
	var one unix.CPUSet
	one.Set(p.cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20); err != nil {
		return os.NewSyscallError("setpriority", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	// Connections in TIME_WAIT pile up for a minute; the default bound would
	// make later ones end in another way than earlier ones.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("4194304"), 0); err != nil {
		return fmt.Errorf("raise the bound on connections in TIME_WAIT: %w", err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return os.NewSyscallError("ioctl", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req))
}

// do runs f on the thread and waits for it.
func (p *pinned) do(f func() error) error {
	done := make(chan error)
	p.calls <- func() { done <- f() }
	return <-done
}

func (p *pinned) close() { close(p.calls) }
