// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

// fakeTree is a hierarchy in memory.
type fakeTree struct {
	mu    sync.Mutex
	paths map[uint64]string
	finds int
}

func (f *fakeTree) find(id uint64, _ uint32) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finds++
	p, ok := f.paths[id]
	return p, ok
}

func (f *fakeTree) exists(id uint64, _ string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.paths[id]
	return ok
}

func (f *fakeTree) ofProcess(uint32) uint64 { return 0 }

func (f *fakeTree) all() map[uint64]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.paths)
}

func (f *fakeTree) place(_ uint64, p string) string { return p }

func (f *fakeTree) close() error { return nil }

func (f *fakeTree) remove(id uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.paths, id)
}

func (f *fakeTree) add(id uint64, p string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paths[id] = p
}

// fakeCluster is Kubernetes in memory; pods are by container id or by UID.
type fakeCluster struct {
	pods  map[string]*Identity
	peers map[netip.Addr]*Identity
	// waiting is the answer of Waiting.
	waiting bool
}

func (f *fakeCluster) Pod(containerID, podUID string) (*Identity, bool) {
	if id, ok := f.pods[containerID]; ok {
		return id, true
	}
	id, ok := f.pods[podUID]
	return id, ok
}

func (f *fakeCluster) Peer(p Peer) (*Identity, bool) {
	id, ok := f.peers[p.Addr]
	return id, ok
}

func (f *fakeCluster) Backs(_, _ *Identity, _ netip.Addr, _ uint16, _ uint8) (backs, known bool) {
	return false, false
}

func (f *fakeCluster) Waiting() bool { return f.waiting }

func TestLocal(t *testing.T) {
	tree := &fakeTree{paths: map[uint64]string{
		10: "/docker/" + id1,
		11: "/system.slice/sshd.service",
		12: "/user.slice/user-1000.slice/session-3.scope",
		13: "/kubepods/pod" + uid + "/crio-" + id1,
		14: "/kubepods/pod" + uid,
	}}
	r := newResolver(Config{}, tree)
	kernel := Identity{Kind: KindKernel, Name: "kernel", CgroupID: 1, CgroupPath: "/"}
	for _, tt := range []struct {
		name   string
		cgroup uint64
		pid    uint32
		comm   string
		want   Identity
	}{
		{"container", 10, 7, "nginx", Identity{
			Kind: KindContainer, Name: id1[:12], ContainerID: id1, ContainerRuntime: RuntimeDocker,
			CgroupID: 10, CgroupPath: tree.paths[10],
		}},
		{"unit", 11, 0, "", Identity{Kind: KindUnit, Name: "sshd.service", CgroupID: 11, CgroupPath: tree.paths[11]}},
		{"command", 12, 7, "curl", Identity{Kind: KindProcess, Name: "curl", CgroupID: 12, CgroupPath: tree.paths[12]}},
		{"another command", 12, 8, "wget", Identity{Kind: KindProcess, Name: "wget", CgroupID: 12, CgroupPath: tree.paths[12]}},
		{"no command", 12, 0, "", Identity{Kind: KindProcess, Name: "session-3.scope", CgroupID: 12, CgroupPath: tree.paths[12]}},
		{"pod without a cluster", 13, 7, "app", Identity{
			Kind: KindContainer, Name: id1[:12], ContainerID: id1, ContainerRuntime: RuntimeCRIO, PodUID: uid,
			CgroupID: 13, CgroupPath: tree.paths[13],
		}},
		{"process of a pod outside its containers", 14, 7, "conmon", Identity{
			Kind: KindProcess, Name: "conmon", PodUID: uid, CgroupID: 14, CgroupPath: tree.paths[14],
		}},
		{"kernel without cgroup", 0, 0, "", kernel},
		{"kernel in the root", 1, 0, "swapper/0", kernel},
		{"kernel in the root, pid without command", 1, 7, "", kernel},
		{"command in the root", 1, 7, "sh", Identity{Kind: KindProcess, Name: "sh", CgroupID: 1, CgroupPath: "/"}},
		{"command without cgroup", 0, 7, "sh", Identity{Kind: KindProcess, Name: "sh"}},
		{"gone", 99, 7, "sh", Identity{Kind: KindProcess, Name: "sh", CgroupID: 99}},
		{"gone without command", 99, 0, "", Identity{CgroupID: 99}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := r.Local(tt.cgroup, tt.pid, tt.comm, netip.Addr{})
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("identity (-want +got):\n%s", diff)
			}
			if again := r.Local(tt.cgroup, tt.pid, tt.comm, netip.Addr{}); again != got {
				t.Error("a second call returned another pointer")
			}
		})
	}
}

func TestLocalLooksOnce(t *testing.T) {
	tree := &fakeTree{paths: map[uint64]string{12: "/user.slice/session-3.scope"}}
	r := newResolver(Config{}, tree)
	for range 3 {
		for _, comm := range []string{"a", "b", ""} {
			r.Local(12, 7, comm, netip.Addr{})
		}
	}
	if tree.finds != 1 {
		t.Errorf("looked for the cgroup %d times, want once", tree.finds)
	}
}

func TestRemoteWithoutCluster(t *testing.T) {
	r := newResolver(Config{}, &fakeTree{})
	if got := r.Remote(Peer{Addr: netip.MustParseAddr("10.0.0.1")}); got != nil {
		t.Errorf("got %+v, want nil", got)
	}
}

func TestNotFoundIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree := &fakeTree{paths: map[uint64]string{}}
		r := newResolver(Config{}, tree)
		r.Local(10, 7, "nginx", netip.Addr{})
		tree.add(10, "/docker/"+id1)
		time.Sleep(retryAfter - time.Millisecond)
		if got := r.Local(10, 7, "nginx", netip.Addr{}); got.Kind != KindProcess || tree.finds != 1 {
			t.Errorf("before the time: %+v after %d looks", got, tree.finds)
		}
		time.Sleep(time.Millisecond)
		if got := r.Local(10, 7, "nginx", netip.Addr{}); got.Kind != KindContainer || tree.finds != 2 {
			t.Errorf("after the time: %+v after %d looks", got, tree.finds)
		}
	})
}

// A command's identity learns the path when its cgroup is found at last.
func TestFoundLaterForCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree := &fakeTree{paths: map[uint64]string{}}
		r := newResolver(Config{}, tree)
		r.Local(10, 7, "job", netip.Addr{})
		tree.add(10, "/batch/7")
		time.Sleep(retryAfter)
		want := &Identity{Kind: KindProcess, Name: "job", CgroupID: 10, CgroupPath: "/batch/7"}
		if diff := cmp.Diff(want, r.Local(10, 7, "job", netip.Addr{})); diff != "" {
			t.Errorf("identity (-want +got):\n%s", diff)
		}
	})
}

func TestSweep(t *testing.T) {
	tree := &fakeTree{paths: map[uint64]string{10: "/docker/" + id1, 12: "/batch/7", 13: "/batch/8"}}
	r := newResolver(Config{}, tree)
	r.Local(10, 7, "nginx", netip.Addr{})
	r.Local(12, 7, "job", netip.Addr{})
	r.Local(13, 7, "job", netip.Addr{})
	r.Local(1, 7, "sh", netip.Addr{})
	tree.remove(10)
	tree.remove(12)
	if r.Alive(10) || !r.Alive(13) || !r.Alive(1) {
		t.Errorf("alive: 10 %v, 13 %v, 1 %v; want false, true, true", r.Alive(10), r.Alive(13), r.Alive(1))
	}

	start := time.Now()
	r.Sweep(start)
	r.Sweep(start.Add(linger - time.Second))
	if got := r.Local(10, 0, "", netip.Addr{}); got.Kind != KindContainer {
		t.Errorf("before 60 s: %+v, want the container", got)
	}
	r.Sweep(start.Add(linger))
	if got := len(r.entries); got != 4 { // cgroups 13 and 1, each with one command
		t.Errorf("%d entries are left, want 4", got)
	}
	if got := r.Local(10, 0, "", netip.Addr{}); got.Kind != "" {
		t.Errorf("after 60 s: %+v, want nothing known", got)
	}
}

func TestSweepForgetsThatACgroupWasGone(t *testing.T) {
	tree := &fakeTree{paths: map[uint64]string{10: "/docker/" + id1}}
	r := newResolver(Config{}, tree)
	r.Local(10, 7, "nginx", netip.Addr{})
	tree.remove(10)
	start := time.Now()
	r.Sweep(start)
	tree.add(10, "/docker/"+id1)
	r.Sweep(start.Add(linger))
	tree.remove(10)
	r.Sweep(start.Add(2 * linger))
	if len(r.entries) != 1 {
		t.Error("dropped before it was gone for 60 s in one go")
	}
}

func TestCacheIsBounded(t *testing.T) {
	tree := &fakeTree{paths: map[uint64]string{10: "/docker/" + id1, 12: "/batch/7"}}
	r := newResolver(Config{MaxEntries: 64}, tree)
	hot := r.Local(10, 7, "nginx", netip.Addr{})
	for i := range 10_000 {
		got := r.Local(12, 7, fmt.Sprintf("job%d", i), netip.Addr{})
		if want := fmt.Sprintf("job%d", i); got.Name != want {
			t.Fatalf("got %s, want %s", got.Name, want)
		}
		if len(r.entries) > 64 {
			t.Fatalf("%d entries, want at most 64", len(r.entries))
		}
	}
	if got := r.Local(10, 7, "nginx", netip.Addr{}); !cmp.Equal(got, hot) {
		t.Errorf("got %+v, want %+v", got, hot)
	}
}

// What is used all the time survives a flood of what is used once.
func TestEvictionSparesTheUsed(t *testing.T) {
	tree := &fakeTree{paths: map[uint64]string{10: "/docker/" + id1, 12: "/batch/7"}}
	r := newResolver(Config{MaxEntries: 256}, tree)
	for i := range 10_000 {
		r.Local(10, 7, "nginx", netip.Addr{})
		r.Local(12, 7, fmt.Sprintf("job%d", i), netip.Addr{})
	}
	// Without regard to use, one of the two cgroups would go about every 128th
	// time: some 80 looks.
	if tree.finds > 8 {
		t.Errorf("looked for two cgroups %d times", tree.finds)
	}
}

func TestLocalConcurrently(t *testing.T) {
	tree := &fakeTree{paths: map[uint64]string{}}
	for i := range uint64(100) {
		tree.paths[100+i] = fmt.Sprintf("/docker/%064x", i)
	}
	r := newResolver(Config{MaxEntries: 50}, tree)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range uint64(2000) {
				id := 100 + i%110
				if got := r.Local(id, 7, "x", netip.Addr{}); got.CgroupID != id {
					t.Errorf("cgroup %d got %+v", id, got)
				}
				if i%500 == 0 {
					r.Sweep(time.Now())
				}
			}
		})
	}
	testwait.Return(t, "all who ask", wg.Wait)
}

func TestLocalDoesNotAllocate(t *testing.T) {
	r := newResolver(Config{}, &fakeTree{paths: map[uint64]string{10: "/docker/" + id1, 12: "/batch/7"}})
	comm := [16]byte{'j', 'o', 'b'}
	got := testing.AllocsPerRun(100, func() {
		r.Local(10, 7, "nginx", netip.Addr{})
		r.Local(12, 7, string(comm[:3]), netip.Addr{})
		r.Local(1, 0, "", netip.Addr{})
		r.Local(99, 0, "gone", netip.Addr{})
	})
	if got != 0 {
		t.Errorf("%v allocations, want none", got)
	}
}

func TestCluster(t *testing.T) {
	web := &Identity{Namespace: "shop", Pod: "web-1", Kind: "Deployment", Name: "web", ContainerRuntime: RuntimeContainerd}
	ci := &Identity{Namespace: "ci", Pod: "runner-1", Kind: "Job", Name: "runner"}
	addr := netip.MustParseAddr("10.0.0.1")
	cluster := &fakeCluster{pods: map[string]*Identity{id1: web, uid2: ci}, peers: map[netip.Addr]*Identity{addr: web}}
	tree := &fakeTree{paths: map[uint64]string{
		10: "/kubepods/pod" + uid + "/" + id1,
		11: "/kubepods/pod" + uid2 + "/" + id2 + "/kubelet/kubepods/pod" + staticHash + "/" + id2,
		12: "/system.slice/sshd.service",
		13: "/kubepods/pod" + staticHash + "/" + id2,
		14: "/kubepods/pod" + uid2 + "/" + id2 + "/kubepods/pod" + uid + "/" + id1,
	}}
	r := newResolver(Config{Cluster: cluster}, tree)
	for _, tt := range []struct {
		name   string
		cgroup uint64
		want   Identity
	}{
		{"pod", 10, Identity{
			Namespace: "shop", Pod: "web-1", Kind: "Deployment", Name: "web", ContainerID: id1,
			ContainerRuntime: RuntimeContainerd, PodUID: uid, CgroupID: 10, CgroupPath: tree.paths[10],
		}},
		{"pod of another cluster inside a pod of ours", 11, Identity{
			Namespace: "ci", Pod: "runner-1", Kind: "Job", Name: "runner", ContainerID: id2,
			PodUID: uid2, CgroupID: 11, CgroupPath: tree.paths[11],
		}},
		{"another pod's name within a pod", 14, Identity{
			Namespace: "ci", Pod: "runner-1", Kind: "Job", Name: "runner", ContainerID: id2,
			PodUID: uid2, CgroupID: 14, CgroupPath: tree.paths[14],
		}},
		{"unit", 12, Identity{Kind: KindUnit, Name: "sshd.service", CgroupID: 12, CgroupPath: tree.paths[12]}},
		{"pod not known yet", 13, Identity{
			Kind: KindContainer, Name: id2[:12], ContainerID: id2, PodUID: staticHash,
			CgroupID: 13, CgroupPath: tree.paths[13],
		}},
		{"made by the kernel", 1, *web},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := r.Local(tt.cgroup, 0, "", addr)
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("identity (-want +got):\n%s", diff)
			}
			if r.Local(tt.cgroup, 0, "", addr) != got {
				t.Error("a second call returned another pointer")
			}
		})
	}
	if got := r.Remote(Peer{Addr: addr}); got != web {
		t.Errorf("Remote returned %+v, want the pod", got)
	}
	if got := r.Remote(Peer{Addr: netip.MustParseAddr("10.0.0.2")}); got != nil {
		t.Errorf("Remote of an unknown address returned %+v", got)
	}
}

// A pod's changes show at once, and its name outlives the cluster's memory.
func TestClusterChanges(t *testing.T) {
	cluster := &fakeCluster{pods: map[string]*Identity{id1: {Pod: "web-1"}}}
	r := newResolver(Config{Cluster: cluster}, &fakeTree{paths: map[uint64]string{10: "/kubepods/pod" + uid + "/" + id1}})
	r.Local(10, 7, "nginx", netip.Addr{})
	cluster.pods[id1] = &Identity{Pod: "web-1", Labels: map[string]string{"app": "web"}}
	changed := r.Local(10, 7, "nginx", netip.Addr{})
	if changed.Labels["app"] != "web" {
		t.Errorf("labels %v, want those of the changed pod", changed.Labels)
	}
	delete(cluster.pods, id1)
	if got := r.Local(10, 7, "nginx", netip.Addr{}); got != changed {
		t.Errorf("after the deletion: %+v", got)
	}
	allocs := testing.AllocsPerRun(100, func() { r.Local(10, 7, "nginx", netip.Addr{}) })
	if allocs != 0 {
		t.Errorf("%v allocations, want none", allocs)
	}
}

func BenchmarkLocal(b *testing.B) {
	r := newResolver(Config{}, &fakeTree{paths: map[uint64]string{10: "/docker/" + id1, 12: "/batch/7"}})
	for _, bb := range []struct {
		name   string
		cgroup uint64
	}{{"container", 10}, {"command", 12}, {"kernel", 1}, {"notFound", 99}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Local(bb.cgroup, 7, "nginx", netip.Addr{})
			}
		})
	}
}

func BenchmarkParseCgroup(b *testing.B) {
	p := "/kubepods.slice/kubepods-pod" + uidSlice + ".slice/cri-containerd-" + id1 + ".scope/init.scope"
	b.ReportAllocs()
	for b.Loop() {
		ParseCgroup(p)
	}
}

// A cgroup that was told of is named although it is gone, and one that was looked
// for in vain is named after all.
func TestLearn(t *testing.T) {
	r := newResolver(Config{}, &fakeTree{paths: map[uint64]string{12: "/system.slice/sshd.service"}})
	if got := r.Local(10, 0, "sh", netip.Addr{}); got.Kind != KindProcess {
		t.Fatalf("identity %+v", got)
	}
	p := "/kubepods/pod" + uid + "/" + id1
	r.Learn(10, p)
	r.Learn(11, p)
	for _, cgroup := range []uint64{10, 11} {
		if got := r.Local(cgroup, 0, "sh", netip.Addr{}); got.ContainerID != id1 || got.PodUID != uid {
			t.Errorf("cgroup %d: %+v", cgroup, got)
		}
	}
	known := r.Local(12, 0, "sshd", netip.Addr{})
	r.Learn(12, p)
	r.Learn(rootCgroup, p)
	if r.Local(12, 0, "sshd", netip.Addr{}) != known || r.Local(rootCgroup, 0, "", netip.Addr{}) != r.kernel {
		t.Error("a name that was known has changed")
	}
}

// Containers that are there from the beginning are named although they are gone
// when their first record comes; nothing else is looked at.
func TestLearnAll(t *testing.T) {
	tree := &fakeTree{paths: map[uint64]string{
		rootCgroup: "/", 10: "/kubepods/pod" + uid + "/" + id1, 11: "/system.slice/sshd.service", 12: "/kubepods/pod" + uid,
	}}
	r := newResolver(Config{}, tree)
	r.LearnAll()
	if len(r.entries) != 2 {
		t.Errorf("%d entries, want 2", len(r.entries))
	}
	for _, id := range []uint64{10, 11, 12} {
		tree.remove(id)
	}
	if got := r.Local(10, 0, "sh", netip.Addr{}); got.ContainerID != id1 || got.PodUID != uid {
		t.Errorf("container: %+v", got)
	}
	if got := r.Local(12, 0, "sh", netip.Addr{}); got.PodUID != uid {
		t.Errorf("pod: %+v", got)
	}
}

// Where several nodes share one kernel, only the cgroups of this one's part are its own.
func TestOwns(t *testing.T) {
	const part = 10
	tree := &fakeTree{paths: map[uint64]string{
		rootCgroup: "/",
		part:       "/docker/node-1",
		11:         "/docker/node-1/kubelet/kubepods/pod" + uid + "/" + id1,
		12:         "/docker/node-1/init.scope",
		20:         "/docker/node-2",
		21:         "/docker/node-2/kubelet/kubepods/pod" + uid2 + "/" + id2,
		30:         "/docker/node-10",
		31:         "/docker/node-10/kubelet/kubepods/pod" + uid2,
		40:         "/docker",
		50:         "/system.slice/docker/node-1",
	}}
	node := newResolver(Config{}, tree)
	node.part = Part{Path: tree.paths[part], CgroupID: part}
	host := newResolver(Config{}, tree)
	lost := newResolver(Config{}, tree)
	lost.part = Part{Path: "/docker/gone", CgroupID: 98}
	for _, tt := range []struct {
		name                   string
		cgroup                 uint64
		ofNode, ofHost, ofLost bool
	}{
		{"the part", part, true, true, false},
		{"a container", 11, true, true, false},
		{"a unit", 12, true, true, false},
		{"another node", 20, false, true, false},
		{"another node's container", 21, false, true, false},
		{"another node whose path begins alike", 30, false, true, false},
		{"a pod of it", 31, false, true, false},
		{"around the part", 40, false, true, false},
		{"the part's path elsewhere", 50, false, true, false},
		{"the root", rootCgroup, false, true, false},
		{"none", 0, false, true, false},
		{"gone", 99, false, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := []bool{node.Owns(tt.cgroup), host.Owns(tt.cgroup), lost.Owns(tt.cgroup)}
			if diff := cmp.Diff([]bool{tt.ofNode, tt.ofHost, tt.ofLost}, got); diff != "" {
				t.Errorf("of a node with a part, with all, with one that is gone (-want +got):\n%s", diff)
			}
		})
	}
}

// A cgroup of which only was told, and that is gone, still is of its node.
func TestOwnsWhatIsGone(t *testing.T) {
	r := newResolver(Config{}, &fakeTree{paths: map[uint64]string{10: "/docker/node-1"}})
	r.part = Part{Path: "/docker/node-1", CgroupID: 10}
	r.Learn(11, "/docker/node-1/kubepods/pod"+uid)
	r.Learn(12, "/docker/node-2/kubepods/pod"+uid)
	if !r.Owns(11) || r.Owns(12) {
		t.Errorf("its own: %v, another node's: %v", r.Owns(11), r.Owns(12))
	}
}
