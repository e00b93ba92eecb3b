// SPDX-License-Identifier: Apache-2.0

package filter_test

import (
	"errors"
	"testing"

	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/process"
)

// call stands for a traced system call.
type call struct{ rules, paths []string }

func (*call) Kind() flow.Kind             { return flow.NumKinds }
func (c *call) RuleNames() []string       { return c.rules }
func (c *call) ExecutablePaths() []string { return c.paths }

func step(what process.What, path, called string) *process.Step {
	return &process.Step{
		Event:   process.Event{What: what},
		Process: &process.Process{Exe: process.Executable{Path: path, Called: called}},
	}
}

func with(d flow.Detail) *flow.Record {
	r := pod()
	r.Detail = d
	return r
}

// processRecords are one of each kind that the fields of processes are about.
func processRecords() map[string]*flow.Record {
	alert := func(name string, s anomaly.Severity) *anomaly.Alert {
		return &anomaly.Alert{Rule: &anomaly.Rule{Name: name, Severity: s}, Step: step(process.Exec, "/usr/bin/dash", "/bin/sh")}
	}
	return map[string]*flow.Record{
		"exec":    with(step(process.Exec, "/usr/bin/python3.11", "/app/run.py")),
		"exit":    with(step(process.Exit, "/usr/sbin/nginx", "")),
		"fork":    with(step(process.Fork, "", "")),
		"memfd":   with(step(process.Exec, "memfd:x", "/proc/self/fd/3")),
		"shell":   with(alert("reverse_shell", anomaly.Critical)),
		"chroot":  with(alert("chroot", anomaly.Notice)),
		"bare":    with(&anomaly.Alert{Rule: &anomaly.Rule{Name: "bare", Severity: anomaly.Warning}}),
		"call":    with(&call{rules: []string{"mount", "chroot"}, paths: []string{"/usr/bin/python3.11"}}),
		"flow":    pod(),
		"dropped": with(&flow.Drop{}),
	}
}

func TestProcessFields(t *testing.T) {
	records := processRecords()
	all := []string{"exec", "exit", "fork", "memfd", "shell", "chroot", "bare", "call", "flow", "dropped"}
	for _, tt := range []struct {
		filter *F
		want   []string
	}{
		{&F{Types: []string{"exec"}}, []string{"exec", "memfd"}},
		{&F{Types: []string{"Exit", "alert"}}, []string{"exit", "shell", "chroot", "bare"}},
		{&F{Rules: []string{"chroot"}}, []string{"chroot", "call"}},
		{&F{Rules: []string{"reverse_shell", "mount"}}, []string{"shell", "call"}},
		{&F{Rules: []string{"reverse"}}, nil},
		{&F{Severities: []string{"Warning", "critical"}}, []string{"shell", "bare"}},
		{&F{Severities: []string{"notice"}}, []string{"chroot"}},
		{&F{Executables: []string{"/app/run.py"}}, []string{"exec"}},
		{&F{Executables: []string{"python3*"}}, []string{"exec", "call"}},
		{&F{Executables: []string{"/usr/bin/*"}}, []string{"exec", "shell", "chroot", "call"}},
		{&F{Executables: []string{"*/nginx", "memfd:*"}}, []string{"exit", "memfd"}},
		{&F{Executables: []string{"sh", "bin"}}, []string{"shell", "chroot"}},
		{&F{Executables: []string{"*"}}, []string{"exec", "exit", "memfd", "shell", "chroot", "call"}},
		{&F{Processes: []string{"4242"}}, all},
		{&F{Containers: []string{"4f2d9c"}}, all},
		{&F{Processes: []string{"nginx"}}, nil},
		{&F{DnsNames: []string{"*"}}, nil},
	} {
		checkMatches(t, tt.filter, records, tt.want)
	}
}

func TestProcessFieldsErrors(t *testing.T) {
	for _, f := range []*F{
		{Rules: []string{""}}, {Rules: []string{"a*"}}, {Severities: []string{"high"}}, {Severities: []string{""}},
		{Executables: []string{""}}, {Executables: []string{"a*b"}}, {Executables: []string{"/usr/bin/"}}, {Types: []string{"fork"}},
	} {
		_, err := filter.Compile([]*F{f})
		var wrong *filter.Error
		if !errors.As(err, &wrong) {
			t.Errorf("%v: %v, want a *filter.Error", f, err)
		}
	}
}

func TestProcessFieldsDoNotAllocate(t *testing.T) {
	set, err := filter.Compile([]*F{
		{Types: []string{"exec", "alert"}}, {Executables: []string{"none", "*"}}, {Negate: true, Rules: []string{"other"}},
		{Negate: true, Severities: []string{"warning"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	records := processRecords()
	for _, name := range []string{"exec", "shell"} {
		if !set.Match(records[name]) {
			t.Errorf("%s does not match", name)
		}
		if n := testing.AllocsPerRun(100, func() { set.Match(records[name]) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
