// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strings"
	"unicode"

	"golang.org/x/text/width"
)

const ellipsis = "…"

// Clean makes s safe for a terminal. Commands and container names are chosen by
// the workload: an escape sequence in one must not reach the screen.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// word is Clean for formats whose words are separated by spaces.
func word(s string) string {
	if s == "" {
		return "-"
	}
	return strings.ReplaceAll(Clean(s), " ", "_")
}

// cells returns the number of terminal cells that s takes.
func cells(s string) int {
	n := 0
	for _, r := range s {
		n += runeCells(r)
	}
	return n
}

func runeCells(r rune) int {
	switch {
	case r < 0x7f:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// cutEnd shortens s to at most n cells, the end going first.
func cutEnd(s string, n int) string {
	if cells(s) <= n {
		return s
	}
	if n <= 0 {
		return ""
	}
	return head(s, n-1) + ellipsis
}

// cutMiddle shortens s to at most n cells, keeping both ends: the names of
// generated things differ at the end.
func cutMiddle(s string, n int) string {
	if cells(s) <= n {
		return s
	}
	if n < 5 {
		return cutEnd(s, n)
	}
	right := (n - 1) / 2
	return head(s, n-1-right) + ellipsis + tail(s, right)
}

func head(s string, n int) string {
	for i, r := range s {
		if n -= runeCells(r); n < 0 {
			return s[:i]
		}
	}
	return s
}

func tail(s string, n int) string {
	runes := []rune(s)
	i := len(runes)
	for ; i > 0; i-- {
		if n -= runeCells(runes[i-1]); n < 0 {
			break
		}
	}
	return string(runes[i:])
}

func pad(s string, n int, right bool) string {
	gap := n - cells(s)
	if gap <= 0 {
		return s
	}
	if right {
		return strings.Repeat(" ", gap) + s
	}
	return s + strings.Repeat(" ", gap)
}

// wrap breaks s at spaces into lines of at most n cells; 0 means one line.
func wrap(s string, n int) []string {
	if n <= 0 {
		return []string{s}
	}
	var lines []string
	line := ""
	for _, w := range strings.Fields(s) {
		switch {
		case line == "":
			line = w
		case cells(line)+1+cells(w) <= n:
			line += " " + w
		default:
			lines = append(lines, line)
			line = w
		}
	}
	return append(lines, line)
}
