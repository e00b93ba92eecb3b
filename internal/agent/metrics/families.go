// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/kinds"
)

// Family describes one metric family; docs/metrics.md is made from these.
type Family struct {
	Name string
	// Type is counter, gauge or histogram.
	Type string
	// Unit of the value: bytes, seconds, or what is counted.
	Unit   string
	Labels []string
	Help   string
	// Group is the heading that the family stands under.
	Group string
}

// Headings of docs/metrics.md.
const (
	groupWorkload = "By workload"
	groupDevice   = "Accelerators, by device"
	groupShare    = "Accelerators, by workload"
	groupBackend  = "How accelerators are read"
	groupHealth   = "Losses and probes"
	groupAgent    = "The agent itself"
)

// familyID names a family within this package.
type familyID int

const (
	networkBytes familyID = iota
	networkPackets
	networkZoneBytes
	activeFlows
	tcpRTT
	tcpConnect
	tcpConnectFailures
	tcpRetransmits
	tcpResets
	gpuInfo
	// gpuDevice is the first of one family per accel.Metric, gpuShare that of one
	// per metric that is divided among workloads.
	gpuDevice
	gpuDeviceLast = gpuDevice + familyID(accel.NumMetrics) - 1
)

const (
	gpuClockEvent familyID = gpuDeviceLast + 1 + iota
	gpuErrors
	gpuDeviceErrors
	gpuLastError
	gpuLost
	gpuHealth
	gpuShare
	gpuShareLast = gpuShare + familyID(accel.NumMetrics) - 1
)

const (
	gpuProcesses familyID = gpuShareLast + 1 + iota
	gpuHeld
	gpuHeldSeconds
	gpuUsedSeconds
	gpuUnallocatedSeconds
	gpuIdleSeconds
	gpuIdleMemory
	gpuBackendState
	gpuBackendDevices
	gpuReads
	gpuReadsSkipped
	gpuReadSeconds
	gpuHolders
	dnsMessages
	lostEvents
	probeUp
	probeState
	probeReadErrors
	agentInfo
	agentInterval
	agentSampleDuration
	agentEvents
	agentSubscribers
	syscallTraces
	agentFlows
	agentFlowsMax
	agentHistory
	agentHistoryMax
	agentSeries
	agentSeriesMax
	agentPods
	agentKubernetes
	agentWaiting
	agentReloads
	agentPanics
	numFamilies
)

// Families lists every metric family of orb8, in the order of docs/metrics.md.
// pod adds the label that metrics.pod adds.
func Families(pod bool) []Family {
	var list []Family
	for _, f := range families(pod) {
		if f.Name == tcpResetsName { // the last by workload
			list = append(list, f)
			list = append(list, kindFamilies(pod)...)
			continue
		}
		if f.Name != "" { // metrics that are not divided have no family by workload
			list = append(list, f)
		}
	}
	return list
}

const tcpResetsName = "orb8_tcp_resets_total"

// workloadLabels are the labels of a family by workload.
func workloadLabels(pod bool, extra ...string) []string {
	base := []string{"namespace", "workload", "workload_kind"}
	if pod {
		base = append(base, "pod")
	}
	return append(base, extra...)
}

// kindFamilies are those that single kinds of records have.
func kindFamilies(pod bool) []Family {
	var list []Family
	for _, f := range kinds.Families() {
		labels := workloadLabels(pod)
		if f.Label != "" {
			labels = append(labels, f.Label)
		}
		shape := "counter"
		if f.Buckets != nil {
			shape = "histogram"
		}
		list = append(list, Family{f.Name, shape, f.Unit, labels, f.Help, groupWorkload})
	}
	return list
}

func families(pod bool) [numFamilies]Family {
	w := func(extra ...string) []string { return workloadLabels(pod, extra...) }
	device := func(extra ...string) []string { return append([]string{"vendor", "gpu", "uuid", "model"}, extra...) }
	share := func(extra ...string) []string {
		return append(device("namespace", "workload", "workload_kind", "pod"), extra...)
	}
	all := [numFamilies]Family{
		networkBytes:       {"orb8_network_bytes_total", "counter", "bytes", w("direction", "protocol"), "Bytes that the workload sent (egress) and received (ingress): payload for TCP, IP packets with headers for the rest.", groupWorkload},
		networkPackets:     {"orb8_network_packets_total", "counter", "packets", w("direction", "protocol"), "TCP segments or IP packets that the workload sent (egress) and received (ingress).", groupWorkload},
		networkZoneBytes:   {"orb8_network_zone_bytes_total", "counter", "bytes", w("direction", "zone"), "Bytes as in orb8_network_bytes_total, of flows whose ends are in known zones; zone is same or cross.", groupWorkload},
		activeFlows:        {"orb8_network_active_flows", "gauge", "flows", w("protocol"), "Flows in the flow table that have not ended.", groupWorkload},
		tcpRTT:             {"orb8_tcp_rtt_seconds", "histogram", "seconds", w(), "Smoothed round-trip time of the workload's TCP connections, observed once per connection and configured interval with traffic, however often anybody looks.", groupWorkload},
		tcpConnect:         {"orb8_tcp_connect_seconds", "histogram", "seconds", w(), "Time from SYN to established, for connections that the workload opened.", groupWorkload},
		tcpConnectFailures: {"orb8_tcp_connect_failures_total", "counter", "connections", w("reason"), "TCP connections that were never established; reason is refused, timeout, unreachable, reset, aborted or error.", groupWorkload},
		tcpRetransmits:     {"orb8_tcp_retransmits_total", "counter", "segments", w(), "TCP segments that the workload's side sent again.", groupWorkload},
		tcpResets:          {tcpResetsName, "counter", "connections", w("direction"), "TCP connections that a reset ended; direction is egress if the workload's side sent it.", groupWorkload},

		gpuInfo:               {"orb8_gpu_info", "gauge", "", device("pci_address", "driver", "parent", "profile"), "Always 1; the labels describe the device. parent is the uuid of the device that this one is a part of, profile that of a MIG instance.", groupDevice},
		gpuClockEvent:         {"orb8_gpu_clock_event", "gauge", "", device("reason"), "1 for each reason for which the clocks are held back now.", groupDevice},
		gpuErrors:             {"orb8_gpu_errors_total", "counter", "errors", share("code"), "Errors that the driver reported (XIDs), with whom they were about where that is known.", groupDevice},
		gpuDeviceErrors:       {"orb8_gpu_device_errors_total", "counter", "errors", device(), "Errors that the driver reported (XIDs) since the device was first seen, whoever they were about: 0 before the first.", groupDevice},
		gpuLastError:          {"orb8_gpu_last_error_timestamp_seconds", "gauge", "seconds", share("code"), "When the driver reported its latest error, in Unix time, with its code and whom it was about.", groupDevice},
		gpuLost:               {"orb8_gpu_lost", "gauge", "", device(), "1 if the device was there and does not answer any more, else 0.", groupDevice},
		gpuHealth:             {"orb8_gpu_health", "gauge", "", device("verdict"), "1 for what is to be done about the device: ok, degraded, reset_needed, drain or replace.", groupDevice},
		gpuProcesses:          {"orb8_gpu_workload_processes", "gauge", "processes", share(), "Processes that have the device open.", groupShare},
		gpuHeld:               {"orb8_gpu_workload_held", "gauge", "", share("resource", "source", "shared"), "1 while the kubelet has the device handed out to the pod; source is device_plugin or dra, shared is true where others may have it as well.", groupShare},
		gpuHeldSeconds:        {"orb8_gpu_workload_held_seconds_total", "counter", "seconds", share(), "Time for which the pod held the device.", groupShare},
		gpuUsedSeconds:        {"orb8_gpu_workload_used_seconds_total", "counter", "seconds", share(), "Time in which anything of the workload ran on the device, in sampling intervals.", groupShare},
		gpuUnallocatedSeconds: {"orb8_gpu_workload_unallocated_seconds_total", "counter", "seconds", share(), "Time for which the workload had the device open and did not hold it.", groupShare},
		gpuIdleSeconds:        {"orb8_gpu_workload_idle_seconds_total", "counter", "seconds", share("reason"), "Time for which the pod held the device in vain; reason is no_process, context_only (a process that runs nothing) or low_util (less than 5 %).", groupShare},
		gpuIdleMemory:         {"orb8_gpu_workload_idle_memory_bytes", "gauge", "bytes", share(), "Device memory in use by a pod that holds the device in vain; 0 while it is busy.", groupShare},
		gpuBackendState:       {"orb8_gpu_backend_state", "gauge", "", []string{"backend", "state"}, "1 for the state of each way to read accelerators: running, off, failed or stuck.", groupBackend},
		gpuBackendDevices:     {"orb8_gpu_backend_devices", "gauge", "devices", []string{"backend"}, "Devices of the last reading.", groupBackend},
		gpuReads:              {"orb8_gpu_reads_total", "counter", "readings", []string{"backend", "result"}, "Readings of all devices; result is ok or error.", groupBackend},
		gpuReadsSkipped:       {"orb8_gpu_reads_skipped_total", "counter", "readings", []string{"backend"}, "Readings that were due while the driver did not answer.", groupBackend},
		gpuReadSeconds:        {"orb8_gpu_read_seconds_total", "counter", "seconds", []string{"backend"}, "Time that readings took.", groupBackend},
		gpuHolders:            {"orb8_gpu_kubelet_up", "gauge", "", nil, "1 if the kubelet has told which pods hold which devices, and less than a minute ago. Only in Kubernetes.", groupBackend},

		dnsMessages:         {"orb8_dns_messages_total", "counter", "messages", []string{"result"}, "DNS messages seen at this node's ends; result is query, answer, unmatched (an answer to no query that waits, also counted as answer), malformed (not read further), other (no query) or unread (a TCP segment without whole messages).", groupHealth},
		lostEvents:          {"orb8_lost_events_total", "counter", "events", []string{"stage"}, "What was lost, or had to be repeated, on the way from the kernel to a client; see the stages below.", groupHealth},
		probeUp:             {"orb8_probe_up", "gauge", "", []string{"probe"}, "1 while the probe runs, else 0.", groupHealth},
		probeState:          {"orb8_probe_state", "gauge", "", []string{"probe", "state"}, "1 for the state that the probe is in: running, fallback (another probe does its work) or off.", groupHealth},
		probeReadErrors:     {"orb8_probe_read_errors_total", "counter", "", []string{"probe"}, "Readings of the probe that failed. After two in a row the node is degraded.", groupHealth},
		agentInfo:           {"orb8_agent_info", "gauge", "", []string{"version", "node", "kernel"}, "Always 1; the labels describe the agent.", groupAgent},
		agentInterval:       {"orb8_agent_sample_interval_seconds", "gauge", "seconds", nil, "Time between two samples as it is now: shorter while somebody follows.", groupAgent},
		agentSampleDuration: {"orb8_agent_sample_duration_seconds", "histogram", "seconds", nil, "How long one pass over the kernel's flows takes.", groupAgent},
		agentEvents:         {"orb8_agent_events_processed_total", "counter", "records", nil, "Records read from the kernel.", groupAgent},
		agentSubscribers:    {"orb8_agent_subscribers", "gauge", "streams", nil, "Streams being served.", groupAgent},
		syscallTraces:       {"orb8_syscall_traces", "gauge", "traces", nil, "Traces of system calls that clients run now; each system call of the node is slower meanwhile.", groupAgent},
		agentFlows:          {"orb8_agent_flow_table_flows", "gauge", "flows", nil, "Flows in the flow table, ended ones and orb8's own included.", groupAgent},
		agentFlowsMax:       {"orb8_agent_flow_table_capacity", "gauge", "flows", nil, "Bound of the flow table.", groupAgent},
		agentHistory:        {"orb8_agent_history_events", "gauge", "events", nil, "Past events that are kept for --since and --last.", groupAgent},
		agentHistoryMax:     {"orb8_agent_history_capacity", "gauge", "events", nil, "Bound of the history.", groupAgent},
		agentSeries:         {"orb8_agent_workload_series", "gauge", "series", nil, "Time series by workload that count towards metrics.max_series.", groupAgent},
		agentSeriesMax:      {"orb8_agent_workload_series_limit", "gauge", "series", nil, "Bound on the time series by workload; what is beyond counts under the workload \"other\".", groupAgent},
		agentPods:           {"orb8_agent_known_pods", "gauge", "pods", []string{"scope"}, "Pods whose names are known; scope is node for this node's own and peer for others. Only in Kubernetes.", groupAgent},
		agentKubernetes:     {"orb8_agent_kubernetes_synced", "gauge", "", nil, "1 if pods, Services and nodes have been read from the API server and nothing is wrong with the watches, else 0. Only in Kubernetes.", groupAgent},
		agentWaiting:        {"orb8_agent_waiting_records", "gauge", "records", nil, "Flow records that wait, for 2 s at most, for the name of their pod or its peer.", groupAgent},
		agentReloads:        {"orb8_agent_config_reloads_total", "counter", "reloads", []string{"result"}, "Reloads of the configuration; result is ok or error.", groupAgent},
		agentPanics:         {"orb8_agent_panics_total", "counter", "panics", nil, "Calls of the API that ended in a panic; each is a bug, please report it.", groupAgent},
	}
	for m := range accel.NumMetrics {
		about := m.About()
		name, kind := m.String(), "gauge"
		if about.Shape == accel.Counter {
			name, kind = name+"_total", "counter"
		}
		all[gpuDevice+familyID(m)] = Family{"orb8_gpu_" + name, kind, string(about.Unit), device("method"), about.Help + ".", groupDevice}
		if m.Divided() {
			all[gpuShare+familyID(m)] = Family{"orb8_gpu_workload_" + name, kind, string(about.Unit), share("method"), about.Help + ": the workload's part.", groupShare}
		}
	}
	return all
}
