// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
)

// deaf has, at each of the addresses, a TCP socket that listens but accepts nobody,
// with room for one connection, and a UDP socket that is never read, with the least
// room there is, until ctx is done.
func deaf(ctx context.Context, addrs string) error {
	var open []io.Closer
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	lc := plain()
	for addr := range strings.SplitSeq(addrs, ",") {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		open = append(open, l)
		p, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			return err
		}
		open = append(open, p)
		if err := errors.Join(shorten(l.(*net.TCPListener)), p.(*net.UDPConn).SetReadBuffer(1)); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// shorten leaves room for one connection: to listen again changes the length of the
// queue, which is one more than said.
func shorten(l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var again error
	err = raw.Control(func(fd uintptr) { again = syscall.Listen(int(fd), 0) })
	return errors.Join(err, again)
}
