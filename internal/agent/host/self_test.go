// SPDX-License-Identifier: Apache-2.0

//go:build linux

package host

import (
	"os"
	"testing"

	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/record"
)

// TestSelfWithoutAnAgent: a command looks for one where it is usually.
func TestSelfWithoutAnAgent(t *testing.T) {
	s := newSelf(config.Local())
	f := record.Header{Protocol: record.TCP, RemotePort: 9090, NetNS: s.netns, Loopback: true, PID: 1, Comm: record.Comm{'o', 'r', 'b', '8'}}
	if !s.is(&f) {
		t.Error("a command that finds no agent is not orb8's own")
	}
}

func TestSelf(t *testing.T) {
	s := newSelf(config.Default())
	if s.netns == 0 {
		t.Fatal("the own network namespace is not known")
	}
	cli := record.Header{Protocol: record.TCP, RemotePort: 9090, NetNS: s.netns, Loopback: true, PID: 1, Comm: record.Comm{'o', 'r', 'b', '8'}}
	for _, tt := range []struct {
		name   string
		change func(*record.Header)
		want   bool
	}{
		{"a command that asks the agent", func(*record.Header) {}, true},
		{"where the namespace is not known", func(f *record.Header) { f.NetNS = 0 }, true},
		{"the agent", func(f *record.Header) { *f = record.Header{PID: uint32(os.Getpid())} }, true},
		{"one of the same name in a pod, to its own port", func(f *record.Header) { f.NetNS++ }, false},
		{"another command", func(f *record.Header) { f.Comm[0] = 'x' }, false},
		{"another port", func(f *record.Header) { f.RemotePort = 9092 }, false},
		{"over the network", func(f *record.Header) { f.Loopback = false }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := cli
			tt.change(&f)
			if got := s.is(&f); got != tt.want {
				t.Errorf("is orb8's own: %v, want %v", got, tt.want)
			}
		})
	}
}
