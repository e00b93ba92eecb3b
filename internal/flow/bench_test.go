// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
)

func benchTable(maxFlows int) *Table {
	return NewTable(Config{
		MaxFlows: maxFlows, IdleTimeout: 30 * time.Second, Losses: new(loss.Counters),
	}, func(*Record) {})
}

// many returns as many samples, each of another flow.
func many(n int) []*Sample {
	all := make([]*Sample, n)
	for i := range all {
		all[i] = sample(0, 1, owner(4, record.Comm{'b', 'u', 's', 'y', 'b', 'o', 'x', '-', 'w', 'o', 'r', 'k', 'e', 'r', '1'}))
		binary.BigEndian.PutUint32(all[i].Remote[12:], uint32(i))
	}
	return all
}

func update(t *Table, s *Sample) {
	s.Base = s.Total
	s.Total.TxBytes++
	s.Last++
	t.Apply(s)
}

func TestUpdateAllocatesNothing(t *testing.T) {
	table, s := benchTable(10), sample(1, 1, owner(4, record.Comm{'n', 'g', 'i', 'n', 'x'}))
	table.Apply(s)
	if n := testing.AllocsPerRun(1000, func() { update(table, s) }); n != 0 {
		t.Errorf("%v allocations per update, want 0", n)
	}
}

func TestTurnoverAllocatesNothing(t *testing.T) {
	table, all := benchTable(1000), many(2000)
	for _, s := range all {
		table.Apply(s)
	}
	i := 0
	if n := testing.AllocsPerRun(5000, func() {
		update(table, all[i%len(all)])
		i++
	}); n > 0.1 {
		t.Errorf("%v allocations per flow that pushes out another, want 0", n)
	}
}

func BenchmarkUpdate(b *testing.B) {
	const flows = 10000
	table, all := benchTable(flows), many(flows)
	for _, s := range all {
		table.Apply(s)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		update(table, all[i%flows])
	}
}

// BenchmarkOpen is a new flow in a full table: one row goes, one comes.
func BenchmarkOpen(b *testing.B) {
	const flows = 10000
	table, all := benchTable(flows), many(2*flows)
	for _, s := range all {
		table.Apply(s)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		update(table, all[i%len(all)])
	}
}

// BenchmarkGrow is a new flow in a table that grows, per flow.
func BenchmarkGrow(b *testing.B) {
	all := many(10000)
	table := benchTable(len(all))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%len(all) == 0 {
			table = benchTable(len(all))
		}
		table.Apply(all[i%len(all)])
	}
}

func BenchmarkSnapshot(b *testing.B) {
	const flows = 10000
	table := benchTable(flows)
	for _, s := range many(flows) {
		table.Apply(s)
	}
	var rows []Record
	b.ReportAllocs()
	for b.Loop() {
		rows = table.Snapshot(rows[:0])
	}
}
