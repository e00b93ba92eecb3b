// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// maxGap is the longest time between two samples that is accounted for: of a
	// longer one nobody knows what happened in it.
	maxGap = 30 * time.Second
	// maxErrors is how many errors are kept per device, the latest.
	maxErrors = 64
)

// Counted are the counters of devices that are divided among owners: energy by
// activity, the others where one owner has the device to itself.
func Counted() []Metric {
	return []Metric{Energy, PCIeSent, PCIeReceived, NVLinkSent, NVLinkReceived}
}

// Account is what one owner has had of one device since the agent saw it first.
type Account struct {
	// Owner is nil for what nobody could be found for.
	Owner  *workload.Identity
	Device *Device
	// Last is the latest share.
	Last Share
	// Held and Used are times for which the device was held, and used.
	Held, Used time.Duration
	// Unallocated is the time of use by an owner that did not hold it. It grows only where it
	// is known who holds what, and was asked since the owner was first seen there; without
	// HoldersKnown it says nothing.
	Unallocated  time.Duration
	HoldersKnown bool
	// Idle has the times for which it was held and idle, by reason.
	Idle map[Idle]time.Duration
	// IdleSince is when it became idle; zero if it is not.
	IdleSince time.Time
	// Counters has a value for each metric of Counted that the device has, since
	// the owner was first seen there. The method is Estimated if any part was.
	Counters    Values
	first, seen time.Time
}

// ErrorRecord is an error of a device.
type ErrorRecord struct {
	DeviceError
	Device *Device
}

// ErrorCount counts the errors of one code on one device.
type ErrorCount struct {
	Device *Device
	Owner  *workload.Identity
	Code   uint64
	Count  uint64
}

// DeviceErrors are the errors of one device, whoever they were about.
type DeviceErrors struct {
	Device *Device
	Count  uint64
	// Last is the latest one, or nil.
	Last *ErrorRecord
}

// Ledger adds up what reports tell: who had which device for how long, in vain or
// not, at what cost. Its methods may be called from any goroutine.
type Ledger struct {
	mu       sync.Mutex
	devices  map[string]*deviceState
	accounts map[accountKey]*Account
	errors   map[errorKey]*ErrorCount
}

type accountKey struct {
	owner  ownerKey
	device string
}

type errorKey struct {
	owner  ownerKey
	device string
	code   uint64
}

type deviceState struct {
	last   Report
	recent []ErrorRecord
	errors uint64
	// gone are the owners of processes that ended lately, and of those of the last report.
	gone map[uint32]departed
}

// departed is a process that is not on a device any more.
type departed struct {
	owner *workload.Identity
	at    time.Time
}

// keepDeparted is how long the owner of a process that has ended is remembered for the errors
// that it caused: the driver tells of them when the process is gone already.
const keepDeparted = time.Minute

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger {
	return &Ledger{
		devices: make(map[string]*deviceState), accounts: make(map[accountKey]*Account),
		errors: make(map[errorKey]*ErrorCount),
	}
}

// Add takes a report in.
func (l *Ledger) Add(r *Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.devices[r.Device.ID]
	if d == nil {
		d = new(deviceState)
		l.devices[r.Device.ID] = d
	}
	passed := d.since(r)
	l.count(d, r, passed)
	for i := range r.Shares {
		s := &r.Shares[i]
		l.account(r, s.Owner).add(s, r.Time, passed, r.HoldersAt)
	}
	for i := range r.Errors {
		e := &r.Errors[i]
		e.Owner = d.blame(r, e.PID)
		l.addError(d, r, e)
	}
	d.remember(r)
	d.last = *r
}

// remember keeps whose the processes of a report are.
func (d *deviceState) remember(r *Report) {
	for pid, g := range d.gone {
		if r.Time.Sub(g.at) > keepDeparted {
			delete(d.gone, pid)
		}
	}
	for i := range r.Shares {
		s := &r.Shares[i]
		if s.Owner == nil {
			continue
		}
		for _, p := range s.Processes {
			if d.gone == nil {
				d.gone = make(map[uint32]departed)
			}
			d.gone[p.PID] = departed{s.Owner, r.Time}
		}
	}
}

// since returns the time between the last report and r, 0 if it cannot be
// accounted for.
func (d *deviceState) since(r *Report) time.Duration {
	if d.last.Time.IsZero() {
		return 0
	}
	if passed := r.Time.Sub(d.last.Time); passed > 0 && passed <= maxGap {
		return passed
	}
	return 0
}

// count divides what the device's counters have gained. What was gained in a gap
// is nobody's.
func (l *Ledger) count(d *deviceState, r *Report, passed time.Duration) {
	for _, m := range Counted() {
		before, now := d.last.Values[m], r.Values[m]
		if !now.Known() {
			continue
		}
		gained := 0.0
		if before.Known() {
			gained = max(now.V-before.V, 0) // less where the driver began anew
		}
		rest := gained
		for i := range r.Shares {
			s := &r.Shares[i]
			part := s.Part
			if s.Owner == nil || m != Energy && part.Method != Exclusive {
				continue
			}
			a := l.account(r, s.Owner)
			if a.seen.IsZero() || passed == 0 {
				part.V = 0 // it was not here before, or nobody knows who was
			}
			if part.Known() {
				rest -= a.gain(m, gained*part.V, part.Method)
			}
		}
		l.account(r, nil).gain(m, max(rest, 0), Remainder)
	}
}

func (a *Account) gain(m Metric, v float64, method Method) float64 {
	c := &a.Counters[m]
	if c.Method == Estimated {
		method = Estimated
	}
	*c = Of(c.V+v, method)
	return v
}

func (l *Ledger) account(r *Report, owner *workload.Identity) *Account {
	key := accountKey{device: r.Device.ID}
	if owner != nil {
		key.owner = keyOf(owner)
	}
	a := l.accounts[key]
	if a == nil {
		a = &Account{Idle: make(map[Idle]time.Duration)}
		l.accounts[key] = a
	}
	a.Owner, a.Device = owner, r.Device
	return a
}

// add accounts for the time before a report: as the report finds things, so they
// are taken to have been since the one before.
func (a *Account) add(s *Share, now time.Time, passed time.Duration, holdersAt time.Time) {
	if a.seen.IsZero() {
		passed, a.first = 0, now
	}
	a.seen, a.Last = now, *s
	switch {
	case s.Held:
		a.Held += passed
	case len(s.Processes) > 0 && holdersAt.After(a.first):
		a.Unallocated += passed
	}
	a.HoldersKnown = a.HoldersKnown || !holdersAt.IsZero()
	if util := s.Values[Utilization]; util.Known() && util.V > 0 {
		a.Used += passed
	}
	if s.Idle == Busy {
		a.IdleSince = time.Time{}
		return
	}
	a.Idle[s.Idle] += passed
	if a.IdleSince.IsZero() {
		a.IdleSince = now.Add(-passed)
	}
}

func (l *Ledger) addError(d *deviceState, r *Report, e *DeviceError) {
	d.errors++
	rec := ErrorRecord{DeviceError: *e, Device: r.Device}
	if len(d.recent) == maxErrors {
		d.recent = slices.Delete(d.recent, 0, 1)
	}
	d.recent = append(d.recent, rec)
	key := errorKey{device: r.Device.ID, code: e.Code}
	if rec.Owner != nil {
		key.owner = keyOf(rec.Owner)
	}
	c := l.errors[key]
	if c == nil {
		c = &ErrorCount{Device: r.Device, Owner: rec.Owner, Code: e.Code}
		l.errors[key] = c
	}
	c.Count++
}

// blame finds whom an error is about: the owner of the process, which may have ended with it,
// or the only owner that there is; nil if that is not known.
func (d *deviceState) blame(r *Report, pid uint32) *workload.Identity {
	var only *workload.Identity
	owners := 0
	for i := range r.Shares {
		s := &r.Shares[i]
		if pid != 0 && slices.ContainsFunc(s.Processes, func(p Process) bool { return p.PID == pid }) {
			return s.Owner
		}
		if s.Owner != nil {
			only = s.Owner
			owners++
		}
	}
	if g, ok := d.gone[pid]; ok && pid != 0 && r.Time.Sub(g.at) <= keepDeparted {
		return g.owner
	}
	if owners == 1 {
		return only
	}
	return nil
}

// Sweep forgets owners and devices that were last seen over keep before now.
func (l *Ledger) Sweep(now time.Time, keep time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := now.Add(-keep)
	gone := make(map[ownerKey]bool)
	for id, d := range l.devices {
		if d.last.Time.Before(before) {
			delete(l.devices, id)
		}
	}
	for key, a := range l.accounts {
		nobody := key.owner == (ownerKey{})
		if nobody && l.devices[key.device] == nil || !nobody && a.seen.Before(before) {
			delete(l.accounts, key)
			gone[key.owner] = true
		}
	}
	for key := range l.accounts {
		delete(gone, key.owner)
	}
	for key := range l.errors {
		if l.devices[key.device] == nil || gone[key.owner] {
			delete(l.errors, key)
		}
	}
}

// Reports returns the latest report of every device, ordered by vendor and index.
func (l *Ledger) Reports() []Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Report, 0, len(l.devices))
	for _, d := range l.devices {
		all = append(all, d.last)
	}
	slices.SortFunc(all, func(a, b Report) int { return CompareDevices(a.Device, b.Device) })
	return all
}

// Accounts returns a copy of every account, by device and owner.
func (l *Ledger) Accounts() []Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Account, 0, len(l.accounts))
	for _, a := range l.accounts {
		c := *a
		c.Idle = maps.Clone(a.Idle)
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Account) int {
		if c := CompareDevices(a.Device, b.Device); c != 0 {
			return c
		}
		return compareOwners(a.Owner, b.Owner)
	})
	return all
}

// Account returns a copy of the account of an owner on a device.
func (l *Ledger) Account(owner *workload.Identity, device string) (Account, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accounts[accountKey{keyOf(owner), device}]
	if a == nil {
		return Account{}, false
	}
	c := *a
	c.Idle = maps.Clone(a.Idle)
	return c, true
}

// ErrorCounts returns how often each error happened on each device, to whom.
func (l *Ledger) ErrorCounts() []ErrorCount {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]ErrorCount, 0, len(l.errors))
	for _, c := range l.errors {
		all = append(all, *c)
	}
	return all
}

// DeviceErrors says how many errors each device has had since it was first seen.
func (l *Ledger) DeviceErrors() []DeviceErrors {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]DeviceErrors, 0, len(l.devices))
	for _, d := range l.devices {
		e := DeviceErrors{Device: d.last.Device, Count: d.errors}
		if n := len(d.recent); n > 0 {
			last := d.recent[n-1]
			e.Last = &last
		}
		all = append(all, e)
	}
	return all
}

// Errors returns the latest errors of a device, oldest first.
func (l *Ledger) Errors(device string) []ErrorRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.devices[device]; d != nil {
		return slices.Clone(d.recent)
	}
	return nil
}
