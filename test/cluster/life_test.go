// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

func (l *lab) kubernetesIP(t *testing.T) string {
	t.Helper()
	s, err := l.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Spec.ClusterIP
}

// transferTo returns the arguments of a transfer to a pod whose size no other n
// has, and what its client's row must count.
func (l *lab) transferTo(p *pod, n int, more ...string) (args []string, tx, rx uint64) {
	send, receive := 40_000+n*1013, 20_000+n*911
	args = append([]string{"tcp", "-send", fmt.Sprint(send), "-receive", fmt.Sprint(receive)}, more...)
	return append(args, joined(p.Status.PodIP, port)), uint64(send), uint64(receive)
}

// expectBoth waits for both ends' rows of the connection with a result.
func (l *lab) expectBoth(t *testing.T, client, server *pod, res result, tx, rx uint64) (c, s *orb8v1.Flow) {
	t.Helper()
	c = l.expect(t, "TCP", client.Spec.NodeName,
		seen{Local: client.identity(), Remote: server.identity(), TxBytes: tx, RxBytes: rx, Role: "client"},
		func(f *orb8v1.Flow) bool { return isFrom(f, res) })
	s = l.expect(t, "TCP", server.Spec.NodeName,
		seen{Local: server.identity(), Remote: client.identity(), TxBytes: rx, RxBytes: tx, Role: "server"},
		func(f *orb8v1.Flow) bool { return isTo(f, res, server) })
	return c, s
}

// once returns a spec that runs netpeer once.
func (l *lab) once(node string, args ...string) corev1.PodSpec {
	spec := l.podSpec(node, args...)
	spec.RestartPolicy = corev1.RestartPolicyNever
	return spec
}

// bare completes what is known of a pod that may be gone already.
func bare(p *pod, kind, workload string) *pod {
	return &pod{Pod: p.Pod, kind: kind, workload: workload}
}

// TestShortPod has a container that lives for a second at most. Whether one does is
// the machine's matter, so it is tried with several.
func TestShortPod(t *testing.T) {
	l := shared
	var lived []time.Duration
	for i := range 3 {
		args, tx, rx := l.transferTo(l.far, []int{1, 4, 5}[i])
		p := l.testPod(t, fmt.Sprint("short-", i), l.once(l.nodes[0], args...))
		res := l.resultOf(t, p.Name, "main")
		lived = append(lived, l.lifetime(t, p))
		l.deletePod(t, p.Name)
		l.expectBoth(t, p, l.far, res, tx, rx)
		if lived[i] <= time.Second { // whole seconds
			return
		}
	}
	t.Skipf("NOT TESTED: no container ended within a second on this machine, they lived for %v", lived)
}

// lifetime waits for the end of a pod's container, and is how long it ran.
func (l *lab) lifetime(t *testing.T, p *pod) (d time.Duration) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		now, err := l.client.CoreV1().Pods(l.namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		end := now.Status.ContainerStatuses[0].State.Terminated
		if end == nil {
			return fmt.Errorf("container of %s has not ended", p.Name)
		}
		d = end.FinishedAt.Sub(end.StartedAt.Time)
		return nil
	})
	return d
}

func TestPodDeletedWhileConnected(t *testing.T) {
	l := shared
	for _, end := range []string{"client", "server"} {
		t.Run(end, func(t *testing.T) {
			n, name := 2, "leaver-"+end
			if end == "server" {
				n = 3
				srv := l.testPod(t, name, l.podSpec(l.nodes[0], "serve"))
				l.untilServing(t, l.client1, srv)
				args, tx, rx := l.transferTo(srv, n, "-hold", "30s")
				cl := l.testPod(t, name+"-client", l.once(l.nodes[len(l.nodes)-1], args...))
				res := l.resultOf(t, cl.Name, "main")
				l.expectBoth(t, cl, srv, res, tx, rx)
				l.deletePod(t, name)
				l.untilGone(t, name)
				l.expectBoth(t, cl, srv, res, tx, rx)
				return
			}
			args, tx, rx := l.transferTo(l.far, n, "-hold", "60s")
			cl := l.testPod(t, name, l.once(l.nodes[0], args...))
			res := l.resultOf(t, name, "main")
			l.expectBoth(t, cl, l.far, res, tx, rx)
			l.deletePod(t, name)
			l.untilGone(t, name)
			l.expectBoth(t, cl, l.far, res, tx, rx)
		})
	}
}

func (l *lab) untilGone(t *testing.T, name string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if _, err := l.client.CoreV1().Pods(l.namespace).Get(t.Context(), name, metav1.GetOptions{}); err == nil {
			return fmt.Errorf("pod %s is still there", name)
		}
		return nil
	})
	l.flows.touch()
}

func (l *lab) untilServing(t *testing.T, from, p *pod) {
	t.Helper()
	// A neighbour may hold on to the hardware address of an earlier pod.
	eventually(t, 60*time.Second, func() error {
		_, err := l.exec(t.Context(), from, "", "tcp", "-timeout", "1s", joined(p.Status.PodIP, port))
		return err
	})
}

func TestContainerRestart(t *testing.T) {
	l := shared
	p := l.testPod(t, "restarter", l.podSpec(l.nodes[0], "serve"))
	l.untilServing(t, l.client1, p)
	containers := map[string]bool{}
	for n := range 2 {
		args, tx, rx := l.transferTo(p, 10+n)
		res := l.netpeer(t, l.client1, "", args...)
		_, s := l.expectBoth(t, l.client1, p, res, tx, rx)
		containers[s.GetLocal().GetWorkload().GetContainerId()] = true
		if n == 0 {
			_, _ = l.exec(t.Context(), p, "", "stop") // may lose its answer
			eventually(t, 60*time.Second, func() error {
				now, err := l.client.CoreV1().Pods(l.namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
				if err == nil && now.Status.ContainerStatuses[0].RestartCount == 0 {
					err = fmt.Errorf("container has not restarted")
				}
				return err
			})
			l.untilServing(t, l.client1, p)
		}
	}
	if len(containers) != 2 || containers[""] {
		t.Errorf("container ids before and after the restart: %v, want two", containers)
	}
}

// podAt starts a pod that gets an address on the first node. Somebody else's pod may
// get it instead, which is tried again.
func (l *lab) podAt(t *testing.T, name, ip string) *pod {
	t.Helper()
	var got []string
	for i := range 3 {
		l.script(t, "node.sh", "next-ip", strings.TrimPrefix(l.nodes[0], "n"), ip)
		p := l.testPod(t, fmt.Sprintf("%s-%d", name, i), l.podSpec(l.nodes[0], "serve"))
		if p.Status.PodIP == ip {
			return p
		}
		got = append(got, p.Status.PodIP)
		l.deletePod(t, p.Name)
		l.untilGone(t, p.Name)
	}
	t.Fatalf("the pods have %v, want one with %s", got, ip)
	return nil
}

// TestSameAddress makes another pod with the address that a deleted one had.
func TestSameAddress(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	first := l.testPod(t, "address-first", l.podSpec(l.nodes[0], "serve"))
	l.untilServing(t, l.client2, first)
	args, tx1, rx1 := l.transferTo(first, 20)
	res1 := l.netpeer(t, l.client2, "", args...)
	l.expectBoth(t, l.client2, first, res1, tx1, rx1)
	l.deletePod(t, first.Name)
	l.untilGone(t, first.Name)
	second := l.podAt(t, "address-second", first.Status.PodIP)
	l.untilServing(t, l.client2, second)
	args, tx2, rx2 := l.transferTo(second, 21)
	res2 := l.netpeer(t, l.client2, "", args...)
	l.expectBoth(t, l.client2, second, res2, tx2, rx2)
	// The earlier flow still belongs to the earlier pod.
	l.expectBoth(t, l.client2, first, res1, tx1, rx1)
}

func TestJob(t *testing.T) {
	l := shared
	job := func(name string, n int, owner []metav1.OwnerReference) (tx, rx uint64) {
		args, tx, rx := l.transferTo(l.far, n)
		_, err := l.client.BatchV1().Jobs(l.namespace).Create(t.Context(), &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: owner},
			Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}}, Spec: l.once(l.nodes[0], args...)}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return tx, rx
	}
	check := func(t *testing.T, name, kind, workload string, tx, rx uint64) {
		p, err := l.podOf(t.Context(), name, kind)
		if err != nil {
			t.Fatal(err)
		}
		l.expectBoth(t, bare(p, kind, workload), l.far, l.resultOf(t, p.Name, "main"), tx, rx)
	}
	t.Run("Job", func(t *testing.T) {
		tx, rx := job("once", 30, nil)
		check(t, "once", "Job", "once", tx, rx)
	})
	t.Run("CronJob", func(t *testing.T) {
		yes := true
		cron, err := l.client.BatchV1().CronJobs(l.namespace).Create(t.Context(), &batchv1.CronJob{
			ObjectMeta: metav1.ObjectMeta{Name: "nightly"},
			Spec: batchv1.CronJobSpec{Schedule: "0 3 * * *", Suspend: &yes, JobTemplate: batchv1.JobTemplateSpec{
				Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: l.once("", "wait")}}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// What the controller calls the Job of this minute: other nodes, which
		// do not watch Jobs, know it by that.
		name := fmt.Sprintf("nightly-%d", time.Now().Unix()/60)
		tx, rx := job(name, 31, []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "CronJob",
			Name: cron.Name, UID: cron.UID, Controller: &yes}})
		check(t, name, "CronJob", "nightly", tx, rx)
	})
}

func TestContainersOfOnePod(t *testing.T) {
	l := shared
	initArgs, initTx, initRx := l.transferTo(l.far, 40)
	spec := l.podSpec(l.nodes[0], "wait")
	spec.Containers = append(spec.Containers, l.container("second", "wait"))
	spec.InitContainers = []corev1.Container{l.container("init", initArgs...)}
	p := l.testPod(t, "several", spec)
	ids := map[string]string{}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		_, id, _ := strings.Cut(c.ContainerID, "://")
		ids[c.Name] = id
	}
	check := func(container string, res result, tx, rx uint64) {
		c, _ := l.expectBoth(t, p, l.far, res, tx, rx)
		if got := c.GetLocal().GetWorkload().GetContainerId(); got != ids[container] {
			t.Errorf("container %s: id %s, want %s", container, got, ids[container])
		}
	}
	check("init", l.resultOf(t, p.Name, "init"), initTx, initRx)
	for n, container := range []string{"main", "second"} {
		args, tx, rx := l.transferTo(l.far, 41+n)
		check(container, l.netpeer(t, p, container, args...), tx, rx)
	}
}
