// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/Ignoramuss/orb8/internal/agent/config"
)

// listen opens addr. localhost is both loopback addresses, so that it does not
// matter which one a client's resolver picks; a host without IPv6 has only one.
// flag is what the user can change if the port is taken.
func listen(ctx context.Context, addr, flag string) ([]net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if host != config.Localhost {
		l, err := listenOne(ctx, addr, flag)
		if err != nil {
			return nil, err
		}
		return []net.Listener{l}, nil
	}
	v4, err := listenOne(ctx, net.JoinHostPort("127.0.0.1", port), flag)
	if err != nil {
		return nil, err
	}
	_, chosen, _ := net.SplitHostPort(v4.Addr().String())
	v6, err := listenOne(ctx, net.JoinHostPort("::1", chosen), flag)
	switch {
	case err == nil:
		return []net.Listener{v4, v6}, nil
	case errors.Is(err, syscall.EADDRINUSE) && port != "0":
		return nil, errors.Join(err, v4.Close())
	}
	return []net.Listener{v4}, nil
}

func listenOne(ctx context.Context, addr, flag string) (net.Listener, error) {
	var lc net.ListenConfig
	// Go listens with MPTCP by default since 1.24. The file of such a listener
	// is no TCP socket: that is below it, held by no file, where the tcp probe
	// does not find it at its start and the agent would not know its own.
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", addr)
	if err == nil {
		return l, nil
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("port %s is taken, perhaps by another orb8 agent: stop that one, or choose another port with --%s localhost:PORT: %w", port, flag, err)
	}
	return nil, fmt.Errorf("listen for --%s: %w", flag, err)
}
