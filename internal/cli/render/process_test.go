// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// safe checks that nothing in text does anything to a terminal but print.
func safe(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && r != ' ' && !unicode.IsPrint(r) {
			t.Errorf("%q got through in %q", r, text)
			return
		}
	}
}

// rendered shows all of a file of testdata in each format and compares.
func rendered(t *testing.T, name, data string, o Options, newView func(io.Writer, Options) view) {
	t.Helper()
	for _, tt := range formats {
		name := nameOf(name, tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			o := o
			o.Format, o.Width, o.Location = tt.format, tt.width, time.UTC
			v := newView(&b, o)
			show(t, v, eventsOf(t, data))
			if f, ok := v.(interface{ Finish() error }); ok {
				if err := f.Finish(); err != nil {
					t.Fatal(err)
				}
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
			safe(t, b.String())
		})
	}
}

func TestProcesses(t *testing.T) {
	rendered(t, "processes", "processes", Options{}, func(w io.Writer, o Options) view {
		return NewProcesses(w, o, ProcessOptions{})
	})
}

func TestProcessesThatEnd(t *testing.T) {
	rendered(t, "processes_exits_nodes", "processes", Options{Nodes: true}, func(w io.Writer, o Options) view {
		return NewProcesses(w, o, ProcessOptions{Exits: true})
	})
}

func TestAlerts(t *testing.T) {
	rendered(t, "alerts", "alerts", Options{}, func(w io.Writer, o Options) view {
		return NewAlerts(w, o, AlertOptions{Hold: true})
	})
}

func TestAlertsOfACluster(t *testing.T) {
	rendered(t, "alerts_nodes", "alerts", Options{Nodes: true}, func(w io.Writer, o Options) view {
		return NewAlerts(w, o, AlertOptions{})
	})
}

// TestOneAlert: the only one is shown in full, among others none is.
func TestOneAlert(t *testing.T) {
	all := eventsOf(t, "alerts")
	lost := all[len(all)-1]
	for _, tt := range []struct {
		name   string
		events []*orb8v1.Event
	}{
		{"alert_none", nil}, {"alert_one", all[:1]}, {"alert_one_call", all[2:3]}, {"alert_one_lost", []*orb8v1.Event{lost, all[0], lost}},
		{"alert_two", []*orb8v1.Event{lost, all[0], lost, all[2]}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			v := NewAlerts(&b, Options{Format: Table, Width: 80, Location: time.UTC}, AlertOptions{Hold: true})
			show(t, v, tt.events)
			if err := v.Finish(); err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name, b.String())
			fits(t, b.String(), Table, 80)
		})
	}
}

func TestSyscalls(t *testing.T) {
	rendered(t, "syscalls", "syscalls", Options{}, func(w io.Writer, o Options) view {
		return NewSyscalls(w, o, SyscallOptions{})
	})
}

func TestSyscallsOfOnePod(t *testing.T) {
	rendered(t, "syscalls_one", "syscalls", Options{}, func(w io.Writer, o Options) view {
		return NewSyscalls(w, o, SyscallOptions{One: true})
	})
}

func TestSyscallSummaries(t *testing.T) {
	for _, tt := range formats {
		if tt.format == JSON {
			continue
		}
		name := nameOf("counts", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			o := Options{Format: tt.format, Width: tt.width, Nodes: tt.width == 100, Location: time.UTC}
			if err := SyscallSummaries(&b, o, eventsOf(t, "counts")); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
			safe(t, b.String())
		})
	}
}

// views are those of processes, alerts and calls, for what all must do.
func views(w io.Writer, o Options) map[string]view {
	return map[string]view{
		"processes": NewProcesses(w, o, ProcessOptions{Exits: true}), "alerts": NewAlerts(w, o, AlertOptions{}),
		"syscalls": NewSyscalls(w, o, SyscallOptions{}), "events": NewEvents(w, o),
	}
}

func TestProcessColours(t *testing.T) {
	for _, name := range []string{"processes", "alerts", "syscalls"} {
		for _, width := range []int{80, 160} {
			var b bytes.Buffer
			show(t, views(&b, Options{Format: Table, Width: width, Color: true, Location: time.UTC})[name], eventsOf(t, name))
			golden(t, nameOf(name+"_colour", Table, width), strings.ReplaceAll(b.String(), "\x1b", "^"))
		}
	}
	var b bytes.Buffer
	if err := SyscallSummaries(&b, Options{Format: Table, Width: 80, Color: true}, eventsOf(t, "counts")[:2]); err != nil {
		t.Fatal(err)
	}
	golden(t, "counts_colour", strings.ReplaceAll(b.String(), "\x1b", "^"))
}

// TestAmongFlows: where several types are asked for, these are lines of words.
func TestAmongFlows(t *testing.T) {
	var b bytes.Buffer
	v := NewEvents(&b, Options{Format: Table, Width: 120, Color: true, Location: time.UTC})
	for _, name := range []string{"processes", "alerts", "syscalls"} {
		for _, ev := range eventsOf(t, name)[1:3] {
			if err := v.Write(ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	golden(t, "among_flows", b.String())
	fits(t, b.String(), Table, 120)
}

// TestTitlesOfOwnTable: what is no process comes under the titles of processes too.
func TestTitlesOfOwnTable(t *testing.T) {
	all := eventsOf(t, "processes")
	lost := all[len(all)-2]
	for name, title := range map[string]string{"processes": "PARENTS", "alerts": "SEVERITY", "syscalls": "CALL"} {
		var b bytes.Buffer
		v := views(&b, Options{Format: Table, Width: 100, Height: 5, Location: time.UTC})[name]
		for range 10 {
			if err := v.Write(lost); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Contains(b.String(), "REMOTE") || strings.Count(b.String(), title) != 3 {
			t.Errorf("%s: %s", name, b.String())
		}
	}
}

func TestResizeOfProcesses(t *testing.T) {
	for _, name := range []string{"processes", "alerts", "syscalls"} {
		var b bytes.Buffer
		v := views(&b, Options{Format: Table, Width: 160, Location: time.UTC})[name]
		if r, ok := v.(interface{ Resize(width, height int) }); ok {
			r.Resize(60, 24)
		}
		show(t, v, eventsOf(t, name)[:4])
		fits(t, b.String(), Table, 60)
	}
}

func TestSummaryOfProcesses(t *testing.T) {
	var b bytes.Buffer
	for _, tt := range []struct {
		of   Subject
		data string
	}{{OfProcesses, "processes"}, {OfAlerts, "alerts"}, {OfSyscalls, "syscalls"}, {OfSyscallCounts, "counts"}} {
		for _, events := range [][]*orb8v1.Event{nil, eventsOf(t, tt.data)} {
			s := NewSummary()
			s.Of = tt.of
			for _, ev := range events {
				s.Add(ev)
			}
			if err := s.Write(&b, Options{}, 7*time.Second); err != nil {
				t.Fatal(err)
			}
		}
	}
	golden(t, "summary_processes", b.String())
}

// TestLaterCount: a container's next summary takes the place of the one before.
func TestLaterCount(t *testing.T) {
	s := NewSummary()
	s.Of = OfSyscallCounts
	for range 3 {
		s.Add(eventsOf(t, "counts")[0])
	}
	var b bytes.Buffer
	if err := s.Write(&b, Options{}, time.Second); err != nil {
		t.Fatal(err)
	}
	if want := "1,240,652 system calls of 1 container in 1s: 20 errors; nothing lost\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

// TestCountsAfterRestart: an agent that is started again counts anew.
func TestCountsAfterRestart(t *testing.T) {
	first := eventsOf(t, "counts")[0]
	first.GetSyscallSummary().BeginNs = 1
	later := proto.CloneOf(first)
	sum := later.GetSyscallSummary()
	sum.BeginNs = 2
	sum.Calls = append(sum.Calls[:1:1], &orb8v1.SyscallCount{Name: "getpid", Abi: "amd64", Calls: 5, TimeNs: 1, MaxNs: 1})
	sum.Calls[0].Calls, sum.Calls[0].MaxNs = 7, 0
	var s CountSet
	for _, ev := range []*orb8v1.Event{first, first, later, later} {
		s.Add(ev)
	}
	all := s.All()
	if len(all) != 1 {
		t.Fatalf("%d containers", len(all))
	}
	got := all[0].GetSyscallSummary()
	before, after := sumOf(first.GetSyscallSummary()), sumOf(got)
	if got.GetBeginNs() != 1 || after.calls != before.calls+12 || after.longest != 0 {
		t.Errorf("%d calls since %d, longest %d; want %d since 1", after.calls, got.GetBeginNs(), after.longest, before.calls+12)
	}
}

// TestWrapFlow: what is broken into lines is the same YAML.
func TestWrapFlow(t *testing.T) {
	const exception = `- {rule: mount, namespace: "a, b", workload: DaemonSet/csi-node, executable: /usr/bin/mount}`
	var want, got any
	if err := yaml.Unmarshal([]byte(exception), &want); err != nil {
		t.Fatal(err)
	}
	for n := range 100 {
		if err := yaml.Unmarshal([]byte(strings.Join(wrapFlow(exception, n), "\n")), &got); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("in %d cells (-want +got):\n%s", n, diff)
		}
	}
	if got := len(wrapFlow(exception, 40)); got != 3 {
		t.Errorf("%d lines of 40 cells, want 3", got)
	}
}

func TestQuoteArg(t *testing.T) {
	for s, want := range map[string]string{
		"": "''", "ls": "ls", "--a=b": "--a=b", "a b": "'a b'", "it's": `"it's"`, "$HOME": "'$HOME'", "a\nb": `"a\nb"`,
		"\x1b[2J": `"\x1b[2J"`, "\xff": `"\xff"`, "\u202e": `"\u202e"`, "日本": "日本", "\u009b1m": `"\u009b1m"`, `a"b`: `'a"b'`,
	} {
		if got := quoteArg(s); got != want {
			t.Errorf("quoteArg(%q) = %s, want %s", s, got, want)
		}
	}
}

// FuzzHostile: whatever a workload calls itself and its files, and says to its system
// calls, the terminal prints it, and lines fit.
func FuzzHostile(f *testing.F) {
	f.Add("\x1b[2J", "sh -c 'rm -rf /'\n", 80)
	f.Add("日本語\xff\u202e\u009b", "\x1b]52;c;aGk=\x07", 40)
	f.Add("e\u0301\u200b", "\r\x08\x08", 0)
	f.Fuzz(func(t *testing.T, a, b string, width int) {
		if width = min(max(width, 0), 300); width > 0 && width < 60 {
			width = 60
		}
		a, b = strings.ToValidUTF8(a, "\uFFFD"), strings.ToValidUTF8(b, "\uFFFD") // as the API has text
		for _, format := range []Format{Table, Wide, Compact} {
			for _, ev := range hostile(a, b) {
				var out bytes.Buffer
				o := Options{Format: format, Width: width, Nodes: true, Location: time.UTC}
				for _, v := range views(&out, o) {
					if err := v.Write(ev); err != nil {
						t.Fatal(err)
					}
				}
				if err := SyscallSummaries(&out, o, []*orb8v1.Event{ev}); err != nil {
					t.Fatal(err)
				}
				safe(t, out.String())
				fits(t, out.String(), format, width)
			}
		}
	})
}

// hostile has both texts wherever a workload can put one.
func hostile(a, b string) []*orb8v1.Event {
	p := &orb8v1.ProcessInfo{Pid: 1, Command: a, Arguments: []string{a, b}, Executable: &orb8v1.Executable{Path: b, Called: a, Memfd: true}}
	w := &orb8v1.Workload{Namespace: a, PodName: b, Name: a, ContainerId: b}
	args := []*orb8v1.SyscallArgument{{Name: b, Text: a}, {Name: a, Text: b}}
	ancestors := []*orb8v1.ProcessInfo{p, {Command: b}}
	alert := &orb8v1.Alert{Rule: a, Summary: b, Reason: a, Workload: w, Process: p, Ancestors: ancestors, Syscall: a, Arguments: args, Remote: &orb8v1.Endpoint{Ip: a}}
	return []*orb8v1.Event{
		{NodeName: a, Event: &orb8v1.Event_Process{Process: &orb8v1.ProcessEvent{Step: orb8v1.ProcessStep_PROCESS_STEP_EXEC, Workload: w, Process: p, Ancestors: ancestors}}},
		{NodeName: a, Event: &orb8v1.Event_Process{Process: &orb8v1.ProcessEvent{Step: orb8v1.ProcessStep_PROCESS_STEP_EXIT, Process: p}}},
		{NodeName: b, Event: &orb8v1.Event_Alert{Alert: alert}},
		{NodeName: b, Event: &orb8v1.Event_Syscall{Syscall: &orb8v1.Syscall{Workload: w, Process: &orb8v1.Process{Pid: 1, Command: a}, Name: b, Arguments: args, Error: a, Rules: []string{b}}}},
		{NodeName: b, Event: &orb8v1.Event_SyscallSummary{SyscallSummary: &orb8v1.SyscallSummary{Workload: w, Calls: []*orb8v1.SyscallCount{{Name: a, Abi: b}}}}},
	}
}
