// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/kinds"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// gather returns the samples of e, one per line as name{values} number, of the
// families whose name begins with one of the prefixes. A histogram shows its
// count and sum.
func gather(t testing.TB, e *Exporter, prefixes ...string) []string {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(e)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range families {
		if !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(f.GetName(), p) }) {
			continue
		}
		for _, m := range f.GetMetric() {
			lines = append(lines, fmt.Sprintf("%s{%s} %s", strings.TrimPrefix(f.GetName(), "orb8_"), labelText(m), valueText(m)))
		}
	}
	return lines
}

func labelText(m *dto.Metric) string {
	var values []string
	for _, l := range m.GetLabel() {
		values = append(values, l.GetName()+"="+l.GetValue())
	}
	return strings.Join(values, ",")
}

func valueText(m *dto.Metric) string {
	switch {
	case m.Counter != nil:
		return fmt.Sprint(m.GetCounter().GetValue())
	case m.Gauge != nil:
		return fmt.Sprint(m.GetGauge().GetValue())
	}
	return fmt.Sprintf("count=%d sum=%.4g", m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum())
}

// these is a table with rows.
func these(rows ...flow.Record) func(func(*flow.Record)) {
	return func(use func(*flow.Record)) {
		for i := range rows {
			use(&rows[i])
		}
	}
}

func exporterOf(m *Workloads, rows ...flow.Record) *Exporter {
	return NewExporter(m, m.losses, func() Facts { return Facts{} }, these(rows...))
}

func TestMetricsByWorkload(t *testing.T) {
	m := NewWorkloads(false, 1000, new(loss.Counters))
	web := &workload.Identity{Namespace: "shop", Kind: "Deployment", Name: "web", Pod: "web-1"}
	observe := func(e flow.Event, s flow.Sample, d flow.Counters) *flow.Record {
		r := flowtest.Record(e, s, d)
		r.Owner = web
		m.Observe(r)
		return r
	}
	conn := flowtest.TCP(1, 0, 0)
	open := observe(flow.EventOpen, conn, flow.Counters{TxBytes: 100, TxPackets: 1, RxBytes: 1000, RxPackets: 2})
	conn.Base.TxPackets = 1
	conn.TCP.Retransmits, conn.TCP.RTTMicros = 3, 2500
	observe(flow.EventUpdate, conn, flow.Counters{TxBytes: 10, TxPackets: 1})
	conn.TCP.Retransmits, conn.TCP.BaseRetransmits = 5, 3
	conn.TCP.ResetSent, conn.TCP.RTTMicros, conn.TCP.End = true, 0, flow.EndResetLocal
	observe(flow.EventClose, conn, flow.Counters{})
	refused := flowtest.TCP(2, 0, 0)
	refused.TCP = flow.TCPInfo{Valid: true, Failed: true, End: flow.EndRefused, ResetReceived: true}
	observe(flow.EventClose, refused, flow.Counters{})
	dns := observe(flow.EventOpen, flowtest.UDP(3, 0, 0), flow.Counters{TxBytes: 60, TxPackets: 1, RxBytes: 200, RxPackets: 1})
	sctp := flowtest.UDP(4, 0, 0)
	sctp.Protocol = 132
	observe(flow.EventOpen, sctp, flow.Counters{TxBytes: 9, TxPackets: 1})

	const base = "namespace=shop,"
	const end = "workload=web,workload_kind=Deployment"
	want := []string{
		"network_active_flows{" + base + "protocol=TCP," + end + "} 1",
		"network_active_flows{" + base + "protocol=UDP," + end + "} 1",
		"network_active_flows{" + base + "protocol=other," + end + "} 0",
		"network_bytes_total{direction=egress," + base + "protocol=TCP," + end + "} 110",
		"network_bytes_total{direction=egress," + base + "protocol=UDP," + end + "} 60",
		"network_bytes_total{direction=egress," + base + "protocol=other," + end + "} 9",
		"network_bytes_total{direction=ingress," + base + "protocol=TCP," + end + "} 1000",
		"network_bytes_total{direction=ingress," + base + "protocol=UDP," + end + "} 200",
		"network_bytes_total{direction=ingress," + base + "protocol=other," + end + "} 0",
		"network_packets_total{direction=egress," + base + "protocol=TCP," + end + "} 2",
		"network_packets_total{direction=egress," + base + "protocol=UDP," + end + "} 1",
		"network_packets_total{direction=egress," + base + "protocol=other," + end + "} 1",
		"network_packets_total{direction=ingress," + base + "protocol=TCP," + end + "} 2",
		"network_packets_total{direction=ingress," + base + "protocol=UDP," + end + "} 1",
		"network_packets_total{direction=ingress," + base + "protocol=other," + end + "} 0",
		"tcp_connect_failures_total{" + base + "reason=refused," + end + "} 1",
		"tcp_connect_seconds{" + base + end + "} count=1 sum=0.002",
		"tcp_resets_total{direction=egress," + base + end + "} 1",
		"tcp_retransmits_total{" + base + end + "} 5",
		"tcp_rtt_seconds{" + base + end + "} count=2 sum=0.004",
	}
	got := gather(t, exporterOf(m, *open, *dns), "orb8_network_", "orb8_tcp_")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPodLabel(t *testing.T) {
	m := NewWorkloads(true, 1000, new(loss.Counters))
	for _, pod := range []string{"web-1", "web-2"} {
		r := flowtest.Record(flow.EventOpen, flowtest.UDP(1, 0, 0), flow.Counters{TxBytes: 5})
		r.Owner = &workload.Identity{Namespace: "shop", Kind: "Deployment", Name: "web", Pod: pod}
		m.Observe(r)
	}
	want := []string{
		"network_bytes_total{direction=egress,namespace=shop,pod=web-1,protocol=UDP,workload=web,workload_kind=Deployment} 5",
		"network_bytes_total{direction=egress,namespace=shop,pod=web-2,protocol=UDP,workload=web,workload_kind=Deployment} 5",
		"network_bytes_total{direction=ingress,namespace=shop,pod=web-1,protocol=UDP,workload=web,workload_kind=Deployment} 0",
		"network_bytes_total{direction=ingress,namespace=shop,pod=web-2,protocol=UDP,workload=web,workload_kind=Deployment} 0",
	}
	if diff := cmp.Diff(want, gather(t, exporterOf(m), "orb8_network_bytes")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// ofWorkload is n records' worth of UDP traffic of one workload.
func ofWorkload(m *Workloads, name string, at int64) *flow.Record {
	r := flowtest.Record(flow.EventUpdate, flowtest.UDP(1, 0, 0), flow.Counters{TxBytes: 1, TxPackets: 1})
	r.Owner = &workload.Identity{Kind: workload.KindUnit, Name: name, CgroupID: uint64(at) + 1}
	r.Time = flowtest.Second(at)
	m.Observe(r)
	return r
}

func TestSeriesCap(t *testing.T) {
	losses := new(loss.Counters)
	const room = 2 // workloads with one protocol
	m := NewWorkloads(false, room*seriesOf(cellTraffic), losses)
	var rows []flow.Record
	for i := range 5 {
		rows = append(rows, *ofWorkload(m, fmt.Sprint("w", i), 0))
		ofWorkload(m, fmt.Sprint("w", i), 0) // by another identity
	}
	// A second protocol of a workload that is in is refused as well.
	r := flowtest.Record(flow.EventUpdate, flowtest.UDP(1, 0, 0), flow.Counters{TxBytes: 100})
	r.Protocol, r.Owner = record.ICMP, rows[0].Owner
	m.Observe(r)

	var got []string
	for _, line := range gather(t, exporterOf(m, rows...), "orb8_network_bytes", "orb8_network_active") {
		if !strings.Contains(line, "ingress") {
			got = append(got, line)
		}
	}
	want := []string{
		"network_active_flows{namespace=,protocol=ICMP,workload=other,workload_kind=Other} 0",
		"network_active_flows{namespace=,protocol=UDP,workload=other,workload_kind=Other} 3",
		"network_active_flows{namespace=,protocol=UDP,workload=w0,workload_kind=Unit} 1",
		"network_active_flows{namespace=,protocol=UDP,workload=w1,workload_kind=Unit} 1",
		"network_bytes_total{direction=egress,namespace=,protocol=ICMP,workload=other,workload_kind=Other} 100",
		"network_bytes_total{direction=egress,namespace=,protocol=UDP,workload=other,workload_kind=Other} 6",
		"network_bytes_total{direction=egress,namespace=,protocol=UDP,workload=w0,workload_kind=Unit} 2",
		"network_bytes_total{direction=egress,namespace=,protocol=UDP,workload=w1,workload_kind=Unit} 2",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if n := losses.Get(loss.MetricSeriesCapped); n != 4 {
		t.Errorf("%d workloads counted as capped, want 4 (three without room and one in part)", n)
	}
	if losses.Dropped() != 0 {
		t.Error("the cap counts as a loss of events")
	}
}

// Anybody may run under any number of names; workloads keep their room, and the sums
// stay right.
func TestCommandsDoNotCrowd(t *testing.T) {
	losses := new(loss.Counters)
	const room = 40
	m := NewWorkloads(false, room*seriesOf(cellTraffic), losses)
	command := func(i int) *flow.Record {
		r := flowtest.Record(flow.EventUpdate, flowtest.UDP(1, 0, 0), flow.Counters{TxBytes: 2})
		r.Time = flowtest.Second(0)
		r.Owner = &workload.Identity{Kind: workload.KindProcess, Name: fmt.Sprint("x", i), CgroupID: 9}
		m.Observe(r)
		return r
	}
	for i := range 300 {
		command(i)
	}
	for i := range room * 3 / 4 {
		ofWorkload(m, fmt.Sprint("w", i), 100)
	}
	own, sum := 0, 0.0
	for _, line := range gather(t, exporterOf(m), "orb8_network_bytes") {
		if strings.Contains(line, "workload=w") {
			own++
		}
		var n float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	if own != 2*room*3/4 || m.commands != m.commandShare() {
		t.Errorf("%d series of bytes of %d workloads, %d commands have their own", own, room*3/4, m.commands)
	}
	if want := 2.0*300 + room*3/4; sum != want {
		t.Errorf("%g bytes in all, want %g", sum, want)
	}
	if n := losses.Get(loss.MetricSeriesCapped); n != 300-room/4 {
		t.Errorf("%d capped, want %d", n, 300-room/4)
	}
	m.Sweep(time.Unix(0, flowtest.Second(61)), time.Minute, func(uint64) bool { return true })
	if m.commands != 0 || m.usedByCommands != 0 || m.used != room*3/4*seriesOf(cellTraffic) {
		t.Errorf("after a minute %d commands have %d series, of %d", m.commands, m.usedByCommands, m.used)
	}
	if command(7); m.commands != 1 {
		t.Errorf("%d commands, after one came again", m.commands)
	}
}

func TestWorkloadsBeyondTheCapTakeNoMemory(t *testing.T) {
	m := NewWorkloads(false, 10, new(loss.Counters))
	for i := range 3 * maxIdentities {
		ofWorkload(m, fmt.Sprint(i), 0)
	}
	if len(m.byLabels) > 10 || len(m.byIdentity) > maxIdentities {
		t.Errorf("%d workloads and %d identities are remembered", len(m.byLabels), len(m.byIdentity))
	}
}

func TestZeroCap(t *testing.T) {
	m := NewWorkloads(false, 0, new(loss.Counters))
	ofWorkload(m, "w", 0)
	got := gather(t, exporterOf(m), "orb8_network_packets")
	want := []string{
		"network_packets_total{direction=egress,namespace=,protocol=UDP,workload=other,workload_kind=Other} 1",
		"network_packets_total{direction=ingress,namespace=,protocol=UDP,workload=other,workload_kind=Other} 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func shown(m *Workloads) []string {
	var names []string
	all, _, _ := m.copies()
	for _, c := range all {
		if c.cells[cellTraffic+1] != nil && c.name() != "other" {
			names = append(names, c.name())
		}
	}
	slices.Sort(names)
	return names
}

func (c copied) name() string { return c.labels.name }

func TestSweep(t *testing.T) {
	losses := new(loss.Counters)
	m := NewWorkloads(false, 3*seriesOf(cellTraffic), losses)
	ofWorkload(m, "gone", 0)
	ofWorkload(m, "idle", 1) // silent, but its cgroup is there
	command := ofWorkload(m, "command", 2)
	command.Owner = &workload.Identity{Kind: workload.KindProcess, Name: "curl", CgroupID: 9}
	for _, s := range m.byLabels {
		if s.labels.name == "command" {
			s.transient = true
			m.commands, m.usedByCommands = 1, seriesOf(cellTraffic)
		}
	}
	refused := ofWorkload(m, "refused", 3)
	at := func(n int64) time.Time { return time.Unix(0, flowtest.Second(n)) }
	alive := func(cgroup uint64) bool { return cgroup != 1 } // that of gone

	m.Sweep(at(59), time.Minute, alive)
	if diff := cmp.Diff([]string{"command", "gone", "idle"}, shown(m)); diff != "" {
		t.Errorf("after 59 s (-want +got)\n%s", diff)
	}
	m.Sweep(at(60), time.Minute, alive)
	if diff := cmp.Diff([]string{"command", "idle"}, shown(m)); diff != "" {
		t.Errorf("after 60 s (-want +got)\n%s", diff)
	}
	// There is room now for the one that was refused.
	m.Observe(refused)
	if diff := cmp.Diff([]string{"command", "idle", "refused"}, shown(m)); diff != "" {
		t.Errorf("after more traffic (-want +got)\n%s", diff)
	}
	m.Sweep(at(62), time.Minute, alive)
	if diff := cmp.Diff([]string{"idle", "refused"}, shown(m)); diff != "" {
		t.Errorf("after 62 s (-want +got)\n%s", diff)
	}
	if want := 2 * seriesOf(cellTraffic); m.used != want {
		t.Errorf("%d series are counted, want %d", m.used, want)
	}
	if n := losses.Get(loss.MetricSeriesCapped); n != 1 {
		t.Errorf("%d capped, want 1", n)
	}
}

func TestSweepSparesWhatMovesMeanwhile(t *testing.T) {
	m := NewWorkloads(false, 100, new(loss.Counters))
	r := ofWorkload(m, "w", 0)
	m.Sweep(time.Unix(0, flowtest.Second(100)), time.Minute, func(uint64) bool {
		r.Time = flowtest.Second(99)
		m.Observe(r)
		return false
	})
	if diff := cmp.Diff([]string{"w"}, shown(m)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// The series of a workload stay while one of its pods is there, whichever it is (finding C7).
func TestSweepSparesTheOtherPod(t *testing.T) {
	m := NewWorkloads(false, 100, new(loss.Counters))
	send := func(cgroup uint64, at int64) {
		r := flowtest.Record(flow.EventUpdate, flowtest.UDP(1, 0, 0), flow.Counters{TxBytes: 1})
		r.Owner = &workload.Identity{Kind: "Deployment", Name: "web", Pod: fmt.Sprint("web-", cgroup), CgroupID: cgroup}
		r.Time = flowtest.Second(at)
		m.Observe(r)
	}
	send(7, 0)
	send(8, 1)
	sweep := func(at int64, alive ...uint64) {
		m.Sweep(time.Unix(0, flowtest.Second(at)), time.Minute, func(c uint64) bool { return slices.Contains(alive, c) })
	}
	if sweep(100, 7); len(shown(m)) != 1 {
		t.Error("the series went with the pod that was met last")
	}
	if sweep(200, 8); len(shown(m)) != 0 {
		t.Error("a cgroup that was gone is there again")
	}
}

// Counters of a workload that comes back go on from where they were: a job that runs every
// few minutes, or a command, is counted whole by rate() and increase().
func TestCountersGoOn(t *testing.T) {
	m := NewWorkloads(false, 1000, new(loss.Counters))
	command := func(name string, at int64) {
		r := flowtest.Record(flow.EventUpdate, flowtest.TCP(1, 0, 0), flow.Counters{TxBytes: 10})
		r.Time, r.TCP.RTTMicros, r.RTTDue = flowtest.Second(at), 100, true
		r.Owner = &workload.Identity{Kind: workload.KindProcess, Name: name}
		m.Observe(r)
	}
	nobody := func(uint64) bool { return false }
	sweep := func(at int64) { m.Sweep(time.Unix(0, flowtest.Second(at)), time.Minute, nobody) }
	for i := range int64(3) {
		command("curl", 100*i)
		ofWorkload(m, "backup.service", 100*i)
		if sweep(100*i + 61); m.used != 0 || len(shown(m)) != 0 {
			t.Fatalf("a minute later there are %d series of %v", m.used, shown(m))
		}
	}
	command("curl", 300)
	ofWorkload(m, "backup.service", 300)
	got := strings.Join(gather(t, exporterOf(m), "orb8_network_bytes", "orb8_tcp_rtt"), "\n")
	for _, want := range []string{
		"network_bytes_total{direction=egress,namespace=,protocol=TCP,workload=curl,workload_kind=Process} 40",
		"network_bytes_total{direction=egress,namespace=,protocol=UDP,workload=backup.service,workload_kind=Unit} 4",
		"tcp_rtt_seconds{namespace=,workload=curl,workload_kind=Process} count=4 sum=0.0004",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no line %s in\n%s", want, got)
		}
	}
	if want := m.sizes(); m.used != want || m.usedByCommands == 0 {
		t.Errorf("%d series are counted, %d of commands, there are %d", m.used, m.usedByCommands, want)
	}
	// What is kept is bounded, and commands do not push units out of it.
	for i := range int64(3) {
		for n := range m.commandShare() {
			command(fmt.Sprint("x", i, "-", n), 1000+100*i)
		}
		sweep(1061 + 100*i)
	}
	for n := range 40 { // in a small one, after each of which it is swept
		for i := range 190 {
			ofWorkload(m, fmt.Sprint("u", n, "-", i), int64(2000+100*n))
		}
		sweep(int64(2061 + 100*n))
	}
	commands := 0
	for _, s := range m.rested {
		if s.transient {
			commands++
		}
	}
	if len(m.rested) > maxRested || commands > maxRested/4 || m.used != 0 {
		t.Errorf("%d are kept, %d of them commands, with %d series", len(m.rested), commands, m.used)
	}
	// Without room a workload begins anew, and is counted as one that was refused.
	small := NewWorkloads(false, seriesOf(cellTraffic), new(loss.Counters))
	ofWorkload(small, "a", 0)
	small.Sweep(time.Unix(0, flowtest.Second(61)), time.Minute, nobody)
	ofWorkload(small, "b", 100)
	if ofWorkload(small, "a", 100); small.used != seriesOf(cellTraffic) {
		t.Errorf("%d series of %d", small.used, small.max)
	}
}

// sizes is how many series there are, counted one by one.
func (m *Workloads) sizes() (n int) {
	for _, s := range m.byLabels {
		n += s.size(m.other)
	}
	return n
}

func TestObserveDoesNotAllocate(t *testing.T) {
	m := NewWorkloads(false, 10_000, new(loss.Counters))
	s := flowtest.TCP(1, 1000, 1000)
	s.TCP.Retransmits = 2
	r := flowtest.Record(flow.EventUpdate, s, flow.Counters{TxBytes: 1000, TxPackets: 1})
	if n := testing.AllocsPerRun(1000, func() { m.Observe(r) }); n != 0 {
		t.Errorf("%v allocations per record", n)
	}
}

func TestHistogramBuckets(t *testing.T) {
	h := newHistogram([]uint64{10, 20})
	for _, ns := range []uint64{0, 10, 11, 20, 21, 1000} {
		h.observe(ns)
	}
	if diff := cmp.Diff([]uint64{2, 2, 2}, h.counts); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if h.sum != 1062 {
		t.Errorf("sum %d", h.sum)
	}
}

func TestReasons(t *testing.T) {
	got := map[string][]flow.End{}
	for e := flow.EndNone; e <= flow.EndError; e++ {
		l := reasonLabels()[reasonIndex(e)]
		got[l] = append(got[l], e)
	}
	want := map[string][]flow.End{
		"refused": {flow.EndRefused}, "timeout": {flow.EndTimeout}, "unreachable": {flow.EndUnreachable},
		"reset": {flow.EndResetLocal, flow.EndResetRemote}, "aborted": {flow.EndAborted},
		"error": {flow.EndNone, flow.EndFIN, flow.EndError},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAgentMetrics(t *testing.T) {
	losses := new(loss.Counters)
	losses.Add(loss.TCPRingFull, 7)
	m := NewWorkloads(false, 100, losses)
	m.ObservePass(3 * time.Millisecond)
	e := NewExporter(m, losses, func() Facts {
		return Facts{
			Version: "1.2.3", Node: "n", Kernel: "6.1", Interval: time.Second, Events: 5, Panics: 1,
			Reloads: 2, ReloadsFailed: 3, Subscribers: 4, Traces: 12, Waiting: 11, Flows: 6, MaxFlows: 8, History: 9, MaxHistory: 10,
			Probes:  []probe.Status{{Name: "tcp", State: probe.StateRunning}, {Name: "packet", State: probe.StateFallback}},
			Cluster: &kube.Status{Counts: kube.Counts{Pods: 3, Peers: 50}, Synced: true},
		}
	}, these())
	want := []string{
		"agent_config_reloads_total{result=error} 3",
		"agent_config_reloads_total{result=ok} 2",
		"agent_events_processed_total{} 5",
		"agent_flow_table_capacity{} 8",
		"agent_flow_table_flows{} 6",
		"agent_history_capacity{} 10",
		"agent_history_events{} 9",
		"agent_info{kernel=6.1,node=n,version=1.2.3} 1",
		"agent_panics_total{} 1",
		"agent_sample_duration_seconds{} count=1 sum=0.003",
		"agent_sample_interval_seconds{} 1",
		"agent_subscribers{} 4",
		"syscall_traces{} 12",
		"agent_waiting_records{} 11",
		"agent_known_pods{scope=node} 3",
		"agent_known_pods{scope=peer} 50",
		"agent_kubernetes_synced{} 1",
		"agent_workload_series{} 0",
		"agent_workload_series_limit{} 100",
		"probe_read_errors_total{probe=packet} 0", "probe_read_errors_total{probe=tcp} 0",
		"probe_state{probe=packet,state=fallback} 1",
		"probe_state{probe=packet,state=off} 0",
		"probe_state{probe=packet,state=running} 0",
		"probe_state{probe=tcp,state=fallback} 0",
		"probe_state{probe=tcp,state=off} 0",
		"probe_state{probe=tcp,state=running} 1",
		"probe_up{probe=packet} 0",
		"probe_up{probe=tcp} 1",
	}
	for _, s := range loss.Stages() {
		want = append(want, fmt.Sprintf("lost_events_total{stage=%s} %d", s, losses.Get(s)))
	}
	slices.Sort(want)
	got := gather(t, e, "orb8_agent_", "orb8_lost_", "orb8_probe_", "orb8_syscall_traces")
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestEndedFlowsAreNotActive(t *testing.T) {
	m := NewWorkloads(false, 100, new(loss.Counters))
	open := ofWorkload(m, "w", 0)
	ended := *open
	ended.Event = flow.EventClose
	want := []string{"network_active_flows{namespace=,protocol=UDP,workload=w,workload_kind=Unit} 1"}
	if diff := cmp.Diff(want, gather(t, exporterOf(m, *open, ended), "orb8_network_active")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestOwnFlowsAreNotActive(t *testing.T) {
	m := NewWorkloads(false, 100, new(loss.Counters))
	r := ofWorkload(m, "w", 0)
	own := *r
	own.Self = true
	for _, include := range []bool{false, true} {
		e := NewExporter(m, m.losses, func() Facts { return Facts{IncludeSelf: include} },
			these(*r, own))
		want := []string{fmt.Sprintf("network_active_flows{namespace=,protocol=UDP,workload=w,workload_kind=Unit} %d", map[bool]int{false: 1, true: 2}[include])}
		if diff := cmp.Diff(want, gather(t, e, "orb8_network_active")); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

// TestFamiliesAreAllCollected: what docs/metrics.md promises is there, and the
// size of the cells is what they make.
func TestFamiliesAreAllCollected(t *testing.T) {
	m := NewWorkloads(true, 1_000_000, new(loss.Counters))
	r := flowtest.Record(flow.EventClose, flowtest.TCP(1, 0, 0), flow.Counters{TxBytes: 1})
	m.Observe(r)
	s := m.byIdentity[r.Owner]
	for i := range s.cells {
		m.cell(s, i)
	}
	for _, f := range kinds.Families() {
		m.moreCell(s, moreKey{family: f.Name, value: "x"})
	}
	e := exporterOf(m)
	gpus := gpuLedger(time.Now())
	everything := gpus.Reports()[0]
	for m := range everything.Values {
		everything.Values[m] = accel.Of(1, accel.Driver)
		everything.Shares[0].Values[m] = accel.Of(1, accel.Exclusive)
	}
	everything.Time = everything.Time.Add(time.Second)
	gpus.Add(&everything)
	e.facts = func() Facts {
		return Facts{Probes: []probe.Status{{Name: "tcp"}}, Cluster: new(kube.Status), GPUs: factsOf(gpus)}
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(e)
	got, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	series := 0
	for _, f := range got {
		types[f.GetName()] = strings.ToLower(f.GetType().String())
		for _, metric := range f.GetMetric() {
			if !strings.HasPrefix(f.GetName(), "orb8_gpu_") && slices.ContainsFunc(metric.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == "workload" }) {
				series++
				if h := metric.GetHistogram(); h != nil {
					series += len(h.GetBucket()) + 2 // +Inf and sum beside the count
				}
			}
		}
	}
	want := map[string]string{}
	for _, f := range Families(true) {
		want[f.Name] = f.Type
	}
	if diff := cmp.Diff(want, types); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if series != m.used {
		t.Errorf("a workload with everything makes %d series, counted as %d", series, m.used)
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, bb := range []struct {
		name string
		s    flow.Sample
	}{{"tcp", flowtest.TCP(1, 1000, 1000)}, {"udp", flowtest.UDP(1, 1000, 1000)}} {
		b.Run(bb.name, func(b *testing.B) {
			m := NewWorkloads(false, 10_000, new(loss.Counters))
			r := flowtest.Record(flow.EventUpdate, bb.s, flow.Counters{TxBytes: 1000, TxPackets: 1})
			b.ReportAllocs()
			for b.Loop() {
				m.Observe(r)
			}
		})
	}
}

func BenchmarkScrape(b *testing.B) {
	m := NewWorkloads(false, 100_000, new(loss.Counters))
	for i := range 200 {
		ofWorkload(m, fmt.Sprint("w", i), 0)
	}
	e := exporterOf(m)
	b.ReportAllocs()
	for b.Loop() {
		gather(b, e)
	}
}

// The values of a label that are known at run time only are bounded, as are the series of
// all workloads together.
func TestMetricsOfKindsAreBounded(t *testing.T) {
	m := NewWorkloads(false, 100, new(loss.Counters))
	count := func(name, value string) {
		h := flowtest.Record(flow.EventUpdate, flowtest.UDP(1, 0, 0), flow.Counters{}).Header
		h.Owner = &workload.Identity{Kind: workload.KindUnit, Name: name, CgroupID: 9}
		Measure(m, &h, &value, func(v *string, to kind.Meter) { to.Count("orb8_dns_queries_total", *v, 1) })
	}
	for i := range 3 * kind.MaxValues {
		count("web", fmt.Sprint("RCODE", i))
	}
	got := gather(t, exporterOf(m), "orb8_dns_queries_total")
	if len(got) != kind.MaxValues+1 || !strings.Contains(strings.Join(got, "\n"), fmt.Sprint("rcode=other,workload=web,workload_kind=Unit} ", 2*kind.MaxValues)) {
		t.Errorf("%d series: %v", len(got), got)
	}
	if m.used != kind.MaxValues+1 {
		t.Errorf("%d series count towards the bound", m.used)
	}
	for i := range 200 {
		count(fmt.Sprint("w", i), "NOERROR")
	}
	got = gather(t, exporterOf(m), "orb8_dns_queries_total")
	if m.used > 100 || !strings.Contains(strings.Join(got, "\n"), fmt.Sprint("rcode=NOERROR,workload=other,workload_kind=Other} ", 200-(100-kind.MaxValues-1))) {
		t.Errorf("%d used: %v", m.used, got)
	}
	m.Sweep(time.Now().Add(time.Hour), time.Minute, func(uint64) bool { return false })
	if m.used != 0 {
		t.Errorf("%d series are left", m.used)
	}
}

func TestZoneMetrics(t *testing.T) {
	m := NewWorkloads(false, 100, new(loss.Counters))
	send := func(remote *workload.Identity, n uint64) {
		r := flowtest.Record(flow.EventUpdate, flowtest.TCP(1, 0, 0), flow.Counters{TxBytes: n, RxBytes: 2 * n})
		r.Owner = &workload.Identity{Namespace: "ns", Kind: "Deployment", Name: "web", Zone: "a"}
		r.Peer = remote
		m.Observe(r)
	}
	send(&workload.Identity{Zone: "a"}, 1)
	send(&workload.Identity{Zone: "b"}, 10)
	send(&workload.Identity{Zone: "c"}, 100)
	send(&workload.Identity{}, 1000)
	send(nil, 1000)
	base := "namespace=ns,workload=web,workload_kind=Deployment"
	got := strings.Join(gather(t, exporterOf(m), "orb8_network_zone"), "\n")
	for direction, want := range map[string][2]string{flows.DirEgress: {"1", "110"}, flows.DirIngress: {"2", "220"}} {
		for i, zone := range []string{"same", "cross"} {
			line := "network_zone_bytes_total{direction=" + direction + "," + base + ",zone=" + zone + "} " + want[i]
			if !strings.Contains(got, line) {
				t.Errorf("no line %s in\n%s", line, got)
			}
		}
	}
}
