// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
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
		most := used
		if l.lab != "" {
			pid, err := agentProcess(&p)
			if err == nil {
				most, err = peak(pid)
			}
			if err != nil {
				t.Error(err)
			}
		}
		t.Logf("agent on %s: %.1f MiB resident, %.1f at most, of %d MiB", p.Spec.NodeName, used/(1<<20), most/(1<<20), limit>>20)
		if limit > 0 && max(used, most) > float64(limit) {
			t.Errorf("agent on %s has used %.0f bytes, its limit is %d", p.Spec.NodeName, max(used, most), limit)
		}
	}
}

// deleteAgents deletes the agents of some nodes, or of all.
func (l *lab) deleteAgents(t *testing.T, nodes ...string) {
	t.Helper()
	for _, p := range l.agentPods(t) {
		if len(nodes) > 0 && !slices.Contains(nodes, p.Spec.NodeName) {
			continue
		}
		if err := l.client.CoreV1().Pods(p.Namespace).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// replaceAgents deletes agents and waits for their successors.
func (l *lab) replaceAgents(t *testing.T, nodes ...string) {
	t.Helper()
	l.deleteAgents(t, nodes...)
	eventually(t, 2*time.Minute, func() error {
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
}

// processes are those of a pod, on a node that shares this machine's kernel.
func processes(p *corev1.Pod) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(text), string(p.UID)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// agentProcess is the agent itself among the processes of its pod.
func agentProcess(p *corev1.Pod) (int, error) {
	for _, pid := range processes(p) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && strings.TrimSpace(string(comm)) == "orb8" {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process of agent %s", p.Name)
}

// peak is the most memory that a process has had, in bytes.
func peak(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmHWM", pid)
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

// TestAgentRestart replaces all agents while connections that the old ones saw
// begin go on, by every way that a connection may take.
func TestAgentRestart(t *testing.T) {
	l := shared
	first := l.nodes[0]
	ways := []struct {
		name   string
		host   bool // the client is on its host's network
		to     string
		server *pod
		// service is on the client's row, and on the server's if both are on one node.
		service string
		// translated: the server does not see the client's address.
		translated bool
	}{
		{"pod", false, joined(l.far.Status.PodIP, port), l.far, "", false},
		{"cluster-ip", false, l.clusterIP(t.Context(), "far", 4), l.far, "far", false},
		{"cluster-ip-here", false, l.clusterIP(t.Context(), "near", 4), l.near, "near", false},
		{"node-port", false, l.nodePort(t, "far", first, "tcp", 4), l.far, "far", true},
		{"host-server", false, joined(l.hostA.Status.HostIP, portHostA), l.hostA, "", false},
		{"host-client", true, joined(l.near.Status.PodIP, port), l.near, "", false},
		{"host-client-service", true, l.clusterIP(t.Context(), "near", 4), l.near, "near", true},
	}
	spec, hostSpec := l.once(first), l.once(first)
	spec.Containers, hostSpec.Containers, hostSpec.HostNetwork = nil, nil, true
	type sizes struct{ tx, rx uint64 }
	var want []sizes
	for i, w := range ways {
		args, tx, rx := l.transferTo(w.server, 50+i, "-chunk", "1000", "-pause", "100ms", "-hold", "60s")
		args[len(args)-1] = w.to
		want = append(want, sizes{tx, rx})
		of := &spec
		if w.host {
			of = &hostSpec
		}
		of.Containers = append(of.Containers, l.container(w.name, args...))
	}
	clients := map[bool]*pod{false: l.testPod(t, "steady", spec), true: l.testPod(t, "steady-host", hostSpec)}
	var results []result
	for _, w := range ways {
		results = append(results, l.resultOf(t, clients[w.host].Name, w.name))
	}
	l.replaceAgents(t)
	for i, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			client, res := clients[w.host], results[i]
			c := l.expect(t, "TCP", first, seen{
				Local: client.identity(), Remote: with(w.server.identity(), w.service),
				TxBytes: want[i].tx, RxBytes: want[i].rx, Role: "client",
			}, func(f *orb8v1.Flow) bool { return isFrom(f, res) })
			if !c.GetTcp().GetPreexisting() {
				t.Error("the client's row does not say that the connection is older than the agent")
			}
			if w.translated {
				return // the server's row has another client
			}
			local := w.server.identity()
			if w.server.Spec.NodeName == first {
				local.Service = w.service
			}
			l.expect(t, "TCP", w.server.Spec.NodeName, seen{
				Local: local, Remote: client.identity(), TxBytes: want[i].rx, RxBytes: want[i].tx, Role: "server",
			}, func(f *orb8v1.Flow) bool { return isTo(f, res, route{}) })
		})
	}
}

// TestAgentStartsWithoutAPIServer kills an agent while the API server is away: its
// successor sees the flows of containers without knowing their pods, and names
// them when the API server is back.
func TestAgentStartsWithoutAPIServer(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	first := l.nodes[0]
	// Begins while the API server is away, and is not over when it is back.
	args, tx, rx := l.transferTo(l.near, 70, "-delay", "20s", "-chunk", "2000", "-pause", "500ms")
	cl := l.testPod(t, "unnamed", l.once(first, args...))
	var agent corev1.Pod
	for _, p := range l.agentPods(t) {
		if p.Spec.NodeName == first {
			agent = p
		}
	}
	pid, err := agentProcess(&agent)
	if err != nil {
		t.Fatal(err)
	}
	l.script(t, "control-plane.sh", "stop-apiserver")
	begun := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	time.Sleep(28*time.Second - time.Since(begun))
	next, err := agentProcess(&agent)
	if err != nil || next == pid {
		t.Errorf("the agent did not start again: process %d, %v", next, err)
	}
	l.script(t, "control-plane.sh", "start-apiserver")
	eventually(t, 30*time.Second, func() error {
		_, err := l.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		return err
	})
	defer l.replaceAgents(t, first) // so that none has restarts
	res := l.resultOf(t, cl.Name, "main")
	var told []*orb8v1.Event
	eventually(t, 20*time.Second, func() error {
		out, err := l.cli(t.Context(), "trace", "network", "--node", first, "--since", "2m", "--protocol", "tcp", "-o", "json")
		if err != nil {
			return err
		}
		told, err = parseEvents(out)
		return err
	})
	nameless := 0
	for _, e := range told {
		f := e.GetFlow()
		if f == nil {
			f = e.GetConnection().GetFlow()
		}
		w := f.GetLocal().GetWorkload()
		if isFrom(f, res) && w.GetContainerId() != "" && w.GetPodName() == "" {
			nameless++
		}
	}
	if nameless == 0 {
		t.Error("no event of the flow with a container and without a pod")
	}
	// The watches are tried again after 15 s at the latest.
	eventually(t, 40*time.Second, func() error {
		rows, err := l.find(t, "TCP", func(f *orb8v1.Flow) bool { return isFrom(f, res) })
		if err == nil && rows[0].GetFlow().GetLocal().GetWorkload().GetPodName() != cl.Name {
			err = fmt.Errorf("not named yet: %s", line(rows[0]))
		}
		return err
	})
	eventually(t, time.Minute, func() error {
		if !l.resultOf(t, cl.Name, "main").Done {
			return errors.New("the transfer is not over")
		}
		return nil
	})
	l.expectBoth(t, cl, l.near, res, tx, rx)
	eventually(t, time.Minute, func() error {
		text, err := l.degraded(t.Context(), first)
		if err == nil && text != "" {
			err = errors.New(text)
		}
		return err
	})
	l.awaitServices(t)
	log, err := l.client.CoreV1().Pods(agent.Namespace).GetLogs(agent.Name, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil || !strings.Contains(string(log), "Kubernetes watch failed") {
		t.Errorf("the agent's log does not say that it lacked the API server: %v:\n%s", err, log)
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
	l.awaitServices(t)
}

// awaitServices waits until Services answer again, and go on to. While the API server
// was away the nodes may have been taken for lost, and their pods for not ready; that may
// also come a while after it is back.
func (l *lab) awaitServices(t *testing.T) {
	t.Helper()
	const steady = 15 * time.Second
	var since time.Time
	eventually(t, 4*time.Minute, func() error {
		for _, server := range []string{"far", "near"} {
			_, err := l.exec(t.Context(), l.client1, "", "tcp", "-send", "16", "-receive", "16", l.clusterIP(t.Context(), server, 4))
			if err != nil {
				since = time.Time{}
				return err
			}
		}
		if since.IsZero() {
			since = time.Now()
		}
		if d := time.Since(since); d < steady {
			return fmt.Errorf("services have answered for %v only", d)
		}
		return nil
	})
}
