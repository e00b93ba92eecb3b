// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Manager runs a fixed list of probes. One probe that cannot run, or stops
// running, never stops the others.
type Manager struct {
	log   *slog.Logger
	slots []*slot
}

type slot struct {
	probe    Probe
	off      string // why the configuration turned it off, empty if it did not
	helper   bool
	fallback func() (takenOverBy string, ok bool)

	// use is held while the probe is read or closed, and taken before mu.
	use sync.Mutex

	mu     sync.Mutex
	status Status
	live   bool
}

// Option changes how the Manager treats one probe.
type Option func(*slot)

// Off keeps the probe from being started, for the reason given.
func Off(reason string) Option { return func(s *slot) { s.off = reason } }

// Helper says that the probe serves others and sees nothing itself: alone it is no probe
// that runs.
func Helper() Option { return func(s *slot) { s.helper = true } }

// Fallback names what takes a probe's work over when it cannot run. by is asked
// after all probes have been started and says whether that works.
func Fallback(by func() (what string, ok bool)) Option {
	return func(s *slot) { s.fallback = by }
}

// NewManager returns a Manager without probes.
func NewManager(log *slog.Logger) *Manager { return &Manager{log: log} }

// Add appends a probe. Probes start in the order of the calls.
func (m *Manager) Add(p Probe, opts ...Option) {
	s := &slot{probe: p, status: Status{Name: p.Name(), State: StateOff, Reason: "not started"}}
	for _, o := range opts {
		o(s)
	}
	s.status.Helper = s.helper
	m.slots = append(m.slots, s)
}

// Start starts every probe that is not turned off. It returns an error, which
// joins each probe's own, only if none runs, helpers not counted.
func (m *Manager) Start() error {
	var errs []error
	running := 0
	for _, s := range m.slots {
		if err := s.start(m.log); err != nil {
			errs = append(errs, fmt.Errorf("probe %s: %w", s.probe.Name(), err))
			continue
		}
		if s.live && !s.helper {
			running++
		}
	}
	for _, s := range m.slots {
		s.resolveFallback()
	}
	if running == 0 {
		return errors.Join(append([]error{errors.New("no probe runs")}, errs...)...)
	}
	return nil
}

func (s *slot) start(log *slog.Logger) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off != "" {
		s.status.Reason, s.status.Disabled = s.off, true
		return nil
	}
	err := s.probe.Start()
	if err == nil {
		s.live = true
		s.status = Status{
			Name: s.probe.Name(), State: StateRunning, Helper: s.helper,
			Hooks: s.probe.Hooks(), Degraded: s.probe.Degraded(),
		}
		log.Info("probe runs", "probe", s.probe.Name(), "hooks", s.status.Hooks, "degraded", s.status.Degraded)
		return nil
	}
	s.setOff(err)
	log.Warn("probe is off", "probe", s.probe.Name(), "reason", s.status.Reason, "remedy", s.status.Remedy)
	return errors.Join(err, s.probe.Close())
}

// setOff is called with s.mu held.
func (s *slot) setOff(err error) {
	s.live = false
	s.status = Status{
		Name: s.probe.Name(), State: StateOff, Reason: err.Error(), Helper: s.helper, ReadErrors: s.status.ReadErrors,
	}
	if u, ok := errors.AsType[*Unsupported](err); ok {
		s.status.Remedy = u.Remedy
	}
}

func (s *slot) resolveFallback() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live || s.off != "" || s.fallback == nil {
		return
	}
	if what, ok := s.fallback(); ok {
		s.status.State = StateFallback
		s.status.Reason = what + ", because: " + s.status.Reason
	}
}

// Run runs all started probes until ctx is done. A probe that fails is closed
// and reported as off; the others go on. Run returns nil.
func (m *Manager) Run(ctx context.Context) error {
	var g errgroup.Group
	for _, s := range m.slots {
		if !s.isLive() {
			continue
		}
		g.Go(func() error {
			if err := s.probe.Run(ctx); err != nil && ctx.Err() == nil {
				m.log.Error("probe stopped", "probe", s.probe.Name(), "err", err)
				s.stop(m.log, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// stop closes a probe that cannot go on.
func (s *slot) stop(log *slog.Logger, cause error) {
	s.mu.Lock()
	s.setOff(fmt.Errorf("stopped: %w", cause))
	s.mu.Unlock()
	s.use.Lock()
	defer s.use.Unlock()
	if err := s.probe.Close(); err != nil {
		log.Error("close probe", "probe", s.probe.Name(), "err", err)
	}
}

// Collect reads every running probe once. Errors are logged, counted, and shown in the
// probe's status as degraded until a later pass succeeds.
func (m *Manager) Collect() {
	for _, s := range m.slots {
		s.collect(m.log)
	}
}

func (s *slot) collect(log *slog.Logger) {
	s.use.Lock()
	defer s.use.Unlock()
	if !s.isLive() {
		return
	}
	err := s.probe.Collect()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.live {
		return // it stopped meanwhile, and its status says why
	}
	s.status.Degraded = s.probe.Degraded()
	if err == nil {
		s.status.Failing = 0
	} else {
		s.status.ReadErrors++
		s.status.Failing++
		s.status.Degraded = append(s.status.Degraded, "last read failed: "+err.Error())
		log.Error("read probe", "probe", s.probe.Name(), "err", err)
	}
}

func (s *slot) isLive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live
}

// Status returns the state of every probe, in the order of Add.
func (m *Manager) Status() []Status {
	all := make([]Status, len(m.slots))
	for i, s := range m.slots {
		s.mu.Lock()
		all[i] = s.status
		s.mu.Unlock()
	}
	return all
}

// Running reports whether the named probe runs.
func (m *Manager) Running(name string) bool {
	for _, s := range m.slots {
		if s.probe.Name() == name {
			return s.isLive()
		}
	}
	return false
}

// Close closes every probe that is not turned off, the last one first.
func (m *Manager) Close() error {
	var errs []error
	for i := len(m.slots) - 1; i >= 0; i-- {
		s := m.slots[i]
		if s.off != "" {
			continue
		}
		if err := s.close(); err != nil {
			errs = append(errs, fmt.Errorf("close probe %s: %w", s.probe.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func (s *slot) close() error {
	s.use.Lock()
	defer s.use.Unlock()
	s.mu.Lock()
	s.live = false
	s.mu.Unlock()
	return s.probe.Close()
}
