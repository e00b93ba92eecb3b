// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	tcpHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	tcp4    = tcpHead +
		"   0: 0100007F:2382 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18563 1 0000000000000000 100 0 0 10 0\n" +
		"   1: 0100007F:2383 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 18564 1 0000000000000000 20 4 30 10 -1\n" +
		"   2: 0501A8C0:2383 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18565 1 0000000000000000 100 0 0 10 0\n"
	tcp6 = tcpHead +
		"   0: 00000000000000000000000000000000:2383 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 21 1 0000000000000000 100 0 0 10 0\n" +
		"   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 22 1 0000000000000000 100 0 0 10 0\n" +
		"   2: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 23 1 0000000000000000 100 0 0 10 0\n"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []Listener
	}{
		{"IPv4", tcp4, []Listener{
			{netip.MustParseAddrPort("127.0.0.1:9090"), 0, 18563},
			{netip.MustParseAddrPort("192.168.1.5:9091"), 0, 18565},
		}},
		{"IPv6", tcp6, []Listener{
			{netip.MustParseAddrPort("[::]:9091"), 1000, 21},
			{netip.MustParseAddrPort("[2001:db8::1]:80"), 1000, 22},
			{netip.MustParseAddrPort("127.0.0.1:81"), 1000, 23},
		}},
		{"empty", "", nil},
		{"cut short", tcp4[:len(tcpHead)+60], nil},
		{"bad address", "0: 01:2382 0 0A 0 0 0 0 0 1", nil},
		{"bad port", "0: 0100007F:23820 0 0A 0 0 0 0 0 1", nil},
		{"bad user", "0: 0100007F:2382 0 0A 0 0 0 x 0 1", nil},
		{"bad inode", "0: 0100007F:2382 0 0A 0 0 0 0 0 x", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Parse(tt.text)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("listeners (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(tcp4)
	f.Add(tcp6)
	f.Fuzz(func(t *testing.T, text string) {
		for _, l := range Parse(text) {
			if !l.Addr.IsValid() {
				t.Errorf("invalid address in %+v", l)
			}
		}
	})
}
