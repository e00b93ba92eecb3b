// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	addr := netip.MustParseAddr("198.51.100.7")
	now := time.Now()
	n := NewNames()
	if id := n.Of(1, addr, 0); id != nil {
		t.Errorf("an address that nobody looked up is %+v", id)
	}
	n.Learn(1, addr, "a.test", now)
	n.Learn(2, addr, "b.test", now)
	for cgroup, want := range map[uint64]string{1: "a.test", 2: "b.test", 3: "b.test", 0: "b.test"} {
		if id := n.Of(cgroup, addr, 0); id == nil || id.Name != want || id.Kind != KindExternal {
			t.Errorf("to cgroup %d it is %+v, want %s", cgroup, id, want)
		}
	}
	if n.Of(2, addr, 0) != n.Of(3, addr, 0) {
		t.Error("one name has two identities")
	}
	// A flow that is older than a name has the one before, or none.
	n.Learn(2, addr, "new.test", now.Add(2*time.Second))
	if id := n.Of(2, addr, now.UnixNano()); id == nil || id.Name != "b.test" {
		t.Errorf("to an older flow it is %+v, want b.test", id)
	}
	if id := n.Of(2, addr, now.Add(-time.Hour).UnixNano()); id == nil || id.Name != "b.test" {
		t.Errorf("to a flow of long ago it is %+v, want what is known", id)
	}
	n.Learn(2, addr, "b.test", now.Add(4*time.Second))
	// They go an hour after they were looked up last.
	n.Learn(1, addr, "a.test", now.Add(30*time.Minute))
	n.Sweep(now.Add(nameTime + time.Minute))
	if id := n.Of(2, addr, 0); id == nil || id.Name != "a.test" {
		t.Errorf("after an hour it is %+v, want what cgroup 1 looked up since", id)
	}
	n.Sweep(now.Add(2*nameTime + time.Minute))
	if len(n.byAddr)+len(n.byName) != 0 {
		t.Errorf("%d addresses and %d names are left", len(n.byAddr), len(n.byName))
	}
}

func TestNamesAreBounded(t *testing.T) {
	n := NewNames()
	now := time.Now()
	for i := range 3 * maxNames {
		n.Learn(uint64(i%7+1), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), fmt.Sprint("n", i), now)
		if len(n.byAddr) > maxNames || len(n.byName) > 2*maxNames+1 {
			t.Fatalf("%d addresses, %d names", len(n.byAddr), len(n.byName))
		}
	}
}

// TestRemoteByName: what Kubernetes knows comes first, and a name never names a
// local end.
func TestRemoteByName(t *testing.T) {
	r := newResolver(Config{Names: NewNames()}, nil)
	addr := netip.MustParseAddr("198.51.100.7")
	if id := r.Remote(Peer{Addr: addr, Cgroup: 1}); id != nil {
		t.Errorf("unknown address is %+v", id)
	}
	r.LookedUp(1, addr, "api.example.test")
	if id := r.Remote(Peer{Addr: addr, Cgroup: 1}); id == nil || id.Name != "api.example.test" {
		t.Errorf("%+v", id)
	}
	if id := r.Remote(Peer{Addr: addr}); id != nil {
		t.Errorf("who comes from there is %+v", id)
	}
	if id := r.Local(0, 0, "", addr); id.Kind != KindKernel {
		t.Errorf("a local end is %+v", id)
	}
	pod := &Identity{Pod: "web-0", Namespace: "default"}
	r.cluster = &fakeCluster{peers: map[netip.Addr]*Identity{addr: pod}}
	if id := r.Remote(Peer{Addr: addr, Cgroup: 1}); id != pod {
		t.Errorf("a pod's address is %+v", id)
	}
}
