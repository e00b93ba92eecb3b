// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// maxContainers is how many containers of one pod are remembered: a pod that
// keeps crashing gets a new one each time.
const maxContainers = 64

// pod is what a Store keeps of a pod. Strings and labels are shared.
type pod struct {
	uid, namespace, name string
	kind, workload       string
	node, qos            string
	labels               map[string]string
	ips                  []netip.Addr
	ports                []HostPort
	started              int64
	// ended is when the pod gave up its addresses, 0 while it has them.
	ended int64
	// gone is when it left the API, else 0.
	gone              int64
	hostNetwork, peer bool
	// own has what is known only of pods on the own node.
	own *ownPod
	// controller of a pod elsewhere is nil where nothing above it is to be asked for. asked:
	// somebody wanted to know who the pod is, so that its owner is looked for as those of
	// the own node's pods are.
	controller *Ref
	asked      atomic.Bool
	// pending: the owner is being asked for, or will be when somebody wants to know.
	pending bool
	id      atomic.Pointer[workload.Identity]
}

type ownPod struct {
	hash       string
	containers []string
	images     map[string]Image // by the container's id
	specImages []string
	controller Ref
}

// nodePort is a port of a node's addresses that a pod has for itself.
type nodePort struct {
	node string
	port HostPort
}

// UpsertOwn adds or changes a pod of the own node.
func (s *Store) UpsertOwn(p *Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upsertOwn(p) {
		s.signal()
	}
}

// DeleteOwn is told that a pod of the own node left the API.
func (s *Store) DeleteOwn(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pods[uid]; p != nil && p.own != nil && p.gone == 0 {
		s.depart(p)
		s.signal()
	}
}

// ReplaceOwn is told all pods of the own node; those it knew besides have left.
func (s *Store) ReplaceOwn(all []*Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed := make(map[string]bool, len(all))
	changed := false
	for _, p := range all {
		listed[p.UID] = true
		changed = s.upsertOwn(p) || changed
	}
	for uid, p := range s.own {
		if p.gone == 0 && !listed[uid] {
			s.depart(p)
			changed = true
		}
	}
	if changed {
		s.signal()
	}
}

// UpsertPeer adds or changes a pod anywhere in the cluster.
func (s *Store) UpsertPeer(p *Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upsertPeer(p, false)
}

// DeletePeer is told that a pod left the API.
func (s *Store) DeletePeer(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pods[uid]; p != nil {
		s.deletePeer(p)
	}
}

// podsAtOnce is for how many pods the store is locked at a time: whoever asks for a name
// waits meanwhile.
const podsAtOnce = 1000

// ReplacePeers is told all pods; those it knew besides have left.
func (s *Store) ReplacePeers(all []*Pod) {
	listed := make(map[string]bool, len(all))
	for some := range slices.Chunk(all, podsAtOnce) {
		s.mu.Lock()
		for _, p := range some {
			listed[p.UID] = true
			s.upsertPeer(p, true)
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, p := range s.pods {
		if p.peer && !listed[uid] {
			s.deletePeer(p)
		}
	}
}

func (s *Store) deletePeer(p *pod) {
	p.peer = false
	if p.own == nil && p.gone == 0 {
		s.depart(p)
	}
}

// topOwner names the owner of all of a pod; pending says that it asks for more.
type topOwner func(*Pod) (kind, name string, pending bool)

// RefreshOwners asks top again for the owner of each pod of the own node, which
// has come to know more. top must not call the Store.
func (s *Store) RefreshOwners(top topOwner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, p := range s.own {
		changed = s.owner(p, p.own.controller, top) || changed
	}
	for uid, p := range s.climbing {
		switch {
		case s.pods[uid] != p || p.own != nil || p.controller == nil:
			delete(s.climbing, uid)
		default:
			changed = s.owner(p, *p.controller, top) || changed
		}
	}
	if changed {
		s.signal()
	}
}

// owner asks top for a pod's owner; it reports changes.
func (s *Store) owner(p *pod, controller Ref, top topOwner) bool {
	kind, name, pending := top(&Pod{UID: p.uid, Namespace: p.namespace, Name: p.name, Labels: p.labels, Controller: controller})
	if kind == p.kind && name == p.workload && pending == p.pending {
		return false
	}
	p.kind, p.workload, p.pending = s.shared.string(kind), s.shared.string(name), pending
	s.owners++
	s.refresh(p)
	return true
}

// maxClimbing bounds of how many pods elsewhere the owners are looked for at a time.
const maxClimbing = 4096

// Climb looks for the owner of a pod elsewhere that was asked for, from now on.
func (s *Store) Climb(p *pod, top topOwner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[p.uid] != p || p.own != nil || p.controller == nil {
		return
	}
	if len(s.climbing) >= maxClimbing {
		p.pending = false
		s.refresh(p)
		return
	}
	s.climbing[p.uid] = p
	if s.owner(p, *p.controller, top) {
		s.signal()
	}
}

// wanted notes that somebody asked for a pod elsewhere. It does not wait and is called with
// s.mu held for reading.
func (s *Store) wanted(p *pod) {
	if p.own != nil || p.controller == nil || p.asked.Load() || !p.asked.CompareAndSwap(false, true) {
		return
	}
	select {
	case s.asked <- p:
	default:
		p.asked.Store(false) // the next who asks tries again
	}
}

// upsertOwn reports whether anything changed.
func (s *Store) upsertOwn(in *Pod) bool {
	p := s.pods[in.UID]
	if p == nil {
		p = s.insert(in)
	}
	changed := p.own == nil
	if changed {
		p.own = &ownPod{}
		s.own[p.uid] = p
	}
	first := changed
	changed = s.update(p, in) || changed
	if first {
		s.names[object{p.namespace, p.name}] = p
	}
	changed = s.ownDetails(p, in) || changed
	return s.settle(p, in) || changed
}

// ownDetails takes what is known of pods on the own node only.
func (s *Store) ownDetails(p *pod, in *Pod) bool {
	own := p.own
	changed := own.controller != in.Controller || own.hash != in.ConfigHash
	own.controller = Ref{
		s.shared.string(in.Controller.APIVersion),
		s.shared.string(in.Controller.Kind),
		s.shared.string(in.Controller.Name),
	}
	if own.hash != in.ConfigHash {
		s.dropHash(p)
		own.hash = strings.Clone(in.ConfigHash)
	}
	if own.hash != "" {
		s.hashes[own.hash] = p
	}
	s.ownImages(own, in)
	for _, id := range in.Containers {
		if s.containers[id] != p {
			s.containers[id] = p
			own.containers = append(own.containers, strings.Clone(id))
			changed = true
		}
	}
	for i := 0; len(own.containers) > maxContainers && i < len(own.containers); {
		old := own.containers[i]
		if slices.Contains(in.Containers, old) {
			i++
			continue
		}
		delete(s.containers, old)
		delete(own.images, old)
		own.containers = slices.Delete(own.containers, i, i+1)
	}
	return changed
}

// ownImages takes what the containers of a pod are made of. A container is made once.
func (s *Store) ownImages(own *ownPod, in *Pod) {
	for id, image := range in.Images {
		if known, ok := own.images[id]; ok && known.Digest != "" {
			continue
		}
		if own.images == nil {
			own.images = make(map[string]Image)
		}
		own.images[strings.Clone(id)] = Image{s.shared.string(image.Name), s.shared.string(image.Digest)}
	}
	if !slices.Equal(own.specImages, in.SpecImages) {
		own.specImages = nil
		for _, image := range in.SpecImages {
			own.specImages = append(own.specImages, s.shared.string(image))
		}
	}
}

// Images returns the images that a container of a pod of the own node may be made of: the
// one that it is known to be, or as long as the kubelet has not reported it, all of its
// pod. Nil if nothing is known.
func (s *Store) Images(containerID, podUID string) []Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p := s.containers[containerID]
	if p == nil {
		p = s.pods[podUID]
	}
	if p == nil {
		p = s.hashes[podUID]
	}
	if p == nil || p.own == nil {
		return nil
	}
	if image, ok := p.own.images[containerID]; ok {
		return []Image{image}
	}
	if slices.Contains(p.own.containers, containerID) {
		return nil // one that ended before it was seen: the pod may have had others then
	}
	all := make([]Image, len(p.own.specImages))
	for i, name := range p.own.specImages {
		all[i].Name = name
	}
	return all
}

// upsertPeer leaves alone what the own node's source tells of. first: in is from
// a list, where a pod may have ended long ago.
func (s *Store) upsertPeer(in *Pod, first bool) {
	p := s.pods[in.UID]
	if p != nil && p.own != nil {
		p.peer = true
		return
	}
	if len(in.IPs) == 0 && p == nil {
		return // not running yet, or never did
	}
	if in.Finished && p == nil {
		if first || in.Ended != 0 && in.Ended < s.now().Add(-s.linger).UnixNano() {
			return
		}
	}
	if p == nil {
		p = s.insert(in)
	}
	p.peer = true
	s.above(p, in)
	s.update(p, in)
	if s.settle(p, in); in.Finished && p.gone == 0 {
		s.depart(p)
	}
}

// Share has a pod, on its way from a list, share with others what it has in common with
// them, so that a list of many takes little more room than what is kept of it.
func (s *Store) Share(p *Pod) *Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Namespace, p.Node, p.QoS = s.shared.string(p.Namespace), s.shared.string(p.Node), s.shared.string(p.QoS)
	p.Labels = s.shared.set(p.Labels)
	p.Controller = Ref{s.shared.string(p.Controller.APIVersion), s.shared.string(p.Controller.Kind), s.shared.string(p.Controller.Name)}
	return p
}

// above notes what owns a pod elsewhere, where more may be above that. A pod whose owner is
// looked for keeps the one that was found.
func (s *Store) above(p *pod, in *Pod) {
	ref := controller(in)
	if owners[ref.groupKind()] == "" {
		p.controller = nil
		return
	}
	if p.controller == nil || *p.controller != in.Controller {
		p.controller = s.shared.ref(in.Controller)
	}
	switch {
	case in.Kind != "":
	case s.climbing[p.uid] == p:
		in.Kind, in.Workload, in.OwnerPending = p.kind, p.workload, p.pending
	default:
		in.OwnerPending = true
	}
}

// insert makes a pod that is to be updated.
func (s *Store) insert(in *Pod) *pod {
	p := &pod{uid: strings.Clone(in.UID)}
	s.pods[p.uid] = p
	s.here++
	s.arrivals++
	return p
}

// update takes over what in says of names; it reports changes.
func (s *Store) update(p *pod, in *Pod) bool {
	kind, name := in.Kind, in.Workload
	if kind == "" {
		kind, name = Guess(in)
	}
	owner := kind != p.kind || name != p.workload || in.OwnerPending != p.pending
	changed := owner || p.name != in.Name || p.namespace != in.Namespace || p.node != in.Node ||
		p.qos != in.QoS || !maps.Equal(p.labels, in.Labels)
	p.started, p.hostNetwork = in.Started, in.HostNetwork
	if !changed {
		return false
	}
	if owner && p.kind != "" {
		s.owners++
	}
	p.kind, p.pending = s.shared.string(kind), in.OwnerPending
	p.name = strings.Clone(in.Name)
	p.workload = p.name
	if name != in.Name {
		p.workload = s.shared.string(name)
	}
	p.namespace = s.shared.string(in.Namespace)
	p.qos = s.shared.string(in.QoS)
	p.labels = s.shared.set(in.Labels)
	if p.node != in.Node {
		s.dropPorts(p)
		p.node = s.shared.string(in.Node)
		s.claimPorts(p)
	}
	s.refresh(p)
	return true
}

// settle gives a pod the addresses and ports that it has, or takes them from
// one that has finished; it reports changes.
func (s *Store) settle(p *pod, in *Pod) bool {
	back := p.gone != 0
	if back {
		s.here++
	}
	p.gone = 0
	same := !back && p.ended == 0 && !in.Finished
	if same && slices.Equal(p.ips, in.IPs) && slices.Equal(p.ports, in.Ports) && slices.Equal(s.further[p], in.Secondary) {
		return false
	}
	if in.Finished && p.ended != 0 {
		return back
	}
	s.release(p)
	p.ips, p.ports = slices.Clone(in.IPs), slices.Clone(in.Ports)
	p.ended = 0
	if in.Finished {
		p.ended = s.now().UnixNano()
		if in.Ended != 0 && in.Ended < p.ended {
			p.ended = in.Ended
		}
		s.retire(p)
		return true
	}
	if !p.hostNetwork {
		for _, addr := range p.ips {
			s.claim(p, addr)
		}
	}
	s.claimPorts(p)
	if len(in.Secondary) > 0 {
		s.further[p] = slices.Clone(in.Secondary)
	}
	for _, addr := range in.Secondary {
		add(s.secondary, addr, p)
		s.arrived(addr)
	}
	return true
}

// depart notes that a pod left the API. It stays known for a while.
func (s *Store) depart(p *pod) {
	p.gone = s.now().UnixNano()
	s.here--
	if p.ended == 0 {
		s.release(p)
		p.ended = p.gone
	}
	s.retire(p)
}

// retire lets a pod answer for its addresses for what happened before it ended.
func (s *Store) retire(p *pod) {
	if !p.hostNetwork {
		for _, addr := range p.ips {
			if !slices.Contains(s.others[addr], p) {
				s.others[addr] = append(s.others[addr], p)
			}
			s.arrived(addr)
		}
	}
	s.leaving = append(s.leaving, expiry{s.now().Add(s.linger).UnixNano(), p})
}

// forget drops a pod that left the API, and the addresses of one that finished.
func (s *Store) forget(p *pod, now int64) {
	if p.ended == 0 {
		return // it came back
	}
	for _, addr := range p.ips {
		s.dropOther(p, addr)
	}
	if p.gone == 0 || p.gone+int64(s.linger) > now || s.pods[p.uid] != p {
		return
	}
	delete(s.pods, p.uid)
	delete(s.own, p.uid)
	if p.own == nil {
		return
	}
	for _, id := range p.own.containers {
		if s.containers[id] == p {
			delete(s.containers, id)
		}
	}
	s.dropHash(p)
	if name := (object{p.namespace, p.name}); s.names[name] == p {
		delete(s.names, name)
	}
}

func (s *Store) dropHash(p *pod) {
	if s.hashes[p.own.hash] == p {
		delete(s.hashes, p.own.hash)
	}
}
