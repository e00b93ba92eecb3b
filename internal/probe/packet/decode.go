// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/record"
)

// clock converts boot time to Unix nanoseconds.
type clock interface{ Unix(boot uint64) int64 }

func counters(f *bpfPacketFlow) flow.Counters {
	return flow.Counters{TxBytes: f.TxBytes, TxPackets: f.TxPackets, RxBytes: f.RxBytes, RxPackets: f.RxPackets}
}

// decode fills s from one entry of the kernel's flow map. base is what the
// entry's counters were when it was last reported.
func decode(k *bpfPacketKey, f *bpfPacketFlow, base flow.Counters, s *flow.Sample, c clock) {
	*s = flow.Sample{
		Key: flow.Key{
			Local: record.Addr(k.Local.B), Remote: record.Addr(k.Remote.B),
			LocalPort: k.LocalPort, RemotePort: k.RemotePort,
			Protocol: record.Protocol(k.Protocol), ICMP: k.Icmp, CgroupID: k.CgroupId,
		},
		Instance: f.StartNs,
		Role:     role(f.Role),
		Unit:     flow.BytesIP,
		Loopback: k.Flags&uint8(bpfPacketFlagFLAG_LOOPBACK) != 0,
		First:    c.Unix(f.StartNs),
		// The clock of LastNs is up to a tick behind that of StartNs.
		Last:  c.Unix(max(f.StartNs, f.LastNs)),
		Total: counters(f),
		Base:  base,
		PID:   f.Pid,
		Comm:  record.Comm(f.Comm),
	}
	switch {
	case k.Flags&uint8(bpfPacketFlagFLAG_ECHO_CLIENT) != 0:
		s.ICMPRole = record.RoleClient
	case k.Flags&uint8(bpfPacketFlagFLAG_ECHO_SERVER) != 0:
		s.ICMPRole = record.RoleServer
	default:
		return
	}
	s.EchoID, s.LocalPort = s.LocalPort, 0
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
