// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/testwait"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// fakeCluster is Kubernetes with a fixed state.
type fakeCluster struct {
	status  kube.Status
	changed chan struct{}
	ran     chan struct{}
	untold  atomic.Uint64
	mu      sync.Mutex
	told    []kube.PodEvent
}

func (f *fakeCluster) Tell(e *kube.PodEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, *e)
}
func (f *fakeCluster) Untold() uint64 { return f.untold.Load() }

func (f *fakeCluster) Run(ctx context.Context) error {
	close(f.ran)
	<-ctx.Done()
	return nil
}
func (f *fakeCluster) Status() kube.Status      { return f.status }
func (f *fakeCluster) Changed() <-chan struct{} { return f.changed }
func (f *fakeCluster) Images(containerID, podUID string) []kube.Image {
	if containerID != shopContainer || podUID != "u1" {
		return nil
	}
	return []kube.Image{{Name: "registry.test/web:1"}}
}

func inCluster(f *fakeCluster) rigOption {
	f.changed, f.ran = make(chan struct{}, 1), make(chan struct{})
	return func(_ *config.Config, d *Deps, r *rig) { d.Cluster, r.resolver.awaits = f, true }
}

func TestStatusInKubernetes(t *testing.T) {
	f := &fakeCluster{status: kube.Status{Counts: kube.Counts{Pods: 3, Peers: 40, Services: 5, Nodes: 2}, Synced: true}}
	r := startRig(t, inCluster(f))
	testwait.Receive(t, "the run of the cluster", f.ran)
	got, err := r.client.GetStatus(t.Context(), &orb8v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !got.Healthy || got.HealthMessage != "" || got.PodsTracked != 3 {
		t.Errorf("healthy %v, %q, %d pods", got.Healthy, got.HealthMessage, got.PodsTracked)
	}
	want := &orb8v1.KubernetesStatus{Enabled: true, Synced: true, PeerPods: 40, Services: 5, Nodes: 2}
	if d := cmp.Diff(want, got.Kubernetes, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// Without the API server flows go on, and the status says so.
func TestDegradedInKubernetes(t *testing.T) {
	f := &fakeCluster{status: kube.Status{Degraded: "API server https://10.0.0.1 cannot be reached"}}
	r := startRig(t, inCluster(f))
	if err := r.readiness(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	r.resolver.degraded = "the host's cgroups are not visible"
	state, message := r.nodeHealth(r.manager.Status())
	if !strings.HasSuffix(message, r.resolver.degraded+"; "+f.status.Degraded) {
		t.Errorf("message %q", message)
	}
	if state != orb8v1.NodeState_NODE_STATE_DEGRADED || !strings.Contains(message, f.status.Degraded) {
		t.Errorf("state %v: %q", state, message)
	}
}

// A record waits for its pod and goes out once that is known; what waits when
// the agent stops is not lost.
func TestRecordsWaitForPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where no pause of the machine ends the wait for a name
		f := &fakeCluster{}
		r := startRig(t, inCluster(f))
		stream, err := r.client.StreamEvents(t.Context(), &orb8v1.StreamEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		r.await(t, "subscription", func() bool { return r.hub.Subscribers() > 0 })
		s := flowtest.UDP(5000, 10, 0)
		r.apply(&s)
		time.Sleep(3 * flushEvery)
		synctest.Wait()
		if n := r.names.Waiting(); n != 1 {
			t.Fatalf("%d records wait", n)
		}
		r.resolver.mu.Lock()
		r.resolver.local[s.CgroupID] = &workload.Identity{Namespace: "default", Pod: "web-1"}
		r.resolver.mu.Unlock()
		f.changed <- struct{}{}
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got.Namespace != "default" || got.PodName != "web-1" {
			t.Errorf("event of %q/%q", got.Namespace, got.PodName)
		}
	})
}

// The low watermark never passes a record that waits for its pod, and it is told to those
// who ask for it.
func TestLowWatermark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeCluster{}
		r := startRig(t, inCluster(f))
		stream := r.follow(t.Context(), t, &orb8v1.ObserveRequest{Progress: true})
		plain := r.follow(t.Context(), t, &orb8v1.ObserveRequest{})
		for name, s := range map[string]interface{ Recv() (*orb8v1.Event, error) }{"asked": stream, "plain": plain} {
			if greeting, err := s.Recv(); err != nil || greeting.GetNodeStatus() == nil {
				t.Errorf("%s: greeting %v, %v", name, greeting, err)
			}
		}
		if ev, err := stream.Recv(); err != nil || ev.GetProgress().GetLowWatermarkNs() != 1 {
			t.Errorf("after the greeting %v, %v", ev, err)
		}
		waits := flowtest.UDP(5000, 10, 0)
		waits.Last = time.Now().UnixNano()
		r.probe.feed(waits)
		for range 3 {
			time.Sleep(500 * time.Millisecond)
			r.collect()
		}
		r.resolver.mu.Lock()
		r.resolver.local[waits.CgroupID] = &workload.Identity{Namespace: "default", Pod: "web-1"}
		r.resolver.mu.Unlock()
		f.changed <- struct{}{}
		lows := 0
		for {
			ev, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if ev.GetFlow() != nil {
				break
			}
			if lows++; ev.GetProgress().GetLowWatermarkNs() > waits.Last {
				t.Errorf("the watermark is %v past a record that waits", time.Duration(ev.GetProgress().GetLowWatermarkNs()-waits.Last))
			}
		}
		if lows == 0 {
			t.Error("no watermark before the record")
		}
		if ev, err := plain.Recv(); err != nil || ev.GetTimeNs() != waits.Last {
			t.Errorf("the plain stream has %v, %v", ev, err)
		}
		before := time.Now()
		r.collect()
		for low := int64(0); low < before.Add(-clockGrain).UnixNano(); {
			ev, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			low = ev.GetProgress().GetLowWatermarkNs()
		}
	})
}
