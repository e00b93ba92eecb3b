// SPDX-License-Identifier: Apache-2.0

package record

import (
	"net/netip"
	"testing"
)

func TestAddr(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::1", "::": "::", "0.0.0.0": "0.0.0.0",
	} {
		if got := AddrOf(netip.MustParseAddr(in)).IP().String(); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}

func TestProtocolString(t *testing.T) {
	for p, want := range map[Protocol]string{TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPv6: "ICMPv6", 0: "0", 132: "132", 255: "255"} {
		if got := p.String(); got != want {
			t.Errorf("Protocol(%d) = %q, want %q", uint8(p), got, want)
		}
	}
}

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
