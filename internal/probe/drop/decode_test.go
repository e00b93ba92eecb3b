// SPDX-License-Identifier: Apache-2.0

package drop

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/flow"
)

// ahead is a clock that is 1000 s ahead of boot time.
type ahead struct{}

func (ahead) Unix(boot uint64) int64 {
	if boot == 0 {
		return 0
	}
	return int64(boot) + 1000e9
}

func raw(e bpfDropEvent) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&e)), eventSize)...)
}

func addr(a string) flow.Addr { return flow.AddrOf(netip.MustParseAddr(a)) }

// The golden event was written by the kernel: 33 bytes of payload to a port that
// nobody listens on, over IPv6 loopback.
func TestDecodeGolden(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "no_socket_ipv6.bin"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := readEvent(b)
	if err != nil {
		t.Fatal(err)
	}
	var got flow.Sample
	decode(&e, &got, ahead{})
	want := flow.Sample{
		Key: flow.Key{
			Local: addr("::1"), Remote: addr("::1"), LocalPort: 9, RemotePort: got.RemotePort,
			Protocol: flow.UDP, NetNS: got.NetNS,
		},
		Loopback: true, First: int64(e.NowNs) + 1000e9, Last: int64(e.NowNs) + 1000e9,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got.RemotePort == 0 || got.NetNS == 0 || e.NowNs == 0 || e.Location == 0 || e.Reason == 0 {
		t.Errorf("%+v", e)
	}
	p := New(Config{})
	p.kernel = &kernel{names: map[uint32]string{e.Reason: "NO_SOCKET"}}
	p.symbols = symbols{places: map[uint64]place{e.Location: {name: "__udp6_lib_rcv"}}}
	detail := flow.Drop{Reason: "NO_SOCKET", Location: "__udp6_lib_rcv", Ingress: true, Bytes: 40 + 8 + 33, Ifindex: 1}
	if d := cmp.Diff(&detail, p.detail(&e)); d != "" {
		t.Error(d)
	}
}

func TestDecode(t *testing.T) {
	event := bpfDropEvent{NowNs: 5, CgroupId: 7, SrcPort: 1, DstPort: 2, Protocol: 6, Netns: 9}
	event.Src.B, event.Dst.B = addr("192.0.2.1"), addr("198.51.100.2")
	for _, tc := range []struct {
		name   string
		change func(*bpfDropEvent)
		want   func(*flow.Sample)
	}{
		{"out", func(*bpfDropEvent) {}, func(*flow.Sample) {}},
		{"in", func(e *bpfDropEvent) { e.Flags = uint8(bpfDropFlagFLAG_INGRESS) }, func(s *flow.Sample) {
			s.Local, s.Remote, s.LocalPort, s.RemotePort = s.Remote, s.Local, 2, 1
		}},
		{"by device", func(e *bpfDropEvent) { e.Flags = uint8(bpfDropFlagFLAG_LOOPBACK) }, func(s *flow.Sample) { s.Loopback = true }},
		{"by address", func(e *bpfDropEvent) { e.Dst.B = addr("127.3.2.1") }, func(s *flow.Sample) {
			s.Remote, s.Loopback = addr("127.3.2.1"), true
		}},
		{"to itself", func(e *bpfDropEvent) { e.Dst = e.Src }, func(s *flow.Sample) { s.Remote, s.Loopback = s.Local, true }},
		{"unreadable", func(e *bpfDropEvent) { e.Src.B, e.Dst.B = flow.Addr{}, flow.Addr{} }, func(s *flow.Sample) {
			s.Local, s.Remote = flow.Addr{}, flow.Addr{}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := event
			tc.change(&e)
			want := flow.Sample{
				Key: flow.Key{
					Local: addr("192.0.2.1"), Remote: addr("198.51.100.2"), LocalPort: 1, RemotePort: 2,
					Protocol: flow.TCP, CgroupID: 7, NetNS: 9,
				},
				First: 5 + 1000e9, Last: 5 + 1000e9,
			}
			tc.want(&want)
			got := flow.Sample{PID: 3, Instance: 4} // left over from another
			decode(&e, &got, ahead{})
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, eventSize))
	f.Add(bytes.Repeat([]byte{0xff}, eventSize+1))
	f.Add(raw(bpfDropEvent{NowNs: 1, Protocol: 17, Flags: 3, Reason: 1 << 17}))
	p := New(Config{symbols: os.DevNull})
	p.kernel = &kernel{}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := readEvent(b)
		if (err != nil) != (len(b) < eventSize) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if err != nil {
			return
		}
		var s flow.Sample
		decode(&e, &s, ahead{})
		if s.First != s.Last || s.Role != flow.RoleUnknown || s.CgroupID != e.CgroupId || !s.Local.IP().IsValid() {
			t.Errorf("%+v from %+v", s, e)
		}
		if d := p.detail(&e); d.Reason == "" || d.Bytes != e.Bytes || d.Ingress && s.LocalPort != e.DstPort {
			t.Errorf("%+v from %+v", d, e)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	in := raw(bpfDropEvent{NowNs: 1, Protocol: 17, Flags: 1})
	var s flow.Sample
	b.ReportAllocs()
	for b.Loop() {
		e, err := readEvent(in)
		if err != nil {
			b.Fatal(err)
		}
		decode(&e, &s, ahead{})
	}
}
