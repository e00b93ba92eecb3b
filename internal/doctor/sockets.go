// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
)

// listener is a TCP socket in state LISTEN.
type listener struct {
	addr  netip.AddrPort
	inode uint64
}

// parseListeners reads the listening sockets from the text of /proc/net/tcp or
// tcp6 of a little-endian machine; lines that it cannot read are skipped.
func parseListeners(text string) []listener {
	const listen = "0A" // TCP_LISTEN
	var all []listener
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != listen {
			continue
		}
		addr, ok := parseSocketAddr(fields[1])
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if ok && err == nil {
			all = append(all, listener{addr, inode})
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
