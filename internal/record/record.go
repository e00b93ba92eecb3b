// SPDX-License-Identifier: Apache-2.0

// Package record is what records of every kind have in common: who, where and when.
// What is behind the probes works on that; only the folder of a kind knows the rest.
package record

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// Header is what every record has. A record without addresses, or of no process, leaves
// those fields zero.
type Header struct {
	// CgroupID is the inode of the owner's cgroup in the cgroup2 hierarchy.
	CgroupID uint64
	// NetNS is the inode of the network namespace, 0 where the probe cannot tell.
	NetNS uint32
	PID   uint32
	Comm  Comm
	// Executable is the path of the file that the process ran, in its own mount
	// namespace; empty if not known. Naming sets it, where the record came without.
	Executable string

	// Local is the address of the end that the cgroup owns.
	Local, Remote         Addr
	LocalPort, RemotePort uint16
	Protocol              Protocol
	Role                  Role
	Loopback              bool
	// Self marks orb8's own doings. It is set by naming, as are Owner and Peer.
	Self bool
	// Phase is zero for what happens at once.
	Phase Phase

	// Time of what is told. First and Last are when what the record is of began, and
	// when it was last active, or both Time. All in Unix nanoseconds, by a clock that
	// never jumps, see probe.Clock.
	Time, First, Last int64

	// Owner is never nil once the record is named. Peer is nil where nothing is known
	// of the remote end.
	Owner, Peer *workload.Identity
}

// HasAddrs reports whether either end has an address.
func (h *Header) HasAddrs() bool { return h.Local != Addr{} || h.Remote != Addr{} }

// Shift moves the record's times by d.
func (h *Header) Shift(d time.Duration) {
	for _, t := range []*int64{&h.Time, &h.First, &h.Last} {
		if *t != 0 {
			*t += int64(d)
		}
	}
}

// Phase is the place of a record among those of the same conversation.
type Phase uint8

// The phases of a conversation; Momentary is a record that is of none.
const (
	Momentary Phase = iota
	Ongoing
	Ended
)

// Addr is an IPv6 address, or an IPv4 address mapped into IPv6, in network
// order: the form in which the kernel programs hand over both.
type Addr [16]byte

// IP returns the address; a mapped IPv4 address as IPv4.
func (a Addr) IP() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// AddrOf is the reverse of IP.
func AddrOf(ip netip.Addr) Addr { return ip.As16() }

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols that have a name in output and filters.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
)

// String returns TCP, UDP, ICMP, ICMPv6 or the number in decimal.
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	}
	return strconv.Itoa(int(p))
}

// Role is the part the local end plays; the numbers are those of the API.
type Role uint8

// RoleUnknown stands where neither the socket nor the first packet tells.
const (
	RoleUnknown Role = iota
	RoleClient
	RoleServer
)

// Comm is a command name as the kernel keeps it, NUL-padded.
type Comm [16]byte

// String returns the command without its padding, in valid UTF-8: a command is any 15
// bytes, and the kernel cuts long ones in the middle of a character. What is no
// character is U+FFFD.
func (c Comm) String() string {
	n := bytes.IndexByte(c[:], 0)
	if n < 0 {
		n = len(c)
	}
	return strings.ToValidUTF8(string(c[:n]), "\uFFFD")
}
