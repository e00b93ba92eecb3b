// SPDX-License-Identifier: Apache-2.0

package loss

import (
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

func TestStages(t *testing.T) {
	label := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	names, meanings := map[string]bool{}, map[string]bool{}
	all := Stages()
	if len(all) != int(numStages) {
		t.Fatalf("%d stages, want %d", len(all), numStages)
	}
	for i, s := range all {
		switch {
		case int(s) != i:
			t.Errorf("stage %d stands at place %d", s, i)
		case !label.MatchString(s.String()):
			t.Errorf("stage %d: %q is no label value", s, s)
		case names[s.String()] || meanings[s.Meaning()]:
			t.Errorf("stage %s: name or meaning is used twice", s)
		case s.Meaning() == "" || strings.HasSuffix(s.Meaning(), "."):
			t.Errorf("stage %s: meaning %q", s, s.Meaning())
		}
		names[s.String()], meanings[s.Meaning()] = true, true
	}
}

func TestDropped(t *testing.T) {
	harmless := map[Stage]bool{ExecRepeated: true, AlertsLimited: true, AlertEventsUntold: true, DNSSearchesFull: true, DNSNamesFull: true, PacketSummed: true, PacketStorageFull: true, PacketBatchRetried: true, CgroupUntold: true, NameWaitFull: true, MetricSeriesCapped: true}
	for _, s := range Stages() {
		var c Counters
		c.Add(s, 0)
		if got := c.Get(s); got != 0 {
			t.Errorf("%s: %d after adding nothing", s, got)
		}
		c.Add(s, 3)
		c.Add(s, 4)
		want := uint64(7)
		if harmless[s] {
			want = 0
		}
		if got := c.Dropped(); got != want {
			t.Errorf("%s: dropped = %d, want %d", s, got, want)
		}
		for _, other := range Stages() {
			if got := c.Get(other); (other == s) != (got == 7) {
				t.Errorf("%s counted %d at %s", s, got, other)
			}
		}
	}
}

func TestCountersConcurrently(t *testing.T) {
	var c Counters
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				for _, s := range Stages() {
					c.Add(s, 1)
				}
				_ = c.Dropped()
			}
		})
	}
	testwait.Return(t, "all who count", wg.Wait)
	for _, s := range Stages() {
		if got := c.Get(s); got != 4000 {
			t.Errorf("%s = %d, want 4000", s, got)
		}
	}
}
