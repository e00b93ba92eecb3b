// SPDX-License-Identifier: Apache-2.0

package orb8v1_test

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// TestPublishedContract holds the API to what clients of the first published
// version were built with: names, numbers and types. What came later starts at 20.
func TestPublishedContract(t *testing.T) {
	type field struct {
		number protoreflect.FieldNumber
		kind   string
	}
	published := map[string]map[string]field{
		"QueryFlowsRequest": {
			"namespaces": {1, "repeated string"}, "pod_names": {2, "repeated string"}, "limit": {3, "uint32"},
		},
		"QueryFlowsResponse":  {"flows": {1, "repeated orb8.v1.NetworkFlow"}},
		"StreamEventsRequest": {"namespaces": {1, "repeated string"}},
		"GetStatusRequest":    {},
		"NetworkFlow": {
			"namespace": {1, "string"}, "pod_name": {2, "string"}, "src_ip": {3, "string"}, "dst_ip": {4, "string"},
			"src_port": {5, "uint32"}, "dst_port": {6, "uint32"}, "protocol": {7, "string"}, "direction": {8, "string"},
			"bytes": {9, "uint64"}, "packets": {10, "uint64"}, "first_seen_ns": {11, "int64"}, "last_seen_ns": {12, "int64"},
		},
		"NetworkEvent": {
			"namespace": {1, "string"}, "pod_name": {2, "string"}, "src_ip": {3, "string"}, "dst_ip": {4, "string"},
			"src_port": {5, "uint32"}, "dst_port": {6, "uint32"}, "protocol": {7, "string"}, "direction": {8, "string"},
			"bytes": {9, "uint32"}, "timestamp_ns": {10, "int64"},
		},
		"AgentStatus": {
			"node_name": {1, "string"}, "version": {2, "string"}, "healthy": {3, "bool"}, "health_message": {4, "string"},
			"events_processed": {5, "uint64"}, "events_dropped": {6, "uint64"}, "pods_tracked": {7, "uint32"},
			"active_flows": {8, "uint32"}, "uptime_seconds": {9, "int64"},
		},
	}
	file := orb8v1.File_orb8_v1_orb8_proto
	if file.Package() != "orb8.v1" {
		t.Errorf("package %s", file.Package())
	}
	for name, fields := range published {
		m := file.Messages().ByName(protoreflect.Name(name))
		if m == nil {
			t.Errorf("no message %s", name)
			continue
		}
		for field, want := range fields {
			f := m.Fields().ByName(protoreflect.Name(field))
			if f == nil || f.Number() != want.number || kindOf(f) != want.kind {
				t.Errorf("%s.%s is not %s = %d", name, field, want.kind, want.number)
			}
		}
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if _, old := fields[string(f.Name())]; !old && f.Number() < 20 {
				t.Errorf("%s.%s has number %d: what came later starts at 20", name, f.Name(), f.Number())
			}
		}
	}
	methods := file.Services().ByName("OrbitAgentService").Methods()
	for name, want := range map[string]struct {
		in, out protoreflect.FullName
		stream  bool
	}{
		"QueryFlows":   {"orb8.v1.QueryFlowsRequest", "orb8.v1.QueryFlowsResponse", false},
		"StreamEvents": {"orb8.v1.StreamEventsRequest", "orb8.v1.NetworkEvent", true},
		"GetStatus":    {"orb8.v1.GetStatusRequest", "orb8.v1.AgentStatus", false},
		"Observe":      {"orb8.v1.ObserveRequest", "orb8.v1.Event", true},
	} {
		m := methods.ByName(protoreflect.Name(name))
		if m == nil || m.Input().FullName() != want.in || m.Output().FullName() != want.out ||
			m.IsStreamingServer() != want.stream || m.IsStreamingClient() {
			t.Errorf("method %s is not (%s) -> %s, stream %v", name, want.in, want.out, want.stream)
		}
	}
}

func kindOf(f protoreflect.FieldDescriptor) string {
	kind := f.Kind().String()
	if f.Message() != nil {
		kind = string(f.Message().FullName())
	}
	if f.IsList() {
		kind = "repeated " + kind
	}
	return kind
}
