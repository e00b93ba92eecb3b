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

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
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

func TestProcessColours(t *testing.T) {
	for _, width := range []int{80, 160} {
		var b bytes.Buffer
		o := Options{Format: Table, Width: width, Color: true, Location: time.UTC}
		show(t, NewProcesses(&b, o, ProcessOptions{Exits: true}), eventsOf(t, "processes"))
		golden(t, nameOf("processes_colour", Table, width), strings.ReplaceAll(b.String(), "\x1b", "^"))
	}
}

// TestTitlesOfProcesses: what is no process comes under the titles of processes too.
func TestTitlesOfProcesses(t *testing.T) {
	all := eventsOf(t, "processes")
	lost := all[len(all)-2]
	var b bytes.Buffer
	v := NewProcesses(&b, Options{Format: Table, Width: 100, Height: 5, Location: time.UTC}, ProcessOptions{})
	for range 10 {
		if err := v.Write(lost); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(b.String(), "REMOTE") || strings.Count(b.String(), "PARENTS") != 3 {
		t.Error(b.String())
	}
}

func TestResizeOfProcesses(t *testing.T) {
	var b bytes.Buffer
	v := NewProcesses(&b, Options{Format: Table, Width: 160, Location: time.UTC}, ProcessOptions{})
	v.Resize(60, 24)
	show(t, v, eventsOf(t, "processes")[:4])
	fits(t, b.String(), Table, 60)
}

func TestSummaryOfProcesses(t *testing.T) {
	var b bytes.Buffer
	for _, events := range [][]*orb8v1.Event{nil, eventsOf(t, "processes")} {
		s := NewProcessSummary()
		for _, ev := range events {
			s.Add(ev)
		}
		if err := s.Write(&b, Options{}, 7*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "processes_summary", b.String())
}

func TestAlerts(t *testing.T) {
	rendered(t, "alerts", "alerts", Options{}, func(w io.Writer, o Options) view { return NewAlerts(w, o) })
}

func TestAlertsOfACluster(t *testing.T) {
	rendered(t, "alerts_nodes", "alerts", Options{Nodes: true}, func(w io.Writer, o Options) view { return NewAlerts(w, o) })
}

func TestAlertColours(t *testing.T) {
	for _, width := range []int{80, 160} {
		var b bytes.Buffer
		show(t, NewAlerts(&b, Options{Format: Table, Width: width, Color: true, Location: time.UTC}), eventsOf(t, "alerts"))
		golden(t, nameOf("alerts_colour", Table, width), strings.ReplaceAll(b.String(), "\x1b", "^"))
	}
}

func TestSummaryOfAlerts(t *testing.T) {
	var b bytes.Buffer
	for _, events := range [][]*orb8v1.Event{nil, eventsOf(t, "alerts")} {
		s := NewAlertSummary()
		for _, ev := range events {
			s.Add(ev)
		}
		if err := s.Write(&b, Options{}, 7*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "alerts_summary", b.String())
}

// ruleRows are three rules: on everywhere, off on one of two nodes, and of which nobody has
// said anything.
func ruleRows() []RuleRow {
	rows := RuleRows(anomaly.Rules()[:3])
	rows[0].Add("n1", false, 1234)
	rows[0].Add("n2", false, 1)
	rows[1].Add("n1", false, 0)
	rows[1].Add("n2", true, 7)
	return rows
}

func TestRules(t *testing.T) {
	for _, tt := range formats {
		name := nameOf("rules", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Rules(&b, Options{Format: tt.format, Width: tt.width}, ruleRows()); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
		})
	}
	var b bytes.Buffer
	if err := Rule(&b, Options{Format: Table, Width: 80}, &ruleRows()[1]); err != nil {
		t.Fatal(err)
	}
	golden(t, "rule", b.String())
	fits(t, b.String(), Table, 80)
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

// FuzzProcess: whatever a workload calls itself and its files, the terminal prints it, and
// lines fit.
func FuzzProcess(f *testing.F) {
	f.Add("\x1b[2J", "sh -c 'rm -rf /'\n", 80)
	f.Add("日本語\xff\u202e\u009b", "\x1b]52;c;aGk=\x07", 40)
	f.Add("e\u0301\u200b", "\r\x08\x08", 0)
	f.Fuzz(func(t *testing.T, a, b string, width int) {
		if width = min(max(width, 0), 300); width > 0 && width < 60 {
			width = 60
		}
		a, b = strings.ToValidUTF8(a, "\uFFFD"), strings.ToValidUTF8(b, "\uFFFD") // as the API has text
		for _, format := range []Format{Table, Wide, Compact} {
			var out bytes.Buffer
			o := Options{Format: format, Width: width, Nodes: true, Location: time.UTC}
			for _, v := range []view{NewProcesses(&out, o, ProcessOptions{Exits: true}), NewAlerts(&out, o)} {
				for _, ev := range hostileProcesses(a, b) {
					if err := v.Write(ev); err != nil {
						t.Fatal(err)
					}
				}
			}
			safe(t, out.String())
			fits(t, out.String(), format, width)
		}
	})
}

// hostileProcesses have both texts wherever a workload can put one.
func hostileProcesses(a, b string) []*orb8v1.Event {
	p := &orb8v1.ProcessInfo{Pid: 1, Command: a, Arguments: []string{a, b}, Executable: &orb8v1.Executable{Path: b, Called: a, Memfd: true}}
	w := &orb8v1.Workload{Namespace: a, PodName: b, Name: a, ContainerId: b}
	alert := &orb8v1.Alert{
		Rule: a, Summary: b, Reason: a, LookCloser: b, Exception: a, Workload: w, Process: p, Ancestors: []*orb8v1.ProcessInfo{p},
		Syscall: a, Arguments: []*orb8v1.SyscallArgument{{Name: b, Text: a}, {Name: a, Text: b}}, Remote: &orb8v1.Endpoint{Ip: a},
	}
	return []*orb8v1.Event{
		{NodeName: b, Event: &orb8v1.Event_Alert{Alert: alert}},
		{NodeName: a, Event: &orb8v1.Event_Process{Process: &orb8v1.ProcessEvent{
			Step: orb8v1.ProcessStep_PROCESS_STEP_EXEC, Workload: w, Process: p, Ancestors: []*orb8v1.ProcessInfo{p, {Command: b}},
		}}},
		{NodeName: b, Event: &orb8v1.Event_Process{Process: &orb8v1.ProcessEvent{Step: orb8v1.ProcessStep_PROCESS_STEP_EXIT, Process: p}}},
	}
}
