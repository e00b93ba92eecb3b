// SPDX-License-Identifier: Apache-2.0

//go:build linux

package syscall

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// Event is a system call that has ended, or that never does. What its file descriptors
// stand for is as it was before.
type Event struct {
	// Time is when it ended, or was told of, in Unix nanoseconds. It began Latency
	// before.
	Time     int64
	CgroupID uint64
	// Traces has a bit for each trace that is told of it.
	Traces uint32
	// PID and TID are the process and the thread in the host's first pid namespace.
	PID, TID uint32
	// Parent is the process's parent at that time.
	Parent uint32
	// Comm is the process's name, with zeros behind.
	Comm    [16]byte
	Latency time.Duration
	// Unfinished: it has not returned. It is exit or exit_group, has ended its thread in
	// another way, or still goes on. One that is interrupted by a signal has returned:
	// what the kernel then does, mostly -512 (ERESTARTSYS).
	Unfinished bool
	// Of a call that was Refused, Latency is 0: a seccomp filter or a tracer has answered
	// in the kernel's place; the number is -1 if a tracer has taken that away. Returned is
	// false if the answer is a signal.
	syscalls.Call
}

// headSize is what each record has before its text.
const headSize = int(unsafe.Offsetof(bpfCall{}.Text))

// clock converts boot time to Unix nanoseconds.
type clock interface{ Unix(boot uint64) int64 }

// decode fills e from one record of the ring.
func decode(raw []byte, e *Event, at clock) error {
	if len(raw) < headSize {
		return fmt.Errorf("decode system call: %d bytes, want %d or more", len(raw), headSize)
	}
	var c bpfCall
	n := copy(unsafe.Slice((*byte)(unsafe.Pointer(&c)), unsafe.Sizeof(c)), raw)
	text := raw[headSize:n]
	flags := bpfCallFlag(c.Flags)
	*e = Event{
		Time: at.Unix(c.NowNs), CgroupID: c.CgroupId, Traces: c.Traces, PID: c.Pid, TID: c.Tid, Parent: c.Parent,
		Latency:    time.Duration(c.LatencyNs),
		Unfinished: flags&bpfCallFlagFLAG_UNFINISHED != 0,
		Call: syscalls.Call{
			ABI: abis()[flags&bpfCallFlagFLAG_COMPAT], Number: c.Nr, Args: [syscalls.MaxArgs]uint64(c.Args[:syscalls.MaxArgs]),
			Return: c.Ret, Returned: flags&bpfCallFlagFLAG_RETURNED != 0, Refused: flags&bpfCallFlagFLAG_REFUSED != 0,
		},
	}
	for i, b := range c.Comm {
		e.Comm[i] = byte(b)
	}
	for i := range syscalls.MaxArgs {
		if err := e.describe(i, &c, text); err != nil {
			return err
		}
	}
	return nil
}

// describe fills what argument i points at.
func (e *Event) describe(i int, c *bpfCall, text []byte) error {
	if c.Kind[i] == 0 {
		return nil
	}
	from, to := int(c.At[i]), int(c.At[i])+int(c.Len[i])
	if to > len(text) {
		return errors.New("decode system call: a text is not in the record")
	}
	text = text[from:to]
	cut := c.Cut>>i&1 != 0
	switch bpfKind(c.Kind[i]) {
	case bpfKindKIND_STRING:
		e.Strings[i] = string(text)
		e.Read |= 1 << i
		e.Cut |= c.Cut & (1 << i)
	case bpfKindKIND_ADDR:
		e.Addr = sockaddr(text)
	case bpfKindKIND_HOW:
		e.How = openHow(text)
	default:
		e.Files[i] = file(bpfKind(c.Kind[i]), text, cut)
	}
	return nil
}

// bytesOf is a call as it would be in the ring.
func bytesOf(c *bpfCall) []byte {
	all := unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))
	return all[:min(headSize+int(c.Used), len(all))]
}
