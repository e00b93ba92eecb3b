// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// numABIs and numKinds bound the tables by which rules are found.
const (
	numABIs  = int(process.ARM) + 1
	numKinds = int(process.Module) + 1
)

// Config says what an Engine works with.
type Config struct {
	// Off names rules that are not to be used.
	Off []string
	// Exceptions silence alerts.
	Exceptions []Exception
	// Container returns the id of the container that a cgroup belongs to, empty if to
	// none. It must not block or allocate.
	Container func(cgroupID uint64) string
	// Process returns a process, nil if it is not known. May be nil: then only
	// relatives are known.
	Process func(process.ID) *process.Process
	// Images returns the references (name, digest) of each image that a workload's
	// container may be made of, nil if nothing is known. May be nil. It must not block.
	Images func(*workload.Identity) [][]string
	// Found, if set, is told of each match that no exception silences when it is found,
	// also of those that Check does not return. at is in Unix nanoseconds.
	Found func(w *workload.Identity, r *Rule, at int64)
	// Losses counts matches that are not told one by one.
	Losses *loss.Counters
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Engine judges steps by the rules. It may be used from any goroutine, but must be
// told the steps of one process in order.
type Engine struct {
	process    func(process.ID) *process.Process
	found      func(*workload.Identity, *Rule, int64)
	images     func(*workload.Identity) [][]string
	losses     *loss.Counters
	now        func() time.Time
	containers *containers
	limits     *limiter
	settings   atomic.Pointer[settings]
	subjects   sync.Pool
}

// New makes an Engine. A rule that is not known, and an exception that silences
// nothing or everything, are errors that say what there is.
func New(cfg Config) (*Engine, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	e := &Engine{
		process:    cfg.Process,
		found:      cfg.Found,
		images:     cfg.Images,
		losses:     cfg.Losses,
		now:        cfg.Now,
		containers: newContainers(cfg.Container),
		limits:     newLimiter(),
		subjects:   sync.Pool{New: func() any { return new(Subject) }},
	}
	if err := e.Reconfigure(cfg.Off, cfg.Exceptions); err != nil {
		return nil, err
	}
	return e, nil
}

// Reconfigure takes over other settings; on an error, which is like one of New, those
// before stay.
func (e *Engine) Reconfigure(off []string, exceptions []Exception) error {
	s, err := newSettings(off, exceptions)
	if err != nil {
		return err
	}
	s.images = e.images
	e.settings.Store(s)
	return nil
}

// Judged reports whether rules look at a step at all: of a Fork only if it ends up in
// another cgroup.
func Judged(step *process.Step) bool {
	return step.What != process.Fork || step.Before != nil && step.Before.CgroupID != step.Process.CgroupID
}

// Check returns the alerts of a step, nil if there are none, or if all that was found is
// held for Held. w is the workload of the cgroup whose step it is, see Whose. Steps
// outside of containers raise none. It wants to be told Fork, Exec, Exit and all that
// comes in between.
func (e *Engine) Check(w *workload.Identity, step *process.Step) []*Alert {
	if w == nil || w.ContainerID == "" || step.Process == nil {
		return nil
	}
	if !Judged(step) {
		return nil
	}
	s := e.settings.Load()
	rules := s.forStep(step)
	if len(rules[0])+len(rules[1]) == 0 && step.What != process.Exec {
		return nil
	}
	subject := e.subjects.Get().(*Subject)
	defer func() {
		*subject = Subject{}
		e.subjects.Put(subject)
	}()
	subject.Step, subject.Workload = step, w
	if !e.describe(subject) {
		return nil
	}
	var alerts []*Alert
	for i := range rules {
		for _, r := range rules[i] {
			if a := e.judge(s, r, subject); a != nil {
				alerts = append(alerts, a)
			}
		}
	}
	return alerts
}

// Whose returns the cgroup whose step it is: that which a process left or, if a container
// made it in another cgroup than its own, that of who made it.
func (e *Engine) Whose(step *process.Step) uint64 {
	p, before := step.Process, step.Before
	switch {
	case step.What == process.Moved:
		return step.From
	case step.What == process.Fork && before != nil && before.CgroupID != p.CgroupID && e.containers.of(before.CgroupID) != "":
		return before.CgroupID
	}
	return p.CgroupID
}

// describe fills in what rules want to know of a step. It reports whether it is the
// container's, rather than its runtime's.
func (e *Engine) describe(s *Subject) bool {
	if s.What == process.Moved || s.What == process.Fork {
		s.Left = e.left(s)
		return true
	}
	if !e.containers.place(s) {
		return false
	}
	switch s.What {
	case process.Exec:
		s.Terminal = e.containers.terminal(s)
	case process.Privileged:
		if s.Privilege != nil {
			s.Call = syscalls.Name(s.Privilege.ABI, s.Privilege.Call)
		}
	case process.IOUring:
		s.Call = ioUringOp(s.Opcode)
	}
	return true
}

// left reports whether a process of the container that was left is who moved this one
// out of it, or made it outside.
func (e *Engine) left(s *Subject) bool {
	container := s.Workload.ContainerID
	if e.containers.of(s.Process.CgroupID) == container {
		return false
	}
	if s.What == process.Fork {
		return e.containers.of(s.Before.CgroupID) == container
	}
	if s.By == s.Process.ID {
		return true
	}
	for _, p := range s.Ancestors {
		if p.ID == s.By {
			return e.containers.of(p.CgroupID) == container
		}
	}
	if e.process == nil {
		return false
	}
	by := e.process(s.By)
	return by != nil && e.containers.of(by.CgroupID) == container
}

// judge returns the alert of a rule, nil if it finds nothing or is not to be told.
func (e *Engine) judge(set *settings, r *Rule, s *Subject) *Alert {
	s.Remote = netip.AddrPort{}
	summary, found := r.Match(s)
	if !found || set.silenced(r, s) {
		return nil
	}
	if e.found != nil {
		e.found(s.Workload, r, s.Time)
	}
	m := match{r, *s, summary}
	held, ok := e.limits.tell(e.now(), keyOf(r, s), &m)
	if !ok {
		e.losses.Add(loss.AlertsLimited, 1)
		return nil
	}
	return m.alert(held)
}

// Held returns an alert for each kind of matches that were found within a window and
// not told: the last of them, which says how many there were before. Those whose window
// is not over are left, unless all are asked for. It is to be called every second or
// so, with all at the end.
func (e *Engine) Held(all bool) []*Alert {
	var alerts []*Alert
	for _, h := range e.limits.due(e.now(), all) {
		alerts = append(alerts, h.last.alert(h.n-1))
	}
	return alerts
}

func (m *match) alert(repeated uint64) *Alert {
	s := &m.subject
	return &Alert{
		Rule: m.rule, Step: s.Step, Workload: s.Workload, Summary: m.summary, Remote: s.Remote, Repeated: repeated,
		LookCloser: lookCloser(s), Exception: exceptionFor(m.rule, s),
	}
}

func keyOf(r *Rule, s *Subject) alertKey {
	w := s.Workload
	key := alertKey{executable: s.Process.Exe.Path, call: s.Call}
	key.rule = r.Name
	key.owner = owner{w.Namespace, w.Kind, w.Name}
	if w.Namespace == "" {
		key.owner = owner{kind: workload.KindContainer, name: w.ContainerID}
	}
	return key
}

// lookCloser is a command that shows more of what the container does.
func lookCloser(s *Subject) string {
	const trace = "orb8 trace exec --exits "
	if s.Workload.Pod != "" {
		return trace + "--pod " + s.Workload.Namespace + "/" + s.Workload.Pod
	}
	return trace + "--container " + s.Workload.ContainerID
}

// Flags returns the names of the rules that flag a call of a traced container, nil if
// none does. Exceptions do not count.
func (e *Engine) Flags(c *syscalls.Call) []string {
	s := e.settings.Load()
	var names []string
	for _, rules := range [...][]*Rule{s.calls.find(c.ABI, c.Number), s.anyCall} {
		for _, r := range rules {
			if r.Call(c) {
				names = append(names, r.Name)
			}
		}
	}
	return names
}

// FlaggedCalls returns the names of the system calls that some of the rules may flag, or
// that any may, if none is named; refused says that they flag refused calls of any name.
func (e *Engine) FlaggedCalls(rules ...string) (calls []string, refused bool) {
	for _, r := range e.settings.Load().flagging {
		if len(rules) > 0 && !slices.Contains(rules, r.Name) {
			continue
		}
		calls = append(calls, r.Calls...)
		refused = refused || len(r.Calls) == 0
	}
	slices.Sort(calls)
	return slices.Compact(calls), refused
}
