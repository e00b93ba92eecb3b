// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	defaultDeadline = 3 * time.Second
	// retryAbsent is how often a backend without devices looks again, and
	// retryFailed one that failed.
	retryAbsent = 60 * time.Second
	retryFailed = 10 * time.Second
	// releasePause is how long nothing is read after Release, so that a driver
	// can be unloaded.
	releasePause = 15 * time.Second
	// fillAge is how old samples may be that fill in for absent values.
	fillAge = 60 * time.Second
)

// State says how a backend does.
type State int

// States of a backend; the numbers are those of the API.
const (
	// StateOff: there are no such devices, or no way to read them.
	StateOff State = iota
	StateRunning
	// StateFailed: the last read failed; it is tried again.
	StateFailed
	// StateStuck: a read has not come back in time.
	StateStuck
)

// String returns off, running, failed or stuck.
func (s State) String() string { return [...]string{"off", "running", "failed", "stuck"}[s] }

// States lists the states.
func States() []State { return []State{StateOff, StateRunning, StateFailed, StateStuck} }

// Status is what is said of one backend.
type Status struct {
	Name    string
	State   State
	Reason  string
	Remedy  string
	Devices int
	// Since is when State began.
	Since time.Time
	// Reads that ended well, Failed ones, and Skipped: those that were due while
	// an earlier one was stuck.
	Reads, Failed, Skipped uint64
	// ReadTime is the total time of all reads that came back.
	ReadTime time.Duration
}

// Source is a backend with its part.
type Source struct {
	Backend
	// Fills: its values complete those of other backends for the same device; a
	// device that no other backend has is reported by it.
	Fills bool
}

// Config is what a Collector needs.
type Config struct {
	Sources []Source
	// Interval is the time between two samples as things are.
	Interval func() time.Duration
	// Deadline of a read, after which the backend counts as stuck. Default 3 s.
	Deadline time.Duration
	// Holders returns who was given a device; nil where nobody hands out devices.
	Holders func(*Device) []Holder
	// Owner names the workload of a process and its command, nil and empty if they
	// are not known.
	Owner func(pid uint32) (*workload.Identity, string)
	// HiddenPIDs: Owner cannot find any process, since it does not see those of the
	// host. What holders do is then not judged by processes.
	HiddenPIDs bool
	// Report takes what was read. It is called by one goroutine at a time.
	Report func([]Report)
	Log    *slog.Logger
}

// Collector samples devices, each backend in a goroutine of its own, so that a
// driver that hangs holds up nothing else.
type Collector struct {
	cfg   Config
	lanes []*lane

	mu sync.Mutex
	// fill has the latest samples of sources that fill in, by device, and main
	// which devices the other sources have.
	fill map[string]Sample
	main map[string]time.Time
}

// lane is one backend at work.
type lane struct {
	Source
	c *Collector
	// ask starts a read, answers gives its outcome; at most one is under way.
	ask     chan request
	answers chan outcome
	resets  chan struct{}

	mu     sync.Mutex
	status Status
	// answered: a reading has come back, or is late.
	answered atomic.Bool
}

// request is for a read, or to give back all handles.
type request struct {
	ctx     context.Context // of the one call
	release bool
}

type outcome struct {
	samples []Sample
	err     error
	took    time.Duration
}

// NewCollector returns a Collector that has not begun.
func NewCollector(cfg Config) *Collector {
	if cfg.Deadline <= 0 {
		cfg.Deadline = defaultDeadline
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Collector{cfg: cfg, fill: make(map[string]Sample), main: make(map[string]time.Time)}
	for _, s := range cfg.Sources {
		c.lanes = append(c.lanes, &lane{
			Source: s, c: c, ask: make(chan request), answers: make(chan outcome, 1), resets: make(chan struct{}, 1),
			status: Status{Name: s.Name(), Reason: "not read yet", Since: time.Now()},
		})
	}
	return c
}

// Run samples until ctx is done. It does not wait for a driver that hangs.
func (c *Collector) Run(ctx context.Context) {
	var g sync.WaitGroup
	for _, l := range c.lanes {
		go l.work() //nolint:contextcheck // each request brings its own
		g.Go(func() { l.run(ctx) })
	}
	g.Wait()
}

// Release gives back all handles of drivers and reads nothing for 15 s, so that a
// driver can be unloaded.
func (c *Collector) Release() {
	for _, l := range c.lanes {
		select {
		case l.resets <- struct{}{}:
		default:
		}
	}
}

// Status returns how each backend does, in their order.
func (c *Collector) Status() []Status {
	all := make([]Status, len(c.lanes))
	for i, l := range c.lanes {
		l.mu.Lock()
		all[i] = l.status
		l.mu.Unlock()
	}
	return all
}

// Answered reports whether every backend has been read once, or has not answered in
// time.
func (c *Collector) Answered() bool {
	return !slices.ContainsFunc(c.lanes, func(l *lane) bool { return !l.answered.Load() })
}

// work makes the calls that may hang. It ends when ask is closed, and it has come
// back.
func (l *lane) work() {
	for r := range l.ask {
		if r.release {
			l.answers <- outcome{err: errors.Join(errReleased, l.Close())}
			continue
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(r.ctx, l.c.cfg.Deadline)
		samples, err := l.Read(ctx)
		cancel()
		l.answers <- outcome{samples, err, time.Since(began)}
	}
	if err := l.Close(); err != nil {
		l.c.cfg.Log.Warn("give back the handles of devices", "backend", l.Name(), "err", err)
	}
}

var errReleased = errors.New("handles were given back to let the driver go")

// run keeps the time, and the deadline.
func (l *lane) run(ctx context.Context) {
	defer close(l.ask)
	timer := time.NewTimer(0)
	defer timer.Stop()
	busy, reset := false, false
	var begun time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.resets:
			reset = true
			if !busy { // else when it comes back: it is not late yet
				timer.Reset(0)
			}
		case o := <-l.answers:
			busy = false
			next := l.done(o, begun)
			if reset {
				next = 0
			}
			timer.Reset(next)
		case <-timer.C:
			if busy {
				l.late(time.Since(begun))
				timer.Reset(max(l.c.cfg.Interval(), 100*time.Millisecond))
				continue
			}
			l.ask <- request{ctx, reset}
			busy, reset, begun = true, false, time.Now()
			timer.Reset(l.c.cfg.Deadline)
		}
	}
}

// late notes that a read has not come back.
func (l *lane) late(after time.Duration) {
	l.mu.Lock()
	l.status.Skipped++
	l.mu.Unlock()
	l.become(StateStuck, fmt.Sprintf("the driver has not answered for %s", after.Round(time.Second)),
		"look at the kernel's log (dmesg) for errors of the driver; nothing else is held up")
}

// done takes an outcome and returns when to read again.
func (l *lane) done(o outcome, begun time.Time) time.Duration {
	l.mu.Lock()
	l.status.ReadTime += o.took
	if o.err == nil {
		l.status.Reads++
		l.status.Devices = len(o.samples)
	} else {
		l.status.Devices = 0
	}
	l.mu.Unlock()
	unsupported := new(Unsupported)
	switch {
	case errors.Is(o.err, errReleased):
		l.become(StateOff, o.err.Error(), "")
		return releasePause
	case errors.As(o.err, &unsupported):
		l.become(StateOff, unsupported.Error(), unsupported.Remedy)
		return retryAbsent
	case o.err != nil:
		l.mu.Lock()
		l.status.Failed++
		l.mu.Unlock()
		l.become(StateFailed, o.err.Error(), "")
		return retryFailed
	}
	// In this order: who fills in asks which devices those that have answered have.
	l.c.take(l, o.samples)
	l.become(StateRunning, "", "")
	return max(time.Until(begun.Add(l.c.cfg.Interval())), 0)
}

func (l *lane) become(s State, reason, remedy string) {
	l.answered.Store(true)
	l.mu.Lock()
	before := l.status.State
	changed := before != s
	if changed {
		l.status.Since = time.Now()
	}
	l.status.State, l.status.Reason, l.status.Remedy = s, reason, remedy
	l.mu.Unlock()
	if !changed {
		return
	}
	log := l.c.cfg.Log.With("backend", l.Name())
	switch s {
	case StateRunning:
		log.Info("accelerators are read")
	case StateOff:
		log.Info("accelerators are not read", "why", reason)
	default:
		log.Warn("accelerators cannot be read", "state", s, "why", reason)
	}
}

// take hands on what a backend has read.
func (c *Collector) take(l *lane, samples []Sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.Fills {
		samples = c.keep(samples)
	} else {
		for i := range samples {
			c.main[fillKey(samples[i].Device)] = samples[i].Time
			c.complete(&samples[i])
		}
	}
	reports := make([]Report, 0, len(samples))
	for i := range samples {
		var holders []Holder
		if c.cfg.Holders != nil {
			holders = c.cfg.Holders(samples[i].Device)
		}
		reports = append(reports, c.attribute(samples[i], holders))
	}
	if len(reports) > 0 {
		c.cfg.Report(reports)
	}
}

// attribute divides a sample, with each process looked up once.
func (c *Collector) attribute(s Sample, holders []Holder) Report {
	s.ProcessesKnown = s.ProcessesKnown && !c.cfg.HiddenPIDs
	owners := make(map[uint32]*workload.Identity, len(s.Processes))
	for i := range s.Processes {
		p := &s.Processes[i]
		owners[p.PID], p.Command = c.cfg.Owner(p.PID)
	}
	hideBehindServer(&s)
	return Attribute(s, holders, func(pid uint32) *workload.Identity { return owners[pid] })
}

// mpsServer is the process by which the clients of CUDA's Multi-Process Service use a device.
const mpsServer = "nvidia-cuda-mps-server"

// hideBehindServer takes the activity from the processes of a device that is shared by MPS: the
// driver tells of the server's, or of none, and what of it was for which client nobody knows.
func hideBehindServer(s *Sample) {
	// The kernel cuts names of commands.
	if !slices.ContainsFunc(s.Processes, func(p Process) bool {
		return len(p.Command) >= 15 && strings.HasPrefix(mpsServer, p.Command)
	}) {
		return
	}
	for i := range s.Processes {
		s.Processes[i].Utilization = Value{}
	}
}

// keep stores samples that fill in, and returns those of devices that no other
// source has.
func (c *Collector) keep(samples []Sample) []Sample {
	var own []Sample
	clear(c.fill)
	c.fillAll(samples)
	if slices.ContainsFunc(c.lanes, func(l *lane) bool { return !l.Fills && !l.answered.Load() }) {
		return nil // it may yet turn out to have the same devices
	}
	for _, s := range samples {
		key := fillKey(s.Device)
		if seen, ok := c.main[key]; !ok || s.Time.Sub(seen) > fillAge {
			own = append(own, s)
		}
	}
	return own
}

func (c *Collector) fillAll(samples []Sample) {
	for _, s := range samples {
		c.fill[fillKey(s.Device)] = s
	}
}

// complete adds the values that s lacks and another source has.
func (c *Collector) complete(s *Sample) {
	f, ok := c.fill[fillKey(s.Device)]
	if !ok || s.Lost || s.Time.Sub(f.Time) > fillAge {
		return
	}
	if s.Momentary && f.Values[Utilization].Known() && !f.Momentary {
		s.Values[Utilization], s.Momentary = f.Values[Utilization], false // a mean is worth more
	}
	if !s.Values[Utilization].Known() {
		s.Momentary = f.Momentary
	}
	for m := range s.Values {
		s.Values[m] = s.Values[m].Or(f.Values[m])
	}
}

// fillKey is the same for a device whoever reads it: not all know the ids of parts.
func fillKey(d *Device) string {
	if d.Parent != "" && d.Instance >= 0 {
		return strings.ToLower(d.Parent) + "/" + strconv.Itoa(d.Instance)
	}
	return strings.ToLower(d.ID)
}
