// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// TestDropsWithoutSocket: whose they are goes by the addresses, and there is one node
// whose they are.
func TestDropsWithoutSocket(t *testing.T) {
	const pod, neighbour, far, node, otherNode, service, outside = "10.1.0.1", "10.1.0.2", "10.2.0.1", "10.9.0.1", "10.9.0.2", "10.97.0.1", "192.0.2.1"
	onPod := func(name, node string) *workload.Identity {
		return &workload.Identity{Namespace: "default", Pod: name, Kind: "Deployment", Name: name, Node: node}
	}
	ids := map[netip.Addr]*workload.Identity{
		netip.MustParseAddr(pod): onPod("pod", "node-a"), netip.MustParseAddr(neighbour): onPod("neighbour", "node-a"),
		netip.MustParseAddr(far):       onPod("far", "node-b"),
		netip.MustParseAddr(node):      {Kind: "Node", Name: "node-a", Node: "node-a"},
		netip.MustParseAddr(otherNode): {Kind: "Node", Name: "node-b", Node: "node-b"},
		// Of one pod only, which is then known.
		netip.MustParseAddr(service): {Namespace: "default", Pod: "pod", Kind: "Deployment", Name: "pod", Node: "node-a", Service: "web"},
	}
	cases := []struct {
		name     string
		src, dst string
		ingress  bool
		// alone is for whom it counts on a kernel of its own, shared on one that other
		// nodes have, too; empty for nobody.
		alone, shared string
		// end is the address that the event has as the local one.
		end string
	}{
		{"closed port", outside, pod, true, "pod", "pod", pod},
		{"closed port of a neighbour", neighbour, pod, true, "pod", "pod", pod},
		{"closed port of another node's pod", pod, far, true, "pod", "", pod},
		{"sent", pod, far, false, "pod", "pod", pod},
		{"passed on for a pod", pod, outside, false, "pod", "pod", pod},
		{"passed on to a pod", outside, pod, false, "pod", "pod", pod},
		{"passed on between pods", pod, neighbour, false, "pod", "pod", pod},
		{"passed on from another node", far, pod, false, "pod", "", pod},
		{"to the node", outside, node, true, "node-a", "node-a", node},
		{"to the node from its pod", pod, node, true, "pod", "pod", pod},
		{"to another node", outside, otherNode, true, "kernel", "", otherNode},
		{"between others", outside, far, false, "kernel", "", outside},
		{"to a service", outside, service, true, "kernel", "", service},
		{"unknown", outside, outside, true, "kernel", "", outside},
	}
	for _, c := range cases {
		for shared, want := range map[bool]string{false: c.alone, true: c.shared} {
			r := newRig(t, func(_ *Config, deps *Deps, r *rig) {
				deps.SharedKernel = shared
				r.resolver.remote = ids
				r.resolver.local = map[uint64]*workload.Identity{0: {Kind: workload.KindKernel, Name: "kernel"}}
			})
			src, dst := flow.AddrOf(netip.MustParseAddr(c.src)), flow.AddrOf(netip.MustParseAddr(c.dst))
			got := ""
			if id := r.dropped(&flow.DropCount{Reason: "NO_SOCKET", Src: src, Dst: dst, Ingress: c.ingress, Packets: 1}); id != nil {
				got = id.Name
			}
			if got != want {
				t.Errorf("%s, shared %v: counts for %q, want %q", c.name, shared, got, want)
			}
			sample := flow.Sample{Key: flow.Key{Local: src, Remote: dst, LocalPort: 1, RemotePort: 2}}
			if c.ingress {
				sample.Local, sample.Remote, sample.LocalPort, sample.RemotePort = dst, src, 2, 1
			}
			r.note(&sample, &flow.Drop{Reason: "NO_SOCKET", Ingress: c.ingress})
			checkDropEvent(t, c.name, r, want != "", c.end, c.dst)
		}
	}
}

// checkDropEvent looks at the only event that there may be, of a packet from port 1 to
// port 2 at dst.
func checkDropEvent(t *testing.T, name string, r *rig, want bool, local, dst string) {
	t.Helper()
	told := r.hub.query(&interest{drops: true}, pastQuery{last: 10}).updates
	if !want {
		if len(told) != 0 {
			t.Errorf("%s: told of although it is not this node's", name)
		}
		return
	}
	if len(told) != 1 {
		t.Errorf("%s: %d events, want 1", name, len(told))
		return
	}
	type end struct {
		IP, Direction string
		Port          uint32
	}
	wanted := end{local, "egress", 1}
	if local == dst {
		wanted.Direction, wanted.Port = "ingress", 2
	}
	d := told[0].event(&interest{drops: true}).GetDrop()
	if diff := cmp.Diff(wanted, end{d.GetLocal().GetIp(), d.GetDirection(), d.GetLocal().GetPort()}); diff != "" {
		t.Errorf("%s: event (-want +got):\n%s", name, diff)
	}
}

// TestDropOfSocket: a socket's cgroup says whose it is, whatever the addresses.
func TestDropOfSocket(t *testing.T) {
	r := newRig(t, func(_ *Config, deps *Deps, r *rig) {
		deps.SharedKernel = true
		r.resolver.local = map[uint64]*workload.Identity{7: {Kind: "Deployment", Name: "web"}}
	})
	if id := r.dropped(&flow.DropCount{Reason: "SOCKET_RCVBUFF", CgroupID: 7, Packets: 1}); id == nil || id.Name != "web" {
		t.Errorf("counts for %v", id)
	}
}
