// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

func newSlices(a *apiServer) (*ResourceSlices, *testClock) {
	clock := &testClock{now: epoch}
	r := NewResourceSlices(a.clients(), "a")
	r.now = func() time.Time { return clock.now }
	return r, clock
}

func resourceSlice(name, node string, device obj) obj {
	return obj{
		"metadata": obj{"name": name},
		"spec":     obj{"nodeName": node, "driver": "gpu.nvidia.com", "pool": obj{"name": node, "generation": 1}, "devices": []obj{device}},
	}
}

func TestResourceSlices(t *testing.T) {
	a := newAPIServer(t)
	const resource = "resourceslices.resource.k8s.io"
	attributes := obj{
		"type": obj{"string": "gpu"}, "gpu.nvidia.com/uuid": obj{"string": "GPU-1"}, "index": obj{"int": 2},
		"cudaComputeCapability": obj{"version": "9.0.0"}, "ready": obj{"bool": true},
	}
	a.put(resource, resourceSlice("one", "a", obj{"name": "gpu-2", "attributes": attributes}))
	a.put(resource, resourceSlice("old", "a", obj{"name": "gpu-3", "basic": obj{"attributes": obj{"uuid": obj{"string": "GPU-3"}}}}))
	a.put(resource, resourceSlice("other", "b", obj{"name": "gpu-9", "attributes": attributes}))
	r, clock := newSlices(a)

	got, ok := r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "a", "gpu-2"})
	want := map[string]string{"type": "gpu", "uuid": "GPU-1", "index": "2", "cudaComputeCapability": "9.0.0", "ready": "true"}
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Errorf("%t (-want +got):\n%s", ok, diff)
	}
	if got, _ := r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "a", "gpu-3"}); got["uuid"] != "GPU-3" {
		t.Errorf("attributes as before v1: %v", got)
	}
	if _, ok := r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "b", "gpu-9"}); ok {
		t.Error("another node's device")
	}
	if a.lists != 1 {
		t.Errorf("%d lists", a.lists)
	}
	// A device that is not known is asked for again, but not at once.
	a.put(resource, resourceSlice("new", "a", obj{"name": "gpu-4", "attributes": attributes}))
	if _, ok := r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "a", "gpu-4"}); ok || a.lists != 1 {
		t.Errorf("asked again at once: %d lists", a.lists)
	}
	clock.set(31)
	if _, ok := r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "a", "gpu-4"}); !ok || r.Err() != nil {
		t.Errorf("not known half a minute later: %v", r.Err())
	}
	// What may not be read any more stays known.
	a.allow("list "+resource, false)
	clock.set(90)
	if _, ok := r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "a", "gpu-7"}); ok {
		t.Error("a device that is not there")
	}
	if _, ok := r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "a", "gpu-2"}); !ok {
		t.Error("forgotten")
	}
	const forbidden = "list resourceslices.resource.k8s.io: forbidden: the service account orb8-system/orb8-agent lacks it; apply the ClusterRole"
	if err := r.Err(); err == nil || !strings.HasPrefix(err.Error(), forbidden) {
		t.Errorf("%v, want %s", err, forbidden)
	}
}

// TestResourceSlicesChange: a device made anew under the same name is another one, and of two
// generations of a pool the newer one counts, in whatever order they come.
func TestResourceSlicesChange(t *testing.T) {
	a := newAPIServer(t)
	const resource = "resourceslices.resource.k8s.io"
	slice := func(name, uuid string, generation int) obj {
		s := resourceSlice(name, "a", obj{"name": "mig-0", "attributes": obj{"uuid": obj{"string": uuid}}})
		s["spec"].(obj)["pool"].(obj)["generation"] = generation
		return s
	}
	a.put(resource, slice("one", "MIG-1", 1))
	r, clock := newSlices(a)
	uuid := func() string {
		got, _ := r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "a", "mig-0"})
		return got["uuid"]
	}
	if got := uuid(); got != "MIG-1" {
		t.Errorf("uuid %s", got)
	}
	a.put(resource, slice("one", "MIG-2", 2))
	clock.set(59)
	if got := uuid(); got != "MIG-1" || a.lists != 1 {
		t.Errorf("within a minute: %s, %d lists", got, a.lists)
	}
	clock.set(61)
	if got := uuid(); got != "MIG-2" || a.lists != 2 {
		t.Errorf("a minute later: %s, %d lists", got, a.lists)
	}
	a.put(resource, slice("a-newer", "MIG-3", 3))
	a.put(resource, slice("z-older", "MIG-0", 1))
	clock.set(130)
	if got := uuid(); got != "MIG-3" {
		t.Errorf("of three generations: %s", got)
	}
}

// While the API server is asked, what is known can be asked for.
func TestResourceSlicesDoNotBlock(t *testing.T) {
	a := newAPIServer(t)
	r, _ := newSlices(a)
	release := a.hold("resourceslices.resource.k8s.io")
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Attributes(t.Context(), ResourceDevice{"gpu.nvidia.com", "a", "gpu-1"})
	}()
	eventually(t, "the question", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return !r.read.IsZero()
	})
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	release()
	testwait.Receive(t, "the answer", done)
}

func FuzzParseSlices(f *testing.F) {
	f.Add(`{"items":[{"spec":{"driver":"d","pool":{"name":"p"},"devices":[{"name":"n","attributes":{"a/b":{"string":"c"}}}]}}]}`)
	f.Add(`{"items":[{"spec":{"devices":[{"basic":{"attributes":{"b":{"int":1}}}}]}}]}`)
	f.Add(`[]`)
	f.Fuzz(func(_ *testing.T, text string) { _, _ = parseSlices([]byte(text)) })
}

// Named finds the latest pod of a name.
func TestNamed(t *testing.T) {
	s, clock := newTestStore()
	if _, _, known := s.Named("shop", "web-0"); known {
		t.Error("a pod that was never told of")
	}
	s.UpsertOwn(testPod("web-0", addrA))
	if id, runs, known := s.Named("shop", "web-0"); !known || !runs || id.Pod != "web-0" || id.Kind != "Deployment" {
		t.Errorf("%v %t %t", id, runs, known)
	}
	if _, _, known := s.Named("other", "web-0"); known {
		t.Error("in another namespace")
	}
	s.UpsertPeer(testPod("far", addrB))
	if _, _, known := s.Named("shop", "far"); known {
		t.Error("another node's pod")
	}
	web := func(labels map[string]string) bool { return labels["app"] == "web" }
	if addrs := s.Addrs("shop", web); len(addrs) != 1 || addrs[0] != addrA {
		t.Errorf("addresses %v", addrs)
	}
	if addrs := s.Addrs("other", web); len(addrs) != 0 {
		t.Errorf("addresses of another namespace %v", addrs)
	}
	s.DeleteOwn("uid-web-0")
	if addrs := s.Addrs("shop", web); len(addrs) != 0 {
		t.Errorf("addresses of a pod that has gone: %v", addrs)
	}
	if _, runs, known := s.Named("shop", "web-0"); !known || runs {
		t.Errorf("deleted: runs %t, known %t", runs, known)
	}
	next := testPod("web-0", addrB)
	next.UID = "uid-next"
	s.UpsertOwn(next)
	clock.set(120)
	s.Sweep(clock.now) // the first one is forgotten, its successor is not
	if id, runs, _ := s.Named("shop", "web-0"); id == nil || id.PodUID != "uid-next" || !runs {
		t.Errorf("the successor: %v %t", id, runs)
	}
	done := testPod("job-1", addrA)
	done.Finished = true
	s.UpsertOwn(done)
	if _, runs, known := s.Named("shop", "job-1"); !known || runs {
		t.Errorf("finished: runs %t, known %t", runs, known)
	}
}
