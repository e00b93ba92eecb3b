// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/Ignoramuss/orb8/internal/cluster/clustertest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// TestAgents: one agent a node, the one to ask, and why the others are not ready.
func TestAgents(t *testing.T) {
	s := newServer(t)
	set := func(name, node string, change func(p *v1.Pod)) {
		p := clustertest.AgentPod(name, node)
		change(p)
		s.Set(p, nil)
	}
	waiting := func(p *v1.Pod) {
		p.Status = v1.PodStatus{Phase: v1.PodPending, ContainerStatuses: []v1.ContainerStatus{{
			State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ContainerCreating"}}}}}
	}
	set("old", "n1", func(p *v1.Pod) {
		p.CreationTimestamp = metav1.NewTime(time.Unix(1, 0))
		p.DeletionTimestamp = &metav1.Time{Time: time.Unix(9, 0)}
	})
	set("new", "n1", func(p *v1.Pod) { p.CreationTimestamp = metav1.NewTime(time.Unix(2, 0)) })
	set("still", "n2", func(*v1.Pod) {})
	set("next", "n2", waiting)
	set("waits", "n3", waiting)
	set("crashes", "n4", func(p *v1.Pod) {
		p.Status.Conditions = nil
		p.Status.ContainerStatuses = []v1.ContainerStatus{{State: v1.ContainerState{
			Waiting: &v1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 10s\nrestarting"}}}}
	})
	set("nowhere", "", func(p *v1.Pod) {
		p.Status = v1.PodStatus{Phase: v1.PodPending, Conditions: []v1.PodCondition{{
			Type: v1.PodScheduled, Status: v1.ConditionFalse, Message: "0/5 nodes are available"}}}
		p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{
			NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchFields: []v1.NodeSelectorRequirement{{Key: "metadata.name", Values: []string{"n5"}}}}}}}}
	})
	set("other", "n6", func(p *v1.Pod) { p.Labels["app.kubernetes.io/component"] = "relay" })
	agents, err := connect(t, s).Agents(testwait.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		Node, Pod, Reason string
		Ready, Ask        bool
	}
	var got []row
	for _, a := range agents {
		got = append(got, row{a.Node, a.Pod, a.Reason, a.Ready, a.running})
	}
	want := []row{
		{"n1", "new", "", true, true},
		{"n2", "still", "", true, true},
		{"n3", "waits", "pod waits waits: ContainerCreating", false, false},
		{"n4", "crashes", "pod crashes waits: CrashLoopBackOff: back-off 10s restarting", false, true},
		{"n5", "nowhere", "pod nowhere is not scheduled: 0/5 nodes are available", false, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConnect(t *testing.T) {
	s := newServer(t)
	dir := t.TempDir()
	good, empty, broken := filepath.Join(dir, "good"), filepath.Join(dir, "empty"), filepath.Join(dir, "broken")
	for path, text := range map[string][]byte{good: s.Kubeconfig(), empty: nil, broken: []byte("a: [")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBECONFIG", filepath.Join(dir, "none")+string(filepath.ListSeparator)+good)
	c, err := Connect(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Context != "test" || c.Server != s.URL || c.Namespace != "orb8-system" {
		t.Errorf("got context %q, server %q, namespace %q", c.Context, c.Server, c.Namespace)
	}
	if c, err := Connect(Options{Kubeconfig: good, Context: "test", Namespace: "monitoring"}); err != nil || c.Namespace != "monitoring" {
		t.Errorf("got %+v, %v", c, err)
	}
	var bad *ConfigError
	if _, err := Connect(Options{Context: "prod"}); !errors.As(err, &bad) || !cmp.Equal(bad.Contexts, []string{"test"}) {
		t.Errorf("unknown context: %v", err)
	}
	for _, path := range []string{filepath.Join(dir, "none"), empty, broken} {
		if _, err := Connect(Options{Kubeconfig: path}); !errors.As(err, &bad) {
			t.Errorf("%s: %v, want a ConfigError", filepath.Base(path), err)
		}
	}
	t.Setenv("KUBECONFIG", empty)
	if _, err := Connect(Options{}); !errors.Is(err, ErrNoConfig) {
		t.Errorf("no kubeconfig: %v", err)
	}
	// In a pod without its service account there is a cluster, but no way in.
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	if _, err := Connect(Options{}); !errors.As(err, &bad) {
		t.Errorf("in a pod: %v", err)
	}
}
