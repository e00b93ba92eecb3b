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
	"github.com/Ignoramuss/orb8/internal/record"
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
	if err := decode(b, &got, ahead{}); err != nil {
		t.Fatal(err)
	}
	want := flow.Sample{
		Key: flow.Key{
			Local: record.Addr{15: 1}, Remote: record.Addr{15: 1},
			LocalPort: got.LocalPort, RemotePort: got.RemotePort,
			Protocol: record.TCP, CgroupID: got.CgroupID, NetNS: got.NetNS,
		},
		Instance: got.Instance, Role: record.RoleClient, Unit: flow.BytesPayload, Loopback: true,
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

func TestDecodeShort(t *testing.T) {
	var s flow.Sample
	for _, n := range []int{0, 1, recordSize - 1} {
		if err := decode(make([]byte, n), &s, ahead{}); err == nil {
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
		{"connect forbidden", synSent, syscall.EACCES, 0, flow.EndError},
		{"active close", finWait2, 0, fin, flow.EndFIN},
		{"active close, peer still open", finWait2, 0, 0, flow.EndFIN},
		{"passive close", lastAck, 0, fin, flow.EndFIN},
		{"both at once", closing, 0, fin, flow.EndFIN},
		{"peer reset", established, syscall.ECONNRESET, received, flow.EndResetRemote},
		{"peer reset after its FIN", closeWait, syscall.EPIPE, received | fin, flow.EndResetRemote},
		{"peer reset, told by the error", established, syscall.ECONNRESET, 0, flow.EndResetRemote},
		{"peer reset after its FIN, told by the error", closeWait, syscall.EPIPE, fin, flow.EndResetRemote},
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
	v4 := func(a, b, c, d byte) record.Addr { return record.Addr{10: 0xff, 11: 0xff, 12: a, 13: b, 14: c, 15: d} }
	for _, tc := range []struct {
		local, remote record.Addr
		want          bool
	}{
		{v4(127, 0, 0, 1), v4(127, 0, 0, 1), true},
		{v4(127, 3, 2, 1), v4(127, 0, 0, 1), true},
		{v4(10, 0, 0, 1), v4(10, 0, 0, 1), true}, // a host to its own address
		{v4(10, 0, 0, 1), v4(10, 0, 0, 2), false},
		{record.Addr{15: 1}, record.Addr{15: 1}, true},
		{record.Addr{0: 0xfd, 15: 1}, record.Addr{0: 0xfd, 15: 2}, false},
		{record.Addr{12: 127, 15: 1}, record.Addr{15: 2}, false}, // not a mapped address
	} {
		r := bpfTcpRecord{}
		r.Local.B, r.Remote.B = tc.local, tc.remote
		var s flow.Sample
		if err := decode(raw(r), &s, ahead{}); err != nil {
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
	f.Fuzz(func(t *testing.T, b []byte) {
		var s flow.Sample
		if err := decode(b, &s, ahead{}); (err != nil) != (len(b) < recordSize) {
			t.Fatalf("%d bytes: %v", len(b), err)
		} else if err == nil && (s.Protocol != record.TCP || !s.TCP.Valid || s.TCP.AckedBytes > s.Total.TxBytes) {
			t.Fatalf("%+v", s)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	in := raw(bpfTcpRecord{StartNs: 1, NowNs: 2, SynNs: 1, EstablishedNs: 2, Role: 1, State: 1})
	var s flow.Sample
	b.ReportAllocs()
	for b.Loop() {
		if err := decode(in, &s, ahead{}); err != nil {
			b.Fatal(err)
		}
	}
}
