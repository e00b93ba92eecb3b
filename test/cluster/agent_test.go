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
// ready, whatever the machine does; how long it took is logged.
const readyWithin = 90 * time.Second

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
		d := since.Sub(p.CreationTimestamp.Time)
		t.Logf("agent on %s was ready after %v", p.Spec.NodeName, d)
		if d > readyWithin {
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
	l.flows.touch()
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
	l.flows.touch()
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
	byPort, err := l.nodePort(t.Context(), "far", first, "tcp", 4)
	if err != nil {
		t.Fatal(err)
	}
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
		{"node-port", false, byPort, l.far, "far", true},
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
			}, func(f *orb8v1.Flow) bool { return isTo(f, res, w.server) })
		})
	}
}

// gate keeps containers of a pod on this machine waiting until the test opens it:
// the API server is not needed for that.
type gate struct{ dir string }

// addGate gives the containers of a pod a gate; who is to wait is told by gated.
func addGate(t *testing.T, spec *corev1.PodSpec) gate {
	t.Helper()
	g := gate{t.TempDir()}
	spec.Volumes = append(spec.Volumes, corev1.Volume{
		Name: "gate", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: g.dir}}})
	for i := range spec.Containers {
		c := &spec.Containers[i]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "gate", MountPath: "/gate", ReadOnly: true})
	}
	return g
}

const gated = "-await=/gate/open"

func (g gate) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, "open"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	shared.flows.touch()
}

// gatedProcesses are those of a pod that waited or wait at its gate.
func gatedProcesses(p *pod) (pids []int) {
	for _, pid := range processes(p.Pod) {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && slices.Contains(strings.Split(string(args), "\x00"), gated) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// programs is how many BPF programs a process has attached by links.
func programs(pid int) int {
	n := 0
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), "link_type:") {
			n++
		}
	}
	return n
}

// untilProbing waits for the successor of an agent's process, and until it has had
// as many programs attached as that one for two looks. The API server is not asked.
func untilProbing(t *testing.T, agent *corev1.Pod, old, want int) {
	t.Helper()
	looks := 0
	eventually(t, time.Minute, func() error {
		next, err := agentProcess(agent)
		switch {
		case err != nil:
			return fmt.Errorf("no successor of process %d: %w", old, err)
		case next == old:
			return fmt.Errorf("the agent's process %d has not ended", old)
		}
		if n := programs(next); n < want {
			looks = 0
			return fmt.Errorf("process %d has attached %d programs, its predecessor had %d", next, n, want)
		}
		if looks++; looks < 2 {
			return fmt.Errorf("process %d has only just attached its programs", next)
		}
		return nil
	})
}

// untilConnected waits until a pod's process has a TCP connection, by what the
// kernel lists for its network.
func untilConnected(t *testing.T, p *pod) {
	t.Helper()
	const established = "01"
	eventually(t, 30*time.Second, func() error {
		pid, _, err := process(p)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
		if err != nil {
			return err
		}
		for row := range strings.Lines(string(text)) {
			if f := strings.Fields(row); len(f) > 3 && f[3] == established {
				return nil
			}
		}
		return fmt.Errorf("%s has not connected; its sockets:\n%s", p.Name, text)
	})
}

func (l *lab) stopAPIServer(t *testing.T) {
	t.Helper()
	l.script(t, "control-plane.sh", "stop-apiserver")
}

func (l *lab) startAPIServer(t *testing.T) {
	t.Helper()
	l.script(t, "control-plane.sh", "start-apiserver")
	eventually(t, 30*time.Second, func() error {
		_, err := l.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		return err
	})
}

// agentOn is the agent on a node.
func (l *lab) agentOn(t *testing.T, node string) *corev1.Pod {
	t.Helper()
	for _, p := range l.agentPods(t) {
		if p.Spec.NodeName == node && p.DeletionTimestamp == nil {
			return &p
		}
	}
	t.Fatalf("no agent on %s", node)
	return nil
}

// unnamedFor is how long an agent holds a record back for the name of its pod,
// which is 2 s, and as long again for what is between.
const unnamedFor = 4 * time.Second

// killWithoutAPIServer kills a node's agent while the API server is away, and has
// the client at the gate begin once the successor probes.
func (l *lab) killWithoutAPIServer(t *testing.T, agent *corev1.Pod, cl *pod, g gate) {
	t.Helper()
	old, err := agentProcess(agent)
	if err != nil {
		t.Fatal(err)
	}
	attached := programs(old)
	if attached == 0 {
		t.Fatalf("process %d of agent %s has no programs attached", old, agent.Name)
	}
	l.stopAPIServer(t)
	defer l.startAPIServer(t) // for whoever comes next, in any case
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	untilProbing(t, agent, old, attached)
	g.open(t)
	untilConnected(t, cl)
	time.Sleep(unnamedFor)
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
	args, tx, rx := l.transferTo(l.near, 70, gated, "-chunk", "1500", "-pause", "500ms")
	spec := l.once(first, args...)
	g := addGate(t, &spec)
	cl := l.testPod(t, "unnamed", spec)
	agent := l.agentOn(t, first)
	defer l.replaceAgents(t, first) // so that none has restarts
	l.killWithoutAPIServer(t, agent, cl, g)
	res := l.resultOf(t, cl.Name, "main")
	l.wasNameless(t, first, res)
	l.untilNamed(t, cl, res)
	eventually(t, 2*time.Minute, func() error {
		if !l.resultOf(t, cl.Name, "main").Done {
			return errors.New("the transfer is not over")
		}
		return nil
	})
	l.expectBoth(t, cl, l.near, res, tx, rx)
	l.untilWell(t)
	l.awaitServices(t)
	log, err := l.client.CoreV1().Pods(agent.Namespace).GetLogs(agent.Name, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil || !strings.Contains(string(log), "Kubernetes watch failed") {
		t.Errorf("the agent's log does not say that it lacked the API server: %v:\n%s", err, log)
	}
}

// untilWell waits until the agents have nothing to say about the API server. Their watches
// are tried again after a minute at the latest.
func (l *lab) untilWell(t *testing.T) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		for _, node := range l.nodes {
			text, err := l.degraded(t.Context(), node)
			if err != nil {
				return err
			}
			if text != "" {
				return fmt.Errorf("%s: %s", node, text)
			}
		}
		return nil
	})
}

// untilNamed waits until the client's row has the name of its pod. The watches are
// tried again after a minute at the latest.
func (l *lab) untilNamed(t *testing.T, cl *pod, res result) {
	t.Helper()
	l.untilRows(t, 90*time.Second, func(all []*orb8v1.Event) error {
		rows, err := find(all, "TCP", func(f *orb8v1.Flow) bool { return isFrom(f, res) })
		if err == nil && rows[0].GetFlow().GetLocal().GetWorkload().GetPodName() != cl.Name {
			err = fmt.Errorf("not named yet: %s", line(rows[0]))
		}
		return err
	})
}

// wasNameless checks that an agent has told of a flow with its container and
// without its pod.
func (l *lab) wasNameless(t *testing.T, node string, res result) {
	t.Helper()
	var told []*orb8v1.Event
	eventually(t, 20*time.Second, func() error {
		out, err := l.cli(t.Context(), "trace", "network", "--node", node, "--since", "5m", "--protocol", "tcp", "-o", "json")
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
		t.Errorf("none of %d events is of the flow, with a container and without a pod", len(told))
	}
}

// TestAPIServerRestart stops the API server while traffic goes on, and begins
// some while it is away.
func TestAPIServerRestart(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	l.untilWell(t)
	during, duringTx, duringRx := l.transferTo(l.far, 60, "-chunk", "1000", "-pause", "100ms")
	later, laterTx, laterRx := l.transferTo(l.near, 61, gated)
	spec := l.once(l.nodes[0], during...)
	spec.Containers = append(spec.Containers, l.container("later", later...))
	g := addGate(t, &spec)
	cl := l.testPod(t, "through", spec)
	duringRes := l.resultOf(t, cl.Name, "main")
	l.stopAPIServer(t)
	waiting := gatedProcesses(cl)
	if len(waiting) != 1 {
		t.Errorf("processes %v of %s wait at the gate, want one", waiting, cl.Name)
	}
	g.open(t)
	eventually(t, 30*time.Second, func() error {
		if left := gatedProcesses(cl); len(left) > 0 {
			return fmt.Errorf("the transfer of process %v is not over", left)
		}
		return nil
	})
	time.Sleep(unnamedFor) // so that the agents tell of it by what they knew before
	l.startAPIServer(t)
	l.expectBoth(t, cl, l.far, duringRes, duringTx, duringRx)
	l.expectBoth(t, cl, l.near, l.resultOf(t, cl.Name, "later"), laterTx, laterRx)
	l.noRestarts(t)
	l.untilWell(t)
	l.awaitServices(t)
}

// awaitServices waits until Services answer again. While the API server was away
// the nodes may have been taken for lost, and their pods for not ready.
func (l *lab) awaitServices(t *testing.T) {
	t.Helper()
	eventually(t, 4*time.Minute, func() error {
		for _, server := range []string{"far", "near"} {
			_, err := l.exec(t.Context(), l.client1, "", "tcp", "-send", "16", "-receive", "16", l.clusterIP(t.Context(), server, 4))
			if err != nil {
				return err
			}
		}
		return nil
	})
}
