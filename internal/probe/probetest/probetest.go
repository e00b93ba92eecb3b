// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package probetest helps to test probes against the running kernel: in network
// namespaces and cgroups of the test's own, and with a skip and its reason where
// the host cannot do what a test needs.
package probetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// made numbers what tests of one process make, so that names differ.
var made atomic.Int64 //nolint:gochecknoglobals // names are the host's, not a test's

func newName() string { return fmt.Sprintf("orb8-test-%d-%d", os.Getpid(), made.Add(1)) }

// NeedRoot skips the test without the privilege to load programs.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to load BPF programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Logf("raise the memlock limit: %v", err)
	}
}

// Start starts p for the time of the test. Where the kernel lacks what it needs,
// the test is skipped and feature, "name: fallback" or "name: off", noted.
func Start(t testing.TB, p probe.Probe, feature string) {
	t.Helper()
	NeedRoot(t)
	err := p.Start()
	if u, ok := errors.AsType[*probe.Unsupported](err); ok {
		t.Logf("orb8-feature: %s: %v", feature, u)
		t.Skipf("SKIP: %v", u)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

// Run runs a probe for the time of the test.
func Run(t testing.TB, p probe.Probe) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run does not end")
		}
	})
}

// Works notes for docs/kernels.md that what name stands for works here, unless the test
// has failed.
func Works(t testing.TB, name string) {
	t.Helper()
	if !t.Failed() {
		t.Logf("orb8-feature: %s: works", name)
	}
}

// CgroupRoot is where the cgroup2 hierarchy is mounted.
func CgroupRoot(t testing.TB) string {
	t.Helper()
	m, err := workload.FindCgroupMount("/proc", "")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	return m.Path
}

// CgroupID is the id of the cgroup with this folder.
func CgroupID(t testing.TB, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatalf("stat %s: %v", dir, err)
	}
	return st.Ino
}

// NewCgroup makes a cgroup for the time of the test.
func NewCgroup(t testing.TB) (dir string, id uint64) {
	t.Helper()
	NeedRoot(t)
	dir = filepath.Join(CgroupRoot(t), newName())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 50 { // a process leaves its cgroup a little after its end
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error(err)
	})
	return dir, CgroupID(t, dir)
}

// Command is exec.Command for what a test waits for: a process that has not ended after
// two minutes gets SIGQUIT, on which a Go program prints its goroutines.
func Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// InCgroup has cmd start in the cgroup.
func InCgroup(t testing.TB, cmd *exec.Cmd, dir string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
}
