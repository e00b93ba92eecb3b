// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"maps"
	"net"
	"os"
	"testing"

	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// Without cgroups a tracing program tells the same.
func TestByTracing(t *testing.T) {
	t.Setenv(cgroupsEnv, noCgroups)
	tests := map[string]func(*testing.T){
		"ExactBytes": TestExactBytes, "Resets": TestResets, "SocketConnectedAgain": TestSocketConnectedAgain,
		"Cgroups": TestCgroups, "Multipath": TestMultipath,
	}
	if !testing.Short() {
		maps.Copy(tests, map[string]func(*testing.T){
			"Refused": TestRefused, "Failures": TestFailures, "FastOpen": TestFastOpen,
			"SimultaneousOpen": TestSimultaneousOpen, "NoPort": TestNoPort,
		})
	}
	skipped := false
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() { skipped = skipped || t.Skipped() }()
			test(t)
		})
	}
	if !skipped {
		feature(t, "TCP without cgroup2")
	}
}

// An attempt that fails before there is a SYN is told of as well.
func TestNoPort(t *testing.T) {
	w := start(t, Config{})
	w.needOlder(t) // the same program
	ns := probetest.NewNetns(t)
	var l net.Listener
	var first, second net.Conn
	var err, failed error
	ns.Do(func() {
		if err = os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40001 40001"), 0); err != nil {
			return
		}
		if l, err = net.Listen("tcp4", "127.0.0.1:40000"); err != nil {
			return
		}
		first, err = net.Dial("tcp4", l.Addr().String())
		second, failed = net.Dial("tcp4", l.Addr().String())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer first.Close()
	if failed == nil {
		second.Close()
		t.Fatal("the only port is taken, and there was another one")
	}
	f := w.find(t, "the attempt", func(f *seen) bool { return f.RemotePort == 40000 && f.finals > 0 })
	if !f.TCP.Failed || f.TCP.Preexisting || f.PID != uint32(os.Getpid()) || f.Total.TxBytes != 0 {
		t.Errorf("%v: %+v", failed, f.Sample)
	}
}
