// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What an agent may take for 10,000 pods.
const (
	scaleMemory = 128 << 20
	scaleSynced = 10 * time.Second
	podsPerNode = 100
)

// TestScale fakes ORB8_TEST_SCALE pods with kwok against the real API server,
// starts the agents anew and measures them.
func TestScale(t *testing.T) {
	l := shared
	pods, err := strconv.Atoi(os.Getenv("ORB8_TEST_SCALE"))
	if err != nil {
		t.Skip("set ORB8_TEST_SCALE to a number of pods")
	}
	l.script(t, "control-plane.sh", "start-kwok")
	began := time.Now()
	each((pods+podsPerNode-1)/podsPerNode, func(i int) {
		if err := l.fakeNode(t.Context(), i); err != nil {
			t.Errorf("node %d: %v", i, err)
		}
	})
	each(pods, func(i int) {
		if err := l.fakePod(t.Context(), i); err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
	})
	eventually(t, 10*time.Minute, func() error { return l.fakesRun(t.Context(), pods) })
	t.Logf("%d pods run after %.0f s", pods, time.Since(began).Seconds())

	restarted := time.Now()
	l.deleteAgents(t)
	synced := map[string]time.Duration{}
	eventually(t, 2*time.Minute, func() error {
		all, err := l.statuses(t.Context())
		if err != nil {
			return err
		}
		now := time.Now()
		for node, s := range all {
			started := time.Unix(0, s.GetStartedNs())
			k := s.GetKubernetes()
			if _, known := synced[node]; !known && started.After(restarted) && k.GetSynced() && int(k.GetPeerPods()) >= pods {
				synced[node] = now.Sub(started)
			}
		}
		if len(synced) < len(l.nodes) {
			return fmt.Errorf("synced so far: %v", synced)
		}
		return nil
	})
	time.Sleep(20 * time.Second) // a sample or two, and what start-up has left over
	for _, p := range l.agentPods(t) {
		node := p.Spec.NodeName
		used, err := l.metric(t.Context(), &p, "process_resident_memory_bytes")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("agent on %s: all pods known at most %.1f s after its start, %.1f MiB resident", node, synced[node].Seconds(), used/(1<<20))
		if used > scaleMemory {
			t.Errorf("agent on %s: %.1f MiB resident, want at most %d", node, used/(1<<20), scaleMemory>>20)
		}
		if synced[node] > scaleSynced {
			t.Errorf("agent on %s: synced after %v, want at most %v", node, synced[node], scaleSynced)
		}
	}
	l.noRestarts(t)
}

// each calls f for 0 to n-1, several at once.
func each(n int, f func(i int)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func fakeNodeName(i int) string { return fmt.Sprintf("fake-%d", i) }

func (l *lab) fakeNode(ctx context.Context, i int) error {
	room := corev1.ResourceList{"cpu": resource.MustParse("64"), "memory": resource.MustParse("256Gi"), "pods": resource.MustParse("500")}
	_, err := l.client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        fakeNodeName(i),
			Labels:      map[string]string{"kubernetes.io/os": "none", "topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3)},
			Annotations: map[string]string{"kwok.x-k8s.io/node": "fake"},
		},
		Status: corev1.NodeStatus{Allocatable: room, Capacity: room},
	}, metav1.CreateOptions{})
	return err
}

// fakePod has about as many labels as pods of charts have.
func (l *lab) fakePod(ctx context.Context, i int) error {
	spec := l.podSpec(fakeNodeName(i/podsPerNode), "wait")
	app := fmt.Sprintf("app-%d", i%100)
	_, err := l.client.CoreV1().Pods(l.namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-7d9f8b6c5d-%05d", app, i),
			Labels: map[string]string{
				"fake": "yes", "app.kubernetes.io/name": app, "app.kubernetes.io/instance": app,
				"app.kubernetes.io/version": "1.2.3", "pod-template-hash": "7d9f8b6c5d",
			},
		},
		Spec: spec,
	}, metav1.CreateOptions{})
	return err
}

// fakesRun returns nil when all of them run and have an address.
func (l *lab) fakesRun(ctx context.Context, want int) error {
	list, err := l.client.CoreV1().Pods(l.namespace).List(ctx, metav1.ListOptions{LabelSelector: "fake=yes", ResourceVersion: "0"})
	if err != nil {
		return err
	}
	running := 0
	for i := range list.Items {
		if s := list.Items[i].Status; s.Phase == corev1.PodRunning && s.PodIP != "" {
			running++
		}
	}
	if running < want {
		return fmt.Errorf("%d of %d fake pods run", running, want)
	}
	return nil
}
