// SPDX-License-Identifier: Apache-2.0

package drop

import (
	"fmt"
	"unsafe"

	"github.com/Ignoramuss/orb8/internal/flow"
)

const eventSize = int(unsafe.Sizeof(bpfDropEvent{}))

// clock converts boot time to Unix nanoseconds.
type clock interface{ Unix(boot uint64) int64 }

// readEvent copies an event out of the ring. What follows it is ignored.
func readEvent(raw []byte) (e bpfDropEvent, err error) {
	if len(raw) < eventSize {
		return e, fmt.Errorf("decode a drop: %d bytes, want %d", len(raw), eventSize)
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), eventSize), raw)
	return e, nil
}

// decode fills s from an event. The local end is the one that the packet was for if
// it came in, else the one that sent it.
func decode(e *bpfDropEvent, s *flow.Sample, c clock) {
	at := c.Unix(e.NowNs)
	*s = flow.Sample{
		Key: flow.Key{
			Local: flow.Addr(e.Src.B), Remote: flow.Addr(e.Dst.B),
			LocalPort: e.SrcPort, RemotePort: e.DstPort,
			Protocol: flow.Protocol(e.Protocol), CgroupID: e.CgroupId, NetNS: e.Netns,
		},
		First: at, Last: at,
	}
	if has(e, bpfDropFlagFLAG_INGRESS) {
		s.Local, s.Remote = s.Remote, s.Local
		s.LocalPort, s.RemotePort = s.RemotePort, s.LocalPort
	}
	s.Loopback = has(e, bpfDropFlagFLAG_LOOPBACK) || isLoopback(s.Local) || isLoopback(s.Remote) ||
		s.Local == s.Remote && s.Local != flow.Addr{}
}

func has(e *bpfDropEvent, f bpfDropFlag) bool { return e.Flags&uint8(f) != 0 }

// isLoopback goes by the address: a packet may be dropped before it has a device.
func isLoopback(a flow.Addr) bool {
	v6 := flow.Addr{15: 1}
	mapped := [12]byte{10: 0xff, 11: 0xff}
	return a == v6 || [12]byte(a[:12]) == mapped && a[12] == 127
}

// detail returns what the event says beside the ends.
func (p *Probe) detail(e *bpfDropEvent) *flow.Drop {
	return &flow.Drop{
		Reason:   p.kernel.name(e.Reason),
		Location: p.symbols.name(e.Location),
		Ingress:  has(e, bpfDropFlagFLAG_INGRESS),
		Bytes:    e.Bytes, TCPFlags: e.TcpFlags, Ifindex: e.Ifindex,
	}
}
