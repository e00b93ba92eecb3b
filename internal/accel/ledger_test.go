// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// day is a ledger that is told one report after another.
type day struct {
	*Ledger
	now    time.Time
	energy float64
}

func newDay() *day { return &day{Ledger: NewLedger(), now: time.Unix(1000, 0)} }

func (d *day) add(after time.Duration, joules float64, s Sample, holders ...Holder) {
	d.now = d.now.Add(after)
	d.energy += joules
	s.Time = d.now
	s.Values[Energy] = Of(d.energy, Driver)
	r := Attribute(s, holders, ownerOf)
	r.HoldersAt = d.now
	d.Add(&r)
}

func (d *day) account(t *testing.T, name string) Account {
	t.Helper()
	a, ok := d.Account(pod(name), "GPU-1")
	if !ok {
		t.Fatalf("no account of pod %s", name)
	}
	return a
}

func TestLedgerTimes(t *testing.T) {
	d := newDay()
	d.energy = 1e6 // before anybody looked
	second := time.Second
	d.add(0, 0, gpuSample(0, 0, 60), held("a", false))
	d.add(second, 60, gpuSample(0, 0, 60), held("a", false))
	d.add(second, 60, gpuSample(0, 10, 60, process(100, 10, 0)), held("a", false))
	d.add(second, 60, gpuSample(0.01, 10, 60, process(100, 10, 0.01)), held("a", false))
	since := d.account(t, "a").IdleSince
	if want := time.Unix(1000, 0); !since.Equal(want) {
		t.Errorf("idle since %v, want %v", since, want)
	}
	d.add(second, 300, gpuSample(1, 10, 300, process(100, 10, 1)), held("a", false))
	a := d.account(t, "a")
	if !a.IdleSince.IsZero() || a.Held != 4*second || a.Used != 2*second {
		t.Errorf("idle since %v, held %v, used %v", a.IdleSince, a.Held, a.Used)
	}
	for _, reason := range IdleReasons() {
		if a.Idle[reason] != second {
			t.Errorf("idle for %s: %v, want 1s", reason, a.Idle[reason])
		}
	}
	if got := a.Counters[Energy]; got.V != 480 || got.Method != Exclusive {
		t.Errorf("energy %v, want 480 (exclusive)", got)
	}
	// Nobody knows what happened in a long gap.
	d.add(time.Minute, 6000, gpuSample(1, 10, 300, process(100, 10, 1)), held("a", false))
	if b := d.account(t, "a"); b.Held != a.Held || b.Counters[Energy] != a.Counters[Energy] {
		t.Errorf("after a gap: held %v, energy %v", b.Held, b.Counters[Energy])
	}
	d.add(second, 300, gpuSample(1, 10, 300, process(200, 10, 1)))
	d.add(second, 300, gpuSample(1, 10, 300, process(200, 10, 1)))
	if b := d.account(t, "b"); b.Unallocated != second || b.Held != 0 || b.Counters[Energy].V != 300 {
		t.Errorf("used without being held: %v, held %v, energy %v", b.Unallocated, b.Held, b.Counters[Energy])
	}
}

// The energy of all accounts, nobody's too, is the device's; driver restarts,
// gaps and clock steps add nothing that was not used.
func TestLedgerEnergyAddsUp(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	d := newDay()
	used := 0.0
	d.add(0, 0, gpuSample(0, 0, 60))
	for i := range 5000 {
		joules := r.Float64() * 500
		after := time.Duration(r.IntN(2000)) * time.Millisecond
		switch r.IntN(50) {
		case 0:
			after = time.Hour
		case 1:
			after = -time.Minute
		case 2: // the driver begins anew
			joules = -d.energy
		}
		used += max(joules, 0)
		var processes []Process
		for range r.IntN(4) {
			processes = append(processes, process(50+uint32(r.IntN(300)), r.Float64()*10, r.Float64()/2))
		}
		d.add(after, joules, gpuSample(r.Float64(), 40, 300, processes...), held("a", i%2 == 0), held("b", i%2 == 0))
	}
	total := 0.0
	for _, a := range d.Accounts() {
		total += a.Counters[Energy].V
	}
	if math.Abs(total-used) > 0.01*used {
		t.Errorf("accounts have %g J of %g J", total, used)
	}
}

func TestLedgerErrors(t *testing.T) {
	d := newDay()
	fail := func(pid uint32, processes ...Process) Sample {
		s := gpuSample(1, 10, 300, processes...)
		s.Errors = []DeviceError{{Time: d.now, Code: 79, PID: pid}}
		return s
	}
	a, b := process(100, 1, 0.5), process(200, 1, 0.5)
	d.add(0, 0, fail(200, a, b))
	d.add(time.Second, 0, fail(200, a, b))
	d.add(time.Second, 0, fail(0, a, b))
	d.add(time.Second, 0, fail(0, a))
	counts := make(map[string]uint64)
	for _, c := range d.ErrorCounts() {
		name := ""
		if c.Owner != nil {
			name = c.Owner.Pod
		}
		counts[name] += c.Count
	}
	if counts["b"] != 2 || counts[""] != 1 || counts["a"] != 1 {
		t.Errorf("errors by pod: %v", counts)
	}
	if n := len(d.Errors("GPU-1")); n != 4 {
		t.Errorf("%d errors kept", n)
	}
	for range 2 * maxErrors {
		d.add(time.Second, 0, fail(200, a, b))
	}
	if n := len(d.Errors("GPU-1")); n != maxErrors {
		t.Errorf("%d errors kept, want %d", n, maxErrors)
	}
}

func TestLedgerForgets(t *testing.T) {
	d := newDay()
	d.add(0, 0, gpuSample(1, 10, 300, process(100, 10, 1)), held("a", false))
	d.Sweep(d.now.Add(time.Minute), time.Minute)
	if len(d.Accounts()) != 2 || len(d.Reports()) != 1 { // a's and nobody's
		t.Fatalf("%d accounts, %d devices", len(d.Accounts()), len(d.Reports()))
	}
	d.Sweep(d.now.Add(time.Minute+1), time.Minute)
	if len(d.Accounts()) != 0 || len(d.Reports()) != 0 {
		t.Errorf("after a minute: %d accounts, %d devices", len(d.Accounts()), len(d.Reports()))
	}
}

// TestLedgerBlames: most errors end the process that they are about, and the driver tells of
// them when it is gone.
func TestLedgerBlames(t *testing.T) {
	failed := func(s Sample, pid uint32) Sample {
		s.Errors = []DeviceError{{Time: s.Time, Code: 31, PID: pid}}
		return s
	}
	a, b := process(100, 1, 0.5), process(200, 1, 0.5)
	for name, tt := range map[string]struct {
		holders       []Holder
		before, after Sample
		later         time.Duration
		want          string
	}{
		"the only holder, whose process has gone":       {[]Holder{held("a", false)}, gpuSample(1, 10, 300, a), failed(gpuSample(0, 0, 60), 100), time.Second, "a"},
		"the only holder, whose process was never seen": {[]Holder{held("a", false)}, gpuSample(0, 0, 60), failed(gpuSample(0, 0, 60), 150), time.Second, "a"},
		"one of two, whose process has gone":            {nil, gpuSample(1, 10, 300, a, b), failed(gpuSample(1, 10, 300, a), 200), time.Second, "b"},
		"one of two that nobody has seen":               {nil, gpuSample(1, 10, 300, a, b), failed(gpuSample(1, 10, 300, a, b), 150), time.Second, ""},
		"long after the process has gone":               {nil, gpuSample(1, 10, 300, a, b), failed(gpuSample(1, 10, 300, a, process(300, 1, 0)), 200), 2 * keepDeparted, ""},
		"a process of nobody's, beside the holder":      {[]Holder{held("a", false)}, gpuSample(1, 10, 300, a, process(7, 1, 0)), failed(gpuSample(1, 10, 300, a, process(7, 1, 0)), 7), time.Second, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDay()
			d.add(0, 0, tt.before, tt.holders...)
			d.add(tt.later, 0, tt.after, tt.holders...)
			got := ""
			if owner := d.Errors("GPU-1")[0].Owner; owner != nil {
				got = owner.Pod
			}
			if got != tt.want {
				t.Errorf("blamed on %q, want %q", got, tt.want)
			}
		})
	}
}

// TestLedgerDeviceErrors: a device's count is there before the first error, and stays when its
// owner has gone.
func TestLedgerDeviceErrors(t *testing.T) {
	d := newDay()
	count := func() uint64 {
		all := d.DeviceErrors()
		if len(all) != 1 || (all[0].Last != nil) != (all[0].Count > 0) {
			t.Fatalf("devices %+v", all)
		}
		return all[0].Count
	}
	d.add(0, 0, gpuSample(1, 10, 300, process(100, 1, 0.5)))
	if n := count(); n != 0 {
		t.Errorf("%d at first", n)
	}
	for i := range 3 {
		s := gpuSample(1, 10, 300, process(100, 1, 0.5))
		s.Errors = []DeviceError{{Code: uint64(i)}}
		d.add(time.Second, 0, s)
	}
	d.add(10*time.Minute, 0, gpuSample(0, 0, 60))
	d.Sweep(d.now, time.Minute)
	if n := count(); n != 3 || len(d.ErrorCounts()) != 0 {
		t.Errorf("%d after the owner has gone, and %d by owner", n, len(d.ErrorCounts()))
	}
}

// TestLedgerUnallocated: only where it is known who holds what has somebody the device without
// holding it.
func TestLedgerUnallocated(t *testing.T) {
	begin := time.Unix(1000, 0)
	for name, tt := range map[string]struct {
		asked func(time.Time) time.Time
		want  time.Duration
		known bool
	}{
		"nobody tells":             {func(time.Time) time.Time { return time.Time{} }, 0, false},
		"asked before it was seen": {func(time.Time) time.Time { return begin }, 0, true},
		"asked each time":          {func(at time.Time) time.Time { return at }, 4 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewLedger()
			for i := range 5 {
				s := gpuSample(1, 10, 300, process(100, 1, 0.5))
				s.Time = begin.Add(time.Duration(i) * time.Second)
				r := Attribute(s, nil, ownerOf)
				r.HoldersAt = tt.asked(s.Time)
				l.Add(&r)
			}
			a, _ := l.Account(pod("a"), "GPU-1")
			if a.Unallocated != tt.want || a.HoldersKnown != tt.known {
				t.Errorf("%v, known: %t", a.Unallocated, a.HoldersKnown)
			}
		})
	}
}
