// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/testwait"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// told is what a test looks at of one record.
type told struct {
	Flow         uint16 // local port
	Instance     uint64
	Event        Event
	Time         int64
	Total, Delta uint64 // TxBytes
}

type bench struct {
	*Table
	losses loss.Counters
	told   []told
	last   Record
}

func newBench(max int) *bench {
	b := new(bench)
	b.Table = NewTable(Config{
		MaxFlows: max, IdleTimeout: 30 * time.Second, Losses: &b.losses,
	}, func(r *Record) {
		b.last = *r
		b.told = append(b.told, told{r.LocalPort, r.Instance, r.Event, r.Time, r.Total.TxBytes, r.Delta.TxBytes})
	})
	return b
}

func (b *bench) want(t *testing.T, want ...told) {
	t.Helper()
	if d := cmp.Diff(want, b.told); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
}

type opt func(*Sample)

func base(n uint64) opt              { return func(s *Sample) { s.Base = Counters{TxBytes: n} } }
func instance(n uint64) opt          { return func(s *Sample) { s.Instance = n } }
func state(st State) opt             { return func(s *Sample) { s.TCP.State = st } }
func end(e End) opt                  { return func(s *Sample) { s.TCP.End, s.TCP.State = e, StateClose } }
func retransmits(n int) opt          { return func(s *Sample) { s.TCP.Retransmits = uint64(n) } }
func at(t int64) opt                 { return func(s *Sample) { s.Last = t } }
func role(r record.Role) opt         { return func(s *Sample) { s.Role = r } }
func owner(p int, c record.Comm) opt { return func(s *Sample) { s.PID, s.Comm = uint32(p), c } }

// sample of the flow with the local port given, of instance 1, at time total.
func sample(port uint16, total uint64, opts ...opt) *Sample {
	s := &Sample{
		Key:      Key{Local: record.AddrOf(netip.MustParseAddr("10.0.0.1")), LocalPort: port, Protocol: record.TCP, CgroupID: 7},
		Instance: 1, Last: int64(total), Total: Counters{TxBytes: total},
		TCP: TCPInfo{Valid: true, State: StateEstablished},
	}
	for _, o := range opts {
		o(s)
	}
	return s
}

func TestApply(t *testing.T) {
	for name, c := range map[string]struct {
		samples []*Sample
		want    []told
	}{
		"open, update, close": {
			[]*Sample{sample(1, 10), sample(1, 25, base(10)), sample(1, 30, base(25), end(EndFIN))},
			[]told{{1, 1, EventOpen, 10, 10, 10}, {1, 1, EventUpdate, 25, 25, 15}, {1, 1, EventClose, 30, 30, 5}},
		},
		"closed when first seen": {
			[]*Sample{sample(1, 10, end(EndFIN)), sample(1, 10, end(EndFIN))},
			[]told{{1, 1, EventClose, 10, 10, 10}},
		},
		"unknown to the table, known to the probe": {
			[]*Sample{sample(1, 1000, base(900))},
			[]told{{1, 1, EventOpen, 1000, 1000, 100}},
		},
		"nothing new is no record": {
			[]*Sample{sample(1, 10), sample(1, 10, base(10)), sample(1, 10, at(50))},
			[]told{{1, 1, EventOpen, 10, 10, 10}},
		},
		"a state alone is an update": {
			[]*Sample{sample(1, 10), sample(1, 10, at(20), state(8))},
			[]told{{1, 1, EventOpen, 10, 10, 10}, {1, 1, EventUpdate, 20, 10, 0}},
		},
		"totals never go back": {
			[]*Sample{sample(1, 10), sample(1, 9, at(20)), sample(1, 8, at(30), state(8)), sample(1, 12, at(40), state(8))},
			[]told{{1, 1, EventOpen, 10, 10, 10}, {1, 1, EventUpdate, 30, 10, 0}, {1, 1, EventUpdate, 40, 12, 2}},
		},
		"lost in between": {
			[]*Sample{sample(1, 10), sample(1, 90, base(50))},
			[]told{{1, 1, EventOpen, 10, 10, 10}, {1, 1, EventUpdate, 90, 90, 80}},
		},
		"reordered": {
			[]*Sample{sample(1, 20, base(10)), sample(1, 10), sample(1, 10)},
			[]told{{1, 1, EventOpen, 20, 20, 10}, {1, 1, EventUpdate, 20, 20, 10}},
		},
		"the reading before the close comes after it": {
			[]*Sample{sample(1, 12, base(10), end(EndFIN)), sample(1, 10, retransmits(3)), sample(1, 10)},
			[]told{{1, 1, EventClose, 12, 12, 2}, {1, 1, EventUpdate, 12, 12, 10}},
		},
		"an ended flow stays ended": {
			[]*Sample{sample(1, 10), sample(1, 12, end(EndFIN)), sample(1, 11), sample(1, 12, at(90))},
			[]told{{1, 1, EventOpen, 10, 10, 10}, {1, 1, EventClose, 12, 12, 2}},
		},
		"key in use again, the end of the old flow lost": {
			[]*Sample{sample(1, 10), sample(1, 3, instance(2), at(50))},
			[]told{{1, 1, EventOpen, 10, 10, 10}, {1, 1, EventExpire, 50, 10, 0}, {1, 2, EventOpen, 50, 3, 3}},
		},
		"key in use again after a close": {
			[]*Sample{sample(1, 10, end(EndFIN)), sample(1, 3, instance(2), at(50))},
			[]told{{1, 1, EventClose, 10, 10, 10}, {1, 2, EventOpen, 50, 3, 3}},
		},
		"the old flow's close comes after the new one's open": {
			[]*Sample{
				sample(1, 10), sample(1, 3, instance(2), at(50)),
				sample(1, 14, base(10), end(EndFIN)), sample(1, 5, instance(2), base(3), at(60)),
			},
			[]told{
				{1, 1, EventOpen, 10, 10, 10}, {1, 1, EventExpire, 50, 10, 0}, {1, 2, EventOpen, 50, 3, 3},
				{1, 1, EventClose, 14, 14, 4}, {1, 2, EventUpdate, 60, 5, 2},
			},
		},
		"a reading of the old flow comes after the new one's open": {
			[]*Sample{sample(1, 3, instance(2), at(50)), sample(1, 14, base(10)), sample(1, 14, base(14))},
			[]told{{1, 2, EventOpen, 50, 3, 3}, {1, 1, EventUpdate, 14, 14, 4}},
		},
		"two flows": {
			[]*Sample{sample(1, 10), sample(2, 5), sample(1, 11)},
			[]told{{1, 1, EventOpen, 10, 10, 10}, {2, 1, EventOpen, 5, 5, 5}, {1, 1, EventUpdate, 11, 11, 1}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(10)
			for _, s := range c.samples {
				b.Apply(s)
			}
			b.want(t, c.want...)
		})
	}
}

func TestLateReadingTellsNothingTwice(t *testing.T) {
	b := newBench(10)
	b.Apply(sample(1, 12, base(10), end(EndFIN), retransmits(3)))
	b.Apply(sample(1, 10, retransmits(2)))
	want := TCPInfo{Valid: true, State: StateClose, End: EndFIN}
	if d := cmp.Diff(want, b.last.TCP); d != "" {
		t.Errorf("late record (-want +got):\n%s", d)
	}
	row := b.Snapshot(nil)[0]
	if row.Event != EventClose || row.TCP.Retransmits != 3 {
		t.Errorf("the row must stay as the close left it, got %+v", row)
	}
}

func TestOlderReadingKeepsTheSocketsState(t *testing.T) {
	b := newBench(10)
	b.Apply(sample(1, 10))
	b.Apply(sample(1, 20, state(8), retransmits(5)))
	b.Apply(sample(1, 15, state(StateEstablished)))
	if got := b.Snapshot(nil)[0]; got.TCP.State != 8 || got.TCP.Retransmits != 5 || got.Total.TxBytes != 20 {
		t.Errorf("an older reading changed the row: %+v", got)
	}
	if len(b.told) != 2 {
		t.Errorf("an older reading made a record: %v", b.told)
	}
}

// A row remembers how its flow was named, until another process has it.
func TestNamed(t *testing.T) {
	b := newBench(10)
	sh, peer := &workload.Identity{Name: "sh"}, &workload.Identity{Name: "peer"}
	check := func(owner, peer *workload.Identity) {
		t.Helper()
		if r := b.Snapshot(nil)[0]; r.Owner != owner || r.Peer != peer {
			t.Errorf("owner %v, peer %v, want %v and %v", r.Owner, r.Peer, owner, peer)
		}
	}
	b.Apply(sample(1, 1, owner(40, record.Comm{'s', 'h'})))
	check(nil, nil)
	r := b.last
	r.Owner, r.Peer = sh, peer
	b.Named(&r)
	check(sh, peer)
	b.Apply(sample(1, 2))
	if b.last.Owner != sh || b.last.Peer != peer {
		t.Errorf("the next record comes with %v and %v", b.last.Owner, b.last.Peer)
	}
	b.Apply(sample(1, 2, owner(40, record.Comm{'c', 'u', 'r', 'l'})))
	check(nil, peer)
	b.Named(&r) // late
	check(nil, peer)
	b.Apply(sample(1, 3, instance(2)))
	check(nil, nil)
	b.Named(&r) // of the flow before
	check(nil, nil)
}

func TestRoleIsKeptOnceKnown(t *testing.T) {
	b := newBench(10)
	for _, c := range []struct{ told, want record.Role }{
		{record.RoleUnknown, record.RoleUnknown}, {record.RoleServer, record.RoleServer}, {record.RoleUnknown, record.RoleServer}, {record.RoleClient, record.RoleServer},
	} {
		b.Apply(sample(1, 1, role(c.told)))
		if got := b.Snapshot(nil)[0].Role; got != c.want {
			t.Errorf("role after %v = %v, want %v", c.told, got, c.want)
		}
	}
}

func TestExpire(t *testing.T) {
	sec := func(n int64) int64 { return n * int64(time.Second) }
	now := func(n int64) time.Time { return time.Unix(0, sec(n)) }
	b := newBench(10)
	b.Apply(sample(1, 10, at(sec(100))))
	b.Apply(sample(2, 20, at(sec(101)), end(EndFIN)))
	b.Apply(sample(3, 30, at(sec(102))))
	b.Apply(sample(1, 11, at(sec(110))))
	b.told = nil

	b.Expire(now(130))
	if b.Len() != 3 {
		t.Fatalf("%d rows after 29 s, want 3", b.Len())
	}
	b.Expire(now(132))
	b.Expire(now(132))
	// Flow 2 had said its last word when it closed.
	b.want(t, told{3, 1, EventExpire, sec(132), 30, 0})
	b.Expire(now(140))
	if b.Len() != 0 {
		t.Fatalf("%d rows left", b.Len())
	}
	b.told = nil

	// The probe goes on where it was: only the difference is new.
	b.Apply(sample(3, 35, base(30), at(sec(200))))
	b.Apply(sample(3, 36, base(35), at(sec(201))))
	b.want(t, told{3, 1, EventOpen, sec(200), 35, 5}, told{3, 1, EventUpdate, sec(201), 36, 1})

	b.SetIdleTimeout(5 * time.Second)
	b.Expire(now(206))
	if b.Len() != 0 {
		t.Errorf("%d rows left after a shorter timeout", b.Len())
	}
}

func TestEvict(t *testing.T) {
	b := newBench(3)
	b.Apply(sample(1, 10))
	b.Apply(sample(2, 11))
	b.Apply(sample(3, 12))
	b.Apply(sample(1, 20)) // so that 2 is the longest idle
	b.Apply(sample(3, 12)) // no news does not count as traffic
	b.told = nil

	b.Apply(sample(4, 30))
	b.want(t, told{2, 1, EventEvict, 30, 11, 0}, told{4, 1, EventOpen, 30, 30, 30})
	if got := b.losses.Get(loss.FlowTableFull); got != 1 {
		t.Errorf("losses = %d, want 1", got)
	}
	var rows []uint16
	for _, r := range b.Snapshot(nil) {
		rows = append(rows, r.LocalPort)
	}
	if d := cmp.Diff([]uint16{4, 1, 3}, rows); d != "" {
		t.Errorf("rows, most recently active first (-want +got):\n%s", d)
	}

	// Pushed out and back again.
	b.told = nil
	b.Apply(sample(2, 15, base(11), at(40)))
	b.want(t, told{3, 1, EventEvict, 40, 12, 0}, told{2, 1, EventOpen, 40, 15, 4})

	// A closed flow has had its final event.
	b.Apply(sample(1, 21, at(41), end(EndFIN)))
	b.Apply(sample(2, 16, at(42)))
	b.Apply(sample(4, 31, at(43)))
	b.told = nil
	before := b.losses.Get(loss.FlowTableFull)
	b.Apply(sample(5, 50))
	b.want(t, told{5, 1, EventOpen, 50, 50, 50})
	if got := b.losses.Get(loss.FlowTableFull); got != before {
		t.Errorf("pushing out a closed flow counted %d losses", got-before)
	}
	if b.Len() != 3 {
		t.Errorf("%d rows, want 3", b.Len())
	}
}

func TestRowsAreReused(t *testing.T) {
	for _, max := range []int{1, 2, 100} {
		b := newBench(max)
		for i := range 10 * max {
			b.Apply(sample(uint16(i), 1))
		}
		if b.Len() != max {
			t.Errorf("%d rows, want %d", b.Len(), max)
		}
		b.Expire(time.Now())
		if b.Len() != 0 || len(b.Snapshot(nil)) != 0 {
			t.Errorf("%d rows left", b.Len())
		}
		b.Apply(sample(1, 2))
		if b.Len() != 1 {
			t.Errorf("%d rows, want 1", b.Len())
		}
	}
}

func TestRecord(t *testing.T) {
	b := newBench(10)
	s := sample(1, 10, role(record.RoleClient))
	s.RemotePort, s.Loopback, s.Unit, s.First, s.NetNS = 443, true, BytesPayload, 3, 4
	s.Total = Counters{TxBytes: 10, TxPackets: 2, RxBytes: 30, RxPackets: 4}
	s.Base = Counters{TxBytes: 1, TxPackets: 1, RxBytes: 2, RxPackets: 3}
	s.TCP.Told = true
	b.Apply(s)
	want := Record{
		Header: record.Header{
			CgroupID: 7, NetNS: 4, Local: s.Local, LocalPort: 1, RemotePort: 443, Protocol: record.TCP,
			Role: record.RoleClient, Loopback: true, Phase: record.Ongoing, Time: 10, First: 3, Last: 10,
		},
		Instance: 1, Unit: BytesPayload, Total: s.Total, TCP: s.TCP, Event: EventOpen,
		Delta: Counters{TxBytes: 9, TxPackets: 1, RxBytes: 28, RxPackets: 1},
	}
	if got := b.last.Key(); got != s.Key {
		t.Errorf("key %+v, want %+v", got, s.Key)
	}
	if d := cmp.Diff(want, b.last, cmpopts.EquateComparable(record.Addr{})); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]Record{want}, b.Snapshot(nil)); d != "" {
		t.Errorf("snapshot (-want +got):\n%s", d)
	}
}

func TestConcurrentUse(t *testing.T) {
	var wg sync.WaitGroup
	var losses loss.Counters
	sums := make(map[Key]uint64) // written one at a time
	table := NewTable(Config{MaxFlows: 50, IdleTimeout: time.Minute, Losses: &losses},
		func(r *Record) { sums[r.Key()] += r.Delta.TxBytes })
	const flows, rounds = 40, 200
	for g := range 4 {
		wg.Go(func() {
			for n := range uint64(rounds) {
				for f := range uint16(flows) {
					s := sample(uint16(g)*flows+f, 10*(n+1), base(10*n), at(time.Now().UnixNano()))
					table.Apply(s)
				}
			}
		})
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		var rows []Record
		for {
			select {
			case <-stop:
				return
			default:
			}
			rows = table.Snapshot(rows[:0])
			if len(rows) > 50 || table.Len() > 50 {
				t.Errorf("%d rows", len(rows))
			}
			table.Expire(time.Now())
			table.SetIdleTimeout(time.Minute)
		}
	})
	testwait.Return(t, "the writers", wg.Wait)
	close(stop)
	testwait.Return(t, "the reader", readers.Wait)
	for k, n := range sums {
		if n != 10*rounds {
			t.Errorf("flow %d: differences add up to %d, want %d", k.LocalPort, n, 10*rounds)
		}
	}
	if len(sums) != 4*flows || losses.Get(loss.FlowTableFull) == 0 {
		t.Errorf("%d flows, %d evicted", len(sums), losses.Get(loss.FlowTableFull))
	}
}

// Retransmitted is what is new in each record, and growth alone makes one.
func TestRetransmitted(t *testing.T) {
	var got []uint64
	table := NewTable(Config{MaxFlows: 10, IdleTimeout: time.Minute, Losses: new(loss.Counters)}, func(r *Record) {
		got = append(got, r.Retransmitted)
	})
	for _, s := range []*Sample{
		sample(1, 10, retransmits(2)), sample(1, 20, retransmits(2)), sample(1, 20, retransmits(5), at(23)),
		sample(1, 20, retransmits(5), at(24)), // nothing new: no record
		sample(1, 30, retransmits(4), at(11)), // an older reading
		sample(1, 30, retransmits(6), at(25), end(EndTimeout)),
		sample(2, 10, retransmits(7), baseRetransmits(7)), // it was told of before
	} {
		table.Apply(s)
	}
	old := sample(3, 10, retransmits(9), baseRetransmits(9))
	old.TCP.Preexisting = true
	table.Apply(old)
	// One that has been idle for long comes back with one more; its reading before
	// that comes late.
	table.Apply(sample(4, 10, retransmits(8), baseRetransmits(7), at(30)))
	table.Apply(sample(4, 10, retransmits(7), baseRetransmits(4), at(29)))
	if want := []uint64{2, 0, 3, 0, 1, 0, 0, 1, 3}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func baseRetransmits(n uint64) func(*Sample) { return func(s *Sample) { s.TCP.BaseRetransmits = n } }

// A connection's round-trip time is due as often, however often it is read.
func TestRTTDue(t *testing.T) {
	for name, every := range map[string]time.Duration{"each interval": 5 * time.Second, "each second": time.Second} {
		due := 0
		table := NewTable(Config{
			MaxFlows: 10, IdleTimeout: time.Minute, Losses: new(loss.Counters),
			RTTEvery: func() time.Duration { return 5 * time.Second },
		}, func(r *Record) {
			if r.RTTDue {
				due++
			}
		})
		jitter := int64(0)
		for now := time.Second; now <= 101*time.Second; now += every {
			jitter = 50*int64(time.Millisecond) - jitter // now early, now late
			s := sample(1, uint64(now), at(int64(now)+jitter))
			s.TCP.Valid, s.TCP.State, s.TCP.RTTMicros = true, 1, 700
			table.Apply(s)
		}
		table.Expire(time.Unix(0, int64(200*time.Second)))
		if due != 21 {
			t.Errorf("%s: due %d times in 100 s, want 21", name, due)
		}
	}
}

// Connected marks one record of a connection, the first that says so.
func TestConnectedOnce(t *testing.T) {
	told := func(s *Sample) { s.TCP.Told = true }
	connecting := func(s *Sample) { s.TCP.State = StateSynSent }
	for name, tt := range map[string]struct {
		samples []*Sample
		want    []bool
	}{
		"quick":     {[]*Sample{sample(1, 1), sample(1, 2, told)}, []bool{true, false}},
		"slow":      {[]*Sample{sample(1, 0, connecting), sample(1, 1, at(20)), sample(1, 2, told, at(30))}, []bool{false, true, false}},
		"came back": {[]*Sample{sample(1, 5, told)}, []bool{false}},
		"came back, and was connecting when it was last told of": {[]*Sample{sample(1, 5, base(5))}, []bool{true}},
		"failed": {[]*Sample{sample(1, 0, connecting, end(EndRefused), func(s *Sample) { s.TCP.Failed = true })}, []bool{false}},
		"short":  {[]*Sample{sample(1, 1, end(EndFIN))}, []bool{true}},
	} {
		var got []bool
		table := NewTable(Config{MaxFlows: 10, IdleTimeout: time.Minute, Losses: new(loss.Counters)}, func(r *Record) {
			got = append(got, r.Connected)
		})
		for _, s := range tt.samples {
			s.TCP.Valid = true
			table.Apply(s)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
