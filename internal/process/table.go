// SPDX-License-Identifier: Apache-2.0

package process

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
)

const (
	// DefaultMax bounds the processes that a Table keeps, ended ones included.
	DefaultMax = 16384
	// linger is how long an ended process can still be found, for events that come
	// late.
	linger = 30 * time.Second
	// maxAncestors bounds how far up a process's ancestors are known.
	maxAncestors = 16
	// maxLine bounds how many ancestors hang on a process, known for itself or not:
	// they may have other children that are told of with theirs.
	maxLine = 64
	// askEvery and askFor say how often and how long after events were lost it is
	// asked which processes are still there: who has ended may be there until its parent
	// takes notice.
	askEvery, askFor = 10 * time.Second, time.Minute
)

// Config of a Table. Losses is required.
type Config struct {
	// Max is DefaultMax if 0.
	Max int
	// Redact, if set, returns arguments without what nobody should see. It may change
	// and return the slice that it is given.
	Redact func([]string) []string
	// Alive, if set, reports whether a process has not ended. Sweep asks it after
	// events were lost, as ends may be among them.
	Alive  func(ID) bool
	Losses *loss.Counters
}

// Table keeps the processes of this host. It may be used from any goroutine.
type Table struct {
	cfg Config

	mu      sync.Mutex
	entries map[ID]*entry
	cgroups map[uint64]*cgroup
	// ended are those that have, in that order.
	ended []*entry
	// latest is by pid, also if it has ended.
	latest map[uint32]*entry
	// read is up to when all that happened has been applied, in Unix nanoseconds.
	read int64

	// What follows serves to find ends that were not told of.
	//
	// lost is how many events had been lost as of the last sweep, full whether a process
	// was forgotten while it ran since. Until askUntil it is asked who is there, next at
	// askAt.
	lost            uint64
	full            bool
	askAt, askUntil time.Time
	// absent are those that were not there the last time.
	absent []*entry
}

// entry is a process at its place in the family tree.
type entry struct {
	id      ID
	process *Process
	// parent is who forked it, although that one may have ended and others have taken
	// its children over. nil if not known, or too far up from somebody.
	parent *entry
	// ended is when, zero while it lives; endedAt is the same as the kernel told, in Unix
	// nanoseconds, 0 if it did not.
	ended   time.Time
	endedAt int64
	// lost is how many events had been lost when it was told of last.
	lost uint64
}

type cgroup struct {
	// start is when the first process known in it was made, in Unix nanoseconds.
	start int64
	live  int
}

// NewTable returns an empty table.
func NewTable(cfg Config) *Table {
	if cfg.Max == 0 {
		cfg.Max = DefaultMax
	}
	return &Table{
		cfg: cfg, entries: make(map[ID]*entry), cgroups: make(map[uint64]*cgroup), latest: make(map[uint32]*entry),
	}
}

// Len is how many processes the table knows that have not ended.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries) - len(t.ended)
}

// Find returns a process, nil if it is not known.
func (t *Table) Find(id ID) *Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[id]; e != nil {
		return e.process
	}
	return nil
}

// Running returns the processes that have not ended, in no order.
func (t *Table) Running() []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*Process, 0, len(t.latest))
	for _, e := range t.latest {
		if e.ended.IsZero() {
			all = append(all, e.process)
		}
	}
	return all
}

// Apply takes an event in and returns what it means, or nil where it means nothing:
// that a process is there already, or that one is moved that has ended. The step of a Fork has no ancestors unless the
// child's rights, namespaces or cgroup are not its parent's. e is not kept.
func (t *Table) Apply(e *Event) *Step {
	if t.cfg.Redact != nil && len(e.Process.Args) > 0 {
		e.Process.Args = t.cfg.Redact(e.Process.Args)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e.What {
	case Seen:
		t.seen(e)
		return nil
	case Fork:
		return t.fork(e)
	}
	known := t.entries[e.Process.ID]
	isNew := known == nil
	if isNew {
		known = t.add(&e.Process)
	}
	if e.What == Moved && !known.ended.IsZero() {
		return nil
	}
	s := t.change(known, e)
	if isNew {
		s.Before = nil
	}
	if e.What == Exit {
		known.endedAt = e.Time
		t.end(known)
	}
	return s
}

// seen takes in a process that was there before the probe, unless its fork or exec
// was told of in the meantime.
func (t *Table) seen(e *Event) {
	known := t.entries[e.Process.ID]
	if known == nil {
		p := e.Process
		p.Seeded, p.NSPID, p.TTY = true, nsPID(e), hasTTY(e)
		t.add(&p)
		return
	}
	if known.process.Exe.Path != "" || !known.ended.IsZero() {
		return
	}
	p := *known.process
	p.Exe, p.Args, p.ArgsTruncated, p.NSPID = e.Process.Exe, e.Process.Args, e.Process.ArgsTruncated, nsPID(e)
	p.TTY = hasTTY(e)
	known.process, known.lost = &p, t.lostEvents()
}

// nsPID is a process's pid in its own pid namespace, of Exec and Seen.
func nsPID(e *Event) uint32 {
	if e.Start == nil {
		return 0
	}
	return e.Start.NSPID
}

func hasTTY(e *Event) bool { return e.Start != nil && e.Start.TTY }

// fork makes a process that goes on as its parent: with its executable and
// arguments.
func (t *Table) fork(e *Event) *Step {
	if t.entries[e.Process.ID] != nil {
		return nil
	}
	p := e.Process
	var from *Process
	if parent := t.entries[p.Parent]; parent != nil {
		from = parent.process
		p.Exe, p.Args, p.ArgsTruncated, p.Execed = from.Exe, from.Args, from.ArgsTruncated, from.Execed
		p.TTY = from.TTY
		p.ExecNS = from.ExecNS
	}
	known := t.add(&p)
	if from == nil || p.Creds == from.Creds && p.NS == from.NS && p.CgroupID == from.CgroupID {
		return &Step{Event: Event{What: Fork, Time: e.Time}, Process: known.process}
	}
	s := t.step(known, e)
	s.Before = from
	return s
}

// change brings a process up to date. One that has ended stays where it was.
func (t *Table) change(known *entry, e *Event) *Step {
	before := known.process
	p := *before
	p.Comm, p.Creds, p.NS = e.Process.Comm, e.Process.Creds, e.Process.NS.or(before.NS)
	if e.What == Exec {
		p.Exe, p.Args, p.ArgsTruncated, p.Execed = e.Process.Exe, e.Process.Args, e.Process.ArgsTruncated, e.Time
		p.NSPID, p.TTY = nsPID(e), hasTTY(e)
		p.ExecNS = p.NS
		known.lost = t.lostEvents()
	}
	if e.Process.CgroupID != before.CgroupID && known.ended.IsZero() {
		t.leave(before.CgroupID)
		p.CgroupID = e.Process.CgroupID
		t.enter(&p)
	}
	changed := e.What == Exec || p.Creds != before.Creds || p.NS != before.NS || p.CgroupID != before.CgroupID
	if changed || p.Comm != before.Comm || e.What == Exit {
		p.Exited = before.Exited || e.What == Exit
		known.process = &p
	}
	s := t.step(known, e)
	if changed {
		s.Before = before
	}
	if e.What == Moved && s.From == 0 && before.CgroupID != p.CgroupID {
		s.From = before.CgroupID
	}
	return s
}

func (t *Table) step(known *entry, e *Event) *Step {
	s := &Step{Event: *e, Process: known.process}
	s.Event.Process = Process{}
	n := 0
	for up := t.parent(known); up != nil && n < maxAncestors; up = t.parent(up) {
		n++
	}
	if n > 0 {
		s.Ancestors = make([]*Process, 0, n)
		for up := t.parent(known); up != nil && len(s.Ancestors) < n; up = t.parent(up) {
			s.Ancestors = append(s.Ancestors, up.process)
		}
	}
	if c := t.cgroups[known.process.CgroupID]; c != nil {
		s.CgroupStart = c.start
	}
	return s
}

// parent returns who forked a process. One that was not known at the time, or was too
// far up from somebody, may be there all the same; the line does not hold on to it, or
// it would have no end.
func (t *Table) parent(e *entry) *entry {
	if e.parent != nil {
		return e.parent
	}
	return t.entries[e.process.Parent]
}

// add makes room for one more process. Another one of its pid that began earlier has
// ended.
func (t *Table) add(p *Process) *entry {
	if len(t.entries) >= t.cfg.Max {
		t.makeRoom()
	}
	copied := *p
	copied.ExecNS = p.ExecNS.or(p.NS)
	e := &entry{id: p.ID, process: &copied, parent: t.entries[p.Parent], lost: t.lostEvents()}
	e.prune()
	t.entries[p.ID] = e
	t.enter(&copied)
	other := t.latest[p.PID]
	switch {
	case other == nil:
		t.latest[p.PID] = e
	case other.process.Start < p.Start:
		t.gone(other)
		t.latest[p.PID] = e
	default:
		t.gone(e)
	}
	return e
}

// gone ends a process whose end was not told of.
func (t *Table) gone(e *entry) {
	if !e.ended.IsZero() {
		return
	}
	p := *e.process
	p.Exited = true
	e.process = &p
	t.end(e)
}

// prune cuts the line above a process where it becomes too long to be told of: a
// process that forks and ends over and over would keep all before it.
func (e *entry) prune() {
	up := e
	for range maxLine {
		if up = up.parent; up == nil {
			return
		}
	}
	up.parent = nil
}

// makeRoom forgets the process that ended first, or else one that is not there any more,
// or else any.
func (t *Table) makeRoom() {
	for len(t.ended) == 0 && len(t.absent) > 0 {
		t.endAbsent(t.absent[0])
		t.absent = t.absent[1:]
	}
	if len(t.ended) > 0 {
		t.forget(t.ended[0])
		t.ended = t.ended[1:]
		return
	}
	t.full = true
	for _, e := range t.entries {
		t.cfg.Losses.Add(loss.ProcessTableFull, 1)
		t.leave(e.process.CgroupID)
		t.forget(e)
		return
	}
}

func (t *Table) forget(e *entry) {
	delete(t.entries, e.id)
	if t.latest[e.id.PID] == e {
		delete(t.latest, e.id.PID)
	}
}

func (t *Table) end(e *entry) {
	if !e.ended.IsZero() {
		return
	}
	e.ended = time.Now()
	t.ended = append(t.ended, e)
	t.leave(e.process.CgroupID)
}

// Sweep forgets processes that ended a while ago. After events were lost, or when there
// are too many processes, it finds out which of them have ended.
func (t *Table) Sweep(now time.Time) {
	t.ask(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for n < len(t.ended) && now.Sub(t.ended[n].ended) >= linger {
		t.forget(t.ended[n])
		n++
	}
	t.ended = append([]*entry(nil), t.ended[n:]...)
	for id, c := range t.cgroups {
		if c.live <= 0 {
			delete(t.cgroups, id)
		}
	}
}

// ask finds out, if it is time to, which processes are not there any more, and ends
// them if their end has still not been told of the next time: it may wait to be read.
func (t *Table) ask(now time.Time) {
	doubted := t.doubted(now)
	absent := doubted[:0]
	for _, e := range doubted {
		if !t.cfg.Alive(e.id) {
			absent = append(absent, e)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.absent {
		t.endAbsent(e)
	}
	t.absent = absent
}

func (t *Table) endAbsent(e *entry) {
	if t.entries[e.id] == e {
		t.gone(e)
	}
}

// doubted lists the processes that may have ended without being told of.
func (t *Table) doubted(now time.Time) []*entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cfg.Alive == nil {
		return nil
	}
	if lost := t.lostEvents() + t.cfg.Losses.Get(loss.ProgramSkipped); lost != t.lost || t.full {
		t.lost, t.full, t.askUntil = lost, false, now.Add(askFor)
	}
	if now.Before(t.askAt) || now.After(t.askUntil) {
		return nil
	}
	t.askAt = now.Add(askEvery)
	return slices.DeleteFunc(slices.Collect(maps.Values(t.latest)), func(e *entry) bool { return !e.ended.IsZero() })
}

// lostEvents is how many events of processes the kernel could not hand over.
func (t *Table) lostEvents() uint64 {
	return t.cfg.Losses.Get(loss.ExecRingFull) + t.cfg.Losses.Get(loss.ExecShareFull)
}

// Advance says that all that happened before a point in time, in Unix nanoseconds, has
// been applied; 0 that nobody tells any more.
func (t *Table) Advance(read int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.read = read
}

// Sighting is where a process was seen: by its pid and its command, in something that began
// at First and was told of at Time, both in Unix nanoseconds.
type Sighting struct {
	PID         uint32
	Comm        string
	First, Time int64
}

// Executable returns the path of what a process ran when it was seen, empty if that is not
// known for sure. soon: it may be, once what has happened until then has been applied.
func (t *Table) Executable(s Sighting) (path string, soon bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.read == 0 || s.PID == 0 {
		return "", false
	}
	pending := s.Time >= t.read
	e := t.latest[s.PID]
	if e == nil || e.endedAt != 0 && e.endedAt < s.First {
		return "", pending // of one that is about to be told of, if of any
	}
	p := e.process
	named := p.Comm == s.Comm
	switch {
	case p.Started > s.First, p.Execed > s.First && !named:
		return "", false // it was another one's pid, or has started something else since
	case named:
		return p.Exe.Path, false
	case pending:
		return "", true // it may have started something else
	case e.lost != t.lostEvents():
		return "", false // the same, for good
	}
	return p.Exe.Path, false // it has changed its name
}

// enter and leave keep how many processes a cgroup has.
func (t *Table) enter(p *Process) {
	c := t.cgroups[p.CgroupID]
	if c == nil {
		c = &cgroup{start: p.Started}
		t.cgroups[p.CgroupID] = c
	}
	c.live++
	if p.Started < c.start {
		c.start = p.Started
	}
}

func (t *Table) leave(id uint64) {
	if c := t.cgroups[id]; c != nil {
		c.live--
	}
}
