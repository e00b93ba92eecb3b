// SPDX-License-Identifier: Apache-2.0

//go:build linux

package syscall

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// file says what a file descriptor stands for. Paths are as in the mount namespace of
// the process.
func file(kind bpfKind, text []byte, cut bool) string {
	switch kind {
	case bpfKindKIND_PATH:
		return path(text, cut)
	case bpfKindKIND_PATH_END:
		return "..." + string(text)
	case bpfKindKIND_DELETED:
		return path(text, cut) + " (deleted)"
	case bpfKindKIND_NAME:
		return string(text)
	case bpfKindKIND_ANON:
		return "anon_inode:" + string(text)
	case bpfKindKIND_PIPE:
		return inode("pipe", text)
	case bpfKindKIND_NAMESPACE:
		return inode("ns", text)
	case bpfKindKIND_PIDFD:
		return "anon_inode:[pidfd]"
	case bpfKindKIND_INET:
		return inetSocket(text)
	case bpfKindKIND_UNIX:
		return "unix:" + unixName(text)
	case bpfKindKIND_UNIX_PEER:
		return "unix:->" + unixName(text)
	case bpfKindKIND_SOCKET:
		return otherSocket(text)
	}
	return ""
}

// path marks a path that is longer than what was read of it.
func path(text []byte, cut bool) string {
	if cut {
		return string(text) + "..."
	}
	return string(text)
}

func inode(what string, text []byte) string {
	if len(text) < int(unsafe.Sizeof(bpfInodeText{})) {
		return what
	}
	return fmt.Sprintf("%s:[%d]", what, binary.NativeEndian.Uint64(text))
}

func inetSocket(text []byte) string {
	var t bpfInetText
	if len(text) < int(unsafe.Sizeof(t)) {
		return ""
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&t)), unsafe.Sizeof(t)), text)
	name := protocolName(t.Protocol)
	local := netip.AddrPortFrom(record.Addr(t.Local.B).IP(), t.LocalPort)
	remote := netip.AddrPortFrom(record.Addr(t.Remote.B).IP(), t.RemotePort)
	if remote.Port() == 0 && remote.Addr().IsUnspecified() {
		return name + " " + local.String()
	}
	return name + " " + local.String() + "->" + remote.String()
}

func protocolName(p uint16) string {
	switch {
	case p == unix.IPPROTO_MPTCP:
		return "MPTCP"
	case p < 256:
		return record.Protocol(p).String()
	}
	return strconv.Itoa(int(p))
}

// families are the sockets with a name here that are neither of the internet nor unix.
var families = map[uint16]string{
	unix.AF_NETLINK: "netlink", unix.AF_PACKET: "packet", unix.AF_VSOCK: "vsock", unix.AF_ALG: "alg",
	unix.AF_XDP: "xdp", unix.AF_BLUETOOTH: "bluetooth", unix.AF_CAN: "can", unix.AF_TIPC: "tipc",
}

func familyName(f uint16) string {
	if name := families[f]; name != "" {
		return name
	}
	return "family " + strconv.Itoa(int(f))
}

func otherSocket(text []byte) string {
	if len(text) < int(unsafe.Sizeof(bpfSocketText{})) {
		return ""
	}
	family, protocol := binary.NativeEndian.Uint16(text), binary.NativeEndian.Uint16(text[2:])
	return fmt.Sprintf("%s protocol %d", familyName(family), protocol)
}

// unixName is the name within a struct sockaddr_un: a path, @NAME for one that is
// abstract, empty for none.
func unixName(sockaddr []byte) string {
	if len(sockaddr) <= 2 {
		return ""
	}
	name := string(sockaddr[2:])
	if name[0] == 0 {
		if strings.Trim(name, "\x00") == "" {
			return ""
		}
		return "@" + name[1:]
	}
	name, _, _ = strings.Cut(name, "\x00")
	return name
}

// sockaddr is a struct sockaddr as text, empty if it is none.
func sockaddr(b []byte) string {
	if len(b) < 2 {
		return ""
	}
	family := binary.NativeEndian.Uint16(b)
	switch {
	case family == unix.AF_UNSPEC:
		return "unspecified"
	case family == unix.AF_UNIX:
		return "unix:" + unixName(b)
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])).String()
	case family == unix.AF_INET6 && len(b) >= 24:
		return inet6(b)
	case family == unix.AF_NETLINK && len(b) >= unix.SizeofSockaddrNetlink:
		return fmt.Sprintf("netlink:%d groups %#x", binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[8:]))
	case family == unix.AF_PACKET && len(b) >= 8:
		return fmt.Sprintf("packet:interface %d protocol %#04x", binary.NativeEndian.Uint32(b[4:]), binary.BigEndian.Uint16(b[2:]))
	case family == unix.AF_VSOCK && len(b) >= 12:
		return fmt.Sprintf("vsock:%d:%d", binary.NativeEndian.Uint32(b[8:]), binary.NativeEndian.Uint32(b[4:]))
	}
	return familyName(family)
}

func inet6(b []byte) string {
	ip := netip.AddrFrom16([16]byte(b[8:24]))
	if len(b) >= unix.SizeofSockaddrInet6 && !ip.Is4In6() {
		if scope := binary.NativeEndian.Uint32(b[24:]); scope != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(scope), 10))
		}
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[2:])).String()
}

// openHow is a struct open_how of which the last fields may be missing.
func openHow(b []byte) (how syscalls.OpenHow) {
	var words [3]uint64
	for i := range words {
		if len(b) >= 8*(i+1) {
			words[i] = binary.NativeEndian.Uint64(b[8*i:])
		}
	}
	return syscalls.OpenHow{Given: true, Flags: words[0], Mode: words[1], Resolve: words[2]}
}
