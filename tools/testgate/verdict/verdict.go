// SPDX-License-Identifier: Apache-2.0

// Package verdict says which failed tests deserve a second look, and what a test
// said in one line. It knows nothing of how tests are run.
package verdict

import (
	"regexp"
	"strings"
)

// final are failures that are true whenever they are seen, however rarely that is.
var final = [...]struct{ pattern, what string }{
	{"WARNING: DATA RACE", "data race"},
	{"race detected during execution of test", "data race"},
	{"panic: test timed out", "hang"},
	{"found unexpected goroutines", "leak"},
	{"panic: ", "panic"},
	{"fatal error: ", "crash"},
	{"SIGSEGV: ", "crash"},
}

// Final tells why a failed test must not be tried again: it is a data race, a leak, a
// panic or a hang. It is empty for any other failure. name is the test's, output all
// that it and the testing package said.
func Final(name, output string) string {
	for _, f := range final {
		if strings.Contains(output, f.pattern) {
			return f.what
		}
	}
	if strings.Contains(name, "Leak") {
		return "leak"
	}
	return ""
}

var (
	noise = regexp.MustCompile(`^\s*(=== |--- |PASS$|FAIL|ok\s|exit status|orb8-feature: )`)
	place = regexp.MustCompile(`^\s*[^ ]+\.go:\d+: `)
)

// maxSaid is the length in bytes at which Said cuts.
const maxSaid = 160

// Said is what a test said in one line: its first own words, without the place, in
// valid UTF-8. It is empty if it said nothing.
func Said(output string) string {
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\r\n")
		if noise.MatchString(line) {
			continue
		}
		said := strings.TrimSpace(place.ReplaceAllString(line, ""))
		if said == "" {
			continue
		}
		if len(said) > maxSaid {
			said = said[:maxSaid] + "..."
		}
		return strings.ToValidUTF8(said, "")
	}
	return ""
}
