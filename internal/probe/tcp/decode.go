// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/record"
)

const recordSize = int(unsafe.Sizeof(bpfTcpRecord{}))

// clock converts boot time to Unix nanoseconds.
type clock interface{ Unix(boot uint64) int64 }

// decode fills s from one record of the ring or the iterator. raw must hold at
// least one whole record; what follows it is ignored.
func decode(raw []byte, s *flow.Sample, c clock) error {
	if len(raw) < recordSize {
		return fmt.Errorf("decode TCP record: %d bytes, want %d", len(raw), recordSize)
	}
	var r bpfTcpRecord
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), recordSize), raw)
	*s = flow.Sample{
		Key: flow.Key{
			Local: record.Addr(r.Local.B), Remote: record.Addr(r.Remote.B),
			LocalPort: r.LocalPort, RemotePort: r.RemotePort,
			Protocol: record.TCP, CgroupID: r.CgroupId, NetNS: r.Netns,
		},
		Instance: r.StartNs,
		Role:     role(r.Role),
		Unit:     flow.BytesPayload,
		First:    c.Unix(r.StartNs),
		Last:     c.Unix(r.NowNs),
		Total:    flow.Counters{TxBytes: r.TxBytes, TxPackets: r.TxSegs, RxBytes: r.RxBytes, RxPackets: r.RxSegs},
		Base: flow.Counters{
			TxBytes: r.BaseTxBytes, TxPackets: r.BaseTxSegs, RxBytes: r.BaseRxBytes, RxPackets: r.BaseRxSegs,
		},
		PID:  r.Pid,
		Comm: record.Comm(r.Comm),
		TCP:  info(&r),
	}
	s.Loopback = isLoopback(s.Local) || isLoopback(s.Remote) || s.Local == s.Remote
	return nil
}

// decodeSum fills s from the sum of what a cgroup's lost records would have added.
func decodeSum(k *bpfTcpSumKey, sum, before *bpfTcpSum, s *flow.Sample, c clock) {
	counters := func(t *bpfTcpSum) flow.Counters {
		return flow.Counters{TxBytes: t.TxBytes, TxPackets: t.TxSegs, RxBytes: t.RxBytes, RxPackets: t.RxSegs}
	}
	*s = flow.Sample{
		Key:      flow.Key{Protocol: record.TCP, CgroupID: k.CgroupId},
		Instance: sum.StartNs,
		Unit:     flow.BytesPayload,
		Loopback: k.Loopback != 0,
		First:    c.Unix(sum.StartNs),
		Last:     c.Unix(max(sum.StartNs, sum.LastNs)),
		Total:    counters(sum),
		Base:     counters(before),
		TCP:      flow.TCPInfo{Retransmits: sum.Retrans, BaseRetransmits: before.Retrans},
	}
}

func role(r uint8) record.Role {
	switch bpfRole(r) {
	case bpfRoleROLE_CLIENT:
		return record.RoleClient
	case bpfRoleROLE_SERVER:
		return record.RoleServer
	}
	return record.RoleUnknown
}

// isLoopback does without netip, whose methods would cost more than all of
// decode.
func isLoopback(a record.Addr) bool {
	v6 := record.Addr{15: 1}
	mapped := [12]byte{10: 0xff, 11: 0xff}
	return a == v6 || [12]byte(a[:12]) == mapped && a[12] == 127
}

func info(r *bpfTcpRecord) flow.TCPInfo {
	t := flow.TCPInfo{
		Valid:            true,
		State:            flow.State(r.State),
		ResetSent:        has(r, bpfTcpFlagFLAG_RESET_SENT),
		ResetReceived:    has(r, bpfTcpFlagFLAG_RESET_RECEIVED),
		Preexisting:      has(r, bpfTcpFlagFLAG_PREEXISTING),
		Errno:            r.Err,
		RTTMicros:        r.SrttUs >> 3,
		CongestionWindow: r.Cwnd,
		Retransmits:      uint64(r.Retrans),
		BaseRetransmits:  uint64(r.BaseRetrans),
		Told:             has(r, bpfTcpFlagFLAG_TOLD),
		RetransBytes:     r.RetransBytes,
		AckedBytes:       acked(r),
	}
	// Before the first measurement the kernel's minimum is all ones.
	if r.RttMinUs != ^uint32(0) && r.SrttUs != 0 {
		t.MinRTTMicros = r.RttMinUs
	}
	if r.SynNs != 0 && r.EstablishedNs > r.SynNs {
		t.ConnectNanos = r.EstablishedNs - r.SynNs
	}
	if has(r, bpfTcpFlagFLAG_FINAL) {
		t.End = end(r)
		t.Failed = flow.State(r.OldState) == flow.StateSynSent
		t.ResetSent = t.ResetSent || t.End == flow.EndResetLocal
		t.ResetReceived = t.ResetReceived || t.End == flow.EndResetRemote
	}
	return t
}

func has(r *bpfTcpRecord, f bpfTcpFlag) bool { return r.Flags&uint8(f) != 0 }

// acked removes the SYN, which bytes_acked counts on the connecting side, and
// the FIN, by never exceeding what was sent.
func acked(r *bpfTcpRecord) uint64 {
	n := r.AckedBytes
	if n > 0 && bpfRole(r.Role) == bpfRoleROLE_CLIENT {
		n--
	}
	return min(n, r.TxBytes)
}

// The kernel's TCP states that end needs.
const (
	established = 1
	synSent     = 2
	finWait1    = 4
	closeWait   = 8
)

// end tells how a connection ended from the state it was closed from, the
// resets seen and the socket's error.
func end(r *bpfTcpRecord) flow.End {
	errno := syscall.Errno(r.Err)
	switch {
	case r.OldState == synSent && (errno == syscall.ECONNREFUSED || has(r, bpfTcpFlagFLAG_RESET_RECEIVED)):
		return flow.EndRefused
	case has(r, bpfTcpFlagFLAG_RESET_RECEIVED) || errno == syscall.ECONNRESET || errno == syscall.EPIPE:
		// These errors only a reset leaves, the second one where the peer had closed.
		return flow.EndResetRemote
	case errno == syscall.ETIMEDOUT:
		return flow.EndTimeout
	case errno == syscall.EHOSTUNREACH || errno == syscall.ENETUNREACH ||
		r.OldState == synSent && (errno == syscall.ENOPROTOOPT || errno == syscall.EHOSTDOWN || errno == syscall.ENONET):
		return flow.EndUnreachable
	case r.OldState == synSent && errno == 0:
		return flow.EndAborted
	case has(r, bpfTcpFlagFLAG_RESET_SENT) || errno == syscall.ECONNABORTED:
		return flow.EndResetLocal
	case errno != 0:
		return flow.EndError
	case r.OldState == established || r.OldState == closeWait:
		// Closed without a FIN of our own: with data unread, or with a linger
		// time of zero. The kernel sends the reset after this state change.
		return flow.EndResetLocal
	case r.OldState == finWait1 && !has(r, bpfTcpFlagFLAG_FIN_RECEIVED):
		// Data came for a socket that was already closed.
		return flow.EndResetLocal
	}
	return flow.EndFIN
}
