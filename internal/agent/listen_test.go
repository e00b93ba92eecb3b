// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

func TestListenLocalhostIsBothAddresses(t *testing.T) {
	ls, err := listen(t.Context(), "localhost:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ls[0].Addr().String())
	for _, l := range ls {
		defer l.Close()
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		if host == "::1" && len(ls) == 1 {
			t.Log("this host has no IPv6 loopback")
			continue
		}
		c, err := (&net.Dialer{}).DialContext(testwait.Context(t), "tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Error(err)
			continue
		}
		_ = c.Close()
	}
}

func TestListenPortTaken(t *testing.T) {
	var lc net.ListenConfig
	for _, network := range []struct{ name, host string }{{"IPv4", "127.0.0.1"}, {"IPv6", "::1"}} {
		t.Run(network.name, func(t *testing.T) {
			other, err := lc.Listen(t.Context(), "tcp", net.JoinHostPort(network.host, "0"))
			if err != nil {
				t.Skip(err)
			}
			defer other.Close()
			_, port, _ := net.SplitHostPort(other.Addr().String())
			_, err = listen(t.Context(), "localhost:"+port, "metrics-listen")
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("got %v", err)
			}
			if want := "port " + port + " is taken, perhaps by another orb8 agent: stop that one, or choose another port with --metrics-listen localhost:PORT"; !strings.Contains(err.Error(), want) {
				t.Errorf("got %q, want %q", err, want)
			}
		})
	}
}

func TestListenElsewhere(t *testing.T) {
	_, err := listen(t.Context(), "192.0.2.1:0", "listen")
	if err == nil || !strings.HasPrefix(err.Error(), "listen for --listen: ") {
		t.Errorf("got %v", err)
	}
}
