// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// changeRole edits the agents' ClusterRole.
func (l *lab) changeRole(ctx context.Context, change func(*rbacv1.ClusterRole)) error {
	roles := l.client.RbacV1().ClusterRoles()
	role, err := roles.Get(ctx, "orb8-agent", metav1.GetOptions{})
	if err != nil {
		return err
	}
	change(role)
	_, err = roles.Update(ctx, role, metav1.UpdateOptions{})
	return err
}

// withRole edits the agents' ClusterRole until the test ends, or restore is called.
func (l *lab) withRole(t *testing.T, change func(*rbacv1.ClusterRole)) (restore func(context.Context) error) {
	t.Helper()
	var before []rbacv1.PolicyRule
	err := l.changeRole(t.Context(), func(r *rbacv1.ClusterRole) {
		before = r.DeepCopy().Rules
		change(r)
	})
	if err != nil {
		t.Fatal(err)
	}
	restore = func(ctx context.Context) error {
		return l.changeRole(ctx, func(r *rbacv1.ClusterRole) { r.Rules = before })
	}
	t.Cleanup(func() {
		if err := restore(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return restore
}

// degraded returns what the agent on node says of the API server.
func (l *lab) degraded(ctx context.Context, node string) (string, error) {
	all, err := l.statuses(ctx)
	if err != nil {
		return "", err
	}
	s := all[node]
	if s == nil {
		return "", fmt.Errorf("no status of %s", node)
	}
	return s.GetKubernetes().GetDegraded(), nil
}

// TestMissingRight takes one permission from an agent: it names that one, keeps
// the flows and what it knows by other means, and is well again with it.
func TestMissingRight(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	restore := l.withRole(t, func(r *rbacv1.ClusterRole) {
		for i := range r.Rules {
			r.Rules[i].Resources = slices.DeleteFunc(r.Rules[i].Resources, func(s string) bool { return s == "services" })
		}
	})
	node := l.client1.Spec.NodeName
	l.replaceAgents(t, node)
	eventually(t, time.Minute, func() error {
		text, err := l.degraded(t.Context(), node)
		if err != nil {
			return err
		}
		for _, word := range []string{"list", "services", "service account " + l.agents + "/orb8-agent"} {
			if !strings.Contains(text, word) {
				return fmt.Errorf("status of %s does not name %s: %q", node, word, text)
			}
		}
		t.Log(text)
		return nil
	})
	args, tx, rx := l.transferTo(l.far, 80)
	l.expectBoth(t, l.client1, l.far, l.netpeer(t, l.client1, "", args...), tx, rx)

	if err := restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, func() error {
		text, err := l.degraded(t.Context(), node)
		if err == nil && text != "" {
			err = errors.New(text)
		}
		return err
	})
}

// TestWithoutCgroups starts an agent that lacks the host's cgroups: it runs, and
// says what it lacks.
func TestWithoutCgroups(t *testing.T) {
	l := shared
	spec := l.agentSpec(t)
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil })
	for i := range spec.Containers {
		c := &spec.Containers[i]
		c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return !slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		})
	}
	pods := l.client.CoreV1().Pods(l.agents)
	p := l.extraAgent(t, "without-cgroups-", &spec)
	eventually(t, time.Minute, func() error {
		stream, err := pods.GetLogs(p.Name, &corev1.PodLogOptions{}).Stream(t.Context())
		if err != nil {
			return err
		}
		defer stream.Close()
		log, err := io.ReadAll(stream)
		if err != nil {
			return err
		}
		const want = "mount hostPath /sys/fs/cgroup at /host/sys/fs/cgroup"
		if !strings.Contains(string(log), want) {
			return fmt.Errorf("the log does not say %q:\n%s", want, log)
		}
		now, err := pods.Get(t.Context(), p.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		_, err = readySince(now)
		return err
	})
}

// agentSpec is that of an agent on the first node, for one beside those of the DaemonSet.
func (l *lab) agentSpec(t *testing.T) corev1.PodSpec {
	t.Helper()
	ds, err := l.client.AppsV1().DaemonSets(l.agents).Get(t.Context(), "orb8-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := *ds.Spec.Template.Spec.DeepCopy()
	spec.NodeName, spec.RestartPolicy = l.nodes[0], corev1.RestartPolicyNever
	return spec
}

// extraAgent starts an agent beside the DaemonSet's until the test ends.
func (l *lab) extraAgent(t *testing.T, name string, spec *corev1.PodSpec) *corev1.Pod {
	t.Helper()
	pods := l.client.CoreV1().Pods(l.agents)
	p, err := pods.Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: name}, Spec: *spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		zero := int64(0)
		if err := pods.Delete(context.Background(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Error(err)
		}
	})
	return p
}
