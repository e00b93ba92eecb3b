// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// fullRecord has something in every field.
func fullRecord() *flow.Record {
	return &flow.Record{
		Header: record.Header{
			Local: addr("10.0.1.7"), Remote: addr("2001:db8::1"), LocalPort: 41000, RemotePort: 443,
			Protocol: record.TCP, CgroupID: 42, NetNS: 4026531840,
			Role: record.RoleClient, Loopback: true, Time: 300, First: 100, Last: 200,
			PID: 4242, Comm: comm("curl"), Executable: "/usr/bin/curl", Self: true,
			Owner: &workload.Identity{
				Namespace: "shop", Pod: "web-1", Kind: "Deployment", Name: "web", ContainerID: "4f2d9c", ContainerRuntime: "containerd",
				PodUID: "uid", Service: "web", Node: "node-b", Zone: "z1", QoS: "Burstable", Labels: map[string]string{"a": "b"}, CgroupID: 42, CgroupPath: "/kubepods",
			},
			Peer: &workload.Identity{Service: "api", Namespace: "bank"},
		},
		Instance: 7, Unit: flow.BytesPayload,
		Total: flow.Counters{TxBytes: 1, TxPackets: 2, RxBytes: 3, RxPackets: 4},
		TCP: flow.TCPInfo{
			Valid: true, State: flow.StateClose, End: flow.EndResetRemote, Failed: false,
			ResetSent: true, ResetReceived: true, Preexisting: true, Errno: 104,
			RTTMicros: 11, MinRTTMicros: 12, CongestionWindow: 13, Retransmits: 14,
			ConnectNanos: 15, AckedBytes: 16, RetransBytes: 17,
		},
		Event: flow.EventClose, Connected: true,
		Delta: flow.Counters{TxBytes: 5, TxPackets: 6, RxBytes: 7, RxPackets: 8},
	}
}

func fullWorkload() *orb8v1.Workload {
	return &orb8v1.Workload{
		Namespace: "shop", PodName: "web-1", Kind: "Deployment", Name: "web", ContainerId: "4f2d9c", ContainerRuntime: "containerd",
		Service: "web", NodeName: "node-b", Zone: "z1", CgroupId: 42, CgroupPath: "/kubepods",
		Labels: map[string]string{"a": "b"}, QosClass: "Burstable", PodUid: "uid",
	}
}

func fullTCP() *orb8v1.TcpInfo {
	return &orb8v1.TcpInfo{
		State: orb8v1.TcpState_TCP_STATE_CLOSE, End: orb8v1.TcpEnd_TCP_END_RESET_REMOTE, Errno: 104,
		RttUs: 11, MinRttUs: 12, CongestionWindow: 13, Retransmits: 14, ConnectNs: 15, AckedBytes: 16, RetransmittedBytes: 17,
		ResetSent: true, ResetReceived: true, Preexisting: true,
	}
}

func fullFlow() *orb8v1.Flow {
	return &orb8v1.Flow{
		Event: orb8v1.FlowEvent_FLOW_EVENT_CLOSE, Protocol: "TCP",
		Local:  &orb8v1.Endpoint{Ip: "10.0.1.7", Port: 41000, Workload: fullWorkload()},
		Remote: &orb8v1.Endpoint{Ip: "2001:db8::1", Port: 443, Workload: &orb8v1.Workload{Service: "api", Namespace: "bank"}},
		Role:   orb8v1.Role_ROLE_CLIENT, Loopback: true, ByteUnit: orb8v1.ByteUnit_BYTE_UNIT_PAYLOAD,
		Total:       &orb8v1.Counters{TxBytes: 1, TxPackets: 2, RxBytes: 3, RxPackets: 4},
		Delta:       &orb8v1.Counters{TxBytes: 5, TxPackets: 6, RxBytes: 7, RxPackets: 8},
		FirstSeenNs: 100, LastSeenNs: 200,
		Process: &orb8v1.Process{Pid: 4242, Command: "curl", Executable: "/usr/bin/curl"},
		Tcp:     fullTCP(), Netns: 4026531840, Self: true,
	}
}

func TestFlowEvent(t *testing.T) {
	want := &orb8v1.Event{TimeNs: 300, NodeName: "node-a", Event: &orb8v1.Event_Flow{Flow: fullFlow()}}
	if diff := cmp.Diff(want, Event(fullRecord(), "node-a"), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestConnectionEvent(t *testing.T) {
	want := &orb8v1.Event{TimeNs: 300, NodeName: "node-a", Event: &orb8v1.Event_Connection{Connection: &orb8v1.Connection{
		Event: orb8v1.ConnectionEvent_CONNECTION_EVENT_CLOSED, Flow: fullFlow(), Opened: true,
	}}}
	if diff := cmp.Diff(want, ConnectionEvent(fullRecord(), "node-a"), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestEveryFieldIsFilled: fullFlow leaves nothing out that the API has, so that
// a new field cannot be forgotten here; icmp has its own test.
func TestEveryFieldIsFilled(t *testing.T) {
	numbered := Event(fullRecord(), "n")
	numbered.Sequence = 7
	event := numbered.ProtoReflect()
	rows := NetworkFlow(fullRecord(), Egress(fullRecord()), "n").ProtoReflect()
	events := NetworkEvents(fullRecord())[0].ProtoReflect()
	skip := map[protoreflect.FullName]bool{
		"orb8.v1.Flow.icmp": true,
		// The arms of a oneof.
		"orb8.v1.Event.connection": true, "orb8.v1.Event.node_status": true, "orb8.v1.Event.lost_events": true,
		"orb8.v1.Event.accelerator": true, "orb8.v1.Event.dns": true, "orb8.v1.Event.dns_name": true, "orb8.v1.Event.progress": true,
		"orb8.v1.Event.process": true, "orb8.v1.Event.alert": true, "orb8.v1.Event.syscall": true,
		"orb8.v1.Event.syscall_summary": true, "orb8.v1.Event.syscall_targets": true, "orb8.v1.Event.history_reach": true,
	}
	var check func(m protoreflect.Message, path string)
	check = func(m protoreflect.Message, path string) {
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			at := path + "." + string(f.Name())
			if skip[f.FullName()] {
				continue
			}
			if !m.Has(f) {
				t.Errorf("%s is empty", at)
				continue
			}
			// The remote workload has few fields on purpose.
			if f.Message() != nil && !f.IsMap() && f.Name() != "remote" && f.Name() != "peer" {
				check(m.Get(f).Message(), at)
			}
		}
	}
	check(event, "Event")
	check(rows, "NetworkFlow")
	check(events, "NetworkEvent")
}

func TestFlowOfLittle(t *testing.T) {
	r := &flow.Record{
		Header: record.Header{
			Local: addr("127.0.0.1"), Remote: addr("::ffff:127.0.0.1"), Protocol: record.ICMP, Last: 200,
			Owner: &workload.Identity{},
		},
		ICMP: 8<<8 | 1, Unit: flow.BytesIP,
	}
	want := &orb8v1.Event{TimeNs: 200, NodeName: "n", Event: &orb8v1.Event_Flow{Flow: &orb8v1.Flow{
		Protocol: "ICMP",
		Local:    &orb8v1.Endpoint{Ip: "127.0.0.1", Workload: &orb8v1.Workload{}},
		Remote:   &orb8v1.Endpoint{Ip: "127.0.0.1"},
		ByteUnit: orb8v1.ByteUnit_BYTE_UNIT_IP,
		Total:    &orb8v1.Counters{}, Delta: &orb8v1.Counters{}, LastSeenNs: 200,
		Icmp: &orb8v1.IcmpInfo{Type: 8, Code: 1},
	}}}
	if diff := cmp.Diff(want, Event(r, "n"), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestConnectionStep(t *testing.T) {
	failed := tcpSample(1, 0, 0)
	failed.TCP.Failed = true
	perPacket := tcpSample(1, 0, 0)
	perPacket.TCP.Valid = false
	udp := tcpSample(1, 0, 0)
	udp.Protocol, udp.TCP = record.UDP, flow.TCPInfo{}
	tests := []struct {
		name   string
		event  flow.Event
		sample flow.Sample
		want   orb8v1.ConnectionEvent
	}{
		{"open", flow.EventOpen, tcpSample(1, 0, 0), orb8v1.ConnectionEvent_CONNECTION_EVENT_OPENED},
		{"update", flow.EventUpdate, tcpSample(1, 0, 0), orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED},
		{"close", flow.EventClose, tcpSample(1, 0, 0), orb8v1.ConnectionEvent_CONNECTION_EVENT_CLOSED},
		{"failed", flow.EventClose, failed, orb8v1.ConnectionEvent_CONNECTION_EVENT_FAILED},
		{"expire", flow.EventExpire, tcpSample(1, 0, 0), orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED},
		{"evict", flow.EventEvict, tcpSample(1, 0, 0), orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED},
		{"counted per packet", flow.EventOpen, perPacket, orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED},
		{"udp", flow.EventOpen, udp, orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Step(recordOf(tt.event, tt.sample)); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// An idle connection that comes back, one that is older than orb8 and one that is
// still being made are new to the table, but have not been opened just now.
func TestConnectionIsOpenedOnce(t *testing.T) {
	var steps []string
	table := flow.NewTable(flow.Config{
		MaxFlows: 10, IdleTimeout: time.Second, Losses: new(loss.Counters),
	}, func(r *flow.Record) { steps = append(steps, Step(r).String()) })
	feed := func(change func(*flow.Sample)) []string {
		steps = nil
		s := tcpSample(1, 0, 0)
		change(&s)
		table.Apply(&s)
		return steps
	}
	const opened, none = "CONNECTION_EVENT_OPENED", "CONNECTION_EVENT_UNSPECIFIED"
	for i, tt := range []struct {
		change func(*flow.Sample)
		want   string
	}{
		{func(s *flow.Sample) { s.TCP.State = flow.StateSynSent }, none},
		{func(s *flow.Sample) {}, opened},
		{func(s *flow.Sample) { s.Total.TxBytes = 5 }, none},
		{func(s *flow.Sample) { s.Instance++; s.TCP.Preexisting = true }, none},
		{func(s *flow.Sample) { s.Instance += 2; s.Base.TxBytes, s.Total.TxBytes, s.TCP.Told = 5, 6, true }, none},
		{func(s *flow.Sample) { s.Instance += 3 }, opened},
	} {
		got := feed(tt.change)
		if len(got) == 0 || got[len(got)-1] != tt.want {
			t.Errorf("step %d: %v, want %v last", i, got, tt.want)
		}
	}
}

func TestNetworkFlow(t *testing.T) {
	r := fullRecord()
	want := &orb8v1.NetworkFlow{
		Namespace: "shop", PodName: "web-1", SrcIp: "10.0.1.7", DstIp: "2001:db8::1", SrcPort: 41000, DstPort: 443,
		Protocol: "TCP", Direction: "egress", Bytes: 1, Packets: 2, FirstSeenNs: 100, LastSeenNs: 200,
		Workload: fullWorkload(), Peer: &orb8v1.Workload{Service: "api", Namespace: "bank"},
		Role: orb8v1.Role_ROLE_CLIENT, ByteUnit: orb8v1.ByteUnit_BYTE_UNIT_PAYLOAD, Loopback: true,
		Process: &orb8v1.Process{Pid: 4242, Command: "curl", Executable: "/usr/bin/curl"}, Tcp: fullTCP(), NodeName: "node-a", Netns: 4026531840,
	}
	if diff := cmp.Diff(want, NetworkFlow(r, Egress(r), "node-a"), protocmp.Transform()); diff != "" {
		t.Errorf("egress (-want +got)\n%s", diff)
	}
	want.SrcIp, want.DstIp, want.SrcPort, want.DstPort = want.DstIp, want.SrcIp, want.DstPort, want.SrcPort
	want.Direction, want.Bytes, want.Packets = "ingress", 3, 4
	if diff := cmp.Diff(want, NetworkFlow(r, Ingress(r), "node-a"), protocmp.Transform()); diff != "" {
		t.Errorf("ingress (-want +got)\n%s", diff)
	}
}

func TestDirections(t *testing.T) {
	tests := []struct {
		name   string
		c      flow.Counters
		tx, rx bool
	}{
		{"nothing", flow.Counters{}, true, false},
		{"sent", flow.Counters{TxBytes: 1}, true, false},
		{"sent packets without payload", flow.Counters{TxPackets: 1}, true, false},
		{"received", flow.Counters{RxPackets: 1}, false, true},
		{"both", flow.Counters{TxBytes: 1, RxBytes: 1}, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tx, rx := Directions(tt.c); tx != tt.tx || rx != tt.rx {
				t.Errorf("got %v %v, want %v %v", tx, rx, tt.tx, tt.rx)
			}
		})
	}
}

func TestNetworkEvents(t *testing.T) {
	type piece struct {
		Direction      string
		Bytes, Packets uint32
	}
	const most = math.MaxUint32
	tests := []struct {
		name  string
		event flow.Event
		delta flow.Counters
		want  []piece
	}{
		{"both directions", flow.EventUpdate, flow.Counters{TxBytes: 1, TxPackets: 2, RxBytes: 3, RxPackets: 4}, []piece{{"egress", 1, 2}, {"ingress", 3, 4}}},
		{"one direction", flow.EventUpdate, flow.Counters{RxBytes: 3, RxPackets: 4}, []piece{{"ingress", 3, 4}}},
		{"open without traffic", flow.EventOpen, flow.Counters{}, []piece{{"egress", 0, 0}}},
		{"close without traffic", flow.EventClose, flow.Counters{}, []piece{{"egress", 0, 0}}},
		{"update without traffic", flow.EventUpdate, flow.Counters{}, nil},
		{"expire", flow.EventExpire, flow.Counters{}, nil},
		{"evict with traffic", flow.EventEvict, flow.Counters{TxBytes: 1, TxPackets: 1}, []piece{{"egress", 1, 1}}},
		{"the most that fits", flow.EventUpdate, flow.Counters{TxBytes: most, TxPackets: 9}, []piece{{"egress", most, 9}}},
		{"one byte more", flow.EventUpdate, flow.Counters{TxBytes: most + 1, TxPackets: 9}, []piece{{"egress", most, 9}, {"egress", 1, 0}}},
		{"ten gigabytes in", flow.EventUpdate, flow.Counters{RxBytes: 10e9, RxPackets: 7e6}, []piece{
			{"ingress", most, 7e6}, {"ingress", most, 0}, {"ingress", 10e9 - 2*most, 0},
		}},
		{"more packets than fit", flow.EventUpdate, flow.Counters{TxBytes: 5, TxPackets: most + 2}, []piece{{"egress", 5, most}, {"egress", 0, 2}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := fullRecord()
			r.Event, r.Delta = tt.event, tt.delta
			var got []piece
			for _, e := range NetworkEvents(r) {
				got = append(got, piece{e.Direction, e.Bytes, e.Packets})
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestNetworkEventFields(t *testing.T) {
	want := &orb8v1.NetworkEvent{
		Namespace: "shop", PodName: "web-1", SrcIp: "2001:db8::1", DstIp: "10.0.1.7", SrcPort: 443, DstPort: 41000,
		Protocol: "TCP", Direction: "ingress", Bytes: 7, Packets: 8, TimestampNs: 300,
		Workload: fullWorkload(), Peer: &orb8v1.Workload{Service: "api", Namespace: "bank"},
	}
	if diff := cmp.Diff(want, NetworkEvents(fullRecord())[1], protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAbsurdDifferenceIsBounded(t *testing.T) {
	r := fullRecord()
	r.Delta = flow.Counters{TxBytes: math.MaxUint64}
	if got := len(NetworkEvents(r)); got != maxPieces {
		t.Errorf("%d events, want %d", got, maxPieces)
	}
}

// TestNumbersAreThoseOfTheAPI guards the conversions by number.
func TestNumbersAreThoseOfTheAPI(t *testing.T) {
	same := []struct {
		name string
		ours int
		api  protoreflect.Enum
	}{
		{"open", int(flow.EventOpen), orb8v1.FlowEvent_FLOW_EVENT_OPEN},
		{"update", int(flow.EventUpdate), orb8v1.FlowEvent_FLOW_EVENT_UPDATE},
		{"close", int(flow.EventClose), orb8v1.FlowEvent_FLOW_EVENT_CLOSE},
		{"expire", int(flow.EventExpire), orb8v1.FlowEvent_FLOW_EVENT_EXPIRE},
		{"evict", int(flow.EventEvict), orb8v1.FlowEvent_FLOW_EVENT_EVICT},
		{"client", int(record.RoleClient), orb8v1.Role_ROLE_CLIENT},
		{"server", int(record.RoleServer), orb8v1.Role_ROLE_SERVER},
		{"payload", int(flow.BytesPayload), orb8v1.ByteUnit_BYTE_UNIT_PAYLOAD},
		{"ip", int(flow.BytesIP), orb8v1.ByteUnit_BYTE_UNIT_IP},
		{"established", int(flow.StateEstablished), orb8v1.TcpState_TCP_STATE_ESTABLISHED},
		{"syn sent", int(flow.StateSynSent), orb8v1.TcpState_TCP_STATE_SYN_SENT},
		{"syn recv", int(flow.StateSynRecv), orb8v1.TcpState_TCP_STATE_SYN_RECV},
		{"close", int(flow.StateClose), orb8v1.TcpState_TCP_STATE_CLOSE},
		{"listen", int(flow.StateListen), orb8v1.TcpState_TCP_STATE_LISTEN},
		{"none", int(flow.EndNone), orb8v1.TcpEnd_TCP_END_UNSPECIFIED},
		{"fin", int(flow.EndFIN), orb8v1.TcpEnd_TCP_END_FIN},
		{"reset local", int(flow.EndResetLocal), orb8v1.TcpEnd_TCP_END_RESET_LOCAL},
		{"reset remote", int(flow.EndResetRemote), orb8v1.TcpEnd_TCP_END_RESET_REMOTE},
		{"timeout", int(flow.EndTimeout), orb8v1.TcpEnd_TCP_END_TIMEOUT},
		{"refused", int(flow.EndRefused), orb8v1.TcpEnd_TCP_END_REFUSED},
		{"unreachable", int(flow.EndUnreachable), orb8v1.TcpEnd_TCP_END_UNREACHABLE},
		{"aborted", int(flow.EndAborted), orb8v1.TcpEnd_TCP_END_ABORTED},
		{"error", int(flow.EndError), orb8v1.TcpEnd_TCP_END_ERROR},
	}
	for _, s := range same {
		if s.ours != int(s.api.Number()) {
			t.Errorf("%s: %d, but the API's is %d", s.name, s.ours, s.api.Number())
		}
	}
}

func BenchmarkConvert(b *testing.B) {
	r := fullRecord()
	r.Event, r.Delta = flow.EventUpdate, flow.Counters{TxBytes: 1000, TxPackets: 1, RxBytes: 1000, RxPackets: 1}
	b.Run("flow event", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Event(r, "n")
		}
	})
	b.Run("network events", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			NetworkEvents(r)
		}
	})
}

func addr(s string) record.Addr { return record.AddrOf(netip.MustParseAddr(s)) }

func comm(s string) (c record.Comm) {
	copy(c[:15], s)
	return c
}

// tcpSample is one of an established connection.
func tcpSample(localPort uint16, tx, rx uint64) flow.Sample {
	return flow.Sample{
		Key:      flow.Key{Local: addr("10.0.0.1"), Remote: addr("10.0.0.2"), LocalPort: localPort, RemotePort: 443, Protocol: record.TCP},
		Instance: uint64(localPort), Role: record.RoleClient, Unit: flow.BytesPayload, First: 1, Last: 2,
		Total: flow.Counters{TxBytes: tx, RxBytes: rx},
		TCP:   flow.TCPInfo{Valid: true, State: flow.StateEstablished},
	}
}

func recordOf(e flow.Event, s flow.Sample) *flow.Record {
	r := flow.NewRecord(&s)
	r.Event, r.Connected = e, e == flow.EventOpen && s.TCP.Valid
	return &r
}
