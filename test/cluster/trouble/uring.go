// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// As in linux/io_uring.h.
const (
	uringOffsetSQ   = 0
	uringOffsetSQEs = 0x10000000
	uringGetEvents  = 1
	uringSQESize    = 64
)

// uringParams is struct io_uring_params.
type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		_                                                           uint64
	}
	cq [10]uint32
}

// uring OPCODE submits one operation of that kind by io_uring, on no file.
func uring(args []string) error {
	if err := want(args, "OPCODE"); err != nil {
		return err
	}
	opcode, err := strconv.ParseUint(args[0], 10, 8)
	if err != nil {
		return err
	}
	var p uringParams
	r, _, errno := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	fd := int(r)
	ring, err := unix.Mmap(fd, uringOffsetSQ, int(p.sq.array+4*p.sqEntries), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	entries, err := unix.Mmap(fd, uringOffsetSQEs, int(p.sqEntries)*uringSQESize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the entries: %w", err)
	}
	entries[0] = byte(opcode)
	binary.NativeEndian.PutUint32(entries[4:], 0xffffffff) // its file
	binary.NativeEndian.PutUint32(ring[p.sq.array:], 0)
	binary.NativeEndian.PutUint32(ring[p.sq.tail:], 1)
	n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, r, 1, 1, uringGetEvents, 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	if n != 1 {
		return fmt.Errorf("io_uring_enter took %d operations, want 1", n)
	}
	return unix.Close(fd)
}
