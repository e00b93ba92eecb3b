// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
)

type status string

// What a test came to, in the words of docs/kernels.md.
const (
	pass status = "works"
	skip status = "skipped"
	fail status = "fails"
)

// kernel is what one kernel said.
type kernel struct {
	series   string // 6.1
	version  string // 6.1.192-2, that of the package
	tests    []*test
	features []*feature
	ended    map[string]bool // packages whose tests came to their end
}

type test struct {
	pkg, name string
	status    status
	detail    string // why it is skipped or fails
	output    []string
}

// feature is a line "orb8-feature: <name>: <works|fallback|off>[: <detail>]"
// in the log of a test.
type feature struct {
	pkg, name, state, detail string
}

var (
	runLine     = regexp.MustCompile(`^orb8-run: (begin|end) (\S+)(?: (\d+))?$`)
	startLine   = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S*)$`)
	resultLine  = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)
	logLine     = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: (.*)$`)
	featureLine = regexp.MustCompile(`^orb8-feature: (.+?): (works|fallback|off)(?:: (.*))?$`)
)

// frame starts each line that the testing package itself writes when it is run
// with -test.v=test2json, wherever the test's own output ended.
const frame = "\x16"

// parser follows the output of one package's tests after the other's.
type parser struct {
	*kernel
	pkg     string
	current *test
}

func (k *kernel) parse(out string) {
	k.ended = map[string]bool{}
	p := parser{kernel: k}
	for line := range strings.Lines(out) {
		for i, part := range strings.Split(strings.TrimRight(line, "\r\n"), frame) {
			if i == 0 {
				p.text(part)
			} else {
				p.framed(part)
			}
		}
	}
}

// text takes a line that a test or init wrote.
func (p *parser) text(line string) {
	if m := runLine.FindStringSubmatch(line); m != nil {
		p.boundary(m[1], m[2], m[3])
		return
	}
	if p.current == nil || strings.TrimSpace(line) == "" {
		return
	}
	p.current.output = append(p.current.output, line)
	m := logLine.FindStringSubmatch(line)
	if m == nil {
		return
	}
	p.current.detail = strings.TrimPrefix(m[1], "SKIP: ")
	if f := featureLine.FindStringSubmatch(m[1]); f != nil {
		p.setFeature(&feature{pkg: p.pkg, name: f[1], state: f[2], detail: f[3]})
	}
}

func (p *parser) boundary(what, pkg, code string) {
	p.current = nil
	if what == "begin" {
		p.pkg = pkg
		return
	}
	p.finish(pkg, code)
	p.ended[pkg] = true
	p.pkg = ""
}

// framed takes a line of the testing package.
func (p *parser) framed(line string) {
	if m := startLine.FindStringSubmatch(line); m != nil {
		p.current = p.test(m[1])
		return
	}
	m := resultLine.FindStringSubmatch(line)
	if m == nil {
		return
	}
	t := p.test(m[2])
	t.status = map[string]status{"PASS": pass, "FAIL": fail, "SKIP": skip}[m[1]]
	if t.status == pass {
		t.detail = ""
	}
	p.current = t
}

// test returns the package's test of that name, nil for no name.
func (p *parser) test(name string) *test {
	if name == "" {
		return nil
	}
	for _, t := range p.tests {
		if t.pkg == p.pkg && t.name == name {
			return t
		}
	}
	t := &test{pkg: p.pkg, name: name}
	p.tests = append(p.tests, t)
	return t
}

// setFeature keeps the worst of what is said of one feature.
func (p *parser) setFeature(f *feature) {
	rank := map[string]int{"works": 0, "fallback": 1, "off": 2}
	for _, old := range p.features {
		if old.pkg == f.pkg && old.name == f.name {
			if rank[f.state] > rank[old.state] {
				*old = *f
			}
			return
		}
	}
	p.features = append(p.features, f)
}

// finish settles a package whose tests have ended: those without a result did
// not come to their end, and an exit code needs a test that explains it.
func (k *kernel) finish(pkg, code string) {
	failed := false
	for _, t := range k.tests {
		if t.pkg != pkg {
			continue
		}
		if t.status == "" {
			t.status, t.detail = fail, "did not finish"
		}
		failed = failed || t.status == fail
	}
	if code != "0" && !failed {
		k.tests = append(k.tests, &test{pkg: pkg, name: "(package)", status: fail, detail: "exit status " + code})
	}
}

// complete adds a failure for each package that did not end.
func (k *kernel) complete(packages []string, outcome string) {
	for _, pkg := range packages {
		if !k.ended[pkg] {
			k.finish(pkg, "0")
			k.tests = append(k.tests, &test{pkg: pkg, name: "(package)", status: fail, detail: "did not end: " + outcome})
		}
	}
}
