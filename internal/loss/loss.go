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
	TCPSumsFull
	TCPStorageFull
	PacketMapFull
	PacketSummed
	PacketUnreadable
	PacketStorageFull
	PacketBatchRetried
	DNSRingFull
	DNSUncopied
	DNSPendingFull
	DNSSearchesFull
	DNSNamesFull
	ExecRingFull
	ExecShareFull
	ExecRepeated
	AlertsLimited
	AlertEventsUntold
	ProcessTableFull
	SyscallRingFull
	SyscallLimited
	SyscallPendingFull
	SyscallUncounted
	SelectionFull
	CgroupUntold
	ProgramSkipped
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
	TCPRingFull:        {"tcp_ring_full", "final records of TCP connections that did not fit into the ring buffer; their bytes are in the sums of their cgroup, shown as one flow without addresses", false},
	TCPSumsFull:        {"tcp_sums_full", "final records at tcp_ring_full whose bytes were not counted, as no entry was left for the sums of their cgroup", false},
	TCPStorageFull:     {"tcp_storage_full", "TCP sockets for which the kernel had no memory to keep state", false},
	PacketMapFull:      {"packet_map_full", "packets that were not counted: no flow entry was left for them, nor one for the sums of their cgroup", false},
	PacketSummed:       {"packet_summed", "packets that no flow entry was left for: they are in the sums of their cgroup, shown as one flow without addresses", true},
	PacketUnreadable:   {"packet_unreadable", "packets whose headers could not be read", false},
	PacketStorageFull:  {"packet_storage_full", "sockets other than TCP's for which the kernel had no memory to keep their owner; their flows have none", true},
	PacketBatchRetried: {"packet_batch_retried", "batched reads of the packet map that were repeated with a larger buffer; nothing is lost", true},
	DNSRingFull:        {"dns_ring_full", "DNS messages that did not fit into the ring buffer: queries without their answer, or not told of at all", false},
	DNSUncopied:        {"dns_uncopied", "DNS messages behind others in one packet, too far to be read", false},
	DNSPendingFull:     {"dns_pending_full", "DNS queries that were given up before their time, since too many waited for an answer", false},
	DNSSearchesFull:    {"dns_searches_full", "failed DNS queries that were forgotten before it was known whether a search domain was to blame", true},
	ExecRingFull:       {"exec_ring_full", "events of processes that did not fit into the ring buffer: starts and ends that are not told of, ancestors that are not known", false},
	ExecShareFull:      {"exec_share_full", "events of processes of a container or unit that made so many that little room was left in the ring buffer: its own are left out before those of others", false},
	ExecRepeated:       {"exec_repeated", "privileged calls of a process that were the same as one less than a second before", true},
	AlertEventsUntold:  {"alert_events_untold", "alerts of which no Event of Kubernetes could be written; orb8 alerts has them", true},
	AlertsLimited:      {"alerts_limited", "alerts that were too many or the same as ones before, and are told of together with others", true},
	ProcessTableFull:   {"process_table_full", "processes that were forgotten while they ran, since too many do: they are no longer known as ancestors", false},
	SyscallRingFull:    {"syscall_ring_full", "traced system calls that did not fit into the ring buffer", false},
	SyscallLimited:     {"syscall_limited", "traced system calls beyond the rate that the trace was limited to", false},
	SyscallPendingFull: {"syscall_pending_full", "traced system calls whose begin could not be kept until their end; summaries lack them too", false},
	SyscallUncounted:   {"syscall_uncounted", "system calls left out of a summary, since too many kinds of them were counted", false},
	SelectionFull:      {"selection_full", "new cgroups below a traced one that could not be selected, since too many were; their system calls are not traced", false},
	DNSNamesFull:       {"dns_names_full", "names that are missing in the list of what was asked of DNS, of the workloads that ask for most; the metrics count their queries", true},
	CgroupUntold:       {"cgroup_untold", "new cgroups that could not be told of; if they are gone within a moment, their flows are named by commands", true},
	ProgramSkipped:     {"program_skipped", "runs of tracing programs that the kernel left out, since one had interrupted another of the same on its CPU; it knows of a part of them only", false},
	DecodeFailed:       {"decode_failed", "records from the kernel that could not be decoded", false},
	FlowTableFull:      {"flow_table_full", "flows that had not ended but were pushed out of the full flow table, the longest idle first; their final event was sent", false},
	NameWaitFull:       {"name_wait_full", "records that went out before the name of their pod was known, since 8192 later ones waited as well", true},
	SubscriberSlow:     {"subscriber_slow", "events that a client did not take in time, or that were overwritten before its filters had looked at them", false},
	ResumeGap:          {"resume_gap", "events that were no longer kept when a client came back for them, whether it had asked for such or not", false},
	MetricSeriesCapped: {"metric_series_capped", "workloads counted under \"other\" because the cap on metric series was reached", true},
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
