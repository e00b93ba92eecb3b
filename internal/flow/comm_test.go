// SPDX-License-Identifier: Apache-2.0

package flow

import "testing"

func TestCommString(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"curl":                     "curl",
		"curl\x00left over":        "curl",
		"123456789012345":          "123456789012345",
		"1234567890123456":         "1234567890123456",
		"abcdefghij\u65e5\xe6\x9c": "abcdefghij\u65e5\uFFFD", // cut in a character
		"\xff\xfebad":              "\uFFFDbad",
		"\u0441\u043b\u0443\u0436\u0431\u0430\u0441\xd0": "\u0441\u043b\u0443\u0436\u0431\u0430\u0441\uFFFD",
	} {
		var c Comm
		copy(c[:], in)
		if got := c.String(); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
