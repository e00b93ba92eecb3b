// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// manyPods makes pods as they come from the API, with strings of their own:
// Deployments of ten over a hundred nodes, or StatefulSets, whose pods have
// labels of their own.
func manyPods(n int, stateful bool) []*Pod {
	pods := make([]*Pod, n)
	for i := range pods {
		app := fmt.Sprintf("application-%d", i/10)
		p := &Pod{
			UID:       fmt.Sprintf("3f5c1d7e-8a2b-4c6d-9e0f-%012d", i),
			Namespace: fmt.Sprintf("namespace-%d", i%40),
			Name:      fmt.Sprintf("%s-6d4cf56db6-x%04d", app, i),
			Node:      fmt.Sprintf("ip-10-0-%d-17.eu-central-1.compute.internal", i%100),
			QoS:       "Burstable", Started: int64(i),
			IPs: []netip.Addr{
				netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
				netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}),
			},
			Labels: map[string]string{
				"app.kubernetes.io/name": app, "app.kubernetes.io/instance": app + "-prod",
				"app.kubernetes.io/part-of": "shop", "team": fmt.Sprintf("team-%d", i%7),
				labelTemplateHash: "6d4cf56db6",
			},
			Controller: Ref{"apps/v1", "ReplicaSet", app + "-6d4cf56db6"},
			Containers: []string{fmt.Sprintf("%064d", i), fmt.Sprintf("%064d", -i)},
		}
		if stateful {
			p.Labels["statefulset.kubernetes.io/pod-name"] = p.Name
			p.Labels["apps.kubernetes.io/pod-index"] = fmt.Sprint(i % 10)
			p.Controller.Kind = "StatefulSet"
		}
		pods[i] = p
	}
	return pods
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// perPod is how many bytes of heap a Store needs for each of n pods that all
// were asked for, and before they were.
func perPod(n int, stateful, own bool) (unasked, asked uint64) {
	before := heap()
	s := NewStore(StoreConfig{})
	for _, p := range manyPods(n, stateful) {
		if own {
			s.UpsertOwn(p)
		} else {
			s.UpsertPeer(p)
		}
	}
	unasked = heap() - before
	for _, p := range s.pods {
		s.identity(p)
	}
	asked = heap() - before
	runtime.KeepAlive(s)
	return unasked / uint64(n), asked / uint64(n)
}

func TestMemoryPerPod(t *testing.T) {
	const n = 10_000
	for _, tt := range []struct {
		name          string
		stateful, own bool
		limit         uint64
	}{
		{"peer of a Deployment", false, false, 1100},
		{"peer with labels of its own", true, false, 2048},
		{"own", false, true, 2048},
		{"own with labels of its own", true, true, 3072},
	} {
		t.Run(tt.name, func(t *testing.T) {
			unasked, asked := perPod(n, tt.stateful, tt.own)
			t.Logf("%d bytes per pod, %d once it was asked for", unasked, asked)
			if asked > tt.limit {
				t.Errorf("%d bytes per pod, more than %d", asked, tt.limit)
			}
		})
	}
}

// lookups are all ways to ask that find something.
func lookups() (*Store, map[string]func() bool) {
	s := testCluster()
	p := testPod("web-1", addrA, addr6)
	p.Containers, p.ConfigHash = []string{"c1"}, "0123456789abcdef"
	s.UpsertOwn(p)
	ask := func(q workload.Peer) func() bool {
		return func() bool { _, ok := s.Peer(q); return ok }
	}
	return s, map[string]func() bool{
		"container":  func() bool { _, ok := s.Pod("c1", p.UID); return ok },
		"uid":        func() bool { _, ok := s.Pod("none", p.UID); return ok },
		"static pod": func() bool { _, ok := s.Pod("none", p.ConfigHash); return ok },
		"pod IP":     ask(workload.Peer{Addr: addrA, Port: 80, Protocol: protoTCP, Since: at(1)}),
		"ClusterIP":  ask(workload.Peer{Addr: vip, Port: 80, Protocol: protoTCP}),
		"NodePort":   ask(workload.Peer{Addr: nodeB, Port: 30080, Protocol: protoTCP}),
		"hostPort":   ask(workload.Peer{Addr: nodeB, Port: 10256, Protocol: protoTCP}),
		"node":       ask(workload.Peer{Addr: nodeB}),
		"API server": ask(workload.Peer{Addr: nodeA, Port: 6443, Protocol: protoTCP}),
	}
}

func TestLookupsDoNotAllocate(t *testing.T) {
	s, all := lookups()
	all["unknown"] = func() bool { _, ok := s.Peer(workload.Peer{Addr: lb.Next()}); return !ok }
	for name, ask := range all {
		if n := testing.AllocsPerRun(100, func() {
			if !ask() {
				t.Errorf("%s: not found", name)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	_, all := lookups()
	for name, ask := range all {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ask()
			}
		})
	}
}

func BenchmarkReplacePeers(b *testing.B) {
	pods := manyPods(10_000, false)
	b.ReportAllocs()
	for b.Loop() {
		NewStore(StoreConfig{}).ReplacePeers(pods)
	}
}
