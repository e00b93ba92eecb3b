// SPDX-License-Identifier: Apache-2.0

package processes

import (
	"slices"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/process"
)

const wantExecutable = "the path of an executable or the last part of one, with * allowed at the beginning and at the end"

// Fields are the API's filters that only processes have.
func Fields() []filter.Field {
	return []filter.Field{
		{Name: "executables", Values: (*orb8v1.Filter).GetExecutables, Compile: compileExecutables},
	}
}

// pattern is a path, or with open ends a part of one; without a slash it is of the last
// part.
type pattern struct {
	text                string
	openBegin, openTail bool
}

func (p *pattern) match(path string) bool {
	if !strings.Contains(p.text, "/") && !p.openBegin {
		path = path[strings.LastIndexByte(path, '/')+1:]
	}
	switch {
	case path == "":
		return false
	case p.openBegin && p.openTail:
		return strings.Contains(path, p.text)
	case p.openBegin:
		return strings.HasSuffix(path, p.text)
	case p.openTail:
		return strings.HasPrefix(path, p.text)
	}
	return path == p.text
}

func compileExecutables(values []string) (func(any) bool, *filter.Error) {
	patterns := make([]pattern, 0, len(values))
	for _, v := range values {
		p := pattern{text: v}
		p.text, p.openTail = strings.CutSuffix(p.text, "*")
		p.text, p.openBegin = strings.CutPrefix(p.text, "*")
		if v == "" || strings.Contains(p.text, "*") {
			return nil, &filter.Error{Value: v, Want: wantExecutable}
		}
		patterns = append(patterns, p)
	}
	return func(body any) bool {
		r, ok := body.(interface{ Of() *process.Step })
		if !ok {
			return false
		}
		exe := &r.Of().Process.Exe
		return slices.ContainsFunc(patterns, func(p pattern) bool { return p.match(exe.Path) || p.match(exe.Called) })
	}, nil
}
