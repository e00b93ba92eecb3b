// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Ignoramuss/orb8/internal/anomaly"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func results() []string { return []string{"testdata/5.10", "testdata/6.1"} }

func readAll(t *testing.T) []*kernel {
	t.Helper()
	var all []*kernel
	for _, dir := range results() {
		k, err := readKernel(dir)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, k)
	}
	return all
}

func TestRender(t *testing.T) { golden(t, "kernels.md", render(readAll(t))) }

func TestRunPrintsWhatFailed(t *testing.T) {
	var out bytes.Buffer
	ok, err := run(&out, "testdata/kernels.md", false, results())
	if err != nil {
		t.Fatal(err)
	}
	if ok {
		t.Error("a result with failures is ok")
	}
	golden(t, "output", out.String())
}

func TestRunWrites(t *testing.T) {
	docs := filepath.Join(t.TempDir(), "kernels.md")
	if ok, err := run(&bytes.Buffer{}, docs, false, results()); ok || err != nil {
		t.Errorf("without docs: %v, %v; want false, nil", ok, err)
	}
	if _, err := run(&bytes.Buffer{}, docs, true, results()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "kernels.md", string(got))
}

func TestRunWithoutResult(t *testing.T) {
	if _, err := run(&bytes.Buffer{}, "", false, []string{t.TempDir()}); err == nil {
		t.Error("no error for an empty folder")
	}
}

func TestCompare(t *testing.T) {
	kernels := readAll(t)
	now := render(kernels)
	tests := []struct {
		name     string
		old, new string // in the committed text
		now      string
		want     []string
	}{
		{name: "equal", now: now},
		{name: "only one kernel was run", now: render(kernels[1:])},
		{name: "version of the package", old: "6.1.192-2", new: "6.1.180-1", now: now},
		{name: "detail", old: "works (struct sock", new: "works (struct socket", now: now},
		{name: "note", old: "1. unknown func", new: "1. no such func", now: now},
		{
			name: "state", old: "| tcx | off [1] | off [1] |", new: "| tcx | off [1] | works |", now: now,
			want: []string{"What the kernels offer: tcx on 6.1: off, documented: works"},
		},
		{
			name: "of a kernel that was not run", now: render(kernels[1:]),
			old: "| tcx | off [1] | off [1] |", new: "| tcx | works | off [1] |",
		},
		{
			name: "new test", old: "| TestManager | works | works |\n", new: "", now: now,
			want: []string{
				"internal/probe: TestManager on 5.10: works, documented: –",
				"internal/probe: TestManager on 6.1: works, documented: –",
			},
		},
		{
			name: "test that went", old: "| TestManager |", new: "| TestOld | – | works |\n| TestManager |", now: now,
			want: []string{"internal/probe: TestOld on 6.1: –, documented: works"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.Contains(now, tt.old) {
				t.Fatalf("%q is not in the text", tt.old)
			}
			committed := strings.Replace(now, tt.old, tt.new, 1)
			if diff := cmp.Diff(tt.want, compare(committed, tt.now)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestRulesTable: a rule works where all that it needs does; what was not tried is not said to
// work.
func TestRulesTable(t *testing.T) {
	says := func(capable string) []*feature {
		return []*feature{
			{"internal/probe/exec", needed[anomaly.NeedsExec], "works", ""},
			{"internal/probe/exec", needed[anomaly.NeedsCapable] + " (some hook)", capable, "why"},
		}
	}
	probes, _ := featureTables([]*kernel{{features: says("works")}, {features: says("off")}, {}})
	rules := rulesTable(probes)
	if len(rules.all) != 1 || len(rules.all[0].names) != len(anomaly.Rules()) {
		t.Fatalf("%+v", rules)
	}
	for rule, want := range map[string][]cell{
		"drifted_executable": {{"works", ""}, {"works", ""}, {none, ""}},
		"mount":              {{"works", ""}, {"off", "why"}, {none, ""}},
		"namespace_change":   {{"works", ""}, {"off", "why"}, {none, ""}},
		"io_uring":           {{none, ""}, {none, ""}, {none, ""}},
	} {
		if got := rules.all[0].cells[rule]; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", rule, got, want)
		}
	}
}

// TestNeededIsTold: all that rules need is a feature that the exec probe's tests tell of.
func TestNeededIsTold(t *testing.T) {
	b, err := os.ReadFile("../../../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range anomaly.Rules() {
		for _, need := range r.Needs {
			if needed[need] == "" || !strings.Contains(string(b), "\n| "+needed[need]) {
				t.Errorf("%s needs %s, which is none of the features in docs/kernels.md", r.Name, need)
			}
		}
	}
}
