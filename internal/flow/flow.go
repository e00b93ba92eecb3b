// SPDX-License-Identifier: Apache-2.0

// Package flow keeps the table of flows: what the probes read from the kernel
// goes in as samples, what changed comes out as records. It knows nothing of
// BPF, gRPC or Kubernetes.
package flow

import "github.com/Ignoramuss/orb8/internal/record"

// Key identifies a flow on one node. Local is the end that the cgroup owns.
type Key struct {
	Local, Remote         record.Addr
	LocalPort, RemotePort uint16
	Protocol              record.Protocol
	// ICMP tells flows of different ICMP types and codes apart, as type<<8|code;
	// echo replies carry the type of their request. 0 for other protocols.
	ICMP uint16
	// EchoID is the identifier of an ICMP echo, 0 for all else.
	EchoID uint16
	// ICMPRole separates the asking from the answering end of an echo, which on
	// loopback share addresses and often the cgroup. RoleUnknown if not an echo.
	ICMPRole record.Role
	// CgroupID is the inode of the cgroup in the cgroup2 hierarchy.
	CgroupID uint64
	// NetNS is the inode of the network namespace, 0 where the probe cannot tell.
	NetNS uint32
}

// Counters are cumulative or differences, as the field that holds them says.
// Bytes are payload bytes or IP bytes, packets TCP segments or IP packets.
type Counters struct {
	TxBytes, TxPackets, RxBytes, RxPackets uint64
}

// Sub returns c-o, each counter no less than zero.
func (c Counters) Sub(o Counters) Counters {
	return Counters{
		TxBytes: sub(c.TxBytes, o.TxBytes), TxPackets: sub(c.TxPackets, o.TxPackets),
		RxBytes: sub(c.RxBytes, o.RxBytes), RxPackets: sub(c.RxPackets, o.RxPackets),
	}
}

// Add returns c+o.
func (c Counters) Add(o Counters) Counters {
	return Counters{
		TxBytes: c.TxBytes + o.TxBytes, TxPackets: c.TxPackets + o.TxPackets,
		RxBytes: c.RxBytes + o.RxBytes, RxPackets: c.RxPackets + o.RxPackets,
	}
}

// Max returns the larger of each counter: a reading taken without the socket's
// lock may be a byte behind an earlier one.
func (c Counters) Max(o Counters) Counters {
	return Counters{
		TxBytes: max(c.TxBytes, o.TxBytes), TxPackets: max(c.TxPackets, o.TxPackets),
		RxBytes: max(c.RxBytes, o.RxBytes), RxPackets: max(c.RxPackets, o.RxPackets),
	}
}

// Min returns the smaller of each counter.
func (c Counters) Min(o Counters) Counters {
	return Counters{
		TxBytes: min(c.TxBytes, o.TxBytes), TxPackets: min(c.TxPackets, o.TxPackets),
		RxBytes: min(c.RxBytes, o.RxBytes), RxPackets: min(c.RxPackets, o.RxPackets),
	}
}

func sub(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

// ByteUnit says what a flow's bytes are; the numbers are those of the API.
type ByteUnit uint8

const (
	// BytesPayload counts TCP payload, each byte once.
	BytesPayload ByteUnit = iota + 1
	// BytesIP counts IP packets with their headers.
	BytesIP
)

// State is a TCP state with the kernel's number (include/net/tcp_states.h).
type State uint8

// The states that code here asks for by name.
const (
	StateEstablished State = 1
	StateSynSent     State = 2
	StateSynRecv     State = 3
	StateClose       State = 7
	StateListen      State = 10
)

// End is how a TCP connection ended; the numbers are those of the API.
type End uint8

// The ways in which a connection ends; EndNone while it is open.
const (
	EndNone End = iota
	EndFIN
	EndResetLocal
	EndResetRemote
	EndTimeout
	EndRefused
	EndUnreachable
	EndAborted
	EndError
)

// TCPInfo is what a TCP socket says of itself beyond its counters.
type TCPInfo struct {
	// Valid is false for TCP flows counted per packet.
	Valid bool
	State State
	End   End
	// Failed is set with End when the connection was never established.
	Failed                   bool
	ResetSent, ResetReceived bool
	Preexisting              bool
	Errno                    uint16
	RTTMicros, MinRTTMicros  uint32
	CongestionWindow         uint32
	// Retransmits is cumulative; BaseRetransmits is what it was when the probe last
	// reported the connection, or came.
	Retransmits, BaseRetransmits uint64
	// Told: the probe has reported before that the connection is established.
	Told                     bool
	ConnectNanos             uint64
	AckedBytes, RetransBytes uint64
}

// Sample is one reading of one flow's counters: the boundary between the probes
// and the table.
type Sample struct {
	Key
	// Instance tells one use of a key from the next: the start of the
	// connection, or of the kernel's entry, in boot-time nanoseconds.
	Instance uint64
	Role     record.Role
	Unit     ByteUnit
	Loopback bool
	// First and Last are when the flow began and when it last had traffic or changed
	// its state, in Unix nanoseconds by a clock that never jumps, see probe.Clock.
	First, Last int64
	// Total is cumulative since First; Base is what Total was when the probe
	// last reported this flow, so that a table which has forgotten the flow
	// still takes the right difference.
	Total, Base Counters
	PID         uint32
	Comm        record.Comm
	TCP         TCPInfo
}

// Event is why a record was made; the numbers are those of the API.
type Event uint8

// The reasons for a record, see orb8.proto.
const (
	EventOpen Event = iota + 1
	EventUpdate
	EventClose
	EventExpire
	EventEvict
)

// Record is one row of the table, or what happened to it.
type Record struct {
	record.Header
	// ICMP, EchoID and ICMPRole are those of its Key.
	ICMP, EchoID uint16
	ICMPRole     record.Role
	// Instance and the next ones are as in Sample.
	Instance uint64
	Unit     ByteUnit
	Total    Counters
	TCP      TCPInfo
	Event    Event
	// Delta is what was added since the flow's last record.
	Delta Counters
	// Connected marks the first record of a TCP connection that says that it is
	// established, unless it was so before orb8.
	Connected bool
	// Retransmitted is how many segments were sent again since the flow's last
	// record; of a connection that is older than orb8, since that came.
	Retransmitted uint64
	// RTTDue: an interval has passed since the connection's round-trip time was last
	// due, so that how often it is depends on nobody who looks.
	RTTDue bool
}

// Key returns the flow's key.
func (r *Record) Key() Key {
	return Key{
		Local: r.Local, Remote: r.Remote, LocalPort: r.LocalPort, RemotePort: r.RemotePort, Protocol: r.Protocol,
		ICMP: r.ICMP, EchoID: r.EchoID, ICMPRole: r.ICMPRole, CgroupID: r.CgroupID, NetNS: r.NetNS,
	}
}

// NewRecord returns the first record of a flow.
func NewRecord(s *Sample) Record {
	return Record{
		Header: record.Header{
			CgroupID: s.CgroupID, NetNS: s.NetNS, PID: s.PID, Comm: s.Comm,
			Local: s.Local, Remote: s.Remote, LocalPort: s.LocalPort, RemotePort: s.RemotePort, Protocol: s.Protocol,
			Role: s.Role, Loopback: s.Loopback, Phase: record.Ongoing, Time: s.Last, First: s.First, Last: s.Last,
		},
		ICMP: s.ICMP, EchoID: s.EchoID, ICMPRole: s.ICMPRole,
		Instance: s.Instance, Unit: s.Unit, Total: s.Total, TCP: s.TCP,
		Event: EventOpen, Delta: s.Total.Sub(s.Base),
	}
}

// set makes the record one of an event.
func (r *Record) set(e Event, time int64, delta Counters) {
	r.Event, r.Time, r.Delta, r.Phase = e, time, delta, record.Ongoing
	if e >= EventClose {
		r.Phase = record.Ended
	}
}
