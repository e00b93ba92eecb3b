// SPDX-License-Identifier: Apache-2.0

//go:build linux

package host

import (
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/accel/dcgm"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/record"
)

// self recognises the agent's own sockets, and those of orb8 commands that talk
// to it.
type self struct {
	pid   uint32
	netns uint32 // 0 if it is not known
	comm  record.Comm
	ports map[uint16]bool
}

func newSelf(cfg config.Config) self {
	s := self{pid: uint32(os.Getpid()), ports: make(map[uint16]bool)}
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/net", &st) == nil {
		s.netns = uint32(st.Ino)
	}
	copy(s.comm[:], "orb8")
	// At the API's usual port a command looks for an agent that may not be there.
	for _, addr := range []string{cfg.Listen, cfg.MetricsListen, config.Default().Listen} {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			continue // empty: nothing is listened on
		}
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			s.ports[uint16(n)] = true
		}
	}
	s.ports[dcgm.LocalPort] = true // an exporter that may not be there either
	return s
}

func (s self) is(f *record.Header) bool {
	if f.PID == s.pid {
		return true
	}
	// The loopback interface of another network namespace is another one.
	if f.NetNS != 0 && s.netns != 0 && f.NetNS != s.netns {
		return false
	}
	return f.Loopback && f.Protocol == record.TCP && f.Comm == s.comm && s.ports[f.RemotePort]
}
