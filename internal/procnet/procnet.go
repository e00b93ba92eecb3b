// SPDX-License-Identifier: Apache-2.0

// Package procnet reads who listens from the kernel's tables of sockets.
package procnet

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Listener is a TCP socket in state LISTEN.
type Listener struct {
	Addr netip.AddrPort
	// UID of the user who made the socket.
	UID   uint32
	Inode uint64
}

// Loopback finds the socket that listens at a port for loopback addresses, in the network
// namespace of this process; proc is where procfs is mounted. It returns false where there
// is none.
func Loopback(proc string, port uint16) (Listener, bool, error) {
	for _, table := range []string{"self/net/tcp", "self/net/tcp6"} {
		text, err := os.ReadFile(filepath.Join(proc, table))
		if os.IsNotExist(err) && table == "self/net/tcp6" {
			continue // a host without IPv6
		}
		if err != nil {
			return Listener{}, false, fmt.Errorf("look who listens at port %d: %w", port, err)
		}
		for _, l := range Parse(string(text)) {
			if l.Addr.Port() == port && (l.Addr.Addr().IsLoopback() || l.Addr.Addr().IsUnspecified()) {
				return l, true, nil
			}
		}
	}
	return Listener{}, false, nil
}

// Parse reads the listening sockets from the text of /proc/net/tcp or tcp6 of a
// little-endian machine; lines that it cannot read are skipped.
func Parse(text string) []Listener {
	const listen = "0A" // TCP_LISTEN
	var all []Listener
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != listen {
			continue
		}
		addr, ok := parseSocketAddr(fields[1])
		uid, uerr := strconv.ParseUint(fields[7], 10, 32)
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if ok && uerr == nil && err == nil {
			all = append(all, Listener{addr, uint32(uid), inode})
		}
	}
	return all
}

// parseSocketAddr reads ADDRESS:PORT, both hexadecimal, the address in 32-bit
// words of the machine's byte order.
func parseSocketAddr(s string) (netip.AddrPort, bool) {
	host, service, _ := strings.Cut(s, ":")
	port, err := strconv.ParseUint(service, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := raw; len(word) > 0; word = word[4:] {
		binary.BigEndian.PutUint32(word, binary.LittleEndian.Uint32(word))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}
