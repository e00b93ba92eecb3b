// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"math"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
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

func TestCounters(t *testing.T) {
	a, b := Counters{5, 6, 7, math.MaxUint64}, Counters{1, 10, 7, 1}
	for name, c := range map[string]struct{ got, want Counters }{
		"sub": {a.Sub(b), Counters{4, 0, 0, math.MaxUint64 - 1}},
		"max": {a.Max(b), Counters{5, 10, 7, math.MaxUint64}},
		"min": {a.Min(b), Counters{1, 6, 7, 1}},
		"add": {b.Add(b), Counters{2, 20, 14, 2}},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}
