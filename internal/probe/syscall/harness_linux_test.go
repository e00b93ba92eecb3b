// SPDX-License-Identifier: Apache-2.0

package syscall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

const childEnv = "ORB8_SYSCALL_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child(os.Args[1:])
		return
	}
	goleak.VerifyTestMain(m)
}

const testBit = 7

// rig is a started probe with the cgroup that it traces and what it has told of.
type rig struct {
	*Probe
	losses    loss.Counters
	selection *probe.Selection
	dir       string
	cgroup    uint64
	cancel    context.CancelFunc
	done      chan error

	mu     sync.Mutex
	events []Event
}

// start runs a probe that tells of all calls of a new cgroup, or skips the test where
// the kernel does not take it.
func start(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := load(t, change)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan error, 1)
	go func() { r.done <- r.Run(ctx) }()
	t.Cleanup(func() { r.stop(t) })
	return r
}

// stop ends the trace.
func (r *rig) stop(t *testing.T) {
	t.Helper()
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// load is start without Run.
func load(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	probetest.NeedRoot(t)
	r := new(rig)
	r.selection = newSelection(t)
	cfg := Config{
		Selection: r.selection, Bit: testBit, Apply: r.apply, Losses: &r.losses, Clock: probe.NewClock(),
	}
	if change != nil {
		change(&cfg)
	}
	r.Probe = New(cfg)
	if err := r.Tell(0, Wanted{PerSecond: 1 << 30, Count: true}); err != nil {
		t.Fatal(err)
	}
	probetest.Start(t, r, "syscall trace: off")
	r.dir, r.cgroup = probetest.NewCgroup(t)
	if err := r.selection.Add(r.cgroup, testBit); err != nil {
		t.Fatal(err)
	}
	return r
}

func newSelection(t testing.TB) *probe.Selection {
	t.Helper()
	s, err := probe.NewSelection()
	if u, ok := errors.AsType[*probe.Unsupported](err); ok {
		t.Skipf("SKIP: %v", u)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (r *rig) apply(e *Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, *e)
}

// of returns the events so far for which ok holds.
func (r *rig) of(ok func(*Event) bool) (all []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.events {
		if ok == nil || ok(&r.events[i]) {
			all = append(all, r.events[i])
		}
	}
	return all
}

// wait waits for n events for which ok holds and returns them.
func (r *rig) wait(t *testing.T, n int, ok func(*Event) bool) []Event {
	t.Helper()
	var all []Event
	for deadline := time.Now().Add(10 * time.Second); len(all) < n && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		all = r.of(ok)
	}
	if len(all) != n {
		t.Fatalf("%d events, want %d; all:\n%s", len(all), n, list(r.of(nil)))
	}
	return all
}

// one waits for the only call with that number and first argument.
func (r *rig) one(t *testing.T, number int, arg0 uint64) *Event {
	t.Helper()
	e := &r.wait(t, 1, call(number, arg0))[0]
	if e.ABI != abis()[0] || e.CgroupID != r.cgroup || e.PID == 0 || e.TID == 0 || e.Time == 0 {
		t.Errorf("%s", show(e))
	}
	return e
}

// call matches a native call by its number and its first argument.
func call(number int, arg0 uint64) func(*Event) bool {
	return func(e *Event) bool {
		return e.ABI == abis()[0] && e.Number == int32(number) && e.Args[0] == arg0
	}
}

func show(e *Event) string {
	return fmt.Sprintf("%d cgroup %d pid %d tid %d %q %v unfinished %v refused %v: %+v",
		e.Time, e.CgroupID, e.PID, e.TID, bytes.TrimRight(e.Comm[:], "\x00"), e.Latency, e.Unfinished, e.Refused, e.Call)
}

func list(all []Event) string {
	var b strings.Builder
	for i := range all {
		fmt.Fprintln(&b, show(&all[i]))
		if b.Len() > 10000 {
			break
		}
	}
	return b.String()
}

// command is this test binary in the traced cgroup, told what to do.
func (r *rig) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	// Without the signals with which the runtime interrupts itself.
	cmd.Env = append(os.Environ(), childEnv+"=1", "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	probetest.InCgroup(t, cmd, r.dir)
	return cmd
}

// run has a child do something and returns what it says.
func (r *rig) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.command(t, args...).Output()
	if err != nil {
		t.Fatalf("%v: %v %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}
