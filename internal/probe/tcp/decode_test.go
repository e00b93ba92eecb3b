// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"os"
	"path/filepath"
	"syscall"
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

func raw(r bpfTcpRecord) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&r)), recordSize)...)
}

// The golden record was written by the kernel: 100 bytes sent and 50 received by
// the client of a connection over IPv6 loopback.
func TestDecodeGolden(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "closed_ipv6.bin"))
	if err != nil {
		t.Fatal(err)
	}
	var got flow.Sample
	if _, err := decode(b, &got, ahead{}); err != nil {
		t.Fatal(err)
	}
	want := flow.Sample{
		Key: flow.Key{
			Local: flow.Addr{15: 1}, Remote: flow.Addr{15: 1},
			LocalPort: got.LocalPort, RemotePort: got.RemotePort,
			Protocol: flow.TCP, CgroupID: got.CgroupID, NetNS: got.NetNS,
		},
		Instance: got.Instance, Role: flow.RoleClient, Unit: flow.BytesPayload, Loopback: true,
		First: int64(got.Instance) + 1000e9, Last: got.Last,
		Total: flow.Counters{TxBytes: 100, TxPackets: got.Total.TxPackets, RxBytes: 50, RxPackets: got.Total.RxPackets},
		PID:   got.PID, Comm: got.Comm,
		TCP: flow.TCPInfo{
			Valid: true, State: flow.StateClose, End: flow.EndFIN, AckedBytes: 100,
			RTTMicros: got.TCP.RTTMicros, MinRTTMicros: got.TCP.MinRTTMicros,
			CongestionWindow: got.TCP.CongestionWindow, ConnectNanos: got.TCP.ConnectNanos,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got.RemotePort == 0 || got.LocalPort == 0 || got.NetNS == 0 || got.Comm.String() != "tcp.test" ||
		got.TCP.RTTMicros == 0 || got.TCP.ConnectNanos == 0 || got.Last <= got.First || got.Total.TxPackets < 3 {
		t.Errorf("%+v", got)
	}
}

// A listener on all addresses is not on loopback, though both its ends are the same.
func TestDecodeListener(t *testing.T) {
	v4 := func(a byte) flow.Addr { return flow.Addr{10: 0xff, 11: 0xff, 12: a} }
	for _, tc := range []struct {
		local    flow.Addr
		loopback bool
	}{{v4(0), false}, {v4(127), true}, {flow.Addr{}, false}, {flow.Addr{15: 1}, true}} {
		r := bpfTcpRecord{
			NowNs: 5, CgroupId: 6, Pid: 7, Netns: 8, LocalPort: 80, Drops: 9, Backlog: 129, MaxBacklog: 128,
			State: uint8(flow.StateListen), Role: uint8(bpfRoleROLE_LISTENER), Comm: [16]uint8{'a'},
		}
		r.Local.B, r.Remote.B = tc.local, v4(0)
		var got flow.Sample
		overflow, err := decode(raw(r), &got, ahead{})
		if err != nil {
			t.Fatal(err)
		}
		want := flow.Sample{
			Key:  flow.Key{Local: tc.local, LocalPort: 80, Protocol: flow.TCP, CgroupID: 6, NetNS: 8},
			Role: flow.RoleServer, Loopback: tc.loopback, First: 1000e9 + 5, Last: 1000e9 + 5,
			PID: 7, Comm: flow.Comm{'a'},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(&flow.ListenOverflow{Drops: 9, Backlog: 129, Max: 128}, overflow); diff != "" {
			t.Error(diff)
		}
	}
}

func TestDecodeShort(t *testing.T) {
	var s flow.Sample
	for _, n := range []int{0, 1, recordSize - 1} {
		if _, err := decode(make([]byte, n), &s, ahead{}); err == nil {
			t.Errorf("%d bytes: no error", n)
		}
	}
}

func TestEnd(t *testing.T) {
	const (
		sent     = uint8(bpfTcpFlagFLAG_RESET_SENT)
		received = uint8(bpfTcpFlagFLAG_RESET_RECEIVED)
		fin      = uint8(bpfTcpFlagFLAG_FIN_RECEIVED)
	)
	const finWait2, lastAck, closing = 5, 9, 11
	for _, tc := range []struct {
		name  string
		old   uint8
		err   syscall.Errno
		flags uint8
		want  flow.End
	}{
		{"refused", synSent, syscall.ECONNREFUSED, received, flow.EndRefused},
		{"refused by ICMP", synSent, syscall.ECONNREFUSED, 0, flow.EndRefused},
		{"connect timed out", synSent, syscall.ETIMEDOUT, 0, flow.EndTimeout},
		{"host unreachable", synSent, syscall.EHOSTUNREACH, 0, flow.EndUnreachable},
		{"network unreachable", synSent, syscall.ENETUNREACH, 0, flow.EndUnreachable},
		{"given up", synSent, 0, 0, flow.EndAborted},
		{"prohibited, IPv6", synSent, syscall.EACCES, 0, flow.EndUnreachable},
		{"bad header, IPv6", synSent, syscall.EPROTO, 0, flow.EndError},
		{"active close", finWait2, 0, fin, flow.EndFIN},
		{"active close, peer still open", finWait2, 0, 0, flow.EndFIN},
		{"passive close", lastAck, 0, fin, flow.EndFIN},
		{"both at once", closing, 0, fin, flow.EndFIN},
		{"peer reset", established, syscall.ECONNRESET, received, flow.EndResetRemote},
		{"peer reset after its FIN", closeWait, syscall.EPIPE, received | fin, flow.EndResetRemote},
		{"peer reset, both sides", established, syscall.ECONNRESET, received | sent, flow.EndResetRemote},
		{"linger zero", established, 0, 0, flow.EndResetLocal},
		{"data unread at close", closeWait, 0, fin, flow.EndResetLocal},
		{"data after close", finWait1, 0, 0, flow.EndResetLocal},
		{"aborted by the administrator", established, syscall.ECONNABORTED, sent, flow.EndResetLocal},
		{"retransmits ran out", established, syscall.ETIMEDOUT, 0, flow.EndTimeout},
		{"retransmits ran out, host gone", established, syscall.EHOSTUNREACH, 0, flow.EndUnreachable},
	} {
		r := bpfTcpRecord{OldState: tc.old, Err: uint16(tc.err), Flags: tc.flags}
		if got := end(&r); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestLoopback(t *testing.T) {
	v4 := func(a, b, c, d byte) flow.Addr { return flow.Addr{10: 0xff, 11: 0xff, 12: a, 13: b, 14: c, 15: d} }
	for _, tc := range []struct {
		local, remote flow.Addr
		want          bool
	}{
		{v4(127, 0, 0, 1), v4(127, 0, 0, 1), true},
		{v4(127, 3, 2, 1), v4(127, 0, 0, 1), true},
		{v4(10, 0, 0, 1), v4(10, 0, 0, 1), true}, // a host to its own address
		{v4(10, 0, 0, 1), v4(10, 0, 0, 2), false},
		{flow.Addr{15: 1}, flow.Addr{15: 1}, true},
		{flow.Addr{0: 0xfd, 15: 1}, flow.Addr{0: 0xfd, 15: 2}, false},
		{flow.Addr{12: 127, 15: 1}, flow.Addr{15: 2}, false}, // not a mapped address
	} {
		r := bpfTcpRecord{}
		r.Local.B, r.Remote.B = tc.local, tc.remote
		var s flow.Sample
		if _, err := decode(raw(r), &s, ahead{}); err != nil {
			t.Fatal(err)
		}
		if s.Loopback != tc.want {
			t.Errorf("%v to %v: loopback %v", tc.local.IP(), tc.remote.IP(), s.Loopback)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, recordSize))
	f.Add(raw(bpfTcpRecord{Flags: 0xff, OldState: 2, State: 7, Role: 9, RttMinUs: ^uint32(0)}))
	f.Add(raw(bpfTcpRecord{State: uint8(flow.StateListen), Drops: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s flow.Sample
		if overflow, err := decode(b, &s, ahead{}); (err != nil) != (len(b) < recordSize) {
			t.Fatalf("%d bytes: %v", len(b), err)
		} else if err == nil && overflow == nil && (s.Protocol != flow.TCP || !s.TCP.Valid || s.TCP.AckedBytes > s.Total.TxBytes) {
			t.Fatalf("%+v", s)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	in := raw(bpfTcpRecord{StartNs: 1, NowNs: 2, SynNs: 1, EstablishedNs: 2, Role: 1, State: 1})
	var s flow.Sample
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decode(in, &s, ahead{}); err != nil {
			b.Fatal(err)
		}
	}
}
