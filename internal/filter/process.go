// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"slices"
	"strings"

	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/process"
)

const (
	wantRule       = "the name of a rule, such as reverse_shell"
	wantSeverity   = "notice, warning or critical"
	wantExecutable = "the path of an executable or its last part, with * allowed at the beginning and at the end"
)

// flagged is a detail that rules have something to say of, besides alerts.
type flagged interface{ RuleNames() []string }

// executing is a detail with the paths under which its executable is known, besides
// processes and alerts.
type executing interface{ ExecutablePaths() []string }

// ofStep matches what the streams of processes have of one sort.
func ofStep(w process.What) predicate {
	return func(r *flow.Record) bool {
		s, ok := r.Detail.(*process.Step)
		return ok && s.What == w
	}
}

func compileRules(values []string) (predicate, *Error) {
	names, err := parseNames(values, wantRule)
	if err != nil {
		return nil, err
	}
	return func(r *flow.Record) bool {
		switch d := r.Detail.(type) {
		case *anomaly.Alert:
			return slices.Contains(names, d.Rule.Name)
		case flagged:
			for _, name := range d.RuleNames() {
				if slices.Contains(names, name) {
					return true
				}
			}
		}
		return false
	}, nil
}

func compileSeverities(values []string) (predicate, *Error) {
	var wanted [anomaly.Critical + 1]bool
	for _, v := range values {
		s, ok := parseSeverity(v)
		if !ok {
			return nil, &Error{Value: v, Want: wantSeverity}
		}
		wanted[s] = true
	}
	return func(r *flow.Record) bool {
		a, ok := r.Detail.(*anomaly.Alert)
		return ok && wanted[a.Rule.Severity]
	}, nil
}

func parseSeverity(v string) (anomaly.Severity, bool) {
	for s := anomaly.Notice; s <= anomaly.Critical; s++ {
		if strings.EqualFold(v, s.String()) {
			return s, true
		}
	}
	return 0, false
}

// pathPattern is the path of a file, or with open ends a part of one. Without a slash
// it is that of the path's last part.
type pathPattern struct {
	namePattern
	last bool
}

func (p *pathPattern) match(path string) bool {
	if path == "" {
		return false
	}
	if p.last {
		path = path[strings.LastIndexByte(path, '/')+1:]
	}
	return p.namePattern.match(path)
}

func parsePathPattern(s string) (pathPattern, error) {
	var p pathPattern
	p.text, p.openTail = strings.CutSuffix(s, "*")
	p.text, p.openBegin = strings.CutPrefix(p.text, "*")
	p.last = !strings.Contains(p.text, "/")
	if strings.Contains(p.text, "*") {
		return p, errStarWithin
	}
	return p, nil
}

// compileExecutables: a script is known by its own path and by its interpreter's.
func compileExecutables(values []string) (predicate, *Error) {
	patterns := make([]pathPattern, 0, len(values))
	for _, v := range values {
		p, err := parsePathPattern(v)
		if err != nil || v == "" || strings.HasSuffix(v, "/") {
			return nil, &Error{Value: v, Want: wantExecutable, Err: err}
		}
		patterns = append(patterns, p)
	}
	match := func(path string) bool {
		for i := range patterns {
			if patterns[i].match(path) {
				return true
			}
		}
		return false
	}
	return func(r *flow.Record) bool {
		switch d := r.Detail.(type) {
		case *process.Step:
			return matchExe(d, match)
		case *anomaly.Alert:
			return matchExe(d.Step, match)
		case executing:
			return slices.ContainsFunc(d.ExecutablePaths(), match)
		}
		return false
	}, nil
}

func matchExe(s *process.Step, match func(path string) bool) bool {
	return s != nil && s.Process != nil && (match(s.Process.Exe.Path) || match(s.Process.Exe.Called))
}
