// SPDX-License-Identifier: Apache-2.0

// Package verdict says which failed tests deserve a second look, and what a test
// said in one line. It knows nothing of how tests are run.
package verdict

import (
	"regexp"
	"strings"
)

// final are failures that are true whenever they are seen, however rarely that is.
var final = [...]struct {
	pattern *regexp.Regexp
	what    string
}{
	{regexp.MustCompile(`WARNING: DATA RACE`), "data race"},
	{regexp.MustCompile(`race detected during execution of test`), "data race"},
	{regexp.MustCompile(`(?m)^panic: test timed out`), "hang"},
	{regexp.MustCompile(`found unexpected goroutines`), "leak"},
	// As the runtime writes them; other programs' are indented, as what a test says.
	{regexp.MustCompile(`(?m)^panic: `), "panic"},
	{regexp.MustCompile(`(?m)^(fatal error|SIG[A-Z]+): `), "crash"},
}

// Final tells why a failed test must not be tried again: it is a data race, a leak, a
// panic or a hang. It is empty for any other failure. name is the test's, output all
// that it and the testing package said.
func Final(name, output string) string {
	for _, f := range final {
		if f.pattern.MatchString(output) {
			return f.what
		}
	}
	if strings.Contains(name, "Leak") {
		return "leak"
	}
	return ""
}

var (
	noise = regexp.MustCompile(`^\s*(=== |--- |PASS$|FAIL$|FAIL\s|ok\s|exit status|orb8-feature: )`)
	place = regexp.MustCompile(`^\s*[^ ]+\.go:\d+: `)
	// verdictOf is how a script ends that failed, after all that it did before.
	verdictOf = regexp.MustCompile(`(?m)^\s*FAIL: (.+)$`)
)

// maxSaid is the length in bytes at which Said cuts.
const maxSaid = 160

// Said is what a test said in one line: its first own words, without the place, or
// where a script failed, in valid UTF-8. It is empty if it said nothing.
func Said(output string) string {
	if m := verdictOf.FindStringSubmatch(output); m != nil {
		return cut(m[1])
	}
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\r\n")
		if noise.MatchString(line) {
			continue
		}
		if said := strings.TrimSpace(place.ReplaceAllString(line, "")); said != "" && !noise.MatchString(said) {
			return cut(said)
		}
	}
	return ""
}

func cut(said string) string {
	if len(said) > maxSaid {
		said = said[:maxSaid] + "..."
	}
	return strings.ToValidUTF8(strings.TrimSpace(said), "")
}
