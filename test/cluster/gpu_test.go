// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel/nvml/nvmltest"
)

const (
	gpus        = 8
	wholeGPU    = "nvidia.com/gpu"
	sharedGPU   = "nvidia.com/gpu.shared"
	fakeLibrary = "/usr/local/nvidia/lib64" // where the agent finds it
)

// gpuNode is a node with eight GPUs that are not there: two are shared by two each.
type gpuNode struct {
	l    *lab
	name string
	// kubelet is the directory of its kubelet, as this process sees it.
	kubelet string
	// state is what the library reads, its text without the processes.
	state  string
	energy int
	// procs are lines of the state.
	procs map[int][]string
}

func (n *gpuNode) write(t *testing.T) {
	t.Helper()
	text := fmt.Sprintf("count %d\ndriver 570.124.06\n", gpus)
	for i := range gpus {
		util, used := 0, 500<<20
		for _, p := range n.procs[i] {
			f := strings.Fields(p)
			mem, _ := strconv.Atoi(f[1])
			u, _ := strconv.Atoi(f[2])
			util, used = util+u, used+mem
		}
		text += fmt.Sprintf("gpu%[1]d.uuid %[2]s\ngpu%[1]d.name NVIDIA H100\ngpu%[1]d.minor %[1]d\ngpu%[1]d.bus %[3]d\ngpu%[1]d.util %[4]d\n"+
			"gpu%[1]d.mem.used %[5]d\ngpu%[1]d.mem.total %[6]d\ngpu%[1]d.power 400000\ngpu%[1]d.energy %[7]d\ngpu%[1]d.temp 50\n",
			i, gpuUUID(i), i+16, util, used, 80<<30, n.energy)
		for j, p := range n.procs[i] {
			text += fmt.Sprintf("gpu%d.proc%d %s\n", i, j, p)
		}
	}
	if err := os.WriteFile(n.state+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(n.state+".new", n.state); err != nil {
		t.Fatal(err)
	}
}

// run has a process on a GPU, with a number of bytes and a percentage.
func (n *gpuNode) run(gpu, pid, bytes, percent int) {
	n.procs[gpu] = append(n.procs[gpu], fmt.Sprintf("%d %d %d 0", pid, bytes, percent))
}

// samples asks `orb8 gpus`, by GPU.
func (n *gpuNode) samples(ctx context.Context) (map[string]*orb8v1.AcceleratorSample, error) {
	out, err := n.l.cli(ctx, "gpus", "-A", "-o", "json")
	if err != nil {
		return nil, err
	}
	events, err := parseEvents(out)
	if err != nil {
		return nil, err
	}
	all := make(map[string]*orb8v1.AcceleratorSample)
	for _, e := range events {
		if s := e.GetAccelerator(); s != nil && e.GetNodeName() == n.name {
			all[s.GetDevice().GetId()] = s
		}
	}
	return all, nil
}

// shareOf is what a pod has of a device.
func shareOf(s *orb8v1.AcceleratorSample, p *pod) *orb8v1.AcceleratorShare {
	for _, sh := range s.GetShares() {
		if sh.GetWorkload().GetPodName() == p.Name && sh.GetWorkload().GetNamespace() == p.Namespace {
			return sh
		}
	}
	return nil
}

// process is that of a pod, and the GPUs that it was given.
func process(p *pod) (pid int, ids []string, err error) {
	for _, pid := range processes(p.Pod) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || strings.TrimSpace(string(comm)) != "netpeer" {
			continue
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return 0, nil, err
		}
		for _, v := range strings.Split(string(env), "\x00") {
			if list, ok := strings.CutPrefix(v, visible+"="); ok {
				return pid, strings.Split(list, ","), nil
			}
		}
		return pid, nil, nil
	}
	return 0, nil, fmt.Errorf("pod %s has no process", p.Name)
}

// gpuOf is the number of the GPU with an id, which may be a share's.
func gpuOf(t *testing.T, id string) int {
	t.Helper()
	for i := range gpus {
		if uuid, _, _ := strings.Cut(id, "::"); uuid == gpuUUID(i) {
			return i
		}
	}
	t.Fatalf("no GPU %s", id)
	return 0
}

// changeAgents edits the DaemonSet and waits until all agents are so.
func (l *lab) changeAgents(ctx context.Context, change func(*corev1.PodSpec)) error {
	sets := l.client.AppsV1().DaemonSets(l.agents)
	ds, err := sets.Get(ctx, "orb8-agent", metav1.GetOptions{})
	if err != nil {
		return err
	}
	change(&ds.Spec.Template.Spec)
	if ds, err = sets.Update(ctx, ds, metav1.UpdateOptions{}); err != nil {
		return err
	}
	defer l.flows.touch()
	want := ds.Generation
	return poll(ctx, 2*time.Minute, func() error {
		if ds, err = sets.Get(ctx, "orb8-agent", metav1.GetOptions{}); err != nil {
			return err
		}
		s := ds.Status
		if s.ObservedGeneration < want || s.UpdatedNumberScheduled < s.DesiredNumberScheduled || s.NumberReady < s.DesiredNumberScheduled {
			return fmt.Errorf("%d of %d agents are new, %d ready", s.UpdatedNumberScheduled, s.DesiredNumberScheduled, s.NumberReady)
		}
		return nil
	})
}

// newGPUNode gives the first node its GPUs: a library for its agent, and a device
// plugin for its kubelet.
func newGPUNode(t *testing.T) *gpuNode {
	t.Helper()
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	driver := nvmltest.New(t)
	dir := filepath.Dir(driver.Library)
	n := &gpuNode{l: l, name: l.nodes[0], state: filepath.Join(dir, "state-"+l.nodes[0]), procs: make(map[int][]string)}
	n.write(t)
	var before *corev1.PodSpec
	err := l.changeAgents(t.Context(), func(s *corev1.PodSpec) {
		before = s.DeepCopy()
		s.Volumes = append(s.Volumes, corev1.Volume{
			Name: "nvidia", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}},
		})
		c := &s.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "nvidia", MountPath: fakeLibrary, ReadOnly: true})
		c.Env = append(c.Env, corev1.EnvVar{Name: "ORB8_FAKE_NVML", Value: fakeLibrary + "/state-$(NODE_NAME)"})
		c.Args = append(c.Args, "--metrics-dcgm", "--gpu-interval=1s", "--metrics-keep="+seriesKept.String())
	})
	t.Cleanup(func() {
		if err := l.changeAgents(context.Background(), func(s *corev1.PodSpec) { *s = *before }); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	cache := os.Getenv("ORB8_CLUSTER_CACHE")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache/orb8/cluster")
	}
	n.kubelet = filepath.Join(cache, "state/run", n.name, "kubelet")
	var whole, shares []string
	for i := range gpus - 2 {
		whole = append(whole, gpuUUID(i))
	}
	for i := gpus - 2; i < gpus; i++ {
		shares = append(shares, gpuUUID(i)+"::0", gpuUUID(i)+"::1")
	}
	startPlugin(t, n.kubelet, wholeGPU, whole)
	startPlugin(t, n.kubelet, sharedGPU, shares)
	eventually(t, time.Minute, func() error {
		node, err := l.client.CoreV1().Nodes().Get(t.Context(), n.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		a, b := node.Status.Allocatable[wholeGPU], node.Status.Allocatable[sharedGPU]
		if a.Value() != int64(len(whole)) || b.Value() != int64(len(shares)) {
			return fmt.Errorf("%s offers %v and %v GPUs", n.name, a.String(), b.String())
		}
		return nil
	})
	return n
}

func (n *gpuNode) pod(t *testing.T, name, resourceName string, count int64) *pod {
	t.Helper()
	spec := n.l.podSpec(n.name, "wait")
	spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceName(resourceName): *resource.NewQuantity(count, resource.DecimalSI)}
	return n.l.testPod(t, name, spec)
}

// TestGPUs: pods with one, two and shared GPUs, one that runs nothing, a process
// outside Kubernetes, and a pod that ends while its device is read.
func TestGPUs(t *testing.T) {
	n := newGPUNode(t)
	one, two := n.pod(t, "gpu-one", wholeGPU, 1), n.pod(t, "gpu-two", wholeGPU, 2)
	var sharing []*pod
	for i := range 4 { // on two GPUs
		sharing = append(sharing, n.pod(t, fmt.Sprint("gpu-share-", i), sharedGPU, 1))
	}
	type held struct {
		p   *pod
		pid int
		gpu []int
	}
	heldBy := func(p *pod) held {
		t.Helper()
		pid, ids, err := process(p)
		if err != nil {
			t.Fatal(err)
		}
		h := held{p: p, pid: pid}
		for _, id := range ids {
			h.gpu = append(h.gpu, gpuOf(t, id))
		}
		slices.Sort(h.gpu)
		return h
	}
	a, b := heldBy(one), heldBy(two)
	if len(a.gpu) != 1 || len(b.gpu) != 2 {
		t.Fatalf("GPUs %v and %v", a.gpu, b.gpu)
	}
	n.run(a.gpu[0], a.pid, 10<<30, 90)
	n.run(b.gpu[0], b.pid, 20<<30, 80) // of its two GPUs it uses the first
	var shares []held
	for i, p := range sharing {
		h := heldBy(p)
		shares = append(shares, h)
		if i%4 != 3 { // one of the four has no process there
			n.run(h.gpu[0], h.pid, (i+1)<<30, 10*(i+1))
		}
	}
	var free int
	for i := range gpus - 2 {
		if i != a.gpu[0] && !slices.Contains(b.gpu, i) {
			free = i
		}
	}
	n.run(free, os.Getpid(), 1<<30, 30) // this test, which is in no pod
	n.energy = 1_000_000
	n.write(t)

	util := func(sh *orb8v1.AcceleratorShare) float64 { return sh.GetValues()["utilization_ratio"].GetValue() }
	eventually(t, time.Minute, func() error {
		all, err := n.samples(t.Context())
		if err != nil {
			return err
		}
		if len(all) != gpus {
			return fmt.Errorf("%d GPUs", len(all))
		}
		if err := addUp(all); err != nil {
			return err
		}
		s := shareOf(all[gpuUUID(a.gpu[0])], one)
		if !s.GetHeld() || s.GetShared() || util(s) != 0.9 || s.GetResource() != wholeGPU || s.GetValues()["utilization_ratio"].GetMethod() != "exclusive" ||
			s.GetValues()["memory_used_bytes"].GetValue() != 10<<30 || s.GetValues()["power_watts"].GetValue() != 400 {
			return fmt.Errorf("pod with one GPU: %v", s)
		}
		first, second := shareOf(all[gpuUUID(b.gpu[0])], two), shareOf(all[gpuUUID(b.gpu[1])], two)
		if util(first) != 0.8 || first.GetIdle() != "" || second.GetIdle() != "no_process" || !second.GetHeld() || second.GetIdleSinceNs() == 0 {
			return fmt.Errorf("pod with two GPUs: %v and %v", first, second)
		}
		for i, h := range shares {
			s := shareOf(all[gpuUUID(h.gpu[0])], h.p)
			want, idle := float64(i+1)/10, ""
			if i == 3 {
				want, idle = 0, "no_process"
			}
			if !s.GetHeld() || !s.GetShared() || math.Abs(util(s)-want) > 0.001 || s.GetIdle() != idle || s.GetResource() != sharedGPU {
				return fmt.Errorf("pod %s: %v", h.p.Name, s)
			}
		}
		outside := all[gpuUUID(free)]
		if len(outside.GetShares()) == 0 || outside.GetShares()[0].GetHeld() || outside.GetShares()[0].GetWorkload().GetPodName() != "" ||
			!outside.GetHoldersKnown() || util(outside.GetShares()[0]) != 0.3 {
			return fmt.Errorf("a process outside Kubernetes: %v", outside)
		}
		return nil
	})
	if out, err := n.l.cli(t.Context(), "gpus", "-A"); err != nil {
		t.Error(err)
	} else {
		t.Logf("orb8 gpus -A\n%s", out)
		if !bytes.Contains(out, []byte("outside Kubernetes")) || !bytes.Contains(out, []byte("idle: no process")) || !bytes.Contains(out, []byte("free")) {
			t.Error("orb8 gpus does not say who is idle, who is outside Kubernetes, and what is free")
		}
	}
	n.endsMidSample(t, one, a.gpu[0])
	for i := range gpus - 2 { // one that nobody has
		if i != a.gpu[0] && !slices.Contains(b.gpu, i) && i != free {
			t.Run("claim", func(t *testing.T) { n.claims(t, i) })
			break
		}
	}
	n.untilSeriesGone(t, one)
}

// endsMidSample deletes a pod while the driver still lists its process: nothing of
// the device is lost, and nothing is told of a pod that is not there.
func (n *gpuNode) endsMidSample(t *testing.T, p *pod, gpu int) {
	t.Helper()
	before := n.energyOf(t, gpu)
	n.l.deletePod(t, p.Name)
	eventually(t, 30*time.Second, func() error {
		all, err := n.samples(t.Context())
		if err != nil {
			return err
		}
		s := all[gpuUUID(gpu)]
		if sh := shareOf(s, p); sh != nil {
			return fmt.Errorf("a pod that has gone: %v", sh)
		}
		if err := addUp(all); err != nil {
			return err
		}
		if len(s.GetShares()) != 1 || s.GetShares()[0].GetWorkload() != nil || s.GetShares()[0].GetValues()["utilization_ratio"].GetValue() != 0.9 {
			return fmt.Errorf("what its process still does is nobody's: %v", s)
		}
		return nil
	})
	n.energy += 500_000 // mJ
	n.write(t)
	eventually(t, 30*time.Second, func() error {
		if got := n.energyOf(t, gpu); math.Abs(got-before-500) > 1 {
			return fmt.Errorf("workloads have %g J of the %g J that the device used", got-before, 500.0)
		}
		return nil
	})
}

// seriesKept is how long the series of a pod that has gone stay here, long enough to be
// read after its end.
const seriesKept = 20 * time.Second

// untilSeriesGone waits until a pod that has gone has no series, while the devices' own
// stay.
func (n *gpuNode) untilSeriesGone(t *testing.T, p *pod) {
	t.Helper()
	eventually(t, seriesKept+30*time.Second, func() error {
		for name, f := range n.scrape(t, "/metrics") {
			for _, m := range f.GetMetric() {
				for _, label := range m.GetLabel() {
					if label.GetName() == "pod" && label.GetValue() == p.Name && strings.HasPrefix(name, "orb8_gpu_") {
						return fmt.Errorf("%s of a pod that has gone", name)
					}
				}
			}
		}
		return nil
	})
	if page := n.scrape(t, "/metrics/dcgm"); len(page["DCGM_FI_DEV_GPU_UTIL"].GetMetric()) < gpus {
		t.Errorf("/metrics/dcgm has %d of %d GPUs", len(page["DCGM_FI_DEV_GPU_UTIL"].GetMetric()), gpus)
	}
}

// addUp checks that the shares of each device are the device, and that nobody's value
// is another's.
func addUp(all map[string]*orb8v1.AcceleratorSample) error {
	for id, s := range all {
		for _, name := range []string{"utilization_ratio", "memory_used_bytes", "power_watts"} {
			sum := 0.0
			for _, sh := range s.GetShares() {
				sum += sh.GetValues()[name].GetValue()
			}
			if whole := s.GetValues()[name].GetValue(); len(s.GetShares()) > 0 && math.Abs(sum-whole) > 0.01*whole {
				return fmt.Errorf("%s of %s: the parts are %g, the device %g: %v", name, id, sum, whole, s)
			}
		}
	}
	return nil
}

// scrape reads a page of the node's agent.
func (n *gpuNode) scrape(t *testing.T, path string) map[string]*dto.MetricFamily {
	t.Helper()
	for _, p := range n.l.agentPods(t) {
		if p.Spec.NodeName != n.name || p.DeletionTimestamp != nil {
			continue
		}
		out, err := n.l.client.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, "9091", path, nil).DoRaw(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(bytes.NewReader(out))
		if err != nil {
			t.Fatal(err)
		}
		return families
	}
	t.Fatalf("no agent on %s", n.name)
	return nil
}

// energyOf is what all workloads together have used of a GPU, in joules.
func (n *gpuNode) energyOf(t *testing.T, gpu int) float64 {
	t.Helper()
	sum := 0.0
	for _, m := range n.scrape(t, "/metrics")["orb8_gpu_workload_energy_joules_total"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "uuid" && l.GetValue() == gpuUUID(gpu) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
