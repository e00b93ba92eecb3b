// SPDX-License-Identifier: Apache-2.0

// Package kube is what a node agent knows of its Kubernetes cluster: which pod
// owns a container, and which pod, Service or node an address belongs to. It
// knows nothing of flows or of BPF.
//
// A Store is the index in memory. A Cluster keeps it up to date from the API
// server: this node's pods by a watch of its own, everybody else by a
// PeerSource.
package kube

import (
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// Kinds that the Store gives by itself.
const (
	KindPod     = "Pod"
	KindService = "Service"
	KindNode    = "Node"
)

const defaultLinger = 60 * time.Second

// StoreConfig holds what a Store may be given.
type StoreConfig struct {
	// Linger is how long a deleted pod stays known. Default 60 s.
	Linger time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// AllPods reports whether all pods of the cluster are known, but for the latest. It must
	// not call the Store. Default: they are.
	AllPods func() bool
}

// Counts says how much a Store knows.
type Counts struct {
	// Pods of the own node, and Peers elsewhere; deleted ones do not count.
	Pods, Peers, Services, Nodes int
}

// Store answers who a container or an address is, from memory. It may be used
// from any goroutine; look-ups do not allocate once an identity was asked for.
//
// Pods come from two sources, which may tell of the same pod: what the own
// node's source says wins.
type Store struct {
	linger  time.Duration
	now     func() time.Time
	allPods func() bool

	changed chan struct{}
	missed  misses

	mu     sync.RWMutex
	shared *interner
	// limit is the size of shared at which it is made anew.
	limit int
	pods  map[string]*pod // by UID
	own   map[string]*pod // those of the own node
	here  int             // of pods, those that have not left the API
	// containers and hashes find pods of the own node.
	containers, hashes map[string]*pod
	names              map[object]*pod // the latest of that name, of the own node
	// ips has the pod that an address belongs to, others those that had it
	// before or say that they have it as well.
	ips    map[netip.Addr]*pod
	others map[netip.Addr][]*pod
	// leaving are the pods to be forgotten, in the order of their time.
	leaving []expiry

	nodes     map[string]*node
	nodeIPs   map[netip.Addr]*node
	hostPorts map[nodePort][]*pod
	// ranges has the nodes by the ranges of their pods' addresses, prefixes how many there
	// are of each length. secondary has the pods by the addresses of further interfaces,
	// further these addresses.
	ranges    map[netip.Prefix]*node
	prefixes  map[int]int
	secondary map[netip.Addr][]*pod
	further   map[*pod][]netip.Addr

	services   map[object]*service
	slices     map[object]*slice
	clusterIPs map[netip.Addr]*service
	external   map[netip.Addr][]*service
	nodePorts  map[HostPort]target
	bare       map[endpoint][]target
	// climbing are the pods elsewhere whose owners are looked for, by UID, asked those that
	// were asked for since.
	climbing map[string]*pod
	asked    chan *pod
	// owners and arrivals count changes that answers for Services depend on.
	owners, arrivals uint64
}

type object struct{ namespace, name string }

type expiry struct {
	due int64
	pod *pod
}

// NewStore makes an empty Store.
func NewStore(cfg StoreConfig) *Store {
	if cfg.Linger <= 0 {
		cfg.Linger = defaultLinger
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.AllPods == nil {
		cfg.AllPods = func() bool { return true }
	}
	return &Store{
		linger:     cfg.Linger,
		now:        cfg.Now,
		allPods:    cfg.AllPods,
		changed:    make(chan struct{}, 1),
		shared:     newInterner(),
		limit:      minShared,
		pods:       make(map[string]*pod),
		own:        make(map[string]*pod),
		containers: make(map[string]*pod),
		hashes:     make(map[string]*pod),
		names:      make(map[object]*pod),
		ips:        make(map[netip.Addr]*pod),
		others:     make(map[netip.Addr][]*pod),
		nodes:      make(map[string]*node),
		nodeIPs:    make(map[netip.Addr]*node),
		hostPorts:  make(map[nodePort][]*pod),
		ranges:     make(map[netip.Prefix]*node),
		prefixes:   make(map[int]int),
		secondary:  make(map[netip.Addr][]*pod),
		further:    make(map[*pod][]netip.Addr),
		services:   make(map[object]*service),
		slices:     make(map[object]*slice),
		clusterIPs: make(map[netip.Addr]*service),
		external:   make(map[netip.Addr][]*service),
		nodePorts:  make(map[HostPort]target),
		bare:       make(map[endpoint][]target),
		climbing:   make(map[string]*pod),
		asked:      make(chan *pod, 256),
	}
}

// Changed gets a value when the own node's pods changed, or something did that
// Peer was asked for in vain. Values are not queued: there is one at most.
func (s *Store) Changed() <-chan struct{} { return s.changed }

func (s *Store) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Pod finds a pod by a container's id or else by its UID or, for static pods,
// by the hash of its manifest; see workload.Cluster.
func (s *Store) Pod(containerID, podUID string) (*workload.Identity, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p := s.containers[containerID]
	if p == nil {
		p = s.pods[podUID]
	}
	if p == nil {
		p = s.hashes[podUID]
	}
	if p == nil {
		return nil, false
	}
	return s.identity(p), true
}

// Named finds a pod of the own node by its name, of several that had it the latest.
// runs is false if it has ended or left the API.
func (s *Store) Named(namespace, name string) (id *workload.Identity, runs, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p := s.names[object{namespace, name}]
	if p == nil {
		return nil, false, false
	}
	return s.identity(p), p.gone == 0 && p.ended == 0, true
}

// Addrs returns the addresses of the own node's pods whose labels match, in order.
func (s *Store) Addrs(namespace string, match func(labels map[string]string) bool) []netip.Addr {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []netip.Addr
	for _, p := range s.names {
		if p.gone == 0 && p.ended == 0 && p.namespace == namespace && match(p.labels) {
			all = append(all, p.ips...)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// Counts returns how much is known now.
func (s *Store) Counts() Counts {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var c Counts
	for _, p := range s.own {
		if p.gone == 0 {
			c.Pods++
		}
	}
	c.Peers = s.here - c.Pods
	for _, svc := range s.services {
		if svc.known {
			c.Services++
		}
	}
	for _, n := range s.nodes {
		if n.id != nil {
			c.Nodes++
		}
	}
	return c
}

// size is how many pods there are, those of the own node included.
func (s *Store) size() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.here
}

// Sweep forgets the pods that were deleted long enough ago. It wants to be
// called every few seconds.
func (s *Store) Sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, at := 0, now.UnixNano()
	for ; n < len(s.leaving) && s.leaving[n].due <= at; n++ {
		s.forget(s.leaving[n].pod, at)
	}
	if s.leaving = s.leaving[n:]; len(s.leaving) == 0 {
		s.leaving = nil
	}
	if s.shared.size() > s.limit {
		s.reshare()
	}
}

// minShared is how many shared strings and label sets are kept without asking
// whether they are still used.
const minShared = 8192

// reshare drops the strings and label sets that no object uses any more.
func (s *Store) reshare() {
	s.shared = newInterner()
	for _, p := range s.pods {
		for _, text := range [...]string{p.namespace, p.kind, p.workload, p.node, p.qos} {
			s.shared.text[text] = text
		}
		s.shared.keep(p.labels)
		if p.controller != nil {
			s.shared.refs[*p.controller] = p.controller
		}
	}
	s.limit = max(minShared, 2*s.shared.size())
}

// identity returns what a pod is called, made when first asked for. It is
// called with s.mu held for reading at least.
func (s *Store) identity(p *pod) *workload.Identity {
	s.wanted(p)
	if id := p.id.Load(); id != nil {
		return id
	}
	if id := s.describe(p); p.id.CompareAndSwap(nil, id) {
		return id
	}
	return p.id.Load()
}

// describe makes a pod's identity.
func (s *Store) describe(p *pod) *workload.Identity {
	id := &workload.Identity{
		Namespace: p.namespace,
		Pod:       p.name,
		Kind:      p.kind,
		Name:      p.workload,
		PodUID:    p.uid,
		Node:      p.node,
		QoS:       p.qos,
		Labels:    p.labels,

		OwnerPending: p.pending,
	}
	if n := s.nodes[p.node]; n != nil {
		id.Zone = n.zone
	}
	return id
}

// refresh makes a pod's identity anew if it was ever asked for. As long as it
// says the same the pointer stays.
func (s *Store) refresh(p *pod) {
	old := p.id.Load()
	if old == nil {
		return
	}
	if id := s.describe(p); !reflect.DeepEqual(id, old) {
		p.id.Store(id)
	}
}

// misses remembers addresses that were asked for in vain, some of them.
type misses struct {
	mu    sync.Mutex
	addrs [256]netip.Addr
	any   atomic.Bool
}

func (m *misses) slot(addr netip.Addr) *netip.Addr {
	b := addr.As16()
	return &m.addrs[b[15]^b[14]*31^b[13]*7]
}

func (m *misses) note(addr netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*m.slot(addr) = addr
	m.any.Store(true)
}

// take reports whether addr was asked for, once.
func (m *misses) take(addr netip.Addr) bool {
	if !m.any.Load() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	slot := m.slot(addr)
	if *slot != addr {
		return false
	}
	*slot = netip.Addr{}
	return true
}

// arrived signals if somebody waits for addr.
func (s *Store) arrived(addr netip.Addr) {
	if s.missed.take(addr) {
		s.signal()
	}
}
