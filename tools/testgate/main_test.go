// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// script makes the events of one package from lines "ACTION TEST [OUTPUT]"; a dot is
// the package itself.
func script(t *testing.T, lines string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(lines) {
		action, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, output, _ := strings.Cut(rest, " ")
		if name == "." {
			name = ""
		}
		e := map[string]any{"Action": action, "Package": "github.com/Ignoramuss/orb8/internal/x"}
		if name != "" {
			e["Test"] = name
		}
		if action == "output" {
			e["Output"] = output + "\n"
		}
		if action == "build-fail" {
			e = map[string]any{"Action": "fail", "Package": e["Package"], "FailedBuild": "x.test"}
		}
		if action == "build-output" {
			e = map[string]any{"Action": action, "ImportPath": "x.test", "Output": output + "\n"}
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n", text)
	}
	return b.String()
}

// gate runs testgate on what `go test` says the first and, if it comes to that, the
// second time, and returns how it was called that time.
func gate(t *testing.T, cfg config, first, second string) (s *summary, out string, called []string) {
	t.Helper()
	calls := 0
	test := func(_ context.Context, w io.Writer, args ...string) error {
		calls++
		text := script(t, first)
		if calls > 1 {
			text, called = script(t, second), args
		}
		// In pieces, as from a pipe.
		for len(text) > 0 {
			n := min(len(text), 100)
			if _, err := io.WriteString(w, text[:n]); err != nil {
				return err
			}
			text = text[n:]
		}
		return nil
	}
	var b bytes.Buffer
	cfg.packages = []string{"./..."}
	s, err := run(t.Context(), &cfg, test, &b)
	if err != nil {
		t.Fatal(err)
	}
	return s, b.String(), called
}

const (
	good  = "pass TestGood\npass TestGood/part\n"
	bad   = "output TestBad     x_test.go:1: 3 rows, want 4\nfail TestBad\nfail .\n"
	again = "pass TestBad\npass .\n"
)

func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name, first, second string
		want                summary
		says                string
		tried               bool
	}{
		{"all pass", good + "pass .", "", summary{Passed: 2, Flaky: []string{}}, "ok ", false},
		{"flaky", good + bad, again, summary{Passed: 3, Flaky: []string{"internal/x TestBad (3 rows, want 4)"}},
			"flaky: internal/x TestBad (3 rows, want 4)\n", true},
		{"fails twice", good + bad, bad, summary{Passed: 2, Failed: 1, Flaky: []string{}}, "TestBad failed twice", true},
		{"gone the second time", good + bad, "pass .", summary{Passed: 2, Failed: 1, Flaky: []string{}}, "failed twice", true},
		{"part", "output TestBad/a     x_test.go:1: no\nfail TestBad/a\nfail TestBad\nfail .", again,
			summary{Passed: 1, Flaky: []string{"internal/x TestBad (no)"}}, "flaky: ", true},
		{"race", good + "output TestBad WARNING: DATA RACE\nfail TestBad\nfail .", again,
			summary{Passed: 2, Failed: 1, Flaky: []string{}}, "a data race is not tried again", false},
		{"race in a part that passed", "output TestBad/a WARNING: DATA RACE\npass TestBad/a\nfail TestBad\nfail .", again,
			summary{Passed: 1, Failed: 1, Flaky: []string{}}, "a data race is not tried again", false},
		{"hang", good + "run TestBad\noutput . panic: test timed out after 4m0s\noutput . goroutine 7 [chan receive]:\nfail .", again,
			summary{Passed: 2, Failed: 1, Flaky: []string{}}, "goroutine 7 [chan receive]", false},
		{"leak of a package", good + "output . goleak: found unexpected goroutines\nfail .", again,
			summary{Passed: 2, Failed: 1, Flaky: []string{}}, "found unexpected goroutines", false},
		{"exit in a test", "run TestBad\nfail .", again, summary{Failed: 1, Flaky: []string{}}, "a crash is not tried again", false},
		{"does not build", "build-output . x.go:1: undefined: y\nbuild-fail .", again,
			summary{Failed: 1, Flaky: []string{}}, "undefined: y", false},
		{"nothing ran", "skip .", "", summary{Failed: 1, Flaky: []string{}}, "no test was run", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, out, called := gate(t, config{again: true}, tt.first, tt.second)
			if d := cmp.Diff(&tt.want, s); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if !strings.Contains(out, tt.says) {
				t.Errorf("does not say %q:\n%s", tt.says, out)
			}
			if (called != nil) != tt.tried {
				t.Errorf("tried again: %v, want %v", called, tt.tried)
			}
		})
	}
}

// The second look is at the one test, not from the cache.
func TestAlone(t *testing.T) {
	_, _, called := gate(t, config{again: true, flags: []string{"-race", "-run=TestB", "-timeout=5m"}}, bad, again)
	want := []string{"-race", "-timeout=5m", "-count=1", "-run=^TestBad$", "github.com/Ignoramuss/orb8/internal/x"}
	if d := cmp.Diff(want, called); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestSkips(t *testing.T) {
	file := filepath.Join(t.TempDir(), "skips")
	if err := os.WriteFile(file, []byte("# a comment\n\ninternal/x TestOld(/.*)?: SKIP: no .*\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config{skips: file, summary: filepath.Join(t.TempDir(), "summary")}
	s, out, _ := gate(t, cfg, good+"output TestOld     x_test.go:1: SKIP: no GPU\nskip TestOld\npass .", "")
	if s.Failed != 0 || !strings.Contains(out, "skipped  internal/x TestOld: SKIP: no GPU") {
		t.Errorf("an expected skip: %+v\n%s", s, out)
	}
	for _, other := range []string{"output TestNew SKIP: no GPU\nskip TestNew", "output TestOld SKIP: too slow\nskip TestOld"} {
		s, out, _ = gate(t, cfg, good+other+"\npass .", "")
		if s.Failed != 1 || !strings.Contains(out, "SKIPPED, which is not expected") {
			t.Errorf("%s: %+v\n%s", other, s, out)
		}
	}
	text, err := os.ReadFile(cfg.summary)
	want := `{"passed":2,"failed":0,"flaky":[]}` + "\n" + strings.Repeat(`{"passed":2,"failed":1,"flaky":[]}`+"\n", 2)
	if err != nil || string(text) != want {
		t.Errorf("summary %v:\n%s", err, text)
	}
}

func TestBadSkips(t *testing.T) {
	for text, want := range map[string]string{
		"TestX: why\n":             ":1: want PACKAGE TEST: REASON",
		"\ninternal/x TestX why\n": ":2: want PACKAGE TEST: REASON",
		"internal/x Test(: why\n":  "missing closing )",
	} {
		file := filepath.Join(t.TempDir(), "skips")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSkips(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestParse(t *testing.T) {
	cfg, err := parse([]string{"-skips=f", "-again=false", "-race", "-tags=cluster", "./a", "./b/..."}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := &config{skips: "f", flags: []string{"-race", "-tags=cluster"}, packages: []string{"./a", "./b/..."}}
	if d := cmp.Diff(want, cfg, cmp.AllowUnexported(config{})); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	for _, args := range [][]string{{"-race"}, {"./a", "-race"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("parse(%q) gave no error", args)
		}
	}
}
