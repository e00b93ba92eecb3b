// SPDX-License-Identifier: Apache-2.0

package process

import (
	"testing"

	"github.com/Ignoramuss/orb8/internal/loss"
)

// TestNSPID: a process keeps its pid in its own namespace once it is known; a fork
// does not take over its parent's.
func TestNSPID(t *testing.T) {
	table := NewTable(Config{Losses: new(loss.Counters)})
	parent, child := Process{ID: ID{PID: 100, Start: 1}}, Process{ID: ID{PID: 200, Start: 2}, Parent: ID{PID: 100, Start: 1}}
	table.Apply(&Event{What: Seen, Process: parent, Start: &Start{NSPID: 1}})
	table.Apply(&Event{What: Fork, Process: child})
	if got := table.Find(child.ID).NSPID; got != 0 {
		t.Errorf("of a fork: %d", got)
	}
	table.Apply(&Event{What: Exec, Process: child, Start: &Start{NSPID: 7}})
	s := table.Apply(&Event{What: Moved, Process: child})
	if s.Process.NSPID != 7 || s.Ancestors[0].NSPID != 1 {
		t.Errorf("process %d and parent %d, want 7 and 1", s.Process.NSPID, s.Ancestors[0].NSPID)
	}
}
