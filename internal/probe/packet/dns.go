// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"unsafe"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/record"
)

// DecodeDNS fills p from a record of the DNS ring. p.Data is part of raw.
func DecodeDNS(raw []byte, p *dns.Packet) error {
	const size = int(unsafe.Sizeof(bpfDnsMessage{}))
	if len(raw) < size {
		return fmt.Errorf("decode DNS record: %d bytes, want %d", len(raw), size)
	}
	var m bpfDnsMessage
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&m)), size), raw)
	data := raw[size:]
	if int64(m.Copied) > int64(len(data)) {
		return fmt.Errorf("decode DNS record: %d bytes of a message of which %d were copied", len(data), m.Copied)
	}
	*p = dns.Packet{
		BootNanos: m.TimeNs, CgroupID: m.CgroupId,
		Local: record.Addr(m.Local.B), Remote: record.Addr(m.Remote.B), LocalPort: m.LocalPort, RemotePort: m.RemotePort,
		Protocol: record.Protocol(m.Protocol), Out: m.Out != 0,
		Loopback: m.Flags&uint8(bpfPacketFlagFLAG_LOOPBACK) != 0,
		PID:      m.Pid, Comm: record.Comm(m.Comm),
		Length: int(m.Length), Segment: int(m.Segment), Data: data[:m.Copied],
	}
	return nil
}
