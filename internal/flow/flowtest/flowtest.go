// SPDX-License-Identifier: Apache-2.0

// Package flowtest makes samples and records for tests.
package flowtest

import (
	"net/netip"
	"time"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// began is near the clock of what is tested, so that flows are not long idle when they
// are swept.
//
//nolint:gochecknoglobals // one time for all samples of a test
var began = time.Now().Truncate(time.Second)

// Second is the nth second of the samples' time, in Unix nanoseconds.
func Second(n int64) int64 { return began.UnixNano() + n*int64(time.Second) }

// Addr reads an address.
func Addr(s string) record.Addr { return record.AddrOf(netip.MustParseAddr(s)) }

// Comm is the name of a process.
func Comm(s string) (c record.Comm) {
	copy(c[:15], s)
	return c
}

// TCP is an established connection of cgroup 42.
func TCP(localPort uint16, tx, rx uint64) flow.Sample {
	return flow.Sample{
		Key: flow.Key{
			Local: Addr("10.0.0.1"), Remote: Addr("10.0.0.2"),
			LocalPort: localPort, RemotePort: 443, Protocol: record.TCP,
			CgroupID: 42, NetNS: 4026531840,
		},
		Instance: uint64(localPort), Role: record.RoleClient, Unit: flow.BytesPayload,
		First: Second(0), Last: Second(1),
		Total: flow.Counters{TxBytes: tx, TxPackets: tx/1000 + 1, RxBytes: rx, RxPackets: rx/1000 + 1},
		PID:   4242, Comm: Comm("curl"),
		TCP: flow.TCPInfo{Valid: true, State: flow.StateEstablished, RTTMicros: 1500, MinRTTMicros: 900, ConnectNanos: 2e6},
	}
}

// UDP is TCP as packets to port 53.
func UDP(localPort uint16, tx, rx uint64) flow.Sample {
	s := TCP(localPort, tx, rx)
	s.Protocol, s.Unit, s.TCP = record.UDP, flow.BytesIP, flow.TCPInfo{}
	s.RemotePort = 53
	return s
}

// Record is what the table would make of a sample, with its process as the owner.
func Record(e flow.Event, s flow.Sample, delta flow.Counters) *flow.Record {
	r := flow.NewRecord(&s)
	r.Event, r.Delta = e, delta
	r.Owner = &workload.Identity{Kind: workload.KindProcess, Name: s.Comm.String(), CgroupID: s.CgroupID}
	r.Connected, r.Retransmitted = e == flow.EventOpen && s.TCP.Valid, s.TCP.Retransmits-s.TCP.BaseRetransmits
	r.RTTDue = s.TCP.RTTMicros > 0 && e != flow.EventExpire && e != flow.EventEvict
	return &r
}
