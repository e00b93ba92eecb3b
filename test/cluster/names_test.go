// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// TestKubeletProbes: who probes a pod speaks from the gateway of the node's pods, and is the
// node.
func TestKubeletProbes(t *testing.T) {
	l := shared
	for i, node := range []string{l.nodes[0], l.nodes[len(l.nodes)-1]} {
		spec := l.podSpec(node, "serve")
		spec.Containers[0].ReadinessProbe = &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}},
			PeriodSeconds: 1,
		}
		p := l.testPod(t, fmt.Sprint("probed-", i), spec)
		l.untilRows(t, 30*time.Second, func(all []*orb8v1.Event) error {
			rows, err := find(all, "TCP", func(f *orb8v1.Flow) bool {
				return f.GetRole() == orb8v1.Role_ROLE_SERVER && f.GetLocal().GetWorkload().GetPodName() == p.Name
			})
			if err != nil {
				return err
			}
			for _, row := range rows {
				if got := identityOf(row.GetFlow().GetRemote().GetWorkload()); got != nodeIdentity(node) {
					return fmt.Errorf("the kubelet of %s is %+v: %s", node, got, line(row))
				}
			}
			return nil
		})
	}
}

// secondAddress is nobody's in the cluster.
const secondAddress = "192.0.2.7"

// TestSecondInterface: a pod is known by the address of a further interface, on another node,
// as Multus writes it.
func TestSecondInterface(t *testing.T) {
	l := shared
	if l.lab == "" || len(l.nodes) < 2 {
		t.Skip("needs the cluster that test/cluster/run.sh makes, of two nodes")
	}
	p := l.testPod(t, "two-interfaces", l.podSpec(l.nodes[0], "serve"))
	l.untilServing(t, l.client1, p)
	number := func(node string) string { return strings.TrimPrefix(node, "n") }
	l.script(t, "node.sh", "exec", number(l.nodes[0]), "sh", "-c", fmt.Sprintf(`
		for ns in /run/netns/*; do
			ip -n "${ns##*/}" -o -4 addr | grep -q " inet %[1]s/" || continue
			ip -n "${ns##*/}" addr add %[2]s/32 dev eth0 && ip route replace %[2]s/32 dev cni0 && exit
		done
		echo "no network namespace has %[1]s"; exit 1`, p.Status.PodIP, secondAddress))
	via := l.nodeIP(t.Context(), l.nodes[0], 4)
	l.script(t, "node.sh", "exec", number(l.nodes[1]), "ip", "route", "replace", secondAddress+"/32", "via", via)
	t.Cleanup(func() {
		for _, node := range l.nodes[:2] {
			l.script(t, "node.sh", "exec", number(node), "ip", "route", "del", secondAddress+"/32")
		}
	})
	status := fmt.Sprintf(`[{"name":"cni0","interface":"eth0","ips":[%q],"default":true},{"name":"data/rdma","interface":"net1","ips":[%q]}]`, p.Status.PodIP, secondAddress)
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":%q}}}`, status)
	if _, err := l.client.CoreV1().Pods(l.namespace).Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	const send, receive = 71_003, 53_009
	res := l.netpeer(t, l.client2, "", "tcp", "-send", fmt.Sprint(send), "-receive", fmt.Sprint(receive), joined(secondAddress, port))
	l.expect(t, "TCP", l.client2.Spec.NodeName,
		seen{Local: l.client2.identity(), Remote: p.identity(), TxBytes: send, RxBytes: receive, Role: "client"},
		func(f *orb8v1.Flow) bool { return isFrom(f, res) })
}

// TestOwnersOfAnyKind: what a controller of a kind that nobody knows has made a ReplicaSet or
// a Job for is the workload, on the pod's own node and on others.
func TestOwnersOfAnyKind(t *testing.T) {
	l := shared
	yes, one := true, int32(1)
	by := func(kind, name string) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: "example.test/v1alpha1", Kind: kind, Name: name, UID: types.UID("0b5e8c1a-7d3f-4e2b-9a6c-" + name), Controller: &yes}}
	}
	template := func(app, node string) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}}, Spec: l.podSpec(node, "serve")}
	}
	node := l.far.Spec.NodeName
	if _, err := l.client.AppsV1().ReplicaSets(l.namespace).Create(t.Context(), &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "canary-5d4f", OwnerReferences: by("Rollout", "000000canary")},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "canary"}}, Template: template("canary", node),
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	job := template("stepped", node)
	job.Spec.RestartPolicy = corev1.RestartPolicyNever
	if _, err := l.client.BatchV1().Jobs(l.namespace).Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "step-1", OwnerReferences: by("Workflow", "000stepped00")},
		Spec:       batchv1.JobSpec{Template: job},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		zero, background := int64(0), metav1.DeletePropagationBackground
		opts := metav1.DeleteOptions{GracePeriodSeconds: &zero, PropagationPolicy: &background}
		ctx := context.WithoutCancel(t.Context())
		_ = l.client.AppsV1().ReplicaSets(l.namespace).Delete(ctx, "canary-5d4f", opts)
		_ = l.client.BatchV1().Jobs(l.namespace).Delete(ctx, "step-1", opts)
		l.flows.touch()
	})
	for i, tt := range []struct{ app, kind, workload string }{{"canary", "Rollout", "000000canary"}, {"stepped", "Workflow", "000stepped00"}} {
		found, err := l.podOf(t.Context(), tt.app, tt.kind)
		if err != nil {
			t.Fatal(err)
		}
		p := bare(found, tt.kind, tt.workload)
		l.untilServing(t, l.client1, p) // so the client's agent has asked who that is
		args, tx, rx := l.transferTo(p, 60+i)
		res := l.netpeer(t, l.client1, "", args...)
		l.expectBoth(t, l.client1, p, res, tx, rx)
	}
}
