// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// readyWithin is how long an agent may take from its pod's creation until it is
// ready.
const readyWithin = 20 * time.Second

func (l *lab) agentPods(t *testing.T) []corev1.Pod {
	t.Helper()
	pods, err := l.client.CoreV1().Pods(l.agents).List(t.Context(), metav1.ListOptions{LabelSelector: agentLabels})
	if err != nil {
		t.Fatal(err)
	}
	return pods.Items
}

func readySince(p *corev1.Pod) (time.Time, error) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Time, nil
		}
	}
	return time.Time{}, fmt.Errorf("agent %s on %s is not ready", p.Name, p.Spec.NodeName)
}

// TestAgents checks what kubectl shows of the DaemonSet.
func TestAgents(t *testing.T) {
	l := shared
	ds, err := l.client.AppsV1().DaemonSets(l.agents).Get(t.Context(), "orb8-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if s := ds.Status; s.DesiredNumberScheduled == 0 || s.NumberReady != s.DesiredNumberScheduled {
		t.Errorf("%d of %d agents are ready", s.NumberReady, s.DesiredNumberScheduled)
	}
	for _, p := range l.agentPods(t) {
		since, err := readySince(&p)
		if err != nil {
			t.Error(err)
			continue
		}
		if d := since.Sub(p.CreationTimestamp.Time); d > readyWithin {
			t.Errorf("agent on %s was ready after %v, want at most %v", p.Spec.NodeName, d, readyWithin)
		}
	}
	l.noRestarts(t)
}

func (l *lab) noRestarts(t *testing.T) {
	t.Helper()
	for _, p := range l.agentPods(t) {
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount != 0 {
				t.Errorf("agent on %s has restarted %d times: %+v", p.Spec.NodeName, c.RestartCount, c.LastTerminationState.Terminated)
			}
		}
	}
}

// TestManyPods makes 100 pods come and go, and looks at the agents after that.
func TestManyPods(t *testing.T) {
	l := shared
	const pods, together = 100, 10
	slots := make(chan struct{}, together)
	var wg sync.WaitGroup
	for i := range pods {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			name := fmt.Sprintf("many-%d", i)
			spec := l.once(l.nodes[i%len(l.nodes)], "tcp", joined(l.far.Status.PodIP, port))
			if _, err := l.newPod(t.Context(), name, spec); err != nil {
				t.Errorf("pod %s: %v", name, err)
			}
			l.deletePod(t, name)
		})
	}
	wg.Wait()
	l.noRestarts(t)
	for _, p := range l.agentPods(t) {
		limit := p.Spec.Containers[0].Resources.Limits.Memory().Value()
		used, err := l.metric(t.Context(), &p, "process_resident_memory_bytes")
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("agent on %s: %.1f MiB resident of %d MiB", p.Spec.NodeName, used/(1<<20), limit>>20)
		if limit > 0 && used > float64(limit) {
			t.Errorf("agent on %s uses %.0f bytes, its limit is %d", p.Spec.NodeName, used, limit)
		}
	}
}

// metric reads one series without labels from an agent, through the API server.
func (l *lab) metric(ctx context.Context, p *corev1.Pod, name string) (float64, error) {
	out, err := l.client.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, "9091", "/metrics", nil).DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	for text := range strings.Lines(string(out)) {
		if value, ok := strings.CutPrefix(text, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("agent on %s has no metric %s", p.Spec.NodeName, name)
}

// TestAgentRestart replaces an agent while a connection that the old one saw
// begin goes on.
func TestAgentRestart(t *testing.T) {
	l := shared
	args, tx, rx := l.transferTo(l.far, 50, "-chunk", "1000", "-pause", "100ms", "-hold", "30s")
	cl := l.testPod(t, "steady", l.once(l.nodes[0], args...))
	res := l.resultOf(t, cl.Name, "main")
	for _, p := range l.agentPods(t) {
		if p.Spec.NodeName == l.nodes[0] {
			if err := l.client.CoreV1().Pods(p.Namespace).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, 60*time.Second, func() error {
		pods := l.agentPods(t)
		for _, p := range pods {
			if p.DeletionTimestamp != nil {
				return fmt.Errorf("agent %s is ending", p.Name)
			}
			if _, err := readySince(&p); err != nil {
				return err
			}
		}
		if len(pods) < len(l.nodes) {
			return fmt.Errorf("%d agents on %d nodes", len(pods), len(l.nodes))
		}
		return nil
	})
	c, _ := l.expectBoth(t, cl, l.far, res, tx, rx)
	if !c.GetTcp().GetPreexisting() {
		t.Error("the client's row does not say that the connection is older than the agent")
	}
}

// TestAPIServerRestart stops the API server while traffic goes on, and begins
// some while it is away.
func TestAPIServerRestart(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	during, duringTx, duringRx := l.transferTo(l.far, 60, "-chunk", "1000", "-pause", "100ms")
	later, laterTx, laterRx := l.transferTo(l.near, 61, "-delay", "5s")
	spec := l.once(l.nodes[0], during...)
	spec.Containers = append(spec.Containers, l.container("later", later...))
	cl := l.testPod(t, "through", spec)
	duringRes := l.resultOf(t, cl.Name, "main")
	l.script(t, "control-plane.sh", "stop-apiserver")
	time.Sleep(8 * time.Second)
	l.script(t, "control-plane.sh", "start-apiserver")
	eventually(t, 30*time.Second, func() error {
		_, err := l.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		return err
	})
	l.expectBoth(t, cl, l.far, duringRes, duringTx, duringRx)
	l.expectBoth(t, cl, l.near, l.resultOf(t, cl.Name, "later"), laterTx, laterRx)
	l.noRestarts(t)

	// The nodes may have been taken for lost, and the Services for empty.
	eventually(t, time.Minute, func() error {
		for _, server := range []string{"far", "near"} {
			_, err := l.exec(t.Context(), l.client1, "", "tcp", "-send", "16", "-receive", "16", l.clusterIP(t.Context(), server, 4))
			if err != nil {
				return err
			}
		}
		return nil
	})
}
