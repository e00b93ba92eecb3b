// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// configure changes the agents' configuration and has the agent of a node, which must
// share this machine's kernel, read it again.
func (l *lab) configure(t *testing.T, node, text string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	maps := l.client.CoreV1().ConfigMaps(l.agents)
	m, err := maps.Get(ctx, "orb8-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.Data["orb8.yaml"] = text
	if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	agent := l.agentOn(t, node)
	// The kubelet looks at a pod's volumes at once when the pod has changed.
	patch := fmt.Appendf(nil, `{"metadata": {"annotations": {"test.orb8/configured": "%d"}}}`, time.Now().UnixNano())
	if _, err := l.client.CoreV1().Pods(l.agents).Patch(ctx, agent.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	pid, err := agentProcess(agent)
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(ctx, 2*time.Minute, func() error {
		now, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/etc/orb8/orb8.yaml", pid))
		if err == nil && string(now) != text {
			err = fmt.Errorf("the agent's file is still:\n%s", now)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	l.reload(t, agent, pid)
}

// reload has an agent read its configuration, and waits until it has.
func (l *lab) reload(t *testing.T, agent *corev1.Pod, pid int) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	const reloads = `orb8_agent_config_reloads_total{result="ok"}`
	before, err := l.metric(ctx, agent, reloads)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := poll(ctx, 20*time.Second, func() error {
		now, err := l.metric(ctx, agent, reloads)
		if err == nil && now == before {
			err = errors.New("the agent has not taken over its configuration")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) agentOn(t *testing.T, node string) *corev1.Pod {
	t.Helper()
	pods, err := l.client.CoreV1().Pods(l.agents).List(context.WithoutCancel(t.Context()), metav1.ListOptions{LabelSelector: agentLabels})
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return p.Spec.NodeName == node })
	if at < 0 {
		t.Fatalf("no agent on %s", node)
	}
	return &pods.Items[at]
}

// TestRuleExceptions silences an alert by what it names itself, for another pod, and
// turns a rule off.
func TestRuleExceptions(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	since, node := time.Now(), l.nodes[0]
	spec := l.troubleSpec(t, node)
	pods := l.troublePods(t, map[string]corev1.PodSpec{"unexcused": spec, "excused": spec})
	do := func(name, deed string) {
		t.Helper()
		if o, err := l.deed(t.Context(), pods[name], deed); err != nil || !o.Is("") {
			t.Fatalf("%s in %s: %+v, %v", deed, name, o, err)
		}
	}
	do("unexcused", "chroot")
	exception := l.awaitAlert(t, since, "unexcused", "chroot").GetException()
	exception = strings.ReplaceAll(exception, "unexcused", "excused")

	m, err := l.client.CoreV1().ConfigMaps(l.agents).Get(t.Context(), "orb8-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := m.Data["orb8.yaml"]
	t.Cleanup(func() { l.configure(t, node, before) })
	l.configure(t, node, before+"rules_off: [device_node]\nexceptions:\n"+exception+"\n")
	do("excused", "chroot")
	do("excused", "mknod")
	do("unexcused", "mknod")
	for name := range pods { // what is told after the others
		do(name, "packet")
		l.awaitAlert(t, since, name, "packet_socket")
	}
	alerts, err := l.alerts(t.Context(), since)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range alerts {
		a := e.GetAlert()
		if name := a.GetWorkload().GetPodName(); a.GetRule() == "device_node" || a.GetRule() == "chroot" && name == "excused" {
			t.Errorf("alert %s of %s in spite of\n%s", a.GetRule(), name, exception)
		}
	}
}

// awaitAlert waits for an alert of a pod and a rule.
func (l *lab) awaitAlert(t *testing.T, since time.Time, name, rule string) *orb8v1.Alert {
	t.Helper()
	var found *orb8v1.Alert
	eventually(t, 10*time.Second, func() error {
		alerts, err := l.alerts(t.Context(), since)
		for _, e := range alerts {
			if a := e.GetAlert(); a.GetWorkload().GetPodName() == name && a.GetRule() == rule {
				found = a
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("no alert %s of %s among %d", rule, name, len(alerts)))
	})
	return found
}
