// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/testwait"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// row is what the tests look at of a NetworkFlow.
type row struct {
	Port      uint32
	Direction string
	Bytes     uint64
}

func (r *rig) query(t *testing.T, req *orb8v1.QueryFlowsRequest) (rows []row, total uint64) {
	t.Helper()
	resp, err := r.client.QueryFlows(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range resp.GetFlows() {
		port := f.GetSrcPort()
		if f.GetDirection() == flows.DirIngress {
			port = f.GetDstPort()
		}
		rows = append(rows, row{port, f.GetDirection(), f.GetBytes()})
	}
	return rows, resp.GetTotal()
}

// podRig has flows of the pods shop/web (cgroup 1) and bank/db (cgroup 2), of
// orb8 itself and of loopback.
func podRig(t *testing.T) *rig {
	t.Helper()
	r := startRig(t, func(_ *config.Config, _ *Deps, r *rig) {
		r.resolver.local = map[uint64]*workload.Identity{
			1: {Namespace: "shop", Pod: "web", Kind: "Deployment", Name: "web", CgroupID: 1},
			2: {Namespace: "bank", Pod: "db", Kind: "StatefulSet", Name: "db", CgroupID: 2},
		}
		r.resolver.remote = map[netip.Addr]*workload.Identity{netip.MustParseAddr("10.0.0.2"): {Service: "api"}}
	})
	web, db, own, lo := flowtest.TCP(1, 500, 100), flowtest.UDP(2, 0, 300), flowtest.TCP(3, 900, 900), flowtest.UDP(4, 50, 0)
	web.CgroupID, db.CgroupID, own.PID, lo.Loopback = 1, 2, selfPID, true
	web.Last, db.Last = flowtest.Second(10), flowtest.Second(20)
	db.Total.TxPackets = 0
	lo.Total.RxPackets = 0
	r.probe.feed(web, db, own, lo)
	return r
}

func TestQueryFlows(t *testing.T) {
	r := podRig(t)
	webOut, webIn := row{1, flows.DirEgress, 500}, row{1, flows.DirIngress, 100}
	dbIn, loOut := row{2, flows.DirIngress, 300}, row{4, flows.DirEgress, 50}
	tests := []struct {
		name  string
		req   *orb8v1.QueryFlowsRequest
		want  []row
		total uint64
	}{
		{"all", &orb8v1.QueryFlowsRequest{}, []row{webOut, dbIn, webIn, loOut}, 4},
		{"limit", &orb8v1.QueryFlowsRequest{Limit: 2}, []row{webOut, dbIn}, 4},
		{"namespaces", &orb8v1.QueryFlowsRequest{Namespaces: []string{"bank", "none"}}, []row{dbIn}, 1},
		{"pods", &orb8v1.QueryFlowsRequest{PodNames: []string{"web"}}, []row{webOut, webIn}, 2},
		{"namespaces and pods", &orb8v1.QueryFlowsRequest{Namespaces: []string{"bank"}, PodNames: []string{"web"}}, nil, 0},
		{"filter", &orb8v1.QueryFlowsRequest{Filters: []*orb8v1.Filter{{Protocols: []string{"tcp"}}}}, []row{webOut, webIn}, 2},
		{"filter and pods", &orb8v1.QueryFlowsRequest{PodNames: []string{"web"}, Filters: []*orb8v1.Filter{{Protocols: []string{"udp"}}}}, nil, 0},
		{"node", &orb8v1.QueryFlowsRequest{Filters: []*orb8v1.Filter{{Nodes: []string{"node-b"}}}}, nil, 0},
		{"since", &orb8v1.QueryFlowsRequest{SinceNs: flowtest.Second(11)}, []row{dbIn}, 1},
		{"own traffic", &orb8v1.QueryFlowsRequest{IncludeSelf: true, Limit: 1}, []row{{3, flows.DirEgress, 900}}, 6},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, total := r.query(t, tt.req)
			if diff := cmp.Diff(tt.want, got); diff != "" || total != tt.total {
				t.Errorf("total %d, want %d (-want +got)\n%s", total, tt.total, diff)
			}
		})
	}
}

func TestQueryFlowsReadsTheKernelFirst(t *testing.T) {
	r := startRig(t)
	for n := uint64(1); n <= 3; n++ {
		r.probe.feed(flowtest.UDP(1, n*100, 0))
		got, _ := r.query(t, &orb8v1.QueryFlowsRequest{Limit: 1})
		if diff := cmp.Diff([]row{{1, flows.DirEgress, n * 100}}, got); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
	}
}

func TestBadFilter(t *testing.T) {
	r := startRig(t)
	bad := []*orb8v1.Filter{{Ips: []string{"here"}}}
	_, err := r.client.QueryFlows(t.Context(), &orb8v1.QueryFlowsRequest{Filters: bad})
	want := `filter 1: ips: "here": want an address such as 10.0.0.1 or fd00::1, or a prefix such as 10.0.0.0/8`
	if status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != want {
		t.Errorf("QueryFlows: %v", err)
	}
	events, err := r.client.StreamEvents(t.Context(), &orb8v1.StreamEventsRequest{Filters: bad})
	if err == nil {
		_, err = events.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("StreamEvents: %v", err)
	}
	stream, err := r.client.Observe(t.Context(), &orb8v1.ObserveRequest{Filters: bad})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("Observe: %v", err)
	}
}

// TestLargeAnswerFits: clients take 4 MiB in one message unless told otherwise.
func TestLargeAnswerFits(t *testing.T) {
	r := startRig(t, func(_ *config.Config, _ *Deps, r *rig) {
		r.resolver.local = map[uint64]*workload.Identity{42: {Name: strings.Repeat("n", 1000), CgroupID: 42}}
	})
	for i := range 6000 {
		r.probe.feed(flowtest.TCP(uint16(i), uint64(i), 1))
	}
	resp, err := r.client.QueryFlows(t.Context(), &orb8v1.QueryFlowsRequest{Limit: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if n := proto.Size(resp); n > 4<<20 || n < 3<<20 {
		t.Errorf("answer of %d bytes", n)
	}
	if n := len(resp.GetFlows()); resp.GetTotal() != 12_000 || n >= 12_000 || n < 2000 {
		t.Errorf("%d rows of %d", n, resp.GetTotal())
	}
}

func TestGetStatus(t *testing.T) {
	r := startRig(t, func(_ *config.Config, _ *Deps, r *rig) { r.packet.startErr = errors.New("no cgroup2") })
	r.probe.feed(flowtest.TCP(1, 1, 1), flowtest.TCP(2, 1, 1))
	r.query(t, &orb8v1.QueryFlowsRequest{})
	r.losses.Add(loss.PacketMapFull, 3)
	got, err := r.client.GetStatus(t.Context(), &orb8v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &orb8v1.AgentStatus{
		NodeName: "node-a", Version: "1.2.3", Healthy: true, HealthMessage: "packet is in state off: no cgroup2",
		EventsProcessed: 2, EventsDropped: 3, ActiveFlows: 2, KernelRelease: "6.18.0", CgroupRoot: "/sys/fs/cgroup",
		MaxFlows: 100_000, IntervalNs: int64(time.Hour), StartedNs: r.started.UnixNano(),
		Probes: []*orb8v1.ProbeStatus{
			{Name: "tcp", State: orb8v1.ProbeState_PROBE_STATE_RUNNING, Hooks: []string{"fake/tcp"}},
			{Name: "packet", State: orb8v1.ProbeState_PROBE_STATE_OFF, Reason: "no cgroup2"},
			{Name: "syscall", State: orb8v1.ProbeState_PROBE_STATE_OFF, Reason: "the kernel has no map of selected cgroups for it"},
		},
		Losses: lossesPB(r.losses),
	}
	if n := len(got.GetRules()); n != len(anomaly.Rules()) {
		t.Errorf("%d rules, want %d", n, len(anomaly.Rules()))
	}
	if c := got.GetCost(); c.GetCpuNs() <= 0 || runtime.GOOS == "linux" && c.GetResidentBytes() == 0 {
		t.Errorf("cost: %v", c)
	}
	got.UptimeSeconds, got.Rules, got.Cost = 0, nil, nil
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// until reads a stream until it ends or done says so. The rig's client gives every
// stream a deadline.
func until[T any](t *testing.T, what string, recv func() (*T, error), done func(*T) bool) ([]*T, error) {
	t.Helper()
	var got []*T
	for {
		e, err := recv()
		if status.Code(err) == codes.DeadlineExceeded {
			t.Fatalf("waited for %s: %v after %d messages, the last of them %v", what, err, len(got), got[max(0, len(got)-3):])
		}
		if err != nil {
			return got, err
		}
		got = append(got, e)
		if done(e) {
			return got, nil
		}
	}
}

// follow opens an Observe stream and waits until it is subscribed.
func (r *rig) follow(ctx context.Context, t *testing.T, req *orb8v1.ObserveRequest) grpc.ServerStreamingClient[orb8v1.Event] {
	t.Helper()
	before := r.hub.Subscribers()
	req.Follow = true
	stream, err := r.client.Observe(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	r.await(t, "subscription", func() bool { return r.hub.Subscribers() > before })
	return stream
}

func (r *rig) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testwait.True(t, what, ok)
}

func TestStreamEvents(t *testing.T) {
	r := startRig(t)
	stream, err := r.client.StreamEvents(t.Context(), &orb8v1.StreamEventsRequest{Filters: []*orb8v1.Filter{{Ports: []uint32{7}}}})
	if err != nil {
		t.Fatal(err)
	}
	r.await(t, "subscription", func() bool { return r.hub.Subscribers() == 1 })
	s := flowtest.TCP(7, 100, 0)
	s.Total.RxPackets = 0
	own := s
	own.PID, own.LocalPort, own.RemotePort = selfPID, 8, 7
	r.probe.feed(s, own, flowtest.TCP(9, 1, 1))
	s.Total.TxBytes += 5e9
	r.probe.feed(s)
	r.query(t, &orb8v1.QueryFlowsRequest{})
	got, err := until(t, "the last event", stream.Recv, func(e *orb8v1.NetworkEvent) bool { return e.GetBytes() == 5e9-4294967295 })
	if err != nil {
		t.Fatal(err)
	}
	var bytes []uint32
	for _, e := range got {
		bytes = append(bytes, e.GetBytes())
		if e.GetSrcPort() != 7 || e.GetDirection() != flows.DirEgress || e.GetTimestampNs() != flowtest.Second(1) {
			t.Errorf("unexpected event %v", e)
		}
	}
	if diff := cmp.Diff([]uint32{100, 4294967295, 705032705}, bytes); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// brief says in a word what an event is.
func brief(e *orb8v1.Event) string {
	switch {
	case e.GetNodeStatus() != nil:
		return strings.ToLower(strings.TrimPrefix(e.GetNodeStatus().GetState().String(), "NODE_STATE_"))
	case e.GetLostEvents() != nil:
		return fmt.Sprintf("lost %s %d", e.GetLostEvents().GetStage(), e.GetLostEvents().GetCount())
	case e.GetConnection() != nil:
		c := e.GetConnection()
		return fmt.Sprintf("%s %d", strings.ToLower(strings.TrimPrefix(c.GetEvent().String(), "CONNECTION_EVENT_")), c.GetFlow().GetLocal().GetPort())
	}
	return fmt.Sprintf("%s %d", strings.ToLower(strings.TrimPrefix(e.GetFlow().GetEvent().String(), "FLOW_EVENT_")), e.GetFlow().GetLocal().GetPort())
}

func briefs(es []*orb8v1.Event) []string {
	var s []string
	for _, e := range es {
		if e.GetHistoryReach() != nil {
			s = append(s, "history")
			continue
		}
		s = append(s, brief(e))
	}
	return s
}

// observe reads an Observe stream that does not follow.
func (r *rig) observe(t *testing.T, req *orb8v1.ObserveRequest) []string {
	t.Helper()
	stream, err := r.client.Observe(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	got, err := until(t, "the end of the stream", stream.Recv, func(*orb8v1.Event) bool { return false })
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return briefs(got)
}

// reachOf is what a request is told of how far back the history goes: 0 for nothing, -1 if
// none is kept.
func (r *rig) reach(t *testing.T, req *orb8v1.ObserveRequest) (since int64) {
	t.Helper()
	stream, err := r.client.Observe(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	got, err := until(t, "the end of the stream", stream.Recv, func(*orb8v1.Event) bool { return false })
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for _, ev := range got {
		if ev.GetHistoryReach() != nil {
			if since = ev.GetHistoryReach().GetSinceNs(); since == 0 {
				since = -1
			}
		}
	}
	return since
}

// TestHistoryReach: who asks for more of the past than is kept is told so.
func TestHistoryReach(t *testing.T) {
	r := startRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.History = 2 })
	for i := range uint16(4) {
		s := flowtest.TCP(i+1, 1, 1)
		s.Last = flowtest.Second(int64(i) + 1)
		r.probe.feed(s)
	}
	r.query(t, &orb8v1.QueryFlowsRequest{})
	kept := flowtest.Second(3)
	for name, tt := range map[string]struct {
		req  *orb8v1.ObserveRequest
		want int64
	}{
		"of before":                 {&orb8v1.ObserveRequest{SinceNs: flowtest.Second(1)}, kept},
		"of what is kept":           {&orb8v1.ObserveRequest{SinceNs: kept}, 0},
		"all that is kept":          {&orb8v1.ObserveRequest{SinceNs: 1}, 0},
		"the last that are kept":    {&orb8v1.ObserveRequest{Last: 2}, 0},
		"more than the last":        {&orb8v1.ObserveRequest{Last: 3}, kept},
		"of another kind":           {&orb8v1.ObserveRequest{SinceNs: flowtest.Second(1), Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_DNS}}, r.started.UnixNano()},
		"since the agent began":     {&orb8v1.ObserveRequest{SinceNs: r.started.UnixNano(), Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_DNS}}, 0},
		"nothing of the past":       {&orb8v1.ObserveRequest{Snapshot: true}, 0},
		"goes on where it had been": {&orb8v1.ObserveRequest{SinceNs: flowtest.Second(1), Resume: &orb8v1.Resume{StartedNs: r.started.UnixNano(), After: 4}}, 0},
	} {
		if got := r.reach(t, tt.req); got != tt.want {
			t.Errorf("%s: told %d, want %d", name, got, tt.want)
		}
	}
	none := startRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.History = 0 })
	none.probe.feed(flowtest.TCP(1, 1, 1))
	none.query(t, &orb8v1.QueryFlowsRequest{})
	if got := none.reach(t, &orb8v1.ObserveRequest{SinceNs: flowtest.Second(1)}); got != -1 {
		t.Errorf("nothing is kept: told %d", got)
	}
}

// TestOwnTrafficLeavesThePast: orb8's own records push out no others, and come to who asks
// for them as they happen.
func TestOwnTrafficLeavesThePast(t *testing.T) {
	r := startRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.History = 2 })
	own := func(n uint16) flow.Sample {
		s := flowtest.TCP(n, 1, 1)
		s.PID = selfPID
		return s
	}
	r.probe.feed(flowtest.TCP(1, 1, 1), own(2), own(3), own(4))
	r.query(t, &orb8v1.QueryFlowsRequest{})
	for _, self := range []bool{false, true} {
		if diff := cmp.Diff([]string{"connected", "opened 1"}, r.observe(t, &orb8v1.ObserveRequest{Last: 9, IncludeSelf: self})); diff != "" {
			t.Errorf("with its own: %v (-want +got)\n%s", self, diff)
		}
	}
	with := r.follow(t.Context(), t, &orb8v1.ObserveRequest{Follow: true, IncludeSelf: true})
	without := r.follow(t.Context(), t, &orb8v1.ObserveRequest{Follow: true})
	r.probe.feed(own(5), flowtest.TCP(6, 1, 1))
	r.query(t, &orb8v1.QueryFlowsRequest{})
	for stream, want := range map[grpc.ServerStreamingClient[orb8v1.Event]][]string{
		with: {"opened 5", "opened 6"}, without: {"opened 6"},
	} {
		got, err := until(t, "the last connection", stream.Recv, func(ev *orb8v1.Event) bool {
			return ev.GetConnection().GetFlow().GetLocal().GetPort() == 6 || strings.HasSuffix(strings.Join(briefs([]*orb8v1.Event{ev}), ""), " 6")
		})
		if err != nil {
			t.Fatal(err)
		}
		var opened []string
		for _, b := range briefs(got) {
			if strings.HasPrefix(b, "opened") {
				opened = append(opened, b)
			}
		}
		if diff := cmp.Diff(want, opened); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

func TestObserveOnce(t *testing.T) {
	r := startRig(t)
	busy, slow, big := flowtest.TCP(1, 10, 10), flowtest.TCP(2, 20, 20), flowtest.UDP(3, 1000, 1000)
	busy.Total.TxPackets, busy.TCP.Retransmits = 1_000_000, 5
	slow.TCP.RTTMicros, slow.Last = 9_000_000, flowtest.Second(9)
	r.probe.feed(busy, slow, big)
	flows, conns := orb8v1.EventKind_EVENT_KIND_FLOW, orb8v1.EventKind_EVENT_KIND_CONNECTION
	tests := []struct {
		name string
		req  *orb8v1.ObserveRequest
		want []string
	}{
		{"nothing", &orb8v1.ObserveRequest{}, nil},
		{"snapshot", &orb8v1.ObserveRequest{Snapshot: true}, []string{"open 3", "open 2", "open 1"}},
		{"by packets", &orb8v1.ObserveRequest{Snapshot: true, Sort: orb8v1.Sort_SORT_PACKETS, Limit: 1}, []string{"open 1"}},
		{"by rtt", &orb8v1.ObserveRequest{Snapshot: true, Sort: orb8v1.Sort_SORT_RTT, Limit: 1}, []string{"open 2"}},
		{"by retransmits", &orb8v1.ObserveRequest{Snapshot: true, Sort: orb8v1.Sort_SORT_RETRANSMITS, Limit: 1}, []string{"open 1"}},
		{"by last seen", &orb8v1.ObserveRequest{Snapshot: true, Sort: orb8v1.Sort_SORT_LAST_SEEN, Limit: 1}, []string{"open 2"}},
		{"by bytes", &orb8v1.ObserveRequest{Snapshot: true, Sort: orb8v1.Sort_SORT_BYTES, Limit: 2}, []string{"open 3", "open 2"}},
		{"snapshot of any kind", &orb8v1.ObserveRequest{Snapshot: true, Kinds: []orb8v1.EventKind{conns}, Limit: 1}, []string{"open 3"}},
		{"history", &orb8v1.ObserveRequest{Last: 10}, []string{"opened 1", "opened 2", "open 3"}},
		{"history, flows", &orb8v1.ObserveRequest{Last: 10, Kinds: []orb8v1.EventKind{flows}}, []string{"open 1", "open 2", "open 3"}},
		{"history, connections", &orb8v1.ObserveRequest{Last: 1, Kinds: []orb8v1.EventKind{conns}}, []string{"opened 2"}},
		{"history since", &orb8v1.ObserveRequest{SinceNs: flowtest.Second(2)}, []string{"history", "opened 2"}}, // of before the agent began
		{"snapshot before history", &orb8v1.ObserveRequest{Snapshot: true, Limit: 1, Last: 1}, []string{"open 3", "open 3"}},
		{"filter", &orb8v1.ObserveRequest{Snapshot: true, Last: 9, Filters: []*orb8v1.Filter{{Ports: []uint32{2}}}}, []string{"open 2", "opened 2"}},
	}
	r.query(t, &orb8v1.QueryFlowsRequest{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := append([]string{"connected"}, tt.want...)
			if diff := cmp.Diff(want, r.observe(t, tt.req)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestObserveFollows(t *testing.T) {
	r := startRig(t)
	stream := r.follow(t.Context(), t, &orb8v1.ObserveRequest{})
	s := flowtest.TCP(1, 1, 1)
	r.probe.feed(s)
	s.Total.TxBytes = 50
	r.probe.feed(s)
	s.TCP.End, s.TCP.State = flow.EndFIN, flow.StateClose
	r.probe.feed(s)
	refused := flowtest.TCP(2, 0, 0)
	refused.TCP = flow.TCPInfo{Valid: true, State: flow.StateClose, End: flow.EndRefused, Failed: true}
	r.probe.feed(refused)
	r.query(t, &orb8v1.QueryFlowsRequest{}) // the flows are told of before the losses
	r.losses.Add(loss.TCPRingFull, 4)
	r.losses.Add(loss.PacketBatchRetried, 1)
	got, err := until(t, "the loss", stream.Recv, func(e *orb8v1.Event) bool { return e.GetLostEvents() != nil })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"connected", "opened 1", "update 1", "closed 1", "failed 2", "lost tcp_ring_full 4"}
	if diff := cmp.Diff(want, briefs(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// Both end before the next look, or one look each finds one ended.
	r.probe.runErr <- errors.New("ring broke")
	r.packet.runErr <- errors.New("map broke")
	got, err = until(t, "that no probe runs", stream.Recv, func(e *orb8v1.Event) bool { return brief(e) == "unavailable" })
	if err != nil {
		t.Fatal(err)
	}
	if len(got) > 2 || len(got) == 2 && brief(got[0]) != "degraded" {
		t.Errorf("got %v", briefs(got))
	}
}

func TestSlowClientIsTold(t *testing.T) {
	r := startRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.SubscriberQueue = 8 })
	stream := r.follow(t.Context(), t, &orb8v1.ObserveRequest{Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW}})
	const total = 20_000
	for n := range total {
		r.probe.feed(flowtest.UDP(uint16(n), uint64(n)+1, 0))
	}
	r.query(t, &orb8v1.QueryFlowsRequest{})
	lost := r.losses.Get(loss.SubscriberSlow)
	if lost == 0 {
		t.Fatal("nothing was lost: the test does not provoke what it is about")
	}
	var seen, told uint64
	_, err := until(t, fmt.Sprint(total, " events, seen or told as lost"), stream.Recv, func(e *orb8v1.Event) bool {
		if l := e.GetLostEvents(); l != nil {
			told += l.GetCount()
		} else if e.GetFlow() != nil {
			seen++
		}
		return seen+told >= total
	})
	if err != nil || seen+told != total {
		t.Fatalf("%v after %d events and %d told as lost of %d", err, seen, told, total)
	}
	if told != lost {
		t.Errorf("%d told as lost, %d counted", told, lost)
	}
	st, err := r.client.GetStatus(t.Context(), &orb8v1.GetStatusRequest{})
	if err != nil || st.GetEventsDropped() != lost || st.GetSubscribers() != 1 {
		t.Errorf("status says %d dropped, %d subscribers: %v", st.GetEventsDropped(), st.GetSubscribers(), err)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	r := startRig(t)
	for range maxStreams {
		sub, _ := r.hub.Subscribe(hub.Options{Queue: 1})
		defer sub.Close()
	}
	stream, err := r.client.Observe(t.Context(), &orb8v1.ObserveRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = until(t, "the refusal", stream.Recv, func(*orb8v1.Event) bool { return false })
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}

func TestClientThatGoesIsForgotten(t *testing.T) {
	r := startRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.follow(ctx, t, &orb8v1.ObserveRequest{})
	cancel()
	r.await(t, "end of the subscription", func() bool { return r.hub.Subscribers() == 0 })
}

func TestPanicEndsOneCall(t *testing.T) {
	r := startRig(t)
	r.probe.mu.Lock()
	r.probe.onRead = func() { panic("a fault") }
	r.probe.mu.Unlock()
	_, err := r.client.QueryFlows(t.Context(), &orb8v1.QueryFlowsRequest{})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "a fault in") == false {
		t.Errorf("QueryFlows: %v", err)
	}
	stream, err := r.client.Observe(t.Context(), &orb8v1.ObserveRequest{Snapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = until(t, "the error", stream.Recv, func(*orb8v1.Event) bool { return false }); status.Code(err) != codes.Internal {
		t.Errorf("Observe: %v", err)
	}
	r.probe.mu.Lock()
	r.probe.onRead = nil
	r.probe.mu.Unlock()
	r.query(t, &orb8v1.QueryFlowsRequest{})
	if n := r.panics.Load(); n != 2 {
		t.Errorf("%d panics counted, want 2", n)
	}
}

func TestHealthAndReflection(t *testing.T) {
	r := startRig(t)
	health := healthv1.NewHealthClient(r.conn)
	for _, service := range []string{"", "orb8.v1.OrbitAgentService"} {
		got, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || got.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v %v", service, got, err)
		}
	}
	stream, err := reflectionv1.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	req := &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}
	if err := stream.Send(req); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	want := []string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", "orb8.v1.OrbitAgentService"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}

	r.probe.runErr <- errors.New("broke")
	r.packet.runErr <- errors.New("broke")
	r.await(t, "unhealthy state", func() bool {
		r.watch.look()
		got, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err == nil && got.GetStatus() == healthv1.HealthCheckResponse_NOT_SERVING
	})
}

// TestObserveLeavesOut: what a client does not want is left out here, and not sent first.
func TestObserveLeavesOut(t *testing.T) {
	r := startRig(t)
	old, lo, late := flowtest.TCP(1, 1, 1), flowtest.TCP(2, 1, 1), flowtest.TCP(3, 1, 1)
	lo.Loopback = true
	old.Last, lo.Last, late.Last = flowtest.Second(1), flowtest.Second(2), flowtest.Second(9)
	r.probe.feed(old, lo, late)
	r.query(t, &orb8v1.QueryFlowsRequest{})
	rows := func(req *orb8v1.ObserveRequest) (ports []uint32) {
		t.Helper()
		req.Kinds = []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW}
		stream, err := r.client.Observe(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := until(t, "the end of the stream", stream.Recv, func(*orb8v1.Event) bool { return false })
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		for _, ev := range got {
			if f := ev.GetFlow(); f != nil {
				ports = append(ports, f.GetLocal().GetPort())
			}
		}
		slices.Sort(ports)
		return ports
	}
	port := func(s ...flow.Sample) (ports []uint32) {
		for i := range s {
			ports = append(ports, uint32(s[i].LocalPort))
		}
		return ports
	}
	for name, tt := range map[string]struct {
		req  *orb8v1.ObserveRequest
		want []uint32
	}{
		"the table":                   {&orb8v1.ObserveRequest{Snapshot: true}, port(old, lo, late)},
		"the table without loopback":  {&orb8v1.ObserveRequest{Snapshot: true, NoLoopback: true}, port(old, late)},
		"rows with late traffic":      {&orb8v1.ObserveRequest{Snapshot: true, ActiveSinceNs: flowtest.Second(2)}, port(lo, late)},
		"the past without loopback":   {&orb8v1.ObserveRequest{SinceNs: 1, NoLoopback: true}, port(old, late)},
		"the latest without loopback": {&orb8v1.ObserveRequest{Last: 1, NoLoopback: true}, port(late)},
	} {
		if got := rows(tt.req); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
