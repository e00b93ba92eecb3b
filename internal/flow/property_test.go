// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/loss"
)

// model is a probe that reads flows whose counters grow, hands its samples over
// late, in another order and more than once, and adds up what comes out. As with
// real probes, a flow's samples overtake each other only within what is handed
// over at once; those of different flows, or of a key's earlier use, come in any
// order.
type model struct {
	rnd                *rand.Rand
	table              *Table
	now                int64
	probes             map[uint16]*modelFlow
	queue              map[instanceOf][]*Sample // read, not applied yet
	order              []instanceOf             // the keys of queue
	applied            []*Sample                // may be repeated while no row has gone
	sums               map[instanceOf]Counters
	resent, wantResent map[instanceOf]uint64
	closed             map[instanceOf]int
	losses             loss.Counters
	evicted            uint64
}

type instanceOf struct {
	port     uint16
	instance uint64
}

type modelFlow struct {
	instance        uint64
	total, reported Counters
	first           Counters  // Base of the first sample
	retransmits     [3]uint64 // total, reported, Base of the first sample
}

func newModel(seed uint64, maxFlows int) *model {
	m := &model{
		rnd: rand.New(rand.NewPCG(seed, 1)), probes: make(map[uint16]*modelFlow), now: int64(time.Hour),
		queue: make(map[instanceOf][]*Sample), sums: make(map[instanceOf]Counters), resent: make(map[instanceOf]uint64), wantResent: make(map[instanceOf]uint64), closed: make(map[instanceOf]int),
	}
	m.table = NewTable(Config{
		MaxFlows: maxFlows, IdleTimeout: 30 * time.Second, Losses: &m.losses,
	}, m.record)
	return m
}

func (m *model) record(r *Record) {
	k := instanceOf{r.LocalPort, r.Instance}
	m.sums[k] = m.sums[k].Add(r.Delta)
	m.resent[k] += r.Retransmitted
	switch r.Event {
	case EventClose:
		m.closed[k]++
	case EventEvict:
		m.evicted++
	}
}

// read makes a sample of one flow, which may be new, grow or end.
func (m *model) read(want map[instanceOf]Counters) {
	port := uint16(m.rnd.IntN(12))
	f := m.probes[port]
	if f == nil {
		old := Counters{TxBytes: m.rnd.Uint64N(100), RxPackets: m.rnd.Uint64N(9)}
		f = &modelFlow{instance: uint64(m.now), total: old, reported: old, first: old}
		n := m.rnd.Uint64N(5)
		f.retransmits = [3]uint64{n, n, n}
		m.probes[port] = f
	}
	f.total = f.total.Add(Counters{
		TxBytes: m.rnd.Uint64N(1000), TxPackets: m.rnd.Uint64N(3), RxBytes: m.rnd.Uint64N(5), RxPackets: m.rnd.Uint64N(2),
	})
	s := sample(port, 0, instance(f.instance), at(m.now))
	s.Total, s.Base = f.total, f.reported
	f.reported = f.total
	f.retransmits[0] += m.rnd.Uint64N(3)
	s.TCP.Retransmits, s.TCP.BaseRetransmits = f.retransmits[0], f.retransmits[1]
	f.retransmits[1] = f.retransmits[0]
	id := instanceOf{port, f.instance}
	want[id] = f.total.Sub(f.first)
	m.wantResent[id] = f.retransmits[0] - f.retransmits[2]
	if m.rnd.IntN(6) == 0 {
		s.TCP.End, s.TCP.State = EndFIN, StateClose
		delete(m.probes, port)
	}
	if len(m.queue[id]) == 0 {
		m.order = append(m.order, id)
	}
	m.queue[id] = append(m.queue[id], s)
}

// apply hands over the first of one flow's samples that wait, in any order.
func (m *model) apply() {
	if len(m.order) == 0 {
		return
	}
	i := m.rnd.IntN(len(m.order))
	id := m.order[i]
	n := 1 + m.rnd.IntN(len(m.queue[id]))
	now := m.queue[id][:n]
	m.queue[id] = m.queue[id][n:]
	if len(m.queue[id]) == 0 {
		m.order = append(m.order[:i], m.order[i+1:]...)
	}
	m.rnd.Shuffle(n, func(i, j int) { now[i], now[j] = now[j], now[i] })
	for _, s := range now {
		m.give(s)
		m.applied = append(m.applied, s)
	}
}

// give applies s. Where a row goes in between, a sample given before may not be
// repeated: the table has forgotten that it had it.
func (m *model) give(s *Sample) {
	held := m.holds(s)
	m.table.Apply(s)
	if !held {
		m.applied = nil
	}
}

func (m *model) holds(s *Sample) bool {
	r := m.table.rows[s.Key]
	return r != nil && r.rec.Instance == s.Instance
}

func (m *model) step(want map[instanceOf]Counters) {
	m.now += int64(time.Second)
	switch n := m.rnd.IntN(20); {
	case n < 9:
		m.read(want)
	case n < 17:
		m.apply()
	case n < 19:
		if len(m.applied) > 0 {
			if s := m.applied[m.rnd.IntN(len(m.applied))]; m.holds(s) {
				m.give(s)
			}
		}
	default:
		before := m.table.Len()
		m.table.Expire(time.Unix(0, m.now))
		if m.table.Len() != before {
			m.applied = nil
		}
	}
}

func checkModel(t *testing.T, seed uint64, maxFlows, steps int) {
	t.Helper()
	m := newModel(seed, maxFlows)
	want := make(map[instanceOf]Counters)
	for range steps {
		m.step(want)
		if m.table.Len() > maxFlows {
			t.Fatalf("%d rows, bound %d", m.table.Len(), maxFlows)
		}
		checkRing(t, m.table)
	}
	for len(m.order) > 0 {
		m.apply()
	}
	for k, n := range m.wantResent {
		if m.resent[k] != n {
			t.Fatalf("seed %d, bound %d: %d segments sent again, want %d", seed, maxFlows, m.resent[k], n)
		}
	}
	for k, n := range want {
		if n == (Counters{}) && m.sums[k] == n {
			delete(want, k)
			delete(m.sums, k)
		}
	}
	for k, n := range m.sums {
		if _, ok := want[k]; !ok && n == (Counters{}) {
			delete(m.sums, k)
		}
	}
	if d := cmp.Diff(want, m.sums); d != "" {
		t.Fatalf("seed %d, bound %d: differences do not add up to totals (-want +got):\n%s", seed, maxFlows, d)
	}
	if got := m.losses.Get(loss.FlowTableFull); got != m.evicted {
		t.Fatalf("%d evictions counted, %d told", got, m.evicted)
	}
}

// checkRing walks the list of rows both ways.
func checkRing(t *testing.T, table *Table) {
	t.Helper()
	n := 0
	for r := table.head.next; r != &table.head; r = r.next {
		if r.next.prev != r || r.prev.next != r || table.rows[r.rec.Key()] != r {
			t.Fatal("the ring of rows is broken")
		}
		n++
	}
	if n != len(table.rows) {
		t.Fatalf("%d rows in the ring, %d in the map", n, len(table.rows))
	}
}

func TestDifferencesAddUp(t *testing.T) {
	for seed := range uint64(300) {
		checkModel(t, seed, 1+int(seed%14), 400)
	}
}

func FuzzDifferencesAddUp(f *testing.F) {
	f.Add(uint64(1), uint8(1), uint16(100))
	f.Add(uint64(2), uint8(5), uint16(300))
	f.Add(uint64(3), uint8(20), uint16(300))
	f.Fuzz(func(t *testing.T, seed uint64, maxFlows uint8, steps uint16) {
		checkModel(t, seed, 1+int(maxFlows%32), int(steps%2000))
	})
}
