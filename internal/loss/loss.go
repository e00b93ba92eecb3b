// SPDX-License-Identifier: Apache-2.0

// Package loss counts what gets lost between the kernel and a client. Every
// place that can lose something owns one Stage. The package knows nothing of
// what is lost.
package loss

import "sync/atomic"

// Stage names a place that can lose, or has to repeat, something. Its String is
// the label value of orb8_lost_events_total{stage}.
type Stage int

// The stages, in the order of the data's way from the kernel to the client.
const (
	TCPRingFull Stage = iota
	TCPStorageFull
	TCPSocketsUncounted
	PacketMapFull
	PacketUnreadable
	PacketBatchRetried
	DNSRingFull
	DNSUncopied
	DNSPendingFull
	DNSSearchesFull
	DNSNamesFull
	DropMapFull
	DropRingFull
	DropEventsLimited
	ExecRingFull
	ExecRepeated
	ProcessTableFull
	SyscallRingFull
	SyscallLimited
	SyscallPendingFull
	SyscallUncounted
	SyscallMissed
	AlertsLimited
	SelectionFull
	CgroupUntold
	DecodeFailed
	FlowTableFull
	NameWaitFull
	SubscriberSlow
	ResumeGap
	MetricSeriesCapped
	numStages
)

var stages = [numStages]struct {
	name, meaning string
	harmless      bool
}{
	TCPRingFull:         {"tcp_ring_full", "final records of TCP connections that did not fit into the ring buffer", false},
	TCPStorageFull:      {"tcp_storage_full", "TCP sockets for which the kernel had no memory to keep state", false},
	TCPSocketsUncounted: {"tcp_sockets_uncounted", "TCP sockets that were left out of a count, since those of too many cgroups were counted; their connections are seen", true},
	PacketMapFull:       {"packet_map_full", "packets that no flow entry was left for", false},
	PacketUnreadable:    {"packet_unreadable", "packets whose headers could not be read", false},
	PacketBatchRetried:  {"packet_batch_retried", "batched reads of the packet map that were repeated with a larger buffer; nothing is lost", true},
	DNSRingFull:         {"dns_ring_full", "DNS messages that did not fit into the ring buffer", false},
	DNSUncopied:         {"dns_uncopied", "DNS messages that were sent behind others in one packet (UDP_SEGMENT), too far to be copied", false},
	DNSPendingFull:      {"dns_pending_full", "DNS queries that were given up before their time because too many waited for an answer", false},
	DNSSearchesFull:     {"dns_searches_full", "failed DNS queries that were forgotten before it was known whether only a search domain made them fail, since too many failed", true},
	DNSNamesFull:        {"dns_names_full", "names that orb8 flows --dns no longer has, since too many were asked for: always those of the workload that has most, the least lately asked first; the queries are in the metrics", true},
	DropMapFull:         {"drop_map_full", "dropped packets that were counted without who they were from or for, since too many others were", true},
	DropRingFull:        {"drop_ring_full", "dropped packets that were counted but not told of, because the ring buffer was full", false},
	DropEventsLimited:   {"drop_events_limited", "dropped packets that were counted but not told of, because more of them came than drop_events allows", true},
	ExecRingFull:        {"exec_ring_full", "starts, ends and privileged calls of processes that did not fit into the ring buffer", false},
	ExecRepeated:        {"exec_repeated", "privileged calls that the same process repeated within a second and that were told of once", true},
	ProcessTableFull:    {"process_table_full", "processes that were forgotten while they ran, since too many others came later", true},
	SyscallRingFull:     {"syscall_ring_full", "traced system calls that did not fit into the ring buffer", false},
	SyscallLimited:      {"syscall_limited", "traced system calls beyond the rate that the trace was limited to", false},
	SyscallPendingFull:  {"syscall_pending_full", "traced system calls whose begin could not be kept until their end; summaries lack them too", false},
	SyscallUncounted:    {"syscall_uncounted", "system calls left out of a summary, since too many kinds of them were counted", false},
	SyscallMissed:       {"syscall_missed", "begins and ends of system calls, of any of the node's processes, that the kernel kept from the trace since it was at work on the same CPU; no trace or summary has these calls right", false},
	AlertsLimited:       {"alerts_limited", "what rules found and has no alert of its own, since there were too many like it; the last of them is told of within a minute or so, with how many there were", true},
	SelectionFull:       {"selection_full", "new cgroups below a traced one that could not be selected, since too many were; their system calls are not traced", false},
	CgroupUntold:        {"cgroup_untold", "new cgroups that could not be told of; if they are gone within a moment, their flows are named by commands", true},
	DecodeFailed:        {"decode_failed", "records from the kernel that could not be decoded", false},
	FlowTableFull:       {"flow_table_full", "flows that had not ended but were pushed out of the full flow table, the longest idle first; their final event was sent", false},
	NameWaitFull:        {"name_wait_full", "records that went out before the name of their pod, or the image that an exception names, was known, since 8192 later ones waited as well", true},
	SubscriberSlow:      {"subscriber_slow", "events that a client did not take in time", false},
	ResumeGap:           {"resume_gap", "events of the kinds that a client asks for that were no longer kept when it came back for them, whether its filters match them or not", false},
	MetricSeriesCapped:  {"metric_series_capped", "workloads counted under \"other\" because the cap on metric series was reached", true},
}

// String returns the stage's label value.
func (s Stage) String() string { return stages[s].name }

// Meaning says in a sentence what one count of the stage stands for.
func (s Stage) Meaning() string { return stages[s].meaning }

// Harmless reports whether the stage only counts extra work or less detail: no
// event is missing because of it.
func (s Stage) Harmless() bool { return stages[s].harmless }

// Stages lists every stage in order.
func Stages() []Stage {
	all := make([]Stage, numStages)
	for i := range all {
		all[i] = Stage(i)
	}
	return all
}

// Counters holds one counter per stage. The zero value is ready; all methods may
// be called at any time from any goroutine.
type Counters struct {
	n [numStages]atomic.Uint64
}

// Add counts n more at stage s.
func (c *Counters) Add(s Stage, n uint64) {
	if n != 0 {
		c.n[s].Add(n)
	}
}

// Get returns the count of stage s since start.
func (c *Counters) Get(s Stage) uint64 { return c.n[s].Load() }

// Dropped is the sum over the stages that took information away.
func (c *Counters) Dropped() uint64 {
	var sum uint64
	for i := range c.n {
		if !Stage(i).Harmless() {
			sum += c.n[i].Load()
		}
	}
	return sum
}
