// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// said makes what a package's tests print, from lines "RESULT TEST what it says".
func said(lines ...string) string {
	var b strings.Builder
	b.WriteString("orb8-run: begin internal/probe/x\n")
	code := "0"
	for _, l := range lines {
		result, rest, _ := strings.Cut(l, " ")
		name, text, _ := strings.Cut(rest, " ")
		if !strings.HasPrefix(text, "panic: ") {
			text = "    x_test.go:1: " + text
		}
		b.WriteString(frame + "=== RUN   " + name + "\n" + text + "\n")
		if result != "HANG" {
			b.WriteString(frame + "--- " + result + ": " + name + " (0.10s)\n")
		}
		if result != "PASS" && result != "SKIP" {
			code = "1"
		}
	}
	b.WriteString("\norb8-run: end internal/probe/x " + code + "\norb8-run: done\n")
	return b.String()
}

func result(t *testing.T, tests, again string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "6.1")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"version": "6.1.192-3\n", "outcome": "done\n", "packages": "internal/probe/x\n", "tests": tests, "again": again,
	} {
		if name == "again" && text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRetries(t *testing.T) {
	dir := result(t, said("PASS TestA fine", "FAIL TestB 40 packets, want 64", "FAIL TestB/part 40 packets, want 64",
		"FAIL TestC panic: oops", "FAIL TestNothingLeaks 4 files, want 3", "HANG TestD waiting"), "")
	var out bytes.Buffer
	if err := listRetries(&out, []string{dir}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff("6.1 internal/probe/x TestB\n", out.String()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestSecondLook(t *testing.T) {
	first := said("PASS TestA fine", "FAIL TestB 40 packets, want 64", "FAIL TestB/part 41 packets, want 64")
	for _, tt := range []struct {
		name, again string
		ok          bool
		want        string
	}{
		{"passes", said("PASS TestB fine", "PASS TestB/part fine"), true,
			"kernel 6.1.192-3: 2 passed, 0 failed, 0 skipped\n" +
				"internal/probe/x TestB on 6.1.192-3, before it passed alone:\n" +
				"    x_test.go:1: 40 packets, want 64\n    x_test.go:1: 41 packets, want 64\n" +
				"flaky: Linux 6.1 internal/probe/x TestB (40 packets, want 64)\n"},
		{"fails twice", said("FAIL TestB 39 packets, want 64"), false, "kernel 6.1.192-3: 1 passed, 1 failed, 0 skipped\n"},
		{"is skipped", said("SKIP TestB no packets"), false, "kernel 6.1.192-3: 1 passed, 1 failed, 0 skipped\n"},
		{"the machine died", strings.Split(said("PASS TestB fine"), "\norb8-run: end")[0], false, "kernel 6.1.192-3: 1 passed, 1 failed, 0 skipped\n"},
		{"was not run again", "", false, "kernel 6.1.192-3: 1 passed, 1 failed, 0 skipped\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			ok, err := run(&out, "", false, []string{result(t, first, tt.again)})
			if err != nil || ok != tt.ok {
				t.Errorf("run: %v, %v, want %v", ok, err, tt.ok)
			}
			_, end, _ := strings.Cut(out.String(), "kernel ")
			if d := cmp.Diff(tt.want, "kernel "+end); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}
