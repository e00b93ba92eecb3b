// SPDX-License-Identifier: Apache-2.0

// Package process keeps which processes there are on this host, with their
// executables, arguments and ancestors. It knows nothing of BPF or of who a cgroup
// is.
package process

import (
	"cmp"
	"net/netip"

	"github.com/Ignoramuss/orb8/internal/record"
)

// MaxArgBytes is how much of a program's arguments can be read at most.
const MaxArgBytes = 4096

// ID names a process for good: a pid comes again, the pair does not.
type ID struct {
	// PID in the host's first pid namespace.
	PID uint32
	// Start is when its first thread was made, in nanoseconds since boot, suspend
	// included.
	Start uint64
}

// Executable is the file that a process runs. Of a script it is the interpreter.
type Executable struct {
	// Path in the mount namespace of the process, with links followed. The kernel's
	// name where it has none: memfd:NAME.
	Path string
	// PathTruncated: only the end of the path is known.
	PathTruncated bool
	// Called is the path that was given to execve, of a script the script's.
	Called string
	// Memfd: the file is in memory only, made by memfd_create.
	Memfd bool
	// Deleted: the file had no name any more when it was started.
	Deleted bool
	// Overlay: it is on an overlay file system, as containers' root file systems are;
	// Upper: in that one's writable layer, so it was made or changed after the container
	// was.
	Overlay, Upper bool
	// Changed is when the file or its attributes last changed (ctime), in Unix
	// nanoseconds, 0 if not known. Nobody can set it back.
	Changed int64
}

// Name is the last part of the path, or of what was called where that is not known.
func (e *Executable) Name() string {
	p := e.Path
	if p == "" {
		p = e.Called
	}
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '/' {
			return p[i+1:]
		}
	}
	return p
}

// Creds are a process's rights. User ids are those of the host.
type Creds struct {
	UID, EUID uint32
	// Effective has a bit for each capability (CAP_CHOWN is bit 0) in the process's own
	// user namespace.
	Effective uint64
	// UserNS is the inode of the user namespace.
	UserNS uint32
}

// Namespaces are inodes, 0 where they are not known.
type Namespaces struct{ Mount, PID, Net uint32 }

// or returns n with those that are not known from others.
func (n Namespaces) or(others Namespaces) Namespaces {
	return Namespaces{Mount: cmp.Or(n.Mount, others.Mount), PID: cmp.Or(n.PID, others.PID), Net: cmp.Or(n.Net, others.Net)}
}

// Process is one process. It is immutable once published: a change makes a new one.
type Process struct {
	ID
	// Parent is who made it, or for one whose beginning was not told of, who was its
	// parent then.
	Parent ID
	// NSPID is its pid in its own pid namespace, 0 if not known: of a fork before it
	// starts a program.
	NSPID uint32
	// Comm is the kernel's name of the process's first thread, without padding.
	Comm string
	Exe  Executable
	// Args begins with the program's own name. It is empty where arguments are not
	// read.
	Args []string
	// ArgsTruncated: there were more, or longer ones.
	ArgsTruncated bool
	Creds
	NS Namespaces
	// ExecNS are those in which it started its executable, or who it was forked from
	// did: it may have gone into others since.
	ExecNS   Namespaces
	CgroupID uint64
	// Started is ID.Start in Unix nanoseconds; Execed when it started its executable, 0
	// if that is not known.
	Started, Execed int64
	// Seeded: older than the agent, so that what it did before is not known.
	Seeded bool
	// TTY: it had a controlling terminal when it started its executable or, of one that
	// is older than the agent, when it was seen.
	TTY bool
	// Exited: it has ended.
	Exited bool
}

// What happened to a process.
type What uint8

// What the probe tells of.
const (
	// Seen: it is there already when the probe starts.
	Seen What = iota
	Fork
	Exec
	Exit
	// Moved: to another cgroup.
	Moved
	// Privileged: it asked for a capability, by a system call that is watched.
	Privileged
	// IOUring: it submitted an io_uring operation, the first of its kind in a while.
	IOUring
	// Module: a kernel module was loaded.
	Module
)

// Event is what the probe tells of a process. Fields that do not belong to What are
// zero.
type Event struct {
	What What
	// Time in Unix nanoseconds.
	Time int64
	// Process has for Seen, Fork and Exec all that the kernel knows (of a fork no
	// executable and no arguments: those are the parent's). For the others its ID,
	// Parent, Comm, Creds, NS and CgroupID are set.
	Process Process
	// Start is of Exec and Seen.
	Start *Start
	// End is of Exit.
	End *End
	// Privilege is of Privileged.
	Privilege *Privilege
	// From is the cgroup that was left (0 if not known), of Moved; Process.CgroupID is
	// the new one. By is who moved it.
	From uint64
	By   ID
	// Opcode of the operation, of IOUring (enum io_uring_op).
	Opcode uint8
	// Module is the name of the one that was loaded.
	Module string
}

// Start is what is known of a process's standard files when it starts its
// executable.
type Start struct {
	// TTY: it has a controlling terminal.
	TTY bool
	// NSPID is its pid in its own pid namespace; 1 for a container's first process.
	NSPID uint32
	// HostMount: it is in the host's first mount namespace; HostPID likewise.
	HostMount, HostPID bool
	// Stdin, Stdout and Stderr are set where these are TCP or UDP sockets.
	Stdin, Stdout, Stderr *Socket
}

// Socket is what a standard file is connected to.
type Socket struct {
	Protocol      record.Protocol
	Local, Remote netip.AddrPort
}

// End is how a process ended.
type End struct {
	// Code is its exit status, Signal what killed it or 0.
	Code, Signal uint8
	// CoreDumped: with a core dump.
	CoreDumped bool
}

// ABI is the way in which a system call was made.
type ABI uint8

// The ABIs.
const (
	AMD64 ABI = iota
	I386      // 32-bit calls on amd64
	ARM64
	ARM // 32-bit calls on arm64
)

// String returns the name under which users know the ABI.
func (a ABI) String() string { return [...]string{"amd64", "i386", "arm64", "arm"}[a] }

// Privilege is a capability that a process asked the kernel for.
type Privilege struct {
	// Capability by its number, CAP_CHOWN is 0.
	Capability uint8
	// ABI and Call are the system call during which it was; Call is -1 outside of one.
	ABI  ABI
	Call int32
	// Args are the call's, as they were passed in registers.
	Args [6]uint64
	// Denied: it does not have the capability.
	Denied bool
	// OwnUserNS: not the host but a user namespace of its own was asked.
	OwnUserNS bool
}

// Step is what happened to a process, with who it is. It is immutable.
type Step struct {
	Event
	// Process is as it was after the event, with what is known from before. It takes
	// the place of Event.Process.
	Process *Process
	// Before is the process before an Exec, or before its rights changed; nil if not
	// known.
	Before *Process
	// Ancestors are the parent, its parent and so on, at most 16. The list ends at
	// what is not known.
	Ancestors []*Process
	// CgroupStart is when the first process that is known in the cgroup was made, in
	// Unix nanoseconds: about when its container started. 0 if not known.
	CgroupStart int64
}

// Told reports whether streams have the step: an Exec and an Exit. The others are how it is
// known who is whose child, and where.
func (s *Step) Told() bool { return s.What == Exec || s.What == Exit }

// Record is a step with what records of every kind have.
type Record struct {
	record.Header
	// Step is not changed any more.
	Step *Step
}

// Of is the step.
func (r *Record) Of() *Step { return r.Step }

// CalledAs is the path that was given to execve.
func (r *Record) CalledAs() string { return r.Step.Process.Exe.Called }

// NewRecord makes a record of a step, without names. Where a standard file of a program that
// was started is connected, the record has its ends.
func NewRecord(s *Step) Record {
	p := s.Process
	r := Record{Step: s, Header: record.Header{
		CgroupID: p.CgroupID, NetNS: p.NS.Net, PID: p.PID, Executable: p.Exe.Path, Time: s.Time, First: s.Time, Last: s.Time,
	}}
	copy(r.Comm[:], p.Comm)
	if c := s.Start.Connection(); c != nil {
		r.Connect(c)
	}
	return r
}

// Connect gives the record the ends of a socket.
func (r *Record) Connect(c *Socket) {
	r.Protocol = c.Protocol
	r.Local, r.LocalPort = record.AddrOf(c.Local.Addr()), c.Local.Port()
	r.Remote, r.RemotePort = record.AddrOf(c.Remote.Addr()), c.Remote.Port()
}

// Connection is the first standard file that is a socket with another end, nil if none is.
func (s *Start) Connection() *Socket {
	if s == nil {
		return nil
	}
	for _, c := range []*Socket{s.Stdin, s.Stdout, s.Stderr} {
		if c.Connected() {
			return c
		}
	}
	return nil
}

// Connected reports whether a socket has another end; a nil one has not.
func (s *Socket) Connected() bool {
	return s != nil && s.Remote.IsValid() && s.Remote.Port() != 0 && !s.Remote.Addr().IsUnspecified()
}
