// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a Probe that does as it is told. Its fields are guarded by mu.
type fake struct {
	name     string
	startErr error
	closeErr error
	runErr   chan error // what Run returns, before ctx is done
	diary    *diary

	mu         sync.Mutex
	collectErr error
	degraded   []string
	open       bool
	collects   int
}

// diary is what several probes did, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) write(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func newFake(name string, d *diary) *fake {
	return &fake{name: name, diary: d, runErr: make(chan error, 1)}
}

func (f *fake) Name() string    { return f.name }
func (f *fake) Hooks() []string { return []string{"hook/" + f.name} }

func (f *fake) Start() error {
	f.diary.write("start %s", f.name)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = f.startErr == nil
	return f.startErr
}

func (f *fake) Run(ctx context.Context) error {
	select {
	case err := <-f.runErr:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (f *fake) Collect() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.open {
		f.diary.write("%s is read while it is closed", f.name)
	}
	f.collects++
	return f.collectErr
}

func (f *fake) Degraded() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.degraded)
}

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open {
		f.diary.write("close %s", f.name)
	}
	f.open = false
	return f.closeErr
}

func (f *fake) isOpen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

func (f *fake) set(err error, degraded ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.collectErr, f.degraded = err, degraded
}

func newTestManager() *Manager { return NewManager(slog.New(slog.DiscardHandler)) }

func wantStatus(t *testing.T, m *Manager, want ...Status) {
	t.Helper()
	if d := cmp.Diff(want, m.Status()); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
}

func runs(name string, degraded ...string) Status {
	return Status{Name: name, State: StateRunning, Hooks: []string{"hook/" + name}, Degraded: degraded}
}

func TestOneFailsTheOthersRun(t *testing.T) {
	d := new(diary)
	m := newTestManager()
	a, b, c := newFake("a", d), newFake("b", d), newFake("c", d)
	a.startErr = errors.New("broken")
	b.startErr = fmt.Errorf("load: %w", &Unsupported{Reason: "no BTF", Remedy: "get some"})
	m.Add(a)
	m.Add(b)
	m.Add(c)
	wantStatus(t, m,
		Status{Name: "a", State: StateOff, Reason: "not started"},
		Status{Name: "b", State: StateOff, Reason: "not started"},
		Status{Name: "c", State: StateOff, Reason: "not started"},
	)
	if err := m.Start(); err != nil {
		t.Fatalf("one probe runs, so there is no error: %v", err)
	}
	wantStatus(t, m,
		Status{Name: "a", State: StateOff, Reason: "broken"},
		Status{Name: "b", State: StateOff, Reason: "load: no BTF", Remedy: "get some"},
		runs("c"),
	)
	for name, want := range map[string]bool{"a": false, "b": false, "c": true, "d": false} {
		if got := m.Running(name); got != want {
			t.Errorf("Running(%q) = %v, want %v", name, got, want)
		}
	}
	m.Collect()
	if a.collects+b.collects != 0 || c.collects != 1 {
		t.Errorf("read %d, %d, %d times, want only c once", a.collects, b.collects, c.collects)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"start a", "start b", "start c", "close c"}, d.lines); d != "" {
		t.Errorf("what happened (-want +got):\n%s", d)
	}
}

func TestNoneRuns(t *testing.T) {
	m := newTestManager()
	cause := errors.New("broken")
	a := newFake("a", new(diary))
	a.startErr = cause
	m.Add(a)
	m.Add(newFake("b", new(diary)), Off("by flag"))
	err := m.Start()
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), "no probe runs") || !strings.Contains(err.Error(), "probe a: ") {
		t.Errorf("error %v", err)
	}
	if err := newTestManager().Start(); err == nil {
		t.Error("a manager without probes starts")
	}
}

// A helper alone is no probe that runs.
func TestHelper(t *testing.T) {
	m := newTestManager()
	m.Add(newFake("h", new(diary)), Helper())
	m.Add(newFake("a", new(diary)), Off("by flag"))
	if err := m.Start(); err == nil {
		t.Error("a helper counts as a probe")
	}
	if s := m.Status()[0]; s.State != StateRunning || !s.Helper {
		t.Errorf("%+v", s)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestOffAndFallback(t *testing.T) {
	d := new(diary)
	m := newTestManager()
	off, takenOver, alone, fine, other := newFake("off", d), newFake("taken-over", d), newFake("alone", d), newFake("fine", d), newFake("other", d)
	takenOver.startErr = &Unsupported{Reason: "too old", Remedy: "a newer kernel"}
	alone.startErr = errors.New("broken")
	by := func(ok bool) Option {
		return Fallback(func() (string, bool) { return "other counts it", ok && m.Running("other") })
	}
	m.Add(off, Off("by flag"), by(true))
	m.Add(takenOver, by(true))
	m.Add(alone, by(false))
	m.Add(fine, by(true))
	m.Add(other)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	want := []Status{
		{Name: "off", State: StateOff, Reason: "by flag", Disabled: true},
		{Name: "taken-over", State: StateFallback, Reason: "other counts it, because: too old", Remedy: "a newer kernel"},
		{Name: "alone", State: StateOff, Reason: "broken"},
		runs("fine"), runs("other"),
	}
	wantStatus(t, m, want...)
	m.Collect()
	wantStatus(t, m, want...)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{
		"start taken-over", "start alone", "start fine", "start other", "close other", "close fine",
	}, d.lines); d != "" {
		t.Errorf("what happened (-want +got):\n%s", d)
	}
}

func TestRunFails(t *testing.T) {
	d := new(diary)
	m := newTestManager()
	a, b, c := newFake("a", d), newFake("b", d), newFake("c", d)
	c.startErr = errors.New("broken")
	for _, f := range []*fake{a, b, c} {
		m.Add(f)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() { // reads all the while
		for {
			select {
			case <-stop:
				return
			default:
				m.Collect()
				m.Status()
			}
		}
	})
	a.runErr <- &Unsupported{Reason: "ring gone", Remedy: "start again"}
	testwait.True(t, "the end of the probe that failed", func() bool {
		select {
		case <-done:
			t.Fatal("one failure stopped all")
		default:
		}
		return !m.Running("a") && !a.isOpen()
	})
	close(stop)
	reader.Wait()
	wantStatus(t, m,
		Status{Name: "a", State: StateOff, Reason: "stopped: ring gone", Remedy: "start again"},
		runs("b"),
		Status{Name: "c", State: StateOff, Reason: "broken"},
	)
	a.collects, b.collects = 0, 0
	m.Collect()
	if a.collects != 0 || b.collects != 1 {
		t.Errorf("read %d and %d times, want only b once", a.collects, b.collects)
	}
	// An error on the way out is none.
	cancel()
	if err := testwait.Receive(t, "the end of Run", done); err != nil {
		t.Errorf("Run = %v", err)
	}
	if !m.Running("b") {
		t.Error("b runs until Close")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"start a", "start b", "start c", "close a", "close b"}, d.lines); d != "" {
		t.Errorf("what happened (-want +got):\n%s", d)
	}
}

func TestCollectError(t *testing.T) {
	m := newTestManager()
	f, g := newFake("f", new(diary)), newFake("g", new(diary))
	f.set(nil, "no pids")
	m.Add(f)
	m.Add(g)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, m, runs("f", "no pids"), runs("g"))
	f.set(errors.New("read: no memory"), "no pids")
	for i := range 2 { // it is said once, however often it happens
		m.Collect()
		failing := runs("f", "no pids", "last read failed: read: no memory")
		failing.ReadErrors, failing.Failing = uint64(i+1), i+1
		wantStatus(t, m, failing, runs("g"))
		if got := failing.Unreadable(); got != (i > 0) {
			t.Errorf("unreadable after %d readings: %v", i+1, got)
		}
	}
	f.set(nil, "no pids")
	m.Collect()
	again := runs("f", "no pids")
	again.ReadErrors = 2
	wantStatus(t, m, again, runs("g"))
	if f.collects != 3 || g.collects != 3 {
		t.Errorf("read %d and %d times, want 3", f.collects, g.collects)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	m.Collect()
	if f.collects != 3 {
		t.Error("read after Close")
	}
}

func TestCloseErrors(t *testing.T) {
	m := newTestManager()
	var want []error
	for _, name := range []string{"a", "b", "c"} {
		f := newFake(name, new(diary))
		if name != "b" {
			f.closeErr = errors.New(name + " stuck")
			want = append(want, f.closeErr)
		}
		m.Add(f)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	err := m.Close()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("error %v lacks %v", err, w)
		}
	}
	if err == nil || !strings.HasPrefix(err.Error(), "close probe c: c stuck\n") {
		t.Errorf("error %q, want the last probe's first", err)
	}
}

func TestStateString(t *testing.T) {
	for s, want := range map[State]string{StateRunning: "running", StateFallback: "fallback", StateOff: "off"} {
		if got := s.String(); got != want {
			t.Errorf("State(%d) = %q, want %q", s, got, want)
		}
	}
}
