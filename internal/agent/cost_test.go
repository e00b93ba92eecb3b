// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// TestCost: programs are counted once however many descriptors the process has of them,
// and nothing that is not a program.
func TestCost(t *testing.T) {
	proc := t.TempDir()
	for name, text := range map[string]string{
		"self/status":                  "Name:\torb8\nVmRSS:\t   41236 kB\nRssAnon:\t    9832 kB\n",
		"sys/kernel/bpf_stats_enabled": "1\n",
		"self/fdinfo/3":                "pos:\t0\nflags:\t02000002\nmnt_id:\t15\n",
		"self/fdinfo/4":                "pos:\t0\nprog_type:\t26\nprog_id:\t77\nrun_time_ns:\t1500\nrun_cnt:\t5\n",
		"self/fdinfo/5":                "pos:\t0\nprog_type:\t26\nprog_id:\t77\nrun_time_ns:\t1500\nrun_cnt:\t5\n",
		"self/fdinfo/6":                "link_type:\ttracing\nlink_id:\t9\nprog_tag:\t00\nprog_id:\t77\n",
		"self/fdinfo/7":                "prog_type:\t13\nprog_id:\t78\nrun_time_ns:\t200\nrun_cnt:\t1\n",
	} {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	c := &costs{proc: proc, past: []cpuReading{{at: now.Add(-time.Second), programs: 700}}}
	got := c.status(now)
	if got.GetCpuNs() <= 0 || got.GetRecentCpuNs() != got.GetCpuNs() || got.GetRecentNs() != int64(time.Second) {
		t.Errorf("%v", got)
	}
	got.CpuNs, got.RecentCpuNs, got.RecentNs = 0, 0, 0
	want := &orb8v1.AgentCost{
		ResidentBytes: 41236 << 10, AnonymousBytes: 9832 << 10,
		ProgramsNs: 1700, ProgramsRuns: 6, ProgramsMeasured: true, RecentProgramsNs: 1000,
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	nothing := (&costs{proc: t.TempDir(), past: c.past}).status(now)
	nothing.CpuNs, nothing.RecentCpuNs, nothing.RecentNs = 0, 0, 0
	if diff := cmp.Diff(&orb8v1.AgentCost{}, nothing, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestRecentCost is of a minute, whatever was before it.
func TestRecentCost(t *testing.T) {
	start := time.Now()
	c := &costs{past: []cpuReading{{at: start}}}
	for i := 1; i <= 100; i++ { // 5 s apart; the first half cost ten times as much
		used := time.Duration(min(i, 50)) * 100 * time.Millisecond
		if i > 50 {
			used += time.Duration(i-50) * 10 * time.Millisecond
		}
		c.note(cpuReading{at: start.Add(time.Duration(i) * 5 * time.Second), used: used})
		if from := c.since(); i == 4 && (from.used != 0 || !from.at.Equal(start)) {
			t.Errorf("after 20 s: since %v", from)
		}
	}
	if from := c.since(); from.used != 5380*time.Millisecond || from.at != start.Add(440*time.Second) {
		t.Errorf("since %v, %v after the start", from, from.at.Sub(start))
	}
	if len(c.past) > 14 {
		t.Errorf("%d readings", len(c.past))
	}
}
