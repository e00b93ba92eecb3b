// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probetest

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Netns is a network namespace. That of the test itself is nil.
type Netns struct {
	name string
	fd   int
}

// NewNetns makes a network namespace for the time of the test, its loopback up.
func NewNetns(t testing.TB) *Netns {
	t.Helper()
	NeedRoot(t)
	var own *Netns
	n := &Netns{name: newName()}
	own.Need(t, "ip", "netns", "add", n.name)
	t.Cleanup(func() {
		if err := own.command(context.WithoutCancel(t.Context()), "ip", "netns", "del", n.name); err != nil {
			t.Error(err)
		}
	})
	var err error
	n.fd, err = unix.Open("/var/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(n.fd) })
	n.Run(t, "ip", "link", "set", "lo", "up")
	return n
}

// Name is the namespace's, for ip.
func (n *Netns) Name() string { return n.name }

// Joined makes two namespaces with a veth pair v0 between them. a is 10.231.0.1
// and fd00:231::1, b is 10.231.0.2 and fd00:231::2.
func Joined(t testing.TB) (a, b *Netns) {
	t.Helper()
	a, b = NewNetns(t), NewNetns(t)
	a.Need(t, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", b.name)
	for i, n := range []*Netns{a, b} {
		n.Run(t, "ip", "addr", "add", fmt.Sprintf("10.231.0.%d/24", i+1), "dev", "v0")
		n.Run(t, "ip", "addr", "add", fmt.Sprintf("fd00:231::%d/64", i+1), "dev", "v0", "nodad")
		// Packets of a link, not of 64 KiB, so that a share of them is many.
		n.Need(t, "ip", "link", "set", "v0", "gso_max_segs", "1", "up")
	}
	return a, b
}

// Steer has packets that come in on v0 taken over by CPUs 0 and 1, which are told by
// interrupt, as with the queues of a real network card.
func (n *Netns) Steer(t testing.TB) {
	t.Helper()
	var own *Netns // this command enters, and shows the namespace's own /sys
	own.Need(t, "ip", "netns", "exec", n.name, "sh", "-c", "for f in /sys/class/net/v0/queues/rx-*/rps_cpus; do echo 3 >$f; done")
}

// Run runs a program in the namespace.
func (n *Netns) Run(t testing.TB, args ...string) {
	t.Helper()
	if err := n.command(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
}

// Need is Run for what a host may lack: where it fails, the test is skipped.
func (n *Netns) Need(t testing.TB, args ...string) {
	t.Helper()
	if err := n.command(t.Context(), args...); err != nil {
		t.Skipf("SKIP: %v", err)
	}
}

func (n *Netns) command(ctx context.Context, args ...string) error {
	var out []byte
	var err error
	n.Do(func() { out, err = exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput() })
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// Do runs f in the namespace, on a thread of its own. The sockets that f makes
// and the processes that it starts stay there.
func (n *Netns) Do(f func()) {
	if n == nil {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		f()
	}()
	<-done
}
