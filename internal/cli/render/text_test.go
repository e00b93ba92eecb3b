// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

func TestBytes(t *testing.T) {
	tests := []struct {
		n    uint64
		want string
	}{
		{0, "0 B"}, {1, "1 B"}, {999, "999 B"}, {1000, "1.0 KiB"}, {1024, "1.0 KiB"}, {10188, "9.9 KiB"}, {10189, "10 KiB"},
		{999 << 10, "999 KiB"}, {1023 << 10, "1.0 MiB"}, {1 << 20, "1.0 MiB"}, {5 << 30, "5.0 GiB"}, {1 << 63, "8.0 EiB"}, {1<<64 - 1, "16 EiB"},
	}
	for _, tt := range tests {
		if got := Bytes(tt.n); got != tt.want || len(got) > 7 {
			t.Errorf("Bytes(%d) = %q, want %q", tt.n, got, tt.want)
		}
	}
}

func TestMicros(t *testing.T) {
	tests := []struct {
		us   uint64
		want string
	}{
		{1, "1µs"}, {999, "999µs"}, {1000, "1.00ms"}, {9994, "9.99ms"}, {9996, "10.0ms"}, {99_960, "100ms"}, {999_400, "999ms"},
		{999_600, "1.00s"}, {12_345_678, "12.3s"}, {100_000_000, "1m40s"}, {1<<64 - 1, "104249d23h"},
	}
	for _, tt := range tests {
		if got := Micros(tt.us); got != tt.want {
			t.Errorf("Micros(%d) = %q, want %q", tt.us, got, tt.want)
		}
	}
}

func TestSpan(t *testing.T) {
	tests := []struct {
		d    time.Duration
		want string
	}{
		{-1, "0ms"}, {0, "0ms"}, {999 * time.Millisecond, "999ms"}, {1500 * time.Millisecond, "1.5s"}, {10 * time.Second, "10s"},
		{60 * time.Second, "1m"}, {61 * time.Second, "1m1s"}, {3600 * time.Second, "1h"}, {25 * time.Hour, "1d1h"}, {48*time.Hour + time.Minute, "2d"},
	}
	for _, tt := range tests {
		if got := Span(tt.d); got != tt.want {
			t.Errorf("Span(%s) = %q, want %q", tt.d, got, tt.want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := Count(n); got != want {
			t.Errorf("Count(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestCells(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "µs": 2, "日本": 4, "e\u0301": 1, "→…": 2, "🚀": 2} {
		if got := cells(s); got != want {
			t.Errorf("cells(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	tests := []struct {
		s           string
		n           int
		end, middle string
	}{
		{"checkout-api-7d9f", 20, "checkout-api-7d9f", "checkout-api-7d9f"},
		{"checkout-api-7d9f", 9, "checkout…", "chec…7d9f"},
		{"checkout", 4, "che…", "che…"},
		{"checkout", 1, "…", "…"},
		{"checkout", 0, "", ""},
		{"日本語日本語", 7, "日本語…", "日…語"},
	}
	for _, tt := range tests {
		if got := cutEnd(tt.s, tt.n); got != tt.end {
			t.Errorf("cutEnd(%q, %d) = %q, want %q", tt.s, tt.n, got, tt.end)
		}
		if got := cutMiddle(tt.s, tt.n); got != tt.middle {
			t.Errorf("cutMiddle(%q, %d) = %q, want %q", tt.s, tt.n, got, tt.middle)
		}
	}
}

func TestClean(t *testing.T) {
	for s, want := range map[string]string{
		"nginx: worker": "nginx: worker", "\x1b[31mred": "�[31mred", "a\nb\tc": "a�b�c", "bad\xff": "bad�", "r\u202etl": "r�tl",
	} {
		if got := Clean(s); got != want {
			t.Errorf("clean(%q) = %q, want %q", s, got, want)
		}
	}
}

func FuzzCut(f *testing.F) {
	f.Add("checkout-api-7d9f", 9)
	f.Add("日本語\x1b[31m\xff🚀e\u0301", 4)
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = min(max(n, 0), 300)
		s = Clean(s)
		for _, got := range []string{cutEnd(s, n), cutMiddle(s, n), pad(cutEnd(s, n), n, true)} {
			if cells(got) > n && got != s || !utf8.ValidString(got) {
				t.Errorf("%q cut to %d cells gives %q", s, n, got)
			}
		}
	})
}

// FuzzJSON: what goes to a terminal as JSON is as clean as a table, and says the same.
func FuzzJSON(f *testing.F) {
	f.Add("curl")
	f.Add("\u009b31m\u202etxt\u200b\x7f\U000e0001\U0001f680")
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "\uFFFD")
		var b bytes.Buffer
		if err := WriteJSON(&b, &orb8v1.Process{Command: s}); err != nil {
			t.Fatal(err)
		}
		line := strings.TrimSuffix(b.String(), "\n")
		if Clean(line) != line {
			t.Errorf("%q is not clean: %q", s, line)
		}
		var got orb8v1.Process
		if err := protojson.Unmarshal(b.Bytes(), &got); err != nil || got.GetCommand() != s {
			t.Errorf("%q comes back as %q, %v: %s", s, got.GetCommand(), err, line)
		}
	})
}
