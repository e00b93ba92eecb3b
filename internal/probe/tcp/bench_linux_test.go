// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"net"
	"testing"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// BenchmarkIdlePass is one pass over 5,000 sockets without traffic.
func BenchmarkIdlePass(b *testing.B) { idlePass(b, false) }

// BenchmarkIdlePassByFiles is the same by way of open files.
func BenchmarkIdlePassByFiles(b *testing.B) { idlePass(b, true) }

func idlePass(b *testing.B, byFiles bool) {
	b.Helper()
	p := New(benchConfig())
	p.byFiles = byFiles
	probetest.Start(b, p, "TCP from socket counters: fallback")
	if p.byFiles != byFiles {
		b.Skip("SKIP: this kernel reads sockets by open files only")
	}
	n := probetest.NewNetns(b)
	n.Do(func() { idleSockets(b, 2500) })
	if err := p.Collect(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := p.sample(); err != nil {
			b.Fatal(err)
		}
	}
}

// idleSockets makes n connections over loopback.
func idleSockets(b *testing.B, n int) {
	b.Helper()
	// Without keep-alive probes.
	listen, dial := net.ListenConfig{KeepAlive: -1}, net.Dialer{KeepAlive: -1}
	l, err := listen.Listen(b.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		b.Error(err)
		return
	}
	defer l.Close()
	for range n {
		client, err := dial.DialContext(b.Context(), "tcp4", l.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		b.Cleanup(func() { client.Close() })
		server, err := l.Accept()
		if err != nil {
			b.Error(err)
			return
		}
		b.Cleanup(func() { server.Close() })
	}
}

func benchConfig() Config {
	return Config{
		Apply: func(*flow.Sample) {}, Losses: new(loss.Counters), Clock: probe.NewClock(),
		Sockets: func([]flow.SocketCount) {},
	}
}
