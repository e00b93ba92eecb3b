// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/doctor"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with testdata/name.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// events are one of each kind and shape, down to an empty one.
func events(t *testing.T) []*orb8v1.Event { return eventsOf(t, "events") }

func eventsOf(t *testing.T, name string) []*orb8v1.Event {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var all []*orb8v1.Event
	for line := range strings.Lines(string(text)) {
		ev := &orb8v1.Event{}
		if err := protojson.Unmarshal([]byte(line), ev); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		all = append(all, ev)
	}
	return all
}

var formats = []struct {
	format Format
	width  int
}{
	{Table, 0}, {Table, 40}, {Table, 60}, {Table, 80}, {Table, 100}, {Table, 120}, {Table, 160}, {Table, 200},
	{Wide, 80}, {Compact, 80}, {JSON, 80},
}

func nameOf(kind string, f Format, width int) string {
	if f != Table {
		return fmt.Sprintf("%s_%s", kind, f)
	}
	return fmt.Sprintf("%s_%s_%d", kind, f, width)
}

// fits checks that no line is wider than it may be.
func fits(t *testing.T, text string, f Format, width int) {
	t.Helper()
	if f != Table || width == 0 {
		return
	}
	for line := range strings.Lines(text) {
		if n := cells(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d cells wide, want at most %d: %s", n, width, line)
		}
	}
}

func TestEvents(t *testing.T) {
	for _, tt := range formats {
		name := nameOf("events", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			r := NewEvents(&b, Options{Format: tt.format, Width: tt.width, Location: time.UTC})
			r.Meanings = map[string]string{"subscriber_slow": "events that a client did not take in time"}
			if err := r.Titles(); err != nil {
				t.Fatal(err)
			}
			for _, ev := range events(t) {
				if err := r.Write(ev); err != nil {
					t.Fatal(err)
				}
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
			if strings.Contains(b.String(), "\x1b") {
				t.Error("an escape sequence got through")
			}
		})
	}
}

func TestEventsColour(t *testing.T) {
	var b bytes.Buffer
	r := NewEvents(&b, Options{Format: Table, Width: 120, Color: true, Location: time.UTC})
	if err := r.Titles(); err != nil {
		t.Fatal(err)
	}
	for _, ev := range events(t) {
		if err := r.Write(ev); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "events_colour", strings.ReplaceAll(b.String(), "\x1b", "^"))
}

func TestEventsRepeatTitles(t *testing.T) {
	var b bytes.Buffer
	r := NewEvents(&b, Options{Format: Table, Width: 80, Height: 5, Location: time.UTC})
	if err := r.Titles(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := r.Write(events(t)[0]); err != nil {
			t.Fatal(err)
		}
	}
	// A screen of 5 lines: titles, 3 events and the cursor's line.
	if got := strings.Count(b.String(), "WORKLOAD"); got != 4 {
		t.Errorf("%d lines of titles, want 4:\n%s", got, b.String())
	}
}

func TestResize(t *testing.T) {
	var b bytes.Buffer
	r := NewEvents(&b, Options{Format: Table, Width: 120, Location: time.UTC})
	r.Resize(60, 24)
	if err := r.Write(events(t)[0]); err != nil {
		t.Fatal(err)
	}
	fits(t, b.String(), Table, 60)
}

func tableRows(t *testing.T) []*orb8v1.Event {
	t.Helper()
	var rows []*orb8v1.Event
	for _, ev := range events(t) {
		switch x := ev.GetEvent().(type) {
		case *orb8v1.Event_Flow:
			rows = append(rows, ev)
		case *orb8v1.Event_Connection:
			ev.Event = &orb8v1.Event_Flow{Flow: x.Connection.GetFlow()}
			rows = append(rows, ev)
		}
	}
	return rows
}

func TestFlows(t *testing.T) {
	now := time.Unix(0, 1795426872000000000)
	for _, tt := range formats {
		name := nameOf("flows", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Flows(&b, Options{Format: tt.format, Width: tt.width, Location: time.UTC}, now, tableRows(t)); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
		})
	}
}

func status() *orb8v1.AgentStatus {
	return &orb8v1.AgentStatus{
		NodeName: "web-1", Version: "0.1.0", Healthy: true, EventsProcessed: 1234567, EventsDropped: 42,
		ActiveFlows: 321, MaxFlows: 100000, UptimeSeconds: 93784, StartedNs: 1795333088000000000,
		IntervalNs: int64(5 * time.Second), KernelRelease: "6.1.0-28-cloud-amd64", Subscribers: 2, CgroupRoot: "/sys/fs/cgroup",
		Probes: []*orb8v1.ProbeStatus{
			{Name: "tcp", State: orb8v1.ProbeState_PROBE_STATE_RUNNING, Hooks: []string{"tp_btf/inet_sock_set_state", "iter/bpf_sk_storage_map"},
				Degraded: []string{"tp_btf/tcp_send_reset is missing: resets that this host sends are not told apart"}},
			{Name: "packet", State: orb8v1.ProbeState_PROBE_STATE_OFF, Reason: "no cgroup2 hierarchy is mounted", Remedy: "mount -t cgroup2 none /sys/fs/cgroup/unified"},
			{Name: "dns", State: orb8v1.ProbeState_PROBE_STATE_FALLBACK, Reason: "another probe does its work"},
			{},
		},
		Cost: &orb8v1.AgentCost{
			CpuNs: int64(93 * time.Second), RecentCpuNs: int64(240 * time.Millisecond), RecentNs: int64(time.Minute),
			ResidentBytes: 41 << 20, AnonymousBytes: 9 << 20,
		},
		Losses: []*orb8v1.LossCount{
			{Stage: "tcp_ring_full", Meaning: "final records of TCP connections that did not fit into the ring buffer"},
			{Stage: "subscriber_slow", Count: 42, Meaning: "events that a client did not take in time"},
		},
	}
}

func TestStatus(t *testing.T) {
	for _, tt := range formats {
		for kind, s := range map[string]*orb8v1.AgentStatus{
			"status": status(), "status_bare": {HealthMessage: "no probe runs"},
		} {
			name := nameOf(kind, tt.format, tt.width)
			t.Run(name, func(t *testing.T) {
				var b bytes.Buffer
				if err := Status(&b, Options{Format: tt.format, Width: tt.width, Location: time.UTC}, "agent localhost:9090", s); err != nil {
					t.Fatal(err)
				}
				golden(t, name, b.String())
				if tt.width >= 60 {
					fits(t, b.String(), tt.format, tt.width)
				}
			})
		}
	}
}

func TestFindings(t *testing.T) {
	findings := []doctor.Finding{
		{Name: "kernel", Status: doctor.OK, Detail: "6.1.0-28-cloud-amd64"},
		{Name: "btf", Status: doctor.Fail, Detail: "/sys/kernel/btf/vmlinux is missing", Remedy: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y; all distributions' kernels since 2021 are"},
		{Name: "memlock", Status: doctor.Warn, Detail: "64 KiB", Remedy: "ulimit -l unlimited"},
		{Name: "bpf", Status: doctor.Info, Detail: "not checked", Remedy: "run it as root"},
		{Name: "iterators", Status: doctor.Info, Detail: "not checked", Remedy: "run it as root"},
		{Name: "agent", Status: doctor.Info, Detail: "none at localhost:9090: connection refused"},
	}
	for _, tt := range formats {
		name := nameOf("findings", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Findings(&b, Options{Format: tt.format, Width: tt.width}, findings); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
		})
	}
}

func TestVerdict(t *testing.T) {
	tests := []struct {
		status doctor.Status
		want   string
	}{
		{doctor.OK, "orb8 runs here."},
		{doctor.Info, "orb8 runs here."},
		{doctor.Warn, "orb8 runs here, with less than it could do: x"},
		{doctor.Fail, "orb8 cannot run here until this is put right: x"},
	}
	for _, tt := range tests {
		if got := verdict(Options{}, []doctor.Finding{{Name: "x", Status: tt.status}}); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.status, got, tt.want)
		}
	}
	// A wrong address says nothing of this host.
	got := verdict(Options{}, []doctor.Finding{{Name: "kernel", Status: doctor.OK}, {Name: "agent", Status: doctor.Fail}})
	if want := "this host has what orb8 needs; what is wrong is the agent that was asked"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestProgramsCost says what is known of it.
func TestProgramsCost(t *testing.T) {
	for _, tt := range []struct {
		cost *orb8v1.AgentCost
		want string
	}{
		{&orb8v1.AgentCost{}, "not measured: sysctl -w kernel.bpf_stats_enabled=1 does"},
		{&orb8v1.AgentCost{ProgramsMeasured: true}, "have not run since that is measured"},
		{&orb8v1.AgentCost{ProgramsRuns: 9, ProgramsNs: int64(3 * time.Second)}, "3s while that was measured; it is not now"},
		{&orb8v1.AgentCost{
			ProgramsMeasured: true, ProgramsRuns: 1_000_000, ProgramsNs: 85_000_000, RecentProgramsNs: 72_000_000, RecentNs: int64(time.Minute),
		}, "0.12 % of a processor, 85 ns a run"},
	} {
		if got := programsCost(tt.cost); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	for part, want := range map[int64]string{0: "0.00 %", 1: "0.10 %", 55: "5.5 %", 123: "12 %", 4000: "400 %"} {
		if got := share(part, 1000); got != want {
			t.Errorf("%d of 1000: %q, want %q", part, got, want)
		}
	}
}

func TestHeader(t *testing.T) {
	for _, width := range []int{0, 60, 80, 120} {
		h := Header{What: "network flows", Source: "probes in this process", Statuses: []*orb8v1.AgentStatus{status()},
			Filters: []string{"protocol tcp", "not port 443"}, Warnings: []string{"something is odd"}}
		var b bytes.Buffer
		if err := h.Write(&b, Options{Width: width}); err != nil {
			t.Fatal(err)
		}
		golden(t, fmt.Sprintf("header_%d", width), b.String())
		fits(t, b.String(), Table, width)
	}
	var b bytes.Buffer
	if err := (Header{What: "network flows", Source: "agent x"}).Write(&b, Options{}); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "network flows · agent x\n"; got != want {
		t.Errorf("bare header %q, want %q", got, want)
	}
	b.Reset()
	if err := (Header{What: "w", Source: "s", Statuses: []*orb8v1.AgentStatus{status()}, Probes: []string{"packet"}}).Write(&b, Options{}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "tcp") || !strings.Contains(b.String(), "probe packet off") {
		t.Errorf("of the packet probe alone: %s", b.String())
	}
}

func TestSummary(t *testing.T) {
	s := NewSummary()
	var b bytes.Buffer
	if err := s.Write(&b, Options{}, 1500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for _, ev := range events(t) {
		s.Add(ev)
	}
	if err := s.Write(&b, Options{}, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	golden(t, "summary", b.String())
}

func TestJSONIsStable(t *testing.T) {
	for _, ev := range events(t) {
		var b bytes.Buffer
		if err := WriteJSON(&b, ev); err != nil {
			t.Fatal(err)
		}
		if strings.Count(b.String(), "\n") != 1 || strings.Contains(b.String(), ": ") && !strings.Contains(b.String(), "off: ") {
			t.Errorf("not one compact line: %q", b.String())
		}
		back := &orb8v1.Event{}
		if err := protojson.Unmarshal(b.Bytes(), back); err != nil {
			t.Errorf("%v in %s", err, b.String())
		}
	}
}

func BenchmarkEvents(b *testing.B) {
	text, err := os.ReadFile("testdata/events.jsonl")
	if err != nil {
		b.Fatal(err)
	}
	ev := &orb8v1.Event{}
	if err := protojson.Unmarshal(bytes.SplitN(text, []byte("\n"), 2)[0], ev); err != nil {
		b.Fatal(err)
	}
	for _, f := range Formats() {
		b.Run(f, func(b *testing.B) {
			b.ReportAllocs()
			r := NewEvents(io.Discard, Options{Format: Format(f), Width: 120, Color: true})
			for b.Loop() {
				if err := r.Write(ev); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSummary(b *testing.B) {
	b.ReportAllocs()
	s, ev := NewSummary(), &orb8v1.Event{Event: &orb8v1.Event_Flow{Flow: &orb8v1.Flow{Protocol: "TCP",
		Local: &orb8v1.Endpoint{Ip: "10.0.0.1", Port: 1}, Remote: &orb8v1.Endpoint{Ip: "10.0.0.2", Port: 2}}}}
	for b.Loop() {
		s.Add(ev)
	}
}

// TestSummaryCountsShortConnections: one that was opened and closed within a sample has one
// event, and was opened all the same.
func TestSummaryCountsShortConnections(t *testing.T) {
	s := NewSummary()
	step := func(e orb8v1.ConnectionEvent, opened bool) {
		s.Add(&orb8v1.Event{Event: &orb8v1.Event_Connection{Connection: &orb8v1.Connection{Event: e, Opened: opened, Flow: &orb8v1.Flow{}}}})
	}
	step(orb8v1.ConnectionEvent_CONNECTION_EVENT_OPENED, true)
	step(orb8v1.ConnectionEvent_CONNECTION_EVENT_CLOSED, false)
	step(orb8v1.ConnectionEvent_CONNECTION_EVENT_CLOSED, true)
	step(orb8v1.ConnectionEvent_CONNECTION_EVENT_FAILED, false)
	var b bytes.Buffer
	if err := s.Write(&b, Options{}, time.Second); err != nil || !strings.Contains(b.String(), "connections: 2 opened, 2 closed, 1 failed") {
		t.Errorf("%s, %v", b.String(), err)
	}
}
