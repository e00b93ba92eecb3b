// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// task is something to do whose time is measured.
type task struct {
	name string
	// ops is how often a block does it; a block takes a few milliseconds.
	ops int
	// prepare, if set, is called before each visit.
	prepare func()
	op      func() error
}

// block does it ops times and returns the nanoseconds that each took.
func (w *task) block() (float64, error) {
	begin := time.Now()
	for range w.ops {
		if err := w.op(); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(begin)) / float64(w.ops), nil
}

const (
	tcpPingPong  = "TCP ping-pong"
	connectClose = "connect-send-close"
	tcpBulk      = "TCP bulk"
	udpPingPong  = "UDP ping-pong"
	dnsQueries   = "DNS query"
)

// newTasks opens the sockets of all tasks, in the network namespace of
// the calling thread. They serve all arms of a run.
func newTasks() ([]*task, error) {
	var all []*task
	for _, open := range []func() (*task, error){openTCPPingPong, openConnectClose, openBulk, openUDPPingPong, openDNS} {
		w, err := open()
		if err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	return all, nil
}

// pingPong returns what sends one byte there and one back.
func pingPong(a, b int) func() error {
	buf := make([]byte, 1)
	return func() error { return pingOnce(a, b, buf) }
}

func openTCPPingPong() (*task, error) {
	l, port, err := bound(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	a, b, err := tcpPair(l, port)
	if err != nil {
		return nil, err
	}
	return &task{name: tcpPingPong, ops: 300, op: pingPong(a, b)}, rawClose(l)
}

func openUDPPingPong() (*task, error) {
	a, b, err := udpPair()
	if err != nil {
		return nil, err
	}
	return &task{name: udpPingPong, ops: 400, op: pingPong(a, b)}, nil
}

const bulkWrite = 64 << 10

// openBulk streams in writes of 64 KiB, each followed by a read of what has
// arrived. On loopback a write makes two packets and an acknowledgement.
func openBulk() (*task, error) {
	l, port, err := bound(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	// Before the connection is made, so that the window has room from the start.
	if err := unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	a, b, err := tcpPair(l, port)
	if err != nil {
		return nil, err
	}
	if err := tuneBulk(a); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	out, in := make([]byte, bulkWrite), make([]byte, 4*bulkWrite)
	return &task{name: tcpBulk, ops: 300, op: func() error {
		if err := send(a, out); err != nil {
			return err
		}
		_, err := receiveSome(b, in)
		return err
	}}, rawClose(l)
}

// tuneBulk lets writes share packets, and keeps the timers of a congestion
// control that paces out of the figures.
func tuneBulk(fd int) error {
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 0),
		unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"),
	)
}

// openConnectClose connects, sends one byte each way and closes, the client
// first. Each visit connects to another loopback address, so that ports still
// in TIME_WAIT never slow down the search for a free one.
func openConnectClose() (*task, error) {
	l, port, err := bound(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1)
	to, visit := inet4(loopback, port), 0
	return &task{
		name: connectClose, ops: 100,
		prepare: func() {
			visit++
			to.Addr = [4]byte{127, byte(1 + visit>>16), byte(visit >> 8), byte(visit)}
		},
		op: func() error { return connectOnce(l, to, buf) },
	}, nil
}

func connectOnce(listener int, to *unix.RawSockaddrInet4, buf []byte) error {
	client, err := rawSocket(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	if err := rawConnect(client, to); err != nil {
		return err
	}
	server, err := rawAccept(listener)
	if err != nil {
		return err
	}
	if err := pingOnce(client, server, buf); err != nil {
		return err
	}
	if err := rawClose(client); err != nil {
		return err
	}
	return rawClose(server)
}

func pingOnce(a, b int, buf []byte) error {
	if err := send(a, buf); err != nil {
		return err
	}
	if err := receive(b, buf); err != nil {
		return err
	}
	if err := send(b, buf); err != nil {
		return err
	}
	return receive(a, buf)
}
