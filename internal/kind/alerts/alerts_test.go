// SPDX-License-Identifier: Apache-2.0

package alerts

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func ruleNamed(t *testing.T, name string) *anomaly.Rule {
	t.Helper()
	for _, r := range anomaly.Rules() {
		if r.Name == name {
			return r
		}
	}
	t.Fatalf("there is no rule %s", name)
	return nil
}

// found is an alert of a mount, as the agent publishes it five seconds later by the wall
// clock.
func found(t *testing.T) *anomaly.Record {
	nr, _ := syscalls.Number(process.AMD64, "umount2")
	step := &process.Step{
		Event: process.Event{What: process.Privileged, Time: 7, Privilege: &process.Privilege{
			Capability: 21, ABI: process.AMD64, Call: nr, Args: [6]uint64{0, 2}, Denied: true,
		}},
		Process:   &process.Process{ID: process.ID{PID: 42, Start: 5}, Comm: "umount"},
		Ancestors: []*process.Process{{ID: process.ID{PID: 1}, Comm: "init"}},
	}
	r := &anomaly.Record{Header: process.NewRecord(step).Header, Alert: &anomaly.Alert{
		Rule: ruleNamed(t, "mount"), Step: step, Summary: "it did", LookCloser: "look", Exception: "- {rule: mount}", Repeated: 3,
		Remote: netip.MustParseAddrPort("10.0.0.9:4444"),
	}}
	r.Owner, r.Peer = &workload.Identity{Kind: "Pod", Name: "web"}, &workload.Identity{Kind: "Node", Name: "n2"}
	r.Shift(5 * time.Second)
	return r
}

func TestEvent(t *testing.T) {
	rule := ruleNamed(t, "mount")
	want := &orb8v1.Event{TimeNs: 5_000_000_007, NodeName: "n", Event: &orb8v1.Event_Alert{Alert: &orb8v1.Alert{
		Rule: "mount", Severity: orb8v1.Severity_SEVERITY_WARNING, Technique: rule.Technique, Summary: "it did", Reason: rule.Reason,
		LookCloser: "look", Exception: "- {rule: mount}", Repeated: 3, Workload: &orb8v1.Workload{Kind: "Pod", Name: "web"},
		Process:   &orb8v1.ProcessInfo{Pid: 42, Command: "umount", StartedNs: 5_000_000_000},
		Ancestors: []*orb8v1.ProcessInfo{{Pid: 1, Command: "init", StartedNs: 5_000_000_000}},
		Syscall:   "umount2", Denied: true,
		Arguments: []*orb8v1.SyscallArgument{{Name: "target", Text: "NULL"}, {Name: "flags", Value: 2, Text: "MNT_DETACH"}},
		Remote:    &orb8v1.Endpoint{Ip: "10.0.0.9", Port: 4444, Workload: &orb8v1.Workload{Kind: "Node", Name: "n2"}},
	}}}
	got := Event(found(t), "n")
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	m := got.GetAlert().ProtoReflect()
	for i := range m.Descriptor().Fields().Len() {
		if f := m.Descriptor().Fields().Get(i); !m.Has(f) {
			t.Errorf("%s is empty", f.FullName())
		}
	}
}

// TestSeverities: their numbers are those of the API.
func TestSeverities(t *testing.T) {
	for s := anomaly.Notice; s <= anomaly.Critical; s++ {
		if name := "SEVERITY_" + map[string]string{"notice": "NOTICE", "warning": "WARNING", "critical": "CRITICAL"}[s.String()]; orb8v1.Severity(s).String() != name {
			t.Errorf("%s is %s", s, orb8v1.Severity(s))
		}
	}
}

func TestFields(t *testing.T) {
	record := found(t)
	for _, tt := range []struct {
		field  string
		values []string
		want   bool
		bad    bool
	}{
		{field: "rules", values: []string{"chroot", "mount"}, want: true},
		{field: "rules", values: []string{"chroot"}},
		{field: "rules", values: []string{"mounts"}, bad: true},
		{field: "severities", values: []string{"Warning"}, want: true},
		{field: "severities", values: []string{"notice", "critical"}},
		{field: "severities", values: []string{"high"}, bad: true},
	} {
		for _, f := range Fields() {
			if f.Name != tt.field {
				continue
			}
			match, err := f.Compile(tt.values)
			if (err != nil) != tt.bad {
				t.Errorf("%s %v: %v", tt.field, tt.values, err)
			}
			if err == nil && (match(record) != tt.want || match(&process.Record{})) {
				t.Errorf("%s %v: matches %v, want %v; what is no alert %v", tt.field, tt.values, match(record), tt.want, match(&process.Record{}))
			}
		}
	}
}

type meter map[string]uint64

func (m meter) Count(family, value string, n uint64) { m[family+" "+value] += n }
func (m meter) Observe(string, uint64)               {}

func TestFound(t *testing.T) {
	m := meter{}
	Found(ruleNamed(t, "mount"), m)
	if d := cmp.Diff(meter{alertsTotal + " mount": 1}, m); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
