// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"unsafe"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

const startBytes = int(unsafe.Sizeof(bpfExecStart{}))

// clock converts boot time to Unix nanoseconds.
type clock interface{ Unix(boot uint64) int64 }

// read copies a record of type T out of raw. What follows it is ignored.
func read[T any](raw []byte) (r T, err error) {
	size := int(unsafe.Sizeof(r))
	if len(raw) < size {
		return r, fmt.Errorf("decode a process's event: %d bytes, want %d", len(raw), size)
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), size), raw)
	return r, nil
}

// decode fills e from one record of the ring or the iterator.
func decode(raw []byte, e *process.Event, c clock) error {
	h, err := read[bpfExecHead](raw)
	if err != nil {
		return err
	}
	*e = process.Event{What: process.What(h.What), Time: c.Unix(h.NowNs)}
	setProcess(&e.Process, &h, c)
	switch bpfWhat(h.What) {
	case bpfWhatWHAT_FORK:
		return nil
	case bpfWhatWHAT_SEEN, bpfWhatWHAT_EXEC:
		return decodeStart(raw, e)
	case bpfWhatWHAT_EXIT:
		return decodeExit(raw, e)
	case bpfWhatWHAT_MOVED:
		return decodeMoved(raw, e)
	case bpfWhatWHAT_PRIVILEGED:
		return decodeCall(raw, e)
	case bpfWhatWHAT_IO_URING:
		r, err := read[bpfExecIoUring](raw)
		e.Opcode = r.Opcode
		return err
	case bpfWhatWHAT_MODULE:
		r, err := read[bpfExecModule](raw)
		e.Module = text(unsafe.Slice((*byte)(unsafe.Pointer(&r.Name)), len(r.Name)))
		return err
	}
	return fmt.Errorf("decode a process's event: of kind %d, which there is not", h.What)
}

// setProcess fills p with what all records have.
func setProcess(p *process.Process, h *bpfExecHead, c clock) {
	t := &h.Task
	*p = process.Process{
		ID:       process.ID{PID: t.Pid, Start: t.StartNs},
		Parent:   process.ID{PID: t.ParentPid, Start: t.ParentStartNs},
		Comm:     text(t.Comm[:]),
		Creds:    process.Creds{UID: t.Uid, EUID: t.Euid, Effective: t.CapEffective, UserNS: t.UserNs},
		NS:       process.Namespaces{Mount: t.MntNs, PID: t.PidNs, Net: t.NetNs},
		CgroupID: t.CgroupId,
		Started:  c.Unix(t.StartNs),
		Seeded:   bpfWhat(h.What) == bpfWhatWHAT_SEEN,
		Exited:   bpfWhat(h.What) == bpfWhatWHAT_EXIT,
	}
}

// text is what comes before the first zero byte, in valid UTF-8: names and arguments are
// any bytes, and the kernel cuts long ones in the middle of a character.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

// startSize returns how long the start at the beginning of raw is.
func startSize(raw []byte) (int, error) {
	r, err := read[bpfExecStart](raw)
	if err != nil {
		return 0, err
	}
	size := uint64(startBytes) + uint64(r.PathLen) + uint64(r.CalledLen) + uint64(r.ArgsLen)
	if size > uint64(len(raw)) {
		return 0, fmt.Errorf("decode a process's start: %d bytes, want %d", len(raw), size)
	}
	return int(size), nil
}

func decodeStart(raw []byte, e *process.Event) error {
	if _, err := startSize(raw); err != nil {
		return err
	}
	r, err := read[bpfExecStart](raw)
	if err != nil {
		return err
	}
	path, rest := raw[startBytes:startBytes+int(r.PathLen)], raw[startBytes+int(r.PathLen):]
	called, args := rest[:r.CalledLen], rest[r.CalledLen:r.CalledLen+r.ArgsLen]
	has := func(f bpfStartFlag) bool { return r.Flags&uint32(f) != 0 }
	e.Process.Exe = process.Executable{
		Path: text(path), PathTruncated: has(bpfStartFlagSTART_PATH_TRUNCATED), Called: text(called),
		Memfd: has(bpfStartFlagSTART_MEMFD), Deleted: has(bpfStartFlagSTART_DELETED),
		Overlay: has(bpfStartFlagSTART_OVERLAY), Upper: has(bpfStartFlagSTART_UPPER), Changed: int64(r.ChangedNs),
	}
	e.Process.Args, e.Process.ArgsTruncated = splitArgs(args), has(bpfStartFlagSTART_ARGS_TRUNCATED)
	if e.What == process.Exec {
		e.Process.Execed = e.Time
	}
	e.Start = &process.Start{
		TTY: has(bpfStartFlagSTART_TTY), NSPID: r.NsPid,
		HostMount: has(bpfStartFlagSTART_HOST_MOUNT), HostPID: has(bpfStartFlagSTART_HOST_PID),
	}
	for i, to := range []**process.Socket{&e.Start.Stdin, &e.Start.Stdout, &e.Start.Stderr} {
		if s := &r.Std[i]; s.Protocol != 0 {
			*to = &process.Socket{
				Protocol: record.Protocol(s.Protocol),
				Local:    addrPort(s.Local.B, s.LocalPort), Remote: addrPort(s.Remote.B, s.RemotePort),
			}
		}
	}
	return nil
}

func addrPort(addr [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), port)
}

// splitArgs splits arguments, each of which ends with a zero byte; the last one's may
// have been cut off.
func splitArgs(raw []byte) (args []string) {
	for len(raw) > 0 {
		arg, rest, _ := bytes.Cut(raw, []byte{0})
		args = append(args, text(arg))
		raw = rest
	}
	return args
}

func decodeExit(raw []byte, e *process.Event) error {
	r, err := read[bpfExecExit](raw)
	if err != nil {
		return err
	}
	e.End = &process.End{
		Code: uint8(r.Status >> 8), Signal: uint8(r.Status & 0x7f), CoreDumped: r.Status&0x80 != 0,
	}
	return nil
}

func decodeMoved(raw []byte, e *process.Event) error {
	r, err := read[bpfExecMoved](raw)
	if err != nil {
		return err
	}
	e.By = process.ID{PID: r.ByPid, Start: r.ByStartNs}
	return nil
}

func decodeCall(raw []byte, e *process.Event) error {
	r, err := read[bpfExecCall](raw)
	if err != nil {
		return err
	}
	has := func(f bpfCallFlag) bool { return r.Flags&uint8(f) != 0 }
	e.Privilege = &process.Privilege{
		Capability: r.Capability, ABI: abi(has(bpfCallFlagCALL_COMPAT)), Call: r.Nr, Args: r.Args,
		Denied: has(bpfCallFlagCALL_DENIED), OwnUserNS: has(bpfCallFlagCALL_OWN_USERNS),
	}
	return nil
}

// abi is the running kernel's.
func abi(compat bool) process.ABI {
	if compat {
		return syscalls.Compat()
	}
	return syscalls.Native()
}
