// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"slices"
	"time"
)

// claim makes p the owner of an address, unless a pod that started later has it.
func (s *Store) claim(p *pod, addr netip.Addr) {
	s.dropOther(p, addr)
	holder := s.ips[addr]
	switch {
	case holder == nil || holder == p:
		s.ips[addr] = p
	case p.started >= holder.started:
		s.ips[addr] = p
		s.others[addr] = append(s.others[addr], holder)
	default:
		s.others[addr] = append(s.others[addr], p)
	}
	s.arrived(addr)
}

// release takes the addresses and ports from p. What another living pod claims
// as well goes to that one.
func (s *Store) release(p *pod) {
	for _, addr := range p.ips {
		s.dropOther(p, addr)
		if s.ips[addr] != p {
			continue
		}
		delete(s.ips, addr)
		var next *pod
		for _, o := range s.others[addr] {
			if o.ended == 0 && (next == nil || o.started >= next.started) {
				next = o
			}
		}
		if next != nil {
			s.claim(next, addr)
		}
	}
	for _, addr := range s.further[p] {
		remove(s.secondary, addr, p)
	}
	delete(s.further, p)
	s.dropPorts(p)
}

func (s *Store) dropOther(p *pod, addr netip.Addr) { remove(s.others, addr, p) }

func (s *Store) claimPorts(p *pod) {
	if p.ended != 0 || p.node == "" {
		return
	}
	for _, port := range p.ports {
		add(s.hostPorts, nodePort{p.node, port}, p)
	}
}

func (s *Store) dropPorts(p *pod) {
	for _, port := range p.ports {
		remove(s.hostPorts, nodePort{p.node, port}, p)
	}
}

// add and remove keep the pods that claim something.
func add[K comparable](claims map[K][]*pod, key K, p *pod) {
	if all := claims[key]; !slices.Contains(all, p) {
		claims[key] = append(all, p)
	}
}

func remove[K comparable](claims map[K][]*pod, key K, p *pod) {
	all := claims[key]
	i := slices.Index(all, p)
	switch {
	case i < 0:
	case len(all) == 1:
		delete(claims, key)
	default:
		claims[key] = slices.Delete(all, i, i+1)
	}
}

// clockSkew is how far the clocks of two nodes may be apart: a pod's start is
// told by its kubelet, a flow's begin by this node.
const clockSkew = int64(5 * time.Second)

// podAt finds the pod that has an address or, where since says that it cannot
// be meant, the one that had it then: nil if that is not known.
func (s *Store) podAt(addr netip.Addr, since int64) *pod {
	p := s.ips[addr]
	if p == nil || since == 0 || since >= p.started {
		return p
	}
	if before := s.former(addr, since); before != nil {
		return before
	}
	if since+clockSkew < p.started {
		return nil
	}
	return p
}

// former finds the pod that had an address at since, or last if since is 0.
func (s *Store) former(addr netip.Addr, since int64) *pod {
	var best *pod
	for _, p := range s.others[addr] {
		switch {
		case p.ended == 0 || since > p.ended:
		case best == nil, since == 0 && p.ended > best.ended, since != 0 && p.ended < best.ended:
			best = p
		}
	}
	return best
}
