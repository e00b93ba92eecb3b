// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe_test

import (
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/packet"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/probe/tcp"
	"github.com/Ignoramuss/orb8/internal/record"
)

// TestPacketTakesTCPOver: where the tcp probe cannot start (here because its ring
// has a size that no kernel takes), the packet probe counts TCP, and the status
// says so.
func TestPacketTakesTCPOver(t *testing.T) {
	probetest.NeedRoot(t)
	root := probetest.CgroupRoot(t)
	var mu sync.Mutex
	got := make(map[uint16]flow.Counters) // by the server's port, from the client's end
	apply := func(s *flow.Sample) {
		mu.Lock()
		defer mu.Unlock()
		if s.Protocol == record.TCP && s.Role == record.RoleClient {
			got[s.RemotePort] = s.Total
		}
	}
	losses, clock := new(loss.Counters), probe.NewClock()
	m := probe.NewManager(slog.New(slog.DiscardHandler))
	broken := tcp.New(tcp.Config{Apply: apply, Losses: losses, Clock: clock, RingBytes: 1})
	packets := packet.New(packet.Config{
		Apply: apply, Losses: losses, Clock: clock, CgroupRoot: root,
		CountTCP: func() bool { return !m.Running("tcp") },
	})
	m.Add(broken, probe.Fallback(func() (string, bool) { return "counted per packet", m.Running("packet") }))
	m.Add(packets)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	status := m.Status()
	if s := status[0]; s.State != probe.StateFallback || !strings.HasPrefix(s.Reason, "counted per packet, because: ") {
		t.Errorf("tcp: %+v, want fallback", s)
	}
	if s := status[1]; s.State != probe.StateRunning || !packets.CountsTCP() {
		t.Errorf("packet: %+v, counts TCP %v", s, packets.CountsTCP())
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	m.Collect()
	mu.Lock()
	defer mu.Unlock()
	sent := got[l.Addr().(*net.TCPAddr).AddrPort().Port()]
	// SYN, ACK, data and perhaps FIN, each with at least 40 bytes of headers.
	if sent.TxPackets < 3 || sent.TxBytes < 1000+3*40 {
		t.Errorf("%+v, want the connection's packets", sent)
	}
}
