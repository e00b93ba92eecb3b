// SPDX-License-Identifier: Apache-2.0

package flow

// Kind tells what a record is about.
type Kind uint8

// The kinds of records.
const (
	// KindFlow is a row of the table, or a change of one: a record without a Detail.
	KindFlow Kind = iota
	KindDNS
	KindDrop
	KindListen
	// KindExec is a step of a process that is no KindExit.
	KindExec
	KindExit
	KindAlert
	// KindSyscall records are never kept.
	KindSyscall
	NumKinds
)

// String returns the name under which users know the kind.
func (k Kind) String() string {
	return [...]string{"flow", "dns", "drop", "overflow", "exec", "exit", "alert", "syscall"}[k]
}

// Detail is what a probe saw between a record's ends that is no change of a flow. It
// is immutable.
type Detail interface{ Kind() Kind }

// Kind tells what the record is about.
func (r *Record) Kind() Kind {
	if r.Detail == nil {
		return KindFlow
	}
	return r.Detail.Kind()
}

// Drop is one packet that the kernel dropped.
type Drop struct {
	// Reason is the kernel's own name, without SKB_DROP_REASON_.
	Reason string
	// Location is the kernel function that dropped the packet, or empty.
	Location string
	// Ingress: it had come to the local end's host or pod, rather than being sent by it.
	Ingress bool
	// Bytes of the IP packet.
	Bytes uint32
	// TCPFlags is the byte of the TCP header, 0 for other protocols.
	TCPFlags uint8
	// Ifindex of the interface, 0 if there is none.
	Ifindex uint32
}

// DropCount is how many packets were dropped for one reason: those of a cgroup, or
// where no socket was found those between two addresses.
type DropCount struct {
	Reason   string
	CgroupID uint64
	// Src and Dst are zero where the cgroup is known, and where it is not known whose
	// packets these were.
	Src, Dst Addr
	// Ingress: they had come to the host or pod that Dst belongs to, as far as the
	// addresses tell whose they were.
	Ingress bool
	Packets uint64
}

// SocketCount is the number of TCP sockets of one cgroup by what they do.
type SocketCount struct {
	CgroupID uint64
	// Established connections; Idle of these had no traffic for five minutes.
	Established, Idle uint32
	// HalfOpen: the handshake is not done.
	HalfOpen uint32
	// HalfClosed: one side has closed and the other has not (CLOSE_WAIT, FIN_WAIT2).
	HalfClosed uint32
}

// Kind returns KindDrop.
func (*Drop) Kind() Kind { return KindDrop }

// ListenOverflow is what a listening socket dropped since it was last told of.
type ListenOverflow struct {
	Drops uint64
	// Backlog is how many connections wait to be accepted, Max how many may.
	Backlog, Max uint32
}

// Kind returns KindListen.
func (*ListenOverflow) Kind() Kind { return KindListen }

// Note tells of something between the ends of s that is no change of a flow. Like
// any record it waits for the name of its pod. s is not kept.
func (t *Table) Note(s *Sample, d Detail) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stub = Record{Sample: *s, Time: s.Last, Detail: d}
	t.identify(&t.stub)
	t.tell(&t.stub)
}
