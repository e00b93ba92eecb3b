// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// rootCgroup is the id of the hierarchy's root: kernfs numbers from 1, and
	// on 64-bit machines the id is that number (fs/kernfs/dir.c since 5.5).
	rootCgroup = 1

	defaultMaxEntries = 16384
	// retryAfter is how long a cgroup that was not found is named by commands
	// before it is looked for again.
	retryAfter = 5 * time.Second
	// linger is how long a removed cgroup keeps its name, for records that come
	// late.
	linger = 60 * time.Second
)

// Cluster is what a Resolver asks of Kubernetes. Implementations answer from
// memory, without blocking, at any time from any goroutine. As long as nothing
// changes they return the same pointer, because what is derived from it is
// cached. A pod stays known for 60 s after its deletion.
type Cluster interface {
	// Pod finds a pod by one of its containers or, where that is not known (a
	// sandbox, a container that started just now), by its UID. Either may be
	// empty. For static pods podUID is the kubelet's hash of the manifest
	// (annotation kubernetes.io/config.hash), not the API object's UID.
	Pod(containerID, podUID string) (*Identity, bool)
	// Peer finds the pod, Service or node that an address and port belong to.
	Peer(Peer) (*Identity, bool)
	// Backs reports whether a Service sends to an address and port of server: they
	// are among the endpoints of its EndpointSlices. known is false if the Service
	// or its EndpointSlices are not known.
	Backs(service, server *Identity, addr netip.Addr, port uint16, protocol uint8) (backs, known bool)
	// Waiting says that a pod which is not known yet may still become known
	// soon: the API server answers, or did a moment ago.
	Waiting() bool
}

// Peer is an address that somebody talks to.
type Peer struct {
	Addr netip.Addr
	// Port and Protocol (an IP protocol number) tell Services and pods that
	// share an address apart; both are 0 where there are none.
	Port     uint16
	Protocol uint8
	// Namespace of the workload that asks, empty for the host: what a namespace says of
	// addresses that are not the cluster's is for its own workloads.
	Namespace string
	// Since is when the flow began, in Unix nanoseconds, or 0: a pod that was
	// deleted before then is not meant, although it had the address last.
	Since int64
	// Cgroup is who goes to the address, by whose look-ups it is named if by nothing else;
	// 0 if nobody here does.
	Cgroup uint64
}

// hierarchy is the kernel's tree of cgroups.
type hierarchy interface {
	// find returns the path of a cgroup below the root of the tree, beginning
	// with a slash. pid is a process that is likely to be in it, or 0.
	find(id uint64, pid uint32) (path string, ok bool)
	// exists reports whether the cgroup is there; path is what find or place
	// returned, or empty.
	exists(id uint64, path string) bool
	// place turns a cgroup's path below the root of the kernel's hierarchy into
	// what find returns, as far as that can be told.
	place(id uint64, path string) string
	// ofProcess returns the cgroup that a process is in, 0 if it cannot be told.
	ofProcess(pid uint32) uint64
	// all returns the paths of all cgroups, up to a bound, as find does.
	all() map[uint64]string
	close() error
}

// Config holds what a Resolver may be given; the zero value suits a host.
type Config struct {
	// Root is where the cgroup2 hierarchy is mounted, or a cgroup in it if only
	// that part is this node's; found by itself if empty.
	Root string
	// PodUID is that of the pod that this process runs in, if any. By it the
	// node's part of the hierarchy is found where Root is empty.
	PodUID string
	// Proc is where the procfs of the pids given to Local is mounted. Default
	// /proc.
	Proc string
	// MaxEntries bounds the cache of identities. Default 16384.
	MaxEntries int
	// Cluster knows pods and peers; nil outside Kubernetes.
	Cluster Cluster
	// Names knows by which names addresses were looked up; may be nil.
	Names *Names
}

// Part is the part of the hierarchy that is this node's. Where several nodes
// share one kernel (clusters in containers), each has one of its own.
type Part struct {
	// Path of its root below the mount, beginning with a slash; empty for all.
	Path string
	// CgroupID of its root, 0 for all.
	CgroupID uint64
}

// Resolver names the workloads of this host by cgroup, and peers by address. It
// may be used from any goroutine.
type Resolver struct {
	tree    hierarchy
	cluster Cluster
	names   *Names
	max     int
	kernel  *Identity
	mount   CgroupMount
	part    Part
	reduced string
	proc    string

	mu sync.RWMutex
	// entries has each cgroup under the empty command and, where the command
	// names the workload, also an entry per command.
	entries map[entryKey]*entry
}

type entryKey struct {
	cgroup uint64
	comm   string
}

// entry is immutable but for used, merged and, under the Resolver's lock, gone.
type entry struct {
	id *Identity
	// perCommand: id is for records without a command, the others have entries
	// of their own.
	perCommand bool
	// of is the cgroup's entry that a command's entry was made from.
	of *entry
	// pods are the pods and containers around the cgroup, innermost first.
	pods []CgroupInfo
	// retry is when to look again for a cgroup that was not found, else zero.
	retry time.Time
	gone  time.Time
	used  atomic.Bool
	// merged is the last identity made from the cluster's answer.
	merged atomic.Pointer[merged]
}

type merged struct{ pod, id *Identity }

func newResolver(cfg Config, tree hierarchy) *Resolver {
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = defaultMaxEntries
	}
	return &Resolver{
		tree:    tree,
		cluster: cfg.Cluster,
		names:   cfg.Names,
		max:     cfg.MaxEntries,
		proc:    cfg.Proc,
		kernel:  &Identity{Kind: KindKernel, Name: "kernel", CgroupID: rootCgroup, CgroupPath: "/"},
		entries: make(map[entryKey]*entry),
	}
}

// Mount returns where the cgroup2 hierarchy was found; Path is empty if nowhere.
func (r *Resolver) Mount() CgroupMount { return r.mount }

// Part returns the part of the hierarchy that is this node's.
func (r *Resolver) Part() Part { return r.part }

// Degraded says in a sentence why workloads are named less well than they could
// be, and is empty where nothing is missing.
func (r *Resolver) Degraded() string { return r.reduced }

// Close releases the hierarchy. No other method may be called after it.
func (r *Resolver) Close() error { return r.tree.close() }

// Local names the workload on this host that owns a cgroup: its pod, container,
// systemd unit or, where the path names none of these, the command comm (as the
// kernel keeps it, without padding). The result is never nil; where neither path
// nor command are known its Kind and Name are empty. A cgroup of 0 means that
// none is known.
//
// pid, 0 if not known, is the process behind the record and only a hint. Packets
// that the kernel made itself come from the root cgroup without a process: those
// belong to the pod that has addr, the local address, or else to the kernel.
//
// Local reads nothing but procfs and cgroupfs, and nothing at all when it knows
// the cgroup; then it does not allocate either. The same workload keeps the same
// pointer, until more becomes known of it: whoever keeps an identity for long
// should ask again.
func (r *Resolver) Local(cgroupID uint64, pid uint32, comm string, addr netip.Addr) *Identity {
	if isRoot(cgroupID) && (pid == 0 || comm == "") {
		if peer := r.Remote(Peer{Addr: addr}); peer != nil {
			return peer
		}
		return r.kernel
	}
	e := r.cgroup(cgroupID, pid)
	if e.perCommand && comm != "" {
		e = r.command(e, cgroupID, comm)
	}
	return r.withPod(e)
}

// Learn is told of a new cgroup and its path below the root of the hierarchy, so
// that its name is known although it may be gone in a moment.
func (r *Resolver) Learn(id uint64, cgroupPath string) {
	if !isRoot(id) {
		r.learn(id, r.tree.place(id, cgroupPath))
	}
}

func (r *Resolver) learn(id uint64, seen string) {
	key := entryKey{cgroup: id}
	old := r.cached(key)
	if old != nil && old.retry.IsZero() {
		return
	}
	r.store(key, known(id, seen), old)
}

// LearnAll notes the names of all containers' cgroups that are there now: of those
// that were made before anybody told, and may be gone when their first record is
// read.
func (r *Resolver) LearnAll() {
	for id, p := range r.tree.all() {
		if info := ParseCgroup(p); (info.ContainerID != "" || info.PodUID != "") && !isRoot(id) {
			r.learn(id, p)
		}
	}
}

// Cgroups returns all cgroups of this node that are there now, with who they are.
func (r *Resolver) Cgroups() map[uint64]*Identity {
	all := make(map[uint64]*Identity)
	paths := r.tree.all()
	part, whole := paths[r.part.CgroupID], r.part.CgroupID == 0
	for id, p := range paths {
		if !isRoot(id) && (whole || p == part || strings.HasPrefix(p, part+"/")) {
			r.learn(id, p)
			all[id] = r.Local(id, 0, "", netip.Addr{})
		}
	}
	return all
}

// Owns reports whether a cgroup is in this node's part of the hierarchy.
func (r *Resolver) Owns(cgroup uint64) bool {
	if r.part.CgroupID == 0 {
		return true
	}
	part := r.cgroup(r.part.CgroupID, 0).id.CgroupPath
	p := r.cgroup(cgroup, 0).id.CgroupPath
	return p != "" && part != "" && (p == part || strings.HasPrefix(p, part+"/"))
}

// known makes the entry of a cgroup whose path is known.
func known(id uint64, cgroupPath string) *entry {
	// A cgroup's name is any bytes; names are text from here on.
	cgroupPath = strings.ToValidUTF8(cgroupPath, "\uFFFD")
	e := &entry{id: identify(id, cgroupPath), pods: enclosing(cgroupPath)}
	e.perCommand = e.id.Kind == KindProcess
	return e
}

// Remote names who has an address, or returns nil: the pod, Service or node that
// Kubernetes knows, or else, with Config.Names, the name by which the address was
// looked up, as an identity of KindExternal.
func (r *Resolver) Remote(p Peer) *Identity {
	if !p.Addr.IsValid() {
		return nil
	}
	if r.cluster != nil {
		if id, ok := r.cluster.Peer(p); ok {
			return id
		}
	}
	if r.names == nil || p.Cgroup == 0 {
		return nil
	}
	return r.names.Of(p.Cgroup, p.Addr, p.Since)
}

// LookedUp is told that the cgroup looked addr up as name.
func (r *Resolver) LookedUp(cgroup uint64, addr netip.Addr, name string) {
	if r.names != nil {
		r.names.Learn(cgroup, addr, name, time.Now())
	}
}

// Backs reports whether a Service sends to an address and port of server; known
// is false where that cannot be told.
func (r *Resolver) Backs(service, server *Identity, addr netip.Addr, port uint16, protocol uint8) (backs, known bool) {
	if r.cluster == nil {
		return false, false
	}
	return r.cluster.Backs(service, server, addr, port, protocol)
}

// Awaits reports whether id is that of a pod whose name is not known yet but may
// become known within seconds.
func (r *Resolver) Awaits(id *Identity) bool {
	return id.PodUID != "" && id.Pod == "" && r.cluster != nil && r.cluster.Waiting()
}

// Alive reports whether a cgroup exists. It says yes of the root, and of all
// where no cgroup2 hierarchy is mounted.
func (r *Resolver) Alive(cgroupID uint64) bool {
	if isRoot(cgroupID) {
		return true
	}
	e := r.cached(entryKey{cgroup: cgroupID})
	if e == nil {
		return r.tree.exists(cgroupID, "")
	}
	return r.tree.exists(cgroupID, e.id.CgroupPath)
}

func isRoot(cgroupID uint64) bool { return cgroupID == 0 || cgroupID == rootCgroup }

// cached returns the entry under key and marks it as used, or nil.
func (r *Resolver) cached(key entryKey) *entry {
	r.mu.RLock()
	e := r.entries[key]
	r.mu.RUnlock()
	if e != nil && !e.used.Load() {
		e.used.Store(true)
	}
	return e
}

// cgroup returns the entry of a cgroup, which it looks for if it must.
func (r *Resolver) cgroup(id uint64, pid uint32) *entry {
	key := entryKey{cgroup: id}
	e := r.cached(key)
	if e != nil && (e.retry.IsZero() || time.Now().Before(e.retry)) {
		return e
	}
	return r.store(key, r.resolve(id, pid), e)
}

// command returns the entry of one command in the cgroup of entry of. comm is
// copied, so that callers may keep it on their stack.
func (r *Resolver) command(of *entry, cgroupID uint64, comm string) *entry {
	e := r.cached(entryKey{cgroupID, comm})
	if e != nil && e.of == of {
		return e
	}
	key := entryKey{cgroupID, strings.Clone(comm)}
	id := *of.id
	id.Kind, id.Name = KindProcess, key.comm
	return r.store(key, &entry{id: &id, of: of, pods: of.pods}, e)
}

// resolve makes the entry of a cgroup.
func (r *Resolver) resolve(id uint64, pid uint32) *entry {
	switch id {
	case 0:
		return &entry{id: &Identity{}, perCommand: true}
	case rootCgroup:
		return &entry{id: r.kernel, perCommand: true}
	}
	p, ok := r.tree.find(id, pid)
	if !ok {
		return &entry{id: &Identity{CgroupID: id}, perCommand: true, retry: time.Now().Add(retryAfter)}
	}
	return known(id, p)
}

// identify names a cgroup by its path. The Name of KindProcess is that of the
// cgroup itself, to be replaced where a command is known.
func identify(id uint64, cgroupPath string) *Identity {
	info := ParseCgroup(cgroupPath)
	named := &Identity{
		ContainerID:      info.ContainerID,
		ContainerRuntime: info.Runtime,
		PodUID:           info.PodUID,
		CgroupID:         id,
		CgroupPath:       cgroupPath,
	}
	switch {
	case info.ContainerID != "":
		named.Kind, named.Name = KindContainer, info.ContainerID[:12]
	case info.Unit != "":
		named.Kind, named.Name = KindUnit, info.Unit
	default:
		named.Kind, named.Name = KindProcess, unescapeUnit(path.Base(cgroupPath))
	}
	return named
}

// enclosing lists what the cluster may know of the pods and containers around a
// cgroup, outermost first. Of those that it knows the first one counts: where nodes are
// themselves pods, an agent outside knows only the outer ones, and within a container
// anybody may make a cgroup with the name of another pod.
func enclosing(cgroupPath string) []CgroupInfo {
	var all []CgroupInfo
	for above := cgroupPath; above != ""; {
		var info CgroupInfo
		info, above = parseCgroup(above)
		if info.PodUID != "" || info.ContainerID != "" {
			all = append(all, info)
		}
	}
	slices.Reverse(all)
	return all
}

// withPod returns the entry's identity, as that of its pod if the cluster knows
// one. A cgroup never changes its pod, so one that was known stays.
func (r *Resolver) withPod(e *entry) *Identity {
	if r.cluster == nil || len(e.pods) == 0 {
		return e.id
	}
	last := e.merged.Load()
	for i := range e.pods {
		pod, ok := r.cluster.Pod(e.pods[i].ContainerID, e.pods[i].PodUID)
		if !ok {
			continue
		}
		if last == nil || last.pod != pod {
			last = &merged{pod, inPod(pod, e.id, &e.pods[i])}
			e.merged.Store(last)
		}
		break
	}
	if last == nil {
		return e.id
	}
	return last.id
}

// inPod is the identity of a pod, seen in one of its cgroups.
func inPod(pod, cgroup *Identity, info *CgroupInfo) *Identity {
	id := *pod
	id.ContainerID, id.PodUID = info.ContainerID, info.PodUID
	if info.Runtime != "" {
		id.ContainerRuntime = info.Runtime
	}
	id.CgroupID, id.CgroupPath = cgroup.CgroupID, cgroup.CgroupPath
	return &id
}

// store publishes an entry in place of old and returns it, or what another
// goroutine has put there in the meantime.
func (r *Resolver) store(key entryKey, e, old *entry) *entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.entries[key]; now != nil && now != old && now.of == e.of {
		return now
	}
	if _, ok := r.entries[key]; !ok && len(r.entries) >= r.max {
		r.evict()
	}
	r.entries[key] = e
	return e
}

// evict makes room for one entry: of those that a map's random order brings up,
// the first that was not used since the last look. It is called with r.mu held.
func (r *Resolver) evict() {
	const looks = 32
	n := 0
	for key, e := range r.entries {
		if n++; !e.used.Swap(false) || n == looks {
			delete(r.entries, key)
			return
		}
	}
}

// Sweep drops the identities of cgroups that have been gone for 60 s. It costs
// one look per cached cgroup and wants to be called every few seconds.
func (r *Resolver) Sweep(now time.Time) {
	if r.names != nil {
		r.names.Sweep(now)
	}
	gone := make(map[uint64]bool)
	for id, p := range r.paths() {
		gone[id] = !r.tree.exists(id, p)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, e := range r.entries {
		switch {
		case !gone[key.cgroup]:
			e.gone = time.Time{}
		case e.gone.IsZero():
			e.gone = now
		case now.Sub(e.gone) >= linger:
			delete(r.entries, key)
		}
	}
}

// paths returns the path of every cached cgroup but the root.
func (r *Resolver) paths() map[uint64]string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make(map[uint64]string, len(r.entries))
	for key, e := range r.entries {
		if !isRoot(key.cgroup) {
			all[key.cgroup] = e.id.CgroupPath
		}
	}
	return all
}
