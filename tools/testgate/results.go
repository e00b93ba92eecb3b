// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/Ignoramuss/orb8/tools/testgate/verdict"
)

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output, FailedBuild string
	Elapsed                                                float64
}

// results collects the events that are written to it, in any pieces. Lines that are
// none are passed on.
type results struct {
	progress io.Writer // a line for each package; nil: none
	rest     []byte    // the beginning of a line
	tests    []*test   // in the order in which they began
	packages []*test   // with an empty name
	builds   map[string]*strings.Builder
	index    map[string]*test
}

// test is one test, a part of one, or a package.
type test struct {
	pkg, name, action, failedBuild string
	output                         strings.Builder
}

func (r *results) Write(p []byte) (int, error) {
	r.rest = append(r.rest, p...)
	for {
		line, rest, ok := bytes.Cut(r.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		r.line(line)
		r.rest = rest
	}
}

// flush takes what is left without an end of line.
func (r *results) flush() {
	if len(r.rest) > 0 {
		r.line(r.rest)
		r.rest = nil
	}
}

func (r *results) line(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil || e.Action == "" {
		r.say("%s\n", line)
		return
	}
	if e.Action == "build-output" {
		if r.builds == nil {
			r.builds = map[string]*strings.Builder{}
		}
		if r.builds[e.ImportPath] == nil {
			r.builds[e.ImportPath] = &strings.Builder{}
		}
		r.builds[e.ImportPath].WriteString(e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	t := r.find(e.Package, e.Test)
	t.output.WriteString(e.Output)
	if e.FailedBuild != "" {
		t.failedBuild = e.FailedBuild
	}
	if slices.Contains([]string{"pass", "fail", "skip"}, e.Action) {
		t.action = e.Action
		if t.name == "" && (e.Action != "skip") {
			r.say("  %-4s  %s  %.1fs\n", map[string]string{"pass": "ok", "fail": "FAIL"}[e.Action], e.Package, e.Elapsed)
		}
	}
}

func (r *results) say(format string, args ...any) {
	if r.progress != nil {
		fmt.Fprintf(r.progress, format, args...)
	}
}

func (r *results) find(pkg, name string) *test {
	key := pkg + " " + name
	if t := r.index[key]; t != nil {
		return t
	}
	if r.index == nil {
		r.index = map[string]*test{}
	}
	t := &test{pkg: pkg, name: name}
	r.index[key] = t
	if name == "" {
		r.packages = append(r.packages, t)
	} else {
		r.tests = append(r.tests, t)
	}
	return t
}

// count counts tests, parts included.
func (r *results) count(action string) int {
	n := 0
	for _, t := range r.tests {
		if t.action == action {
			n++
		}
	}
	return n
}

// passed tells whether a test was run and nothing failed.
func (r *results) passed(name string) bool {
	ok := false
	for _, t := range slices.Concat(r.tests, r.packages) {
		if t.action == "fail" {
			return false
		}
		ok = ok || t.name == name && t.action == "pass"
	}
	return ok
}

// failure is a test that failed, its parts included, or a package that failed without
// one, with an empty test.
type failure struct {
	pkg, test, output, said string
	final                   string // why it is not tried again, or empty
}

func (r *results) failures() []failure {
	var all []failure
	for _, p := range r.packages {
		if p.action != "fail" {
			continue
		}
		n := len(all)
		for _, t := range r.tests {
			// Without an end: the program died in it, and the package says how.
			if t.pkg == p.pkg && t.top() && (t.action == "fail" || t.action == "") {
				all = append(all, r.failure(p, t))
			}
		}
		if len(all) == n {
			text := p.output.String()
			if b := r.builds[p.failedBuild]; b != nil {
				text = b.String() + text
			}
			all = append(all, failure{pkg: p.pkg, output: text})
		}
	}
	return all
}

func (r *results) failure(p, top *test) failure {
	f := failure{pkg: p.pkg, test: top.name}
	whole := ""
	for _, t := range r.tests {
		if t.pkg != p.pkg || t.name != top.name && !strings.HasPrefix(t.name, top.name+"/") {
			continue
		}
		text := t.output.String()
		whole += text
		if t.action == "pass" || t.action == "skip" {
			continue
		}
		f.output += text
		if f.said == "" {
			f.said = verdict.Said(text)
		}
	}
	// A race or a panic may come in the output of a part that passed, or of nobody.
	f.final = verdict.Final(top.name, whole+p.output.String())
	if f.final == "" && top.action == "" {
		f.final = "crash"
	}
	if f.final != "" {
		f.output += p.output.String()
	}
	return f
}

// top tells a test from a part of one.
func (t *test) top() bool { return !strings.Contains(t.name, "/") }

// reportSkips prints what was skipped and why, and returns how many skips were not
// expected. A test that is skipped as a whole is one.
func (r *results) reportSkips(w io.Writer, expected skips) (unexpected int) {
	for _, t := range r.tests {
		if t.action != "skip" {
			continue
		}
		name, said := short(t.pkg)+" "+t.name, verdict.Said(t.output.String())
		if expected == nil || expected.has(name, said) {
			fmt.Fprintf(w, "  skipped  %s: %s\n", name, said)
			continue
		}
		unexpected++
		fmt.Fprintf(w, "  SKIPPED, which is not expected  %s: %s\n", name, said)
	}
	return unexpected
}

// short is a package's path without the module's.
func short(pkg string) string { return strings.TrimPrefix(pkg, "github.com/Ignoramuss/orb8/") }
