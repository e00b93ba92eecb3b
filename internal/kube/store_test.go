// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/workload"
)

var (
	epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	addrA = netip.MustParseAddr("10.1.0.5")
	addrB = netip.MustParseAddr("10.1.0.6")
	addr6 = netip.MustParseAddr("fd00::5")
	nodeA = netip.MustParseAddr("192.168.0.1")
	nodeB = netip.MustParseAddr("192.168.0.2")
	vip   = netip.MustParseAddr("10.96.0.10")
	vip6  = netip.MustParseAddr("fd00:96::10")
	lb    = netip.MustParseAddr("203.0.113.7")
)

// at is a moment, in seconds after epoch.
func at(seconds int) int64 { return epoch.Add(time.Duration(seconds) * time.Second).UnixNano() }

type testClock struct{ now time.Time }

func (c *testClock) set(seconds int) { c.now = epoch.Add(time.Duration(seconds) * time.Second) }

// checkCounts compares the running counts with the pods.
func checkCounts(t *testing.T, s *Store) {
	t.Helper()
	var own, peers int
	for _, p := range s.pods {
		switch {
		case p.gone != 0:
		case p.own != nil:
			own++
		default:
			peers++
		}
	}
	if c := s.Counts(); c.Pods != own || c.Peers != peers {
		t.Errorf("counts %+v, want %d and %d", c, own, peers)
	}
	for uid, p := range s.own {
		if s.pods[uid] != p || p.own == nil {
			t.Errorf("%s is no pod of the own node", uid)
		}
	}
}

func newTestStore() (*Store, *testClock) {
	clock := &testClock{now: epoch}
	return NewStore(StoreConfig{Now: func() time.Time { return clock.now }}), clock
}

// testPod is a pod of Deployment web, started at epoch.
func testPod(name string, addrs ...netip.Addr) *Pod {
	return &Pod{
		UID: "uid-" + name, Namespace: "shop", Name: name, Node: "a", IPs: addrs, QoS: "Burstable",
		Labels:     map[string]string{"app": "web", labelTemplateHash: "abc12"},
		Controller: Ref{"apps/v1", "ReplicaSet", "web-abc12"},
		Started:    at(0),
	}
}

func drained(s *Store) bool {
	select {
	case <-s.Changed():
		return true
	default:
		return false
	}
}

// who is what a Peer is called in short.
func who(s *Store, p workload.Peer) string {
	id, ok := s.Peer(p)
	switch {
	case !ok:
		return ""
	case id.Service != "" && id.Pod != "":
		return "svc " + id.Service + " pod " + id.Pod
	case id.Service != "":
		return "svc " + id.Service + " " + id.Kind + " " + id.Name
	case id.Pod != "":
		return "pod " + id.Pod
	}
	return id.Kind + " " + id.Name
}

func TestPodByAnyName(t *testing.T) {
	s, clock := newTestStore()
	p := testPod("web-1", addrA, addr6)
	p.ConfigHash = "0123456789abcdef"
	p.Containers = []string{"c1", "c2"}
	s.UpsertNode(&Node{Name: "a", Zone: "z1"})
	s.UpsertOwn(p)
	if !drained(s) {
		t.Error("no signal after a new pod")
	}
	want := &workload.Identity{
		Namespace: "shop", Pod: "web-1", Kind: "Deployment", Name: "web", PodUID: "uid-web-1",
		Node: "a", Zone: "z1", QoS: "Burstable", Labels: p.Labels,
	}
	var first *workload.Identity
	for _, key := range [][2]string{{"c1", ""}, {"c2", "x"}, {"", p.UID}, {"none", p.UID}, {"", p.ConfigHash}} {
		got, ok := s.Pod(key[0], key[1])
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Fatalf("Pod(%q) (-want +got):\n%s", key, diff)
		}
		if first == nil {
			first = got
		}
		if got != first {
			t.Errorf("Pod(%q): another pointer", key)
		}
	}
	for _, addr := range p.IPs {
		if got, _ := s.Peer(workload.Peer{Addr: addr}); got != first {
			t.Errorf("Peer(%s) = %+v", addr, got)
		}
	}
	if _, ok := s.Pod("", ""); ok {
		t.Error("Pod without a key found something")
	}

	// A restart: the old containers stay known.
	p = testPod("web-1", addrA, addr6)
	p.Containers = []string{"c3", "c2"}
	s.UpsertOwn(p)
	if !drained(s) {
		t.Error("no signal after a new container")
	}
	for _, id := range []string{"c1", "c2", "c3"} {
		if got, _ := s.Pod(id, ""); got != first {
			t.Errorf("Pod(%s) after restart = %p, want %p", id, got, first)
		}
	}
	s.UpsertOwn(p)
	if drained(s) {
		t.Error("signal though nothing changed")
	}

	s.DeleteOwn(p.UID)
	clock.set(59)
	s.Sweep(clock.now)
	if got, _ := s.Pod("c1", ""); got != first {
		t.Error("deleted pod not known for 60 s")
	}
	clock.set(60)
	s.Sweep(clock.now)
	if _, ok := s.Pod("c1", p.UID); ok {
		t.Error("deleted pod known after 60 s")
	}
	if n := len(s.pods) + len(s.containers) + len(s.hashes) + len(s.ips) + len(s.others); n != 0 {
		t.Errorf("%d entries left", n)
	}
}

func TestContainersBounded(t *testing.T) {
	s, _ := newTestStore()
	p := testPod("web-1", addrA)
	for i := range 1000 {
		p.Containers = []string{"side", string(rune('A' + i))}
		s.UpsertOwn(p)
	}
	if got := len(s.containers); got != maxContainers {
		t.Errorf("%d containers kept, want %d", got, maxContainers)
	}
	for _, id := range p.Containers {
		if _, ok := s.Pod(id, ""); !ok {
			t.Errorf("container %s not known", id)
		}
	}
}

func TestAddressReused(t *testing.T) {
	s, clock := newTestStore()
	s.UpsertPeer(testPod("old", addrA))
	clock.set(100)
	s.DeletePeer("uid-old")
	ask := func(since int64) string { return who(s, workload.Peer{Addr: addrA, Since: since}) }
	check := func(step string, since int64, want string) {
		t.Helper()
		if got := ask(since); got != want {
			t.Errorf("%s: %q, want %q", step, got, want)
		}
	}
	check("deleted, unknown begin", 0, "pod old")
	check("deleted, began before", at(50), "pod old")
	check("deleted, began after", at(101), "")

	next := testPod("new", addrA)
	next.Started = at(110)
	clock.set(111)
	s.UpsertPeer(next)
	check("reused, unknown begin", 0, "pod new")
	check("reused, began before the old one went", at(50), "pod old")
	check("reused, began in between", at(105), "pod new")
	check("reused, began after", at(120), "pod new")

	clock.set(160)
	s.Sweep(clock.now)
	check("old one forgotten", at(50), "")
	check("clocks apart", at(106), "pod new")
}

func TestAddressContested(t *testing.T) {
	s, _ := newTestStore()
	next := testPod("new", addrA)
	next.Started = at(10)
	s.UpsertPeer(next)
	late := testPod("old", addrA)
	s.UpsertPeer(late) // its last update comes after the new pod
	late.QoS = "Guaranteed"
	s.UpsertPeer(late)
	if got := who(s, workload.Peer{Addr: addrA}); got != "pod new" {
		t.Errorf("got %q, want the pod that started later", got)
	}
	s.DeletePeer("uid-new")
	if got := who(s, workload.Peer{Addr: addrA}); got != "pod old" {
		t.Errorf("got %q, want the one that still lives", got)
	}
}

func TestFinishedPod(t *testing.T) {
	s, clock := newTestStore()
	p := testPod("job", addrA)
	p.Containers = []string{"c1"}
	s.UpsertOwn(p)
	clock.set(10)
	p.Finished, p.Ended = true, at(9)
	s.UpsertOwn(p)
	for _, tt := range []struct {
		since int64
		want  string
	}{{0, "pod job"}, {at(5), "pod job"}, {at(10), ""}} {
		if got := who(s, workload.Peer{Addr: addrA, Since: tt.since}); got != tt.want {
			t.Errorf("since %d: %q, want %q", tt.since, got, tt.want)
		}
	}
	clock.set(1000)
	s.Sweep(clock.now)
	if got := who(s, workload.Peer{Addr: addrA}); got != "" {
		t.Errorf("finished pod keeps its address: %q", got)
	}
	if _, ok := s.Pod("c1", ""); !ok {
		t.Error("finished pod is not known by its container")
	}
}

func TestFinishedPeers(t *testing.T) {
	s, clock := newTestStore()
	clock.set(100)
	short := testPod("short", addrA)
	short.Finished, short.Ended = true, at(99)
	s.UpsertPeer(short) // pods that live under a second are first seen finished
	if got := who(s, workload.Peer{Addr: addrA, Since: at(98)}); got != "pod short" {
		t.Errorf("short pod: %q", got)
	}
	long := testPod("long", addrB)
	long.Finished, long.Ended = true, at(1)
	s.UpsertPeer(long)
	listed := testPod("listed", addr6)
	listed.Finished = true
	s.ReplacePeers([]*Pod{listed, short})
	if n := len(s.pods); n != 1 {
		t.Errorf("%d pods kept, want the one that finished just now", n)
	}
	clock.set(161)
	s.Sweep(clock.now)
	if n := len(s.pods); n != 0 {
		t.Errorf("%d pods kept", n)
	}
}

func TestOwnWins(t *testing.T) {
	s, clock := newTestStore()
	s.UpsertPeer(testPod("web-1", addrA))
	own := testPod("web-1", addrA)
	own.Kind, own.Workload = "Rollout", "web"
	s.UpsertOwn(own)
	s.UpsertPeer(testPod("web-1", addrA))
	id, _ := s.Peer(workload.Peer{Addr: addrA})
	if id.Kind != "Rollout" {
		t.Errorf("peers' source overrode the own one: %+v", id)
	}
	if diff := cmp.Diff(Counts{Pods: 1}, s.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	s.DeletePeer("uid-web-1")
	if got := who(s, workload.Peer{Addr: addrA, Since: at(1000)}); got != "pod web-1" {
		t.Errorf("after the peers' source deleted it: %q", got)
	}
	s.DeleteOwn("uid-web-1")
	s.UpsertPeer(testPod("web-1", addrA)) // late
	if got := who(s, workload.Peer{Addr: addrA, Since: at(1000)}); got != "" {
		t.Errorf("a late update brought it back: %q", got)
	}
	clock.set(60)
	s.Sweep(clock.now)
	if len(s.pods) != 0 {
		t.Error("not forgotten")
	}
}

func TestReplaceMakesTombstones(t *testing.T) {
	s, clock := newTestStore()
	s.UpsertOwn(testPod("own", addrA))
	s.UpsertPeer(testPod("peer", addrB))
	clock.set(5)
	s.ReplaceOwn(nil)
	s.ReplacePeers(nil)
	for addr, want := range map[netip.Addr]string{addrA: "pod own", addrB: "pod peer"} {
		if got := who(s, workload.Peer{Addr: addr, Since: at(1)}); got != want {
			t.Errorf("began before: %q, want %q", got, want)
		}
		if got := who(s, workload.Peer{Addr: addr, Since: at(6)}); got != "" {
			t.Errorf("began after: %q", got)
		}
	}
	// A list that was behind: the pod is there after all.
	s.UpsertPeer(testPod("peer", addrB))
	clock.set(100)
	s.Sweep(clock.now)
	if got := who(s, workload.Peer{Addr: addrB, Since: at(90)}); got != "pod peer" {
		t.Errorf("came back: %q", got)
	}
}

func TestSamePointer(t *testing.T) {
	s, _ := newTestStore()
	s.UpsertNode(&Node{Name: "a", Zone: "z1", Addrs: []netip.Addr{nodeA}})
	s.UpsertPeer(testPod("web-1", addrA))
	ask := func(addr netip.Addr) *workload.Identity {
		id, _ := s.Peer(workload.Peer{Addr: addr})
		return id
	}
	pod, node := ask(addrA), ask(nodeA)
	s.UpsertPeer(testPod("web-1", addrA, addr6))
	s.UpsertNode(&Node{Name: "a", Zone: "z1", Addrs: []netip.Addr{nodeA, nodeB}})
	if ask(addrA) != pod || ask(nodeA) != node {
		t.Error("another pointer though names stayed the same")
	}
	if ask(addr6) != pod {
		t.Error("another pointer for the other family")
	}
	s.UpsertNode(&Node{Name: "a", Zone: "z2", Addrs: []netip.Addr{nodeA}})
	if got := ask(addrA); got == pod || got.Zone != "z2" || pod.Zone != "z1" {
		t.Errorf("after the zone changed: %+v, was %+v", got, pod)
	}
}

func TestChangedWhenWaitedFor(t *testing.T) {
	s, _ := newTestStore()
	s.UpsertPeer(testPod("other", addrB))
	if drained(s) {
		t.Error("signal for a peer that nobody asked for")
	}
	who(s, workload.Peer{Addr: addrA})
	s.UpsertPeer(testPod("web-1", addrA))
	if !drained(s) {
		t.Error("no signal for a peer that was asked for")
	}
}

func TestInternerShrinks(t *testing.T) {
	s, clock := newTestStore()
	for i := range 3 * minShared {
		p := testPod("web-1", addrA)
		p.Labels = map[string]string{"n": time.Duration(i).String()}
		s.UpsertPeer(p)
	}
	s.Sweep(clock.now)
	if got := s.shared.size(); got > 100 {
		t.Errorf("%d shared strings and sets kept for one pod", got)
	}
}

// The counts are kept as pods come and go; in whatever order, they are those of the pods.
func TestCountsAfterAnything(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	s, clock := newTestStore()
	for i := range 3000 {
		clock.set(i)
		name := fmt.Sprint("web-", r.IntN(20))
		p := testPod(name, addrA)
		p.UID = "uid-" + name
		p.Finished = r.IntN(4) == 0
		switch r.IntN(8) {
		case 0, 1:
			s.UpsertOwn(p)
		case 2, 3:
			s.UpsertPeer(p)
		case 4:
			s.DeleteOwn(p.UID)
		case 5:
			s.DeletePeer(p.UID)
		case 6:
			s.Sweep(clock.now)
		case 7:
			if r.IntN(2) == 0 {
				s.ReplaceOwn([]*Pod{p})
			} else {
				s.ReplacePeers([]*Pod{p})
			}
		}
		checkCounts(t, s)
		if t.Failed() {
			t.Fatalf("after %d steps", i)
		}
	}
}
