// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"text", "a b\tc\nüñ 日本語 ✓\n", "a b\tc\nüñ 日本語 ✓\n"},
		{"colour", "\x1b[1;31mred\x1b[0m\x1b[m", "\x1b[1;31mred\x1b[0m\x1b[m"},
		{"watching", "\x1b[H\x1b[?7l\x1b[K\x1b[J\x1b[?7h", "\x1b[H\x1b[?7l\x1b[K\x1b[J\x1b[?7h"},
		{"title", "\x1b]0;owned\a", "�]0;owned�"},
		{"clipboard", "\x1b]52;c;eA==\x1b\\", "�]52;c;eA==�\\"},
		{"movement", "\x1b[2A\x1b[10;10H\x1b[2J", "�[2A�[10;10H�[2J"},
		{"report", "\x1b[6n\x1b[c\x1bZ", "�[6n�[c�Z"},
		{"endless colour", "\x1b[" + strings.Repeat("1;", 100) + "m", "�[" + strings.Repeat("1;", 100) + "m"},
		{"C0", "a\rb\bc\x00d\x7fe\vf", "a�b�c�d�e�f"},
		{"C1", "\u009b31m\u0085\u0090", "�31m��"},
		{"8-bit C1", "\x9b31m", "�31m"},
		{"bidi", "\u202eevil\u2066\u200f", "�evil��"},
		{"invisible", "a\u200bb\ufeffc\u00adc", "a�b�c�c"},
		{"not UTF-8", "a\xffb\xc3(\xed\xa0\x80", "a�b�(���"},
		{"lines of their own", "a\u2028b\u2029c", "a�b�c"},
		{"cut character", "a\xe6\x97", "a��"},
		{"cut sequence", "a\x1b[3", "a�[3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for size := 1; size <= len(tt.in); size++ {
				var out bytes.Buffer
				p := newPrintable(&out)
				for rest := []byte(tt.in); len(rest) > 0; {
					n, err := p.Write(rest[:min(size, len(rest))])
					if err != nil || n == 0 {
						t.Fatal(n, err)
					}
					rest = rest[n:]
				}
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				if out.String() != tt.want {
					t.Fatalf("%d bytes at a time: %q, want %q", size, &out, tt.want)
				}
			}
		})
	}
}

// FuzzPrintable: whatever is written, a terminal gets characters, line ends, tabs and
// the sequences that are let through.
func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b[31mb\x1b]0;x\a\u202e\xff", 3)
	f.Fuzz(func(t *testing.T, in string, at int) {
		var out bytes.Buffer
		p := newPrintable(&out)
		at = min(max(at, 0), len(in))
		for _, part := range []string{in[:at], in[at:]} {
			if n, err := p.Write([]byte(part)); err != nil || n != len(part) {
				t.Fatal(n, err)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		checkPrintable(t, out.String())
	})
}

// checkPrintable fails on anything that a terminal would act on, but for what is let
// through.
func checkPrintable(t *testing.T, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("not UTF-8: %q", text)
	}
	for rest := text; rest != ""; {
		if c := control.FindString(rest); c != "" {
			rest = rest[len(c):]
			continue
		}
		r, n := utf8.DecodeRuneInString(rest)
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			t.Fatalf("%q reaches the terminal in %q", r, text)
		}
		rest = rest[n:]
	}
}
