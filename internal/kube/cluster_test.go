// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/Ignoramuss/orb8/internal/testwait"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// runCluster runs a Cluster for node n1 until the test ends, and checks that Run
// returns soon and leaves no goroutine.
func runCluster(t *testing.T, a *apiServer, cfg Config) *Cluster {
	t.Helper()
	cfg.Clients, cfg.Node = a.clients(), "n1"
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		began := time.Now()
		cancel()
		if err := testwait.Receive(t, "Run to return", done); err != nil {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Run returns after %v", took)
		}
	})
	return c
}

func apiPod(node, name, ip string, change ...func(*corev1.Pod)) *corev1.Pod {
	yes := true
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID("uid-" + name),
			Labels: map[string]string{"app": "web", labelTemplateHash: "abc12"},
			OwnerReferences: []metav1.OwnerReference{
				{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-abc12", Controller: &yes},
			},
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBestEffort, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "c", ContainerID: "containerd://c-" + name}},
		},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

// fill makes a cluster of two nodes with a pod on each, and a Service.
func fill(a *apiServer) {
	for i, name := range []string{"n1", "n2"} {
		a.put("nodes", &corev1.Node{
			TypeMeta:   metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: "z-" + name}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.0.%d", i+1)},
				{Type: corev1.NodeHostName, Address: name},
			}},
		})
	}
	a.put("pods", apiPod("n1", "web-1", "10.1.0.5"))
	a.put("pods", apiPod("n2", "web-2", "10.1.0.6"))
	a.put("services", &corev1.Service{
		TypeMeta:   metav1.TypeMeta{Kind: "Service", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
			Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	})
	name, port := "", int32(8080)
	a.put("endpointslices.discovery.k8s.io", &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.1.0.5"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: "uid-web-1"}},
			{Addresses: []string{"10.1.0.6"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: "uid-web-2"}},
		},
	})
	yes := true
	a.put("replicasets.apps", &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "web-abc12", OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", Controller: &yes},
		},
	}})
}

func peer(addr string) workload.Peer { return workload.Peer{Addr: netip.MustParseAddr(addr)} }

func TestClusterNames(t *testing.T) {
	for _, streams := range []bool{false, true} {
		t.Run(fmt.Sprintf("streamed lists %v", streams), func(t *testing.T) {
			a := newAPIServer(t)
			a.streams = streams
			fill(a)
			c := runCluster(t, a, Config{})
			eventually(t, "synced", func() bool { return c.Status().Synced })
			if got, want := c.Status(), (Status{Counts: Counts{1, 1, 1, 2}, Synced: true}); got != want {
				t.Errorf("status %+v, want %+v", got, want)
			}
			for q, want := range map[workload.Peer]string{
				peer("10.1.0.5"): "pod web-1", peer("10.1.0.6"): "pod web-2", peer("192.168.0.2"): "Node n2",
				{Addr: vip, Port: 80, Protocol: protoTCP}: "svc web Deployment web",
			} {
				if got := who(c.store, q); got != want {
					t.Errorf("%v: %q, want %q", q, got, want)
				}
			}
			id, ok := c.Pod("c-web-1", "")
			if !ok || id.Zone != "z-n1" || id.Kind != "Deployment" || id.QoS != "BestEffort" {
				t.Errorf("own pod: %+v", id)
			}
			if _, ok := c.Pod("c-web-2", ""); ok {
				t.Error("containers of another node's pod are kept")
			}

			a.put("pods", apiPod("n1", "web-3", "10.1.0.7"))
			eventually(t, "new pod", func() bool { _, ok := c.Pod("c-web-3", ""); return ok })
			a.remove("pods", "shop", "web-3")
			eventually(t, "deleted pod", func() bool { return c.Status().Pods == 1 })
			if _, ok := c.Pod("c-web-3", ""); !ok {
				t.Error("deleted pod is not known any more")
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			if streams != (a.lists == 0) {
				t.Errorf("%d lists, streamed lists %v", a.lists, streams)
			}
		})
	}
}

func TestClusterSurvivesRestart(t *testing.T) {
	for _, streams := range []bool{false, true} {
		t.Run(fmt.Sprintf("streamed lists %v", streams), func(t *testing.T) {
			a := newAPIServer(t)
			a.streams = streams
			fill(a)
			c := runCluster(t, a, Config{})
			eventually(t, "synced", func() bool { return c.Status().Synced })
			var before *workload.Identity
			eventually(t, "the pod's owner", func() bool {
				id, ok := c.Pod("c-web-1", "")
				before = id
				return ok && !id.OwnerPending
			})

			a.shut()
			eventually(t, "degraded", func() bool { return strings.Contains(c.Status().Degraded, "cannot be reached since") })
			if s := c.Status().Degraded; !strings.Contains(s, "names are those known then") || !strings.Contains(s, a.addr) {
				t.Errorf("status says %q", s)
			}
			if !c.Waiting() {
				t.Error("does not wait though the API server was there just now")
			}
			if got, _ := c.Pod("c-web-1", ""); got != before {
				t.Error("last known state changed")
			}
			a.remove("pods", "shop", "web-2")
			a.put("pods", apiPod("n1", "web-4", "10.1.0.8"))
			a.expire() // 410 Gone: it must list again
			a.start()
			eventually(t, "new pod", func() bool { _, ok := c.Pod("c-web-4", ""); return ok })
			eventually(t, "no more degraded", func() bool { return c.Status().Degraded == "" })
			eventually(t, "deleted peer gone", func() bool { return c.Status().Peers == 0 })
			if got := who(c.store, peer("10.1.0.6")); got != "pod web-2" {
				t.Errorf("pod deleted meanwhile: %q", got)
			}
		})
	}
}

func TestClusterStartsWithoutAPIServer(t *testing.T) {
	a := newAPIServer(t)
	a.streams = true
	fill(a)
	a.shut()
	c := runCluster(t, a, Config{})
	eventually(t, "degraded", func() bool { return strings.Contains(c.Status().Degraded, "pods have no names") })
	if c.Status().Synced {
		t.Error("synced")
	}
	a.start()
	eventually(t, "synced", func() bool { s := c.Status(); return s.Synced && s.Degraded == "" })
}

// Until everything was read once only pods are named: a flow keeps its first
// name, and what is a Service without a pod now may have one in a moment.
func TestClusterNamesPodsOnlyUntilSynced(t *testing.T) {
	for name, deny := range map[string]string{"": "", "without permission": "list services"} {
		t.Run(name, func(t *testing.T) {
			a := newAPIServer(t)
			fill(a)
			hold := a.hold("endpointslices.discovery.k8s.io")
			if deny != "" {
				a.allow(deny, false)
			}
			c := runCluster(t, a, Config{})
			eventually(t, "pod known", func() bool { _, ok := c.Peer(peer("10.1.0.6")); return ok })
			eventually(t, "all else known to the store", func() bool { n := c.store.Counts(); return n.Nodes == 2 && (deny != "" || n.Services == 1) })
			for _, addr := range []string{"10.96.0.10", "192.168.0.2"} {
				if id, ok := c.Peer(peer(addr)); ok {
					t.Errorf("%s is %+v before the EndpointSlices are known", addr, id)
				}
			}
			hold()
			eventually(t, "node named", func() bool { id, ok := c.Peer(peer("192.168.0.2")); return ok && id.Kind == KindNode })
			id, ok := c.Peer(peer("10.96.0.10"))
			if ok != (deny == "") || ok && id.Service != "web" {
				t.Errorf("Service: %+v, %t", id, ok)
			}
		})
	}
}

// Run has to return soon even where the reflectors are in their back-off.
func TestClusterStopsWhileAway(t *testing.T) {
	a := newAPIServer(t)
	a.shut()
	c := runCluster(t, a, Config{})
	eventually(t, "degraded", func() bool { return c.Status().Degraded != "" })
	eventually(t, "three attempts of each of the five watches", func() bool { return a.dials.Load() >= 15 })
}

func TestClusterNamesMissingPermissions(t *testing.T) {
	a := newAPIServer(t)
	fill(a)
	a.allow("list nodes", false)
	a.allow("watch endpointslices.discovery.k8s.io", false)
	a.allow("get replicasets.apps", false)
	c := runCluster(t, a, Config{})
	const lacks = ": forbidden: the service account orb8-system/orb8-agent lacks it"
	want := "get replicasets.apps" + lacks + "; list nodes" + lacks + "; watch endpointslices.discovery.k8s.io" + lacks + "; " + remedy
	eventually(t, "degraded", func() bool { return c.Status().Degraded == want })
	if id, _ := c.Pod("c-web-1", ""); id == nil || id.Kind != "Deployment" || id.Zone != "" {
		t.Errorf("own pod: %+v", id)
	}
	a.allow("list nodes", true)
	a.allow("watch endpointslices.discovery.k8s.io", true)
	eventually(t, "synced", func() bool { return c.Status().Synced })
	eventually(t, "zone known", func() bool { id, _ := c.Pod("c-web-1", ""); return id.Zone == "z-n1" })
	eventually(t, "permissions there", func() bool {
		return c.Status().Degraded == "get replicasets.apps"+lacks+"; "+remedy
	})
}

func TestClusterWaiting(t *testing.T) {
	now := time.Now()
	l := newLink("pods", nil, func() time.Time { return now })
	if !l.waiting(contactGrace) {
		t.Error("does not wait at the start")
	}
	now = now.Add(contactGrace)
	if l.waiting(contactGrace) {
		t.Error("waits though nothing answered")
	}
}

func TestNewNeedsNode(t *testing.T) {
	if _, err := New(Config{Clients: &Clients{}}); err == nil || !strings.Contains(err.Error(), "--node-name") {
		t.Errorf("error %v", err)
	}
}

func TestClusterClimbs(t *testing.T) {
	yes := true
	meta := func(name, apiVersion, kind, owner string) *metav1.PartialObjectMetadata {
		m := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		if kind != "" {
			m.OwnerReferences = []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: owner, Controller: &yes}}
		}
		return m
	}
	a := newAPIServer(t)
	owned := func(name, apiVersion, kind, owner string, labels map[string]string) {
		a.put("pods", apiPod("n1", name, "10.1.0.5", func(p *corev1.Pod) {
			p.Labels = labels
			p.OwnerReferences[0].APIVersion, p.OwnerReferences[0].Kind, p.OwnerReferences[0].Name = apiVersion, kind, owner
		}))
	}
	a.put("replicasets.apps", meta("canary-1", "argoproj.io/v1alpha1", "Rollout", "canary"))
	owned("rollout", "apps/v1", "ReplicaSet", "canary-1", nil)
	a.put("statefulsets.apps", meta("prometheus", "monitoring.coreos.com/v1", "Prometheus", "main"))
	owned("operator", "apps/v1", "StatefulSet", "prometheus", nil)
	a.put("jobs.batch", meta("backup-29412345", "", "", ""))
	owned("no-cronjob", "batch/v1", "Job", "backup-29412345", nil)
	a.put("jobsets.jobset.x-k8s.io", meta("train", "trainer.kubeflow.org/v1alpha1", "TrainJob", "train"))
	owned("trainjob", "batch/v1", "Job", "train-node-0", map[string]string{labelJobSet: "train"})
	a.put("rayclusters.ray.io", meta("job-raycluster-x", "ray.io/v1", "RayJob", "job"))
	owned("rayjob", "ray.io/v1", "RayCluster", "job-raycluster-x", map[string]string{labelRayCluster: "job-raycluster-x"})
	owned("gone", "batch/v1", "Job", "report-29412345", nil)
	owned("widget", "example.com/v1", "Widget", "w", nil)

	c := runCluster(t, a, Config{})
	for pod, want := range map[string]string{
		"rollout": "Rollout canary", "operator": "StatefulSet prometheus", "no-cronjob": "Job backup-29412345",
		"trainjob": "TrainJob train", "rayjob": "RayJob job", "gone": "CronJob report", "widget": "Widget w",
	} {
		eventually(t, pod+" is "+want, func() bool {
			id, ok := c.Pod("c-"+pod, "")
			return ok && id.Kind+" "+id.Name == want
		})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.gets) != 7 {
		t.Errorf("GETs: %q, want each once, what is not there twice and none for other kinds", a.gets)
	}
}

// TestPeersClimb: a pod has the same owner on its own node and on another, whatever made its
// ReplicaSet or Job; of pods elsewhere only those that somebody asks for are looked at.
func TestPeersClimb(t *testing.T) {
	yes := true
	a := newAPIServer(t)
	owned := func(node, name, ip, kind, owner, by string) {
		apiVersion := map[string]string{"ReplicaSet": "apps/v1", "Job": "batch/v1"}[kind]
		resource := map[string]string{"ReplicaSet": "replicasets.apps", "Job": "jobs.batch"}[kind]
		a.put(resource, &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: owner, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "example.com/v1", Kind: by, Name: "top-" + owner, Controller: &yes},
		}}})
		a.put("pods", apiPod(node, name, ip, func(p *corev1.Pod) {
			p.OwnerReferences[0].APIVersion, p.OwnerReferences[0].Kind, p.OwnerReferences[0].Name = apiVersion, kind, owner
		}))
	}
	for i, node := range []string{"n1", "n2"} {
		// Its name and the pods' label look like a Deployment's.
		owned(node, "canary-"+node, fmt.Sprintf("10.5.%d.1", i), "ReplicaSet", "canary-abc12", "Rollout")
		owned(node, "step-"+node, fmt.Sprintf("10.5.%d.2", i), "Job", "step-1", "Workflow")
		owned(node, "nobody-"+node, fmt.Sprintf("10.5.%d.3", i), "Job", fmt.Sprint("unasked-", node), "Workflow")
	}
	c := runCluster(t, a, Config{})
	for addr, want := range map[string]string{
		"10.5.0.1": "Rollout top-canary-abc12", "10.5.1.1": "Rollout top-canary-abc12",
		"10.5.0.2": "Workflow top-step-1", "10.5.1.2": "Workflow top-step-1",
	} {
		eventually(t, addr+" is of "+want, func() bool {
			id, ok := c.Peer(peer(addr))
			if ok && id.Kind+" "+id.Name != want && !id.OwnerPending {
				t.Errorf("%s is of %s %s for certain, want %s", addr, id.Kind, id.Name, want)
			}
			return ok && id.Kind+" "+id.Name == want && !id.OwnerPending
		})
	}
	// An event of the pod does not take it back.
	a.put("pods", apiPod("n2", "canary-n2", "10.5.1.1", func(p *corev1.Pod) {
		p.OwnerReferences[0].Name = "canary-abc12"
		p.Labels["new"] = "yes"
	}))
	eventually(t, "the new label", func() bool { id, ok := c.Peer(peer("10.5.1.1")); return ok && id.Labels["new"] != "" })
	if id, _ := c.Peer(peer("10.5.1.1")); id.Kind != "Rollout" {
		t.Errorf("after an event: %s %s", id.Kind, id.Name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(a.gets, "jobs.batch unasked-n2") || !slices.Contains(a.gets, "jobs.batch unasked-n1") {
		t.Errorf("GETs: %q", a.gets)
	}
}
