// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// node may be known by its pods only; then it has no identity.
type node struct {
	name, zone string
	addrs      []netip.Addr
	cidrs      []netip.Prefix
	id         *workload.Identity
}

// UpsertNode adds or changes a node.
func (s *Store) UpsertNode(in *Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upsertNode(in) {
		s.rezone(map[string]bool{in.Name: true})
	}
}

// DeleteNode is told that a node is no more.
func (s *Store) DeleteNode(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropNode(s.nodes[name])
}

// ReplaceNodes is told all nodes.
func (s *Store) ReplaceNodes(all []*Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed, moved := make(map[string]bool, len(all)), make(map[string]bool)
	for _, in := range all {
		listed[in.Name] = true
		if s.upsertNode(in) {
			moved[in.Name] = true
		}
	}
	for name, n := range s.nodes {
		if !listed[name] {
			s.dropNode(n)
		}
	}
	s.rezone(moved)
}

// upsertNode reports whether the node's zone is another one now.
func (s *Store) upsertNode(in *Node) bool {
	old := s.nodes[in.Name]
	if old != nil && old.zone == in.Zone && slices.Equal(old.addrs, in.Addrs) && slices.Equal(old.cidrs, in.PodCIDRs) {
		return false
	}
	s.dropNode(old)
	n := &node{name: s.shared.string(in.Name), zone: s.shared.string(in.Zone), addrs: in.Addrs, cidrs: in.PodCIDRs}
	n.id = &workload.Identity{Kind: KindNode, Name: n.name, Node: n.name, Zone: n.zone}
	if old != nil && old.zone == n.zone {
		n.id = old.id
	}
	s.nodes[n.name] = n
	for _, addr := range n.addrs {
		s.nodeIPs[addr] = n
		s.arrived(addr)
	}
	for _, p := range n.cidrs {
		s.ranges[p] = n
		s.prefixes[p.Bits()]++
		s.arrived(p.Addr())
		s.arrived(p.Addr().Next())
	}
	return old == nil && n.zone != "" || old != nil && old.zone != n.zone
}

func (s *Store) dropNode(n *node) {
	if n == nil {
		return
	}
	delete(s.nodes, n.name)
	for _, addr := range n.addrs {
		if s.nodeIPs[addr] == n {
			delete(s.nodeIPs, addr)
		}
	}
	for _, p := range n.cidrs {
		if s.prefixes[p.Bits()]--; s.prefixes[p.Bits()] == 0 {
			delete(s.prefixes, p.Bits())
		}
		if s.ranges[p] == n {
			delete(s.ranges, p)
		}
	}
}

// pending is how long an address of a node's range may be that of a pod that the API server
// has not told of yet.
const pending = int64(10 * time.Second)

// gateway finds the node in whose range of pods' addresses an address is. The first two are
// never a pod's: that of the network, which tunnels use, and the gateway's. Of others a pod
// may not be known yet, if the flow is young, or not at all, where not all pods are.
func (s *Store) gateway(q *workload.Peer) *node {
	for bits := range s.prefixes {
		p, err := q.Addr.Prefix(bits)
		if err != nil {
			continue // of the other family
		}
		n := s.ranges[p]
		if n == nil {
			continue
		}
		first := p.Addr()
		if q.Addr == first || q.Addr == first.Next() || q.Since != 0 && q.Since < s.now().UnixNano()-pending && s.allPods() {
			return n
		}
	}
	return nil
}

// rezone renames the pods on nodes whose zone changed.
func (s *Store) rezone(nodes map[string]bool) {
	if len(nodes) == 0 {
		return
	}
	own := false
	for _, p := range s.pods {
		if nodes[p.node] {
			s.refresh(p)
			own = own || p.own != nil
		}
	}
	if own {
		s.signal()
	}
}

// Peer finds the pod, Service or node that an address and port belong to; see
// workload.Cluster.
func (s *Store) Peer(q workload.Peer) (*workload.Identity, bool) {
	q.Addr = q.Addr.Unmap().WithZone("")
	s.mu.RLock()
	id := s.peer(q)
	s.mu.RUnlock()
	if id == nil {
		if q.Addr.IsValid() {
			s.missed.note(q.Addr)
		}
		return nil, false
	}
	return id, true
}

// peer tries who has the address for itself first, then who shares it.
func (s *Store) peer(q workload.Peer) *workload.Identity {
	if p := s.podAt(q.Addr, q.Since); p != nil {
		return s.identity(p)
	}
	port := HostPort{q.Port, q.Protocol}
	if q.Port == 0 || q.Protocol == 0 {
		port = HostPort{}
	}
	if svc := s.clusterIPs[q.Addr]; svc != nil {
		return s.answer(svc, svc.port(port))
	}
	n := s.nodeIPs[q.Addr]
	if id := s.externally(q.Addr, port, n != nil); id != nil {
		return id
	}
	if port != (HostPort{}) {
		if id := s.byPort(&q, n, port); id != nil {
			return id
		}
	}
	if n != nil {
		return n.id
	}
	if p := s.former(q.Addr, q.Since); p != nil {
		return s.identity(p)
	}
	for _, p := range s.secondary[q.Addr] {
		if mayName(p.namespace, q.Namespace) {
			return s.identity(p)
		}
	}
	if n := s.gateway(&q); n != nil {
		return n.id
	}
	return nil
}

// externally finds the Service that an address from outside belongs to. Several
// may share one. Where it is also a node's, only the Service's ports count.
func (s *Store) externally(addr netip.Addr, port HostPort, node bool) *workload.Identity {
	all := s.external[addr]
	for _, svc := range all {
		if i := svc.port(port); i >= 0 {
			return s.answer(svc, i)
		}
	}
	if len(all) == 0 || node {
		return nil
	}
	first := all[0]
	for _, svc := range all[1:] {
		if svc.namespace < first.namespace || svc.namespace == first.namespace && svc.name < first.name {
			first = svc
		}
	}
	return s.answer(first, -1)
}

// byPort finds who shares an address with others by the port. n is the node
// that has it, if any.
func (s *Store) byPort(q *workload.Peer, n *node, port HostPort) *workload.Identity {
	if n != nil {
		if t, ok := s.nodePorts[port]; ok {
			return s.answer(t.svc, t.svc.named(t.name))
		}
		// If two say that they have it, it is not known who does.
		if all := s.hostPorts[nodePort{n.name, port}]; len(all) == 1 {
			return s.identity(all[0])
		}
	}
	// Of several Services with the same endpoint, the first by name.
	for _, t := range s.bare[endpoint{q.Addr, port}] {
		if t.svc.known && mayName(t.svc.namespace, q.Namespace) {
			return s.answer(t.svc, t.svc.named(t.name))
		}
	}
	return nil
}

// mayName reports whether what a namespace says of an address that is no pod's counts for
// a workload of another, or of the host. Anybody who may write EndpointSlices may put any
// address of the world into one; so it is for his own workloads only, but for the
// namespaces of the cluster itself, which has the API server so.
func mayName(owner, asking string) bool {
	return owner == asking || owner == metav1.NamespaceDefault || owner == metav1.NamespaceSystem
}
