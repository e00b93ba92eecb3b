// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// service is a Service with its EndpointSlices, which may come first: then it
// is not known yet.
type service struct {
	object
	known                   bool
	clusterIPs, externalIPs []netip.Addr
	ports                   []ServicePort
	slices                  []*slice
	// version counts changes of all this.
	version uint64
	// answers has one entry per port, and a last one for ports that it does not
	// have.
	answers []atomic.Pointer[answer]
}

type slice struct {
	svc       *service
	ports     []EndpointPort
	endpoints []Endpoint
}

// target is a port of a Service, by name.
type target struct {
	svc  *service
	name string
}

func compareTargets(a, b target) int {
	return cmp.Or(
		strings.Compare(a.svc.namespace, b.svc.namespace), strings.Compare(a.svc.name, b.svc.name),
		strings.Compare(a.name, b.name),
	)
}

// endpoint is an address that no pod has.
type endpoint struct {
	addr netip.Addr
	port HostPort
}

// answer is what a Service's port is called, and what that depends on.
type answer struct {
	id *workload.Identity
	// of the service, and of the Store.
	version, owners uint64
	// missing: an endpoint's pod was not known at arrivals.
	missing  bool
	arrivals uint64
	// pod, if there is one only, as it was.
	pod   *pod
	podID *workload.Identity
}

// UpsertService adds or changes a Service.
func (s *Store) UpsertService(in *Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upsertService(in)
}

// DeleteService is told that a Service is no more.
func (s *Store) DeleteService(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if svc := s.services[object{namespace, name}]; svc != nil {
		s.dropService(svc)
	}
}

// ReplaceServices is told all Services.
func (s *Store) ReplaceServices(all []*Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed := make(map[object]bool, len(all))
	for _, in := range all {
		listed[object{in.Namespace, in.Name}] = true
		s.upsertService(in)
	}
	for key, svc := range s.services {
		if svc.known && !listed[key] {
			s.dropService(svc)
		}
	}
}

func (s *Store) upsertService(in *Service) {
	svc := s.service(object{in.Namespace, in.Name})
	if svc.known && slices.Equal(svc.clusterIPs, in.ClusterIPs) &&
		slices.Equal(svc.externalIPs, in.ExternalIPs) && slices.Equal(svc.ports, in.Ports) {
		return
	}
	s.unindex(svc)
	svc.known = true
	svc.version++
	svc.clusterIPs, svc.externalIPs = in.ClusterIPs, in.ExternalIPs
	if !slices.Equal(svc.ports, in.Ports) {
		svc.ports = in.Ports
		svc.answers = make([]atomic.Pointer[answer], len(in.Ports)+1)
	}
	for _, addr := range svc.clusterIPs {
		s.clusterIPs[addr] = svc
		s.arrived(addr)
	}
	for _, addr := range svc.externalIPs {
		s.external[addr] = append(s.external[addr], svc)
		s.arrived(addr)
	}
	for _, p := range svc.ports {
		if p.NodePort != 0 {
			s.nodePorts[HostPort{p.NodePort, p.Protocol}] = target{svc, p.Name}
		}
	}
}

// service returns the Service of that name, made if it must be.
func (s *Store) service(key object) *service {
	svc := s.services[key]
	if svc == nil {
		svc = &service{object: key, answers: make([]atomic.Pointer[answer], 1)}
		s.services[key] = svc
	}
	return svc
}

func (s *Store) dropService(svc *service) {
	s.unindex(svc)
	svc.known = false
	svc.version++
	svc.clusterIPs, svc.externalIPs, svc.ports = nil, nil, nil
	svc.answers = make([]atomic.Pointer[answer], 1)
	s.dropUnused(svc)
}

func (s *Store) dropUnused(svc *service) {
	if !svc.known && len(svc.slices) == 0 {
		delete(s.services, svc.object)
	}
}

func (s *Store) unindex(svc *service) {
	for _, addr := range svc.clusterIPs {
		if s.clusterIPs[addr] == svc {
			delete(s.clusterIPs, addr)
		}
	}
	for _, addr := range svc.externalIPs {
		rest := slices.DeleteFunc(s.external[addr], func(o *service) bool { return o == svc })
		if s.external[addr] = rest; len(rest) == 0 {
			delete(s.external, addr)
		}
	}
	for _, p := range svc.ports {
		if key := (HostPort{p.NodePort, p.Protocol}); s.nodePorts[key].svc == svc {
			delete(s.nodePorts, key)
		}
	}
}

// UpsertSlice adds or changes an EndpointSlice.
func (s *Store) UpsertSlice(in *EndpointSlice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upsertSlice(in)
}

// DeleteSlice is told that an EndpointSlice is no more.
func (s *Store) DeleteSlice(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropSlice(object{namespace, name})
}

// ReplaceSlices is told all EndpointSlices.
func (s *Store) ReplaceSlices(all []*EndpointSlice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed := make(map[object]bool, len(all))
	for _, in := range all {
		listed[object{in.Namespace, in.Name}] = true
		s.upsertSlice(in)
	}
	for key := range s.slices {
		if !listed[key] {
			s.dropSlice(key)
		}
	}
}

func (s *Store) upsertSlice(in *EndpointSlice) {
	key := object{in.Namespace, in.Name}
	if in.Service == "" {
		s.dropSlice(key)
		return
	}
	slices.SortFunc(in.Endpoints, compareEndpoints)
	old := s.slices[key]
	if old != nil && old.svc.object == (object{in.Namespace, in.Service}) &&
		slices.Equal(old.ports, in.Ports) && slices.Equal(old.endpoints, in.Endpoints) {
		return
	}
	s.dropSlice(key)
	svc := s.service(object{s.shared.string(in.Namespace), in.Service})
	sl := &slice{svc: svc, ports: in.Ports, endpoints: in.Endpoints}
	for i := range sl.ports {
		sl.ports[i].Name = s.shared.string(sl.ports[i].Name)
	}
	for i := range sl.endpoints {
		e := &sl.endpoints[i]
		if p := s.pods[e.PodUID]; p != nil {
			e.PodUID = p.uid
		}
	}
	s.slices[key] = sl
	svc.slices = append(svc.slices, sl)
	svc.version++
	sl.each(func(e endpoint, name string) {
		s.bare[e] = append(s.bare[e], target{svc, name})
		slices.SortFunc(s.bare[e], compareTargets)
		s.arrived(e.addr)
	})
}

func (s *Store) dropSlice(key object) {
	sl := s.slices[key]
	if sl == nil {
		return
	}
	delete(s.slices, key)
	sl.each(func(e endpoint, name string) {
		rest := s.bare[e]
		if i := slices.Index(rest, target{sl.svc, name}); i >= 0 { // one of them: slices may repeat it
			rest = slices.Delete(rest, i, i+1)
		}
		if s.bare[e] = rest; len(rest) == 0 {
			delete(s.bare, e)
		}
	})
	sl.svc.slices = slices.DeleteFunc(sl.svc.slices, func(o *slice) bool { return o == sl })
	sl.svc.version++
	s.dropUnused(sl.svc)
}

// each calls f with all endpoints that no pod is named for.
func (sl *slice) each(f func(e endpoint, name string)) {
	for _, e := range sl.endpoints {
		if e.PodUID != "" || e.Away {
			continue
		}
		for _, p := range sl.ports {
			f(endpoint{e.Addr, HostPort{p.Port, p.Protocol}}, p.Name)
		}
	}
}

// answer returns what the port at an index of svc.ports is called; index -1
// stands for a port that is not known. It is called with s.mu held for reading.
func (s *Store) answer(svc *service, index int) *workload.Identity {
	memo := &svc.answers[len(svc.answers)-1]
	if index >= 0 {
		memo = &svc.answers[index]
	}
	old := memo.Load()
	if old != nil && old.version == svc.version && old.owners == s.owners &&
		(!old.missing || old.arrivals == s.arrivals) &&
		(old.pod == nil || s.identity(old.pod) == old.podID) {
		return old.id
	}
	fresh := s.serve(svc, index)
	if old != nil && reflect.DeepEqual(old.id, fresh.id) {
		fresh.id = old.id
	}
	if memo.CompareAndSwap(old, fresh) {
		return fresh.id
	}
	return memo.Load().id
}

// serve makes the answer for a port: the workload behind it if it is one only.
func (s *Store) serve(svc *service, index int) *answer {
	a := &answer{version: svc.version, owners: s.owners, arrivals: s.arrivals}
	a.id = &workload.Identity{Namespace: svc.namespace, Service: svc.name, Kind: KindService, Name: svc.name}
	var first *pod
	several, mixed := false, false
	for _, sl := range svc.slices {
		if index >= 0 && !slices.ContainsFunc(sl.ports, svc.ports[index].matches) {
			continue
		}
		for _, e := range sl.endpoints {
			if e.Away {
				continue
			}
			p := s.pods[e.PodUID]
			if e.PodUID == "" {
				p = s.ips[e.Addr]
			}
			switch {
			case p == nil:
				a.missing = a.missing || e.PodUID != ""
				mixed = true
			case first == nil:
				first = p
			case p != first:
				s.wanted(p)
				several = true
				mixed = mixed || p.kind != first.kind || p.workload != first.workload || p.namespace != first.namespace
			}
		}
	}
	if first == nil || mixed {
		return a
	}
	a.id.Kind, a.id.Name, a.id.OwnerPending = first.kind, first.workload, first.pending
	if several {
		s.wanted(first)
		return a
	}
	a.pod, a.podID = first, s.identity(first)
	one := *a.podID
	one.Service, one.Namespace = svc.name, svc.namespace
	a.id = &one
	return a
}

// matches reports whether a slice's port is this one: they share the name.
func (p ServicePort) matches(e EndpointPort) bool {
	return e.Name == p.Name && e.Protocol == p.Protocol
}

// port finds a port among the Service's, or returns -1.
func (svc *service) port(port HostPort) int {
	for i := range svc.ports {
		if svc.ports[i].Port == port.Port && svc.ports[i].Protocol == port.Protocol {
			return i
		}
	}
	return -1
}

// named finds a port by its name, or returns -1.
func (svc *service) named(name string) int {
	return slices.IndexFunc(svc.ports, func(p ServicePort) bool { return p.Name == name })
}

// Backs reports whether a Service sends to a port of a server, by its
// EndpointSlices; see workload.Cluster.
func (s *Store) Backs(service, server *workload.Identity, addr netip.Addr, port uint16, protocol uint8) (backs, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	svc := s.services[object{service.Namespace, service.Service}]
	if svc == nil || !svc.known || len(svc.slices) == 0 {
		return false, false
	}
	uid := server.PodUID
	if p := s.hashes[uid]; p != nil {
		uid = p.uid
	}
	for _, sl := range svc.slices {
		if sl.has(port, protocol) && (sl.lists(Endpoint{PodUID: uid}) || sl.lists(Endpoint{Addr: addr.Unmap()})) {
			return true, true
		}
	}
	return false, true
}

// has reports whether a slice has a port; one without a number stands for any.
func (sl *slice) has(port uint16, protocol uint8) bool {
	return slices.ContainsFunc(sl.ports, func(p EndpointPort) bool {
		return p.Protocol == protocol && (p.Port == port || p.Port == 0)
	})
}

func (sl *slice) lists(e Endpoint) bool {
	_, found := slices.BinarySearchFunc(sl.endpoints, e, compareEndpoints)
	return found
}
