// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"strings"
)

var errStarWithin = errors.New("* may only stand at the beginning or at the end")

// Pattern is a text, or with * at its beginning or end a part of one.
type Pattern struct {
	Text                string
	OpenBegin, OpenTail bool
}

// ParsePattern reads a pattern. A * within it is an error.
func ParsePattern(s string) (Pattern, error) {
	var p Pattern
	p.Text, p.OpenTail = strings.CutSuffix(s, "*")
	p.Text, p.OpenBegin = strings.CutPrefix(p.Text, "*")
	if strings.Contains(p.Text, "*") {
		return p, errStarWithin
	}
	return p, nil
}

// Match reports whether s is what the pattern names.
func (p *Pattern) Match(s string) bool {
	switch {
	case p.OpenBegin && p.OpenTail:
		return strings.Contains(s, p.Text)
	case p.OpenBegin:
		return strings.HasSuffix(s, p.Text)
	case p.OpenTail:
		return strings.HasPrefix(s, p.Text)
	}
	return s == p.Text
}
