// SPDX-License-Identifier: Apache-2.0

// Package flows is the kind of record that tells of flows and of the connections among
// them: how the API shows them, and what only they can be filtered by.
package flows

import (
	"math"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/record"
)

// Values of the direction field.
const (
	DirEgress  = "egress"
	DirIngress = "ingress"
)

// maxPieces bounds into how many NetworkEvents one difference is split: 16 TiB
// within one interval. A larger one is no traffic but a fault in a counter.
const maxPieces = 4096

func tcpPB(t *flow.TCPInfo) *orb8v1.TcpInfo {
	if !t.Valid {
		return nil
	}
	return &orb8v1.TcpInfo{
		State: orb8v1.TcpState(t.State), End: orb8v1.TcpEnd(t.End), Errno: uint32(t.Errno),
		RttUs: t.RTTMicros, MinRttUs: t.MinRTTMicros, Retransmits: t.Retransmits,
		ConnectNs: t.ConnectNanos, AckedBytes: t.AckedBytes, RetransmittedBytes: t.RetransBytes,
		CongestionWindow: t.CongestionWindow,
		ResetSent:        t.ResetSent, ResetReceived: t.ResetReceived, Preexisting: t.Preexisting,
	}
}

func icmpPB(k *flow.Record) *orb8v1.IcmpInfo {
	if k.Protocol != record.ICMP && k.Protocol != record.ICMPv6 {
		return nil
	}
	return &orb8v1.IcmpInfo{Type: uint32(k.ICMP >> 8), Code: uint32(k.ICMP & 0xff), EchoId: uint32(k.EchoID)}
}

func countersPB(c flow.Counters) *orb8v1.Counters {
	return &orb8v1.Counters{TxBytes: c.TxBytes, TxPackets: c.TxPackets, RxBytes: c.RxBytes, RxPackets: c.RxPackets}
}

// ipText is empty for the ends of a sum of flows.
func ipText(r *flow.Record, a record.Addr) string {
	if !r.HasAddrs() {
		return ""
	}
	return a.IP().String()
}

func flowPB(r *flow.Record) *orb8v1.Flow {
	return &orb8v1.Flow{
		Event:       orb8v1.FlowEvent(r.Event),
		Protocol:    r.Protocol.String(),
		Local:       &orb8v1.Endpoint{Ip: ipText(r, r.Local), Port: uint32(r.LocalPort), Workload: kind.Workload(r.Owner)},
		Remote:      &orb8v1.Endpoint{Ip: ipText(r, r.Remote), Port: uint32(r.RemotePort), Workload: kind.Workload(r.Peer)},
		Role:        orb8v1.Role(r.Role),
		Loopback:    r.Loopback,
		ByteUnit:    orb8v1.ByteUnit(r.Unit),
		Total:       countersPB(r.Total),
		Delta:       countersPB(r.Delta),
		FirstSeenNs: r.First, LastSeenNs: r.Last,
		Process: kind.Process(&r.Header),
		Tcp:     tcpPB(&r.TCP),
		Icmp:    icmpPB(r),
		Netns:   r.NetNS,
		Self:    r.Self,
	}
}

// Step returns what r means for its connection, or unspecified where
// it is no step of one. Connections counted per packet have no steps: a packet
// does not tell whether the connection was made.
func Step(r *flow.Record) orb8v1.ConnectionEvent {
	if r.Protocol != record.TCP || !r.TCP.Valid {
		return orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED
	}
	switch {
	case r.Event == flow.EventClose && r.TCP.Failed:
		return orb8v1.ConnectionEvent_CONNECTION_EVENT_FAILED
	case r.Event == flow.EventClose:
		return orb8v1.ConnectionEvent_CONNECTION_EVENT_CLOSED
	case r.Connected && (r.Event == flow.EventOpen || r.Event == flow.EventUpdate):
		return orb8v1.ConnectionEvent_CONNECTION_EVENT_OPENED
	}
	return orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED
}

// Event is a record as an event of its flow.
func Event(r *flow.Record, node string) *orb8v1.Event {
	return &orb8v1.Event{TimeNs: eventTime(r), NodeName: node, Event: &orb8v1.Event_Flow{Flow: flowPB(r)}}
}

// ConnectionEvent is a record as a step of its connection, which it must be one of.
func ConnectionEvent(r *flow.Record, node string) *orb8v1.Event {
	c := &orb8v1.Connection{Event: Step(r), Flow: flowPB(r), Opened: r.Connected}
	return &orb8v1.Event{TimeNs: eventTime(r), NodeName: node, Event: &orb8v1.Event_Connection{Connection: c}}
}

// eventTime is the record's time, or for a row of the table its last traffic.
func eventTime(r *flow.Record) int64 {
	if r.Time == 0 {
		return r.Last
	}
	return r.Time
}

// Half is one direction of a record.
type Half struct {
	direction          string
	bytes, packets     uint64
	src, dst           record.Addr
	srcPort, dstPort   uint16
	deltaBytes, deltaP uint64
}

// Egress is what the owner sends.
func Egress(r *flow.Record) Half {
	return Half{
		DirEgress, r.Total.TxBytes, r.Total.TxPackets, r.Local, r.Remote,
		r.LocalPort, r.RemotePort, r.Delta.TxBytes, r.Delta.TxPackets,
	}
}

// Ingress is what the owner receives.
func Ingress(r *flow.Record) Half {
	return Half{
		DirIngress, r.Total.RxBytes, r.Total.RxPackets, r.Remote, r.Local,
		r.RemotePort, r.LocalPort, r.Delta.RxBytes, r.Delta.RxPackets,
	}
}

// Directions says which rows a record makes: those with traffic, or egress
// where there was none at all, as for a connection that failed.
func Directions(c flow.Counters) (tx, rx bool) {
	rx = c.RxBytes|c.RxPackets != 0
	tx = c.TxBytes|c.TxPackets != 0 || !rx
	return tx, rx
}

// NetworkFlow is one direction of a row.
func NetworkFlow(r *flow.Record, h Half, node string) *orb8v1.NetworkFlow {
	return &orb8v1.NetworkFlow{
		Namespace: r.Owner.Namespace, PodName: r.Owner.Pod,
		SrcIp: ipText(r, h.src), DstIp: ipText(r, h.dst),
		SrcPort: uint32(h.srcPort), DstPort: uint32(h.dstPort),
		Protocol: r.Protocol.String(), Direction: h.direction,
		Bytes: h.bytes, Packets: h.packets,
		FirstSeenNs: r.First, LastSeenNs: r.Last,
		Workload: kind.Workload(r.Owner), Peer: kind.Workload(r.Peer),
		Role: orb8v1.Role(r.Role), ByteUnit: orb8v1.ByteUnit(r.Unit), Loopback: r.Loopback,
		Process: kind.Process(&r.Header), Tcp: tcpPB(&r.TCP),
		NodeName: node, Netns: r.NetNS,
	}
}

// NetworkEvents returns what r added in each direction; for an open or a close
// without traffic one event of no bytes, else none.
func NetworkEvents(r *flow.Record) []*orb8v1.NetworkEvent {
	if r.Delta == (flow.Counters{}) && r.Event != flow.EventOpen && r.Event != flow.EventClose {
		return nil
	}
	tx, rx := Directions(r.Delta)
	var events []*orb8v1.NetworkEvent
	if tx {
		events = appendPieces(events, r, Egress(r))
	}
	if rx {
		events = appendPieces(events, r, Ingress(r))
	}
	return events
}

// appendPieces splits a difference until bytes and packets fit their fields.
func appendPieces(events []*orb8v1.NetworkEvent, r *flow.Record, h Half) []*orb8v1.NetworkEvent {
	local, remote := kind.Workload(r.Owner), kind.Workload(r.Peer)
	src, dst := ipText(r, h.src), ipText(r, h.dst)
	bytes, packets := h.deltaBytes, h.deltaP
	for range maxPieces {
		b, p := min(bytes, math.MaxUint32), min(packets, math.MaxUint32)
		events = append(events, &orb8v1.NetworkEvent{
			Namespace: r.Owner.Namespace, PodName: r.Owner.Pod,
			SrcIp: src, DstIp: dst, SrcPort: uint32(h.srcPort), DstPort: uint32(h.dstPort),
			Protocol: r.Protocol.String(), Direction: h.direction,
			Bytes: uint32(b), TimestampNs: eventTime(r), Packets: uint32(p),
			Workload: local, Peer: remote,
		})
		bytes, packets = bytes-b, packets-p
		if bytes == 0 && packets == 0 {
			break
		}
	}
	return events
}
