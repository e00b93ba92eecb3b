// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls that are timed go to the kernel without telling Go's scheduler, so
// that what is measured is the kernel. They hardly ever wait: what they read has
// arrived before, since loopback delivers within the sender's call unless the
// kernel puts that off. A receive timeout ends them if it never comes.

func send(fd int, b []byte) error {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return fmt.Errorf("write: %w", errno)
	}
	if int(n) != len(b) {
		return fmt.Errorf("write took %d of %d bytes", n, len(b))
	}
	return nil
}

// receive fills b.
func receive(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := receiveSome(fd, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// receiveSome reads once and returns how many bytes there were, at least one.
func receiveSome(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	for errno == unix.EINTR { // a signal, while it had to wait
		n, _, errno = unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	}
	if errno != 0 {
		return 0, fmt.Errorf("read: %w", errno)
	}
	if n == 0 {
		return 0, errors.New("read: the peer has closed")
	}
	return int(n), nil
}

func rawSocket(kind int) (int, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, uintptr(kind|unix.SOCK_CLOEXEC), 0)
	if errno != 0 {
		return -1, os.NewSyscallError("socket", errno)
	}
	return int(fd), nil
}

func rawConnect(fd int, to *unix.RawSockaddrInet4) error {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}

func rawAccept(fd int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("accept", errno)
	}
	return int(n), nil
}

func rawClose(fd int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0); errno != 0 {
		return os.NewSyscallError("close", errno)
	}
	return nil
}

// inet4 is an address in the form of the raw calls.
func inet4(addr [4]byte, port int) *unix.RawSockaddrInet4 {
	return &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr, Port: uint16(port>>8) | uint16(port&0xff)<<8}
}

var loopback = [4]byte{127, 0, 0, 1}

// bound returns a socket at a free port of all addresses, and the port. A TCP
// socket listens.
func bound(kind int) (fd, port int, err error) {
	if fd, err = rawSocket(kind); err != nil {
		return -1, 0, err
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		return -1, 0, os.NewSyscallError("bind", err)
	}
	if kind == unix.SOCK_STREAM {
		if err = unix.Listen(fd, 1024); err != nil {
			return -1, 0, os.NewSyscallError("listen", err)
		}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return -1, 0, os.NewSyscallError("getsockname", err)
	}
	return fd, sa.(*unix.SockaddrInet4).Port, nil
}

// bounded gives a socket a receive timeout.
func bounded(fd int) error {
	tv := unix.Timeval{Sec: 2}
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
}

// tcpPair connects through a listening socket and returns both ends.
func tcpPair(listener, port int) (a, b int, err error) {
	if a, err = rawSocket(unix.SOCK_STREAM); err != nil {
		return -1, -1, err
	}
	if err = rawConnect(a, inet4(loopback, port)); err != nil {
		return -1, -1, err
	}
	if b, err = rawAccept(listener); err != nil {
		return -1, -1, err
	}
	for _, fd := range []int{a, b} {
		if err := bounded(fd); err != nil {
			return -1, -1, err
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return -1, -1, os.NewSyscallError("setsockopt", err)
		}
	}
	return a, b, nil
}

// udpPair returns two UDP sockets that are connected to each other.
func udpPair() (a, b int, err error) {
	a, portA, err := bound(unix.SOCK_DGRAM)
	if err != nil {
		return -1, -1, err
	}
	b, portB, err := bound(unix.SOCK_DGRAM)
	if err != nil {
		return -1, -1, err
	}
	for _, c := range []struct{ fd, peer int }{{a, portB}, {b, portA}} {
		if err := bounded(c.fd); err != nil {
			return -1, -1, err
		}
		if err := rawConnect(c.fd, inet4(loopback, c.peer)); err != nil {
			return -1, -1, err
		}
	}
	return a, b, nil
}

// abort closes a TCP connection with a reset, which leaves nothing behind.
func abort(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}
