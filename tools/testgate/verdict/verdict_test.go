// SPDX-License-Identifier: Apache-2.0

package verdict

import "testing"

func TestFinal(t *testing.T) {
	for _, tt := range []struct{ name, output, want string }{
		{"TestX", "    x_test.go:1: 40 packets, want 64\n--- FAIL: TestX (0.1s)\n", ""},
		{"TestX", "==================\nWARNING: DATA RACE\nRead at 0x0\n", "data race"},
		{"TestX", "    testing.go:1712: race detected during execution of test\n", "data race"},
		{"TestX", "panic: test timed out after 4m0s\nrunning tests:\n\tTestX (4m0s)\n", "hang"},
		{"TestX", "panic: runtime error: index out of range [recovered]\n", "panic"},
		{"TestX", "fatal error: all goroutines are asleep - deadlock!\n", "crash"},
		{"TestX", "SIGQUIT: quit\nPC=0x47a3c1\n", "crash"},
		{"TestX", "    x_test.go:1: cc1: exit status 1\n        cc1: fatal error: x.h: No such file\n", ""},
		{"TestX", "    leaks.go:78: found unexpected goroutines:\n", "leak"},
		{"TestNothingLeaks", "    x_test.go:1: 12 open files, before 10\n", "leak"},
	} {
		if got := Final(tt.name, tt.output); got != tt.want {
			t.Errorf("Final(%s, %q) = %q, want %q", tt.name, tt.output, got, tt.want)
		}
	}
}

func TestSaid(t *testing.T) {
	long := ""
	for range 100 {
		long += "é "
	}
	for _, tt := range []struct{ output, want string }{
		{"=== RUN   TestX\n    x_test.go:12: 40 packets, want 64\n    y.go:3: more\n--- FAIL: TestX (0.1s)\n", "40 packets, want 64"},
		{"=== RUN   TestX\n--- FAIL: TestX (0.1s)\nFAIL\n", ""},
		{"    x_test.go:1: \n    want 3\n", "want 3"},
		{"a\xffb\n", "ab"},
		{"    x_test.go:1: orb8-feature: a: works\n    x_test.go:2: no flow\n", "no flow"},
		{"    testscript.go:1: WORK=$WORK\n        > exec a\n        FAIL: testdata/a.txtar:3: unexpected command failure\n", "testdata/a.txtar:3: unexpected command failure"},
	} {
		if got := Said(tt.output); got != tt.want {
			t.Errorf("Said(%q) = %q, want %q", tt.output, got, tt.want)
		}
	}
	if got := Said(long); len(got) > maxSaid+3 || got[:2] != "é" {
		t.Errorf("Said of %d bytes: %q", len(long), got)
	}
}
