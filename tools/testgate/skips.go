// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// skips are the expected ones.
type skips []skip

// skip is a line "PACKAGE TEST: REASON" of the file, three regular expressions that
// have to match as a whole.
type skip struct{ test, reason *regexp.Regexp }

// readSkips reads a file of expected skips; without one it returns nil. Empty lines
// and those that begin with # are left out.
func readSkips(path string) (skips, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := skips{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, ok := strings.Cut(line, ": ")
		if !ok || len(strings.Fields(name)) != 2 {
			return nil, fmt.Errorf("%s:%d: want PACKAGE TEST: REASON, not %q", path, n, line)
		}
		s := skip{}
		if s.test, err = whole(name); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if s.reason, err = whole(reason); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func whole(expr string) (*regexp.Regexp, error) { return regexp.Compile(`^(?:` + expr + `)$`) }

func (s skips) has(name, reason string) bool {
	for _, e := range s {
		if e.test.MatchString(name) && e.reason.MatchString(reason) {
			return true
		}
	}
	return false
}
