// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// startHostile starts a pod that does what it can to the agent of its node. It wears the
// label of a dcgm-exporter.
func (l *lab) startHostile(t *testing.T, agent *corev1.Pod) *pod {
	t.Helper()
	spec := l.podSpec(agent.Spec.NodeName, "hostile", joined(agent.Status.PodIP, 9091), joined(l.far.Status.PodIP, port))
	p, err := l.client.CoreV1().Pods(l.namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "hostile", Labels: map[string]string{"app": "nvidia-dcgm-exporter"}},
		Spec:       spec,
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.deletePod(t, p.Name) })
	l.flows.touch()
	found, err := l.waitPod(t.Context(), p.Name, "Pod", p.Name)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestHostilePod: a pod that takes all that it can get at an agent, and a client that asks
// for too much, cost themselves: the agent stays up, within its limit, and what it says of
// others is right and clean.
func TestHostilePod(t *testing.T) {
	l := shared
	agent := l.agentOn(t, l.client1.Spec.NodeName)
	evil := l.startHostile(t, agent)
	conn, err := l.forward(agent.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.close()
	l.askTooMuch(t, conn)

	args, tx, rx := l.transferTo(l.far, 90)
	l.expectBoth(t, l.client1, l.far, l.netpeer(t, l.client1, "", args...), tx, rx)

	// Its flows are there, under a name that is text.
	eventually(t, 30*time.Second, func() error {
		out, err := l.cli(t.Context(), "flows", "-A", "--pod", evil.Name, "-o", "json", "--limit", "0")
		if err != nil {
			return err
		}
		events, err := parseEvents(out)
		if err != nil {
			return err
		}
		_, err = find(events, "TCP", func(f *orb8v1.Flow) bool { return strings.Contains(f.GetProcess().GetCommand(), "\uFFFD") })
		return err
	})
	for _, args := range [][]string{{"flows", "-A"}, {"flows", "-A", "-o", "wide"}, {"status", "-o", "wide"}, {"gpus"}} {
		out, err := l.cli(t.Context(), args...)
		if err != nil && args[0] != "gpus" {
			t.Error(err)
		}
		if !utf8.Valid(out) || strings.ContainsFunc(string(out), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Errorf("orb8 %s: %q", strings.Join(args, " "), out)
		}
	}
	// Whoever scrapes properly is served meanwhile.
	if _, err := l.metric(t.Context(), agent, "process_resident_memory_bytes"); err != nil {
		t.Error(err)
	}
	all, err := l.statuses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all[agent.Spec.NodeName].GetAccelerators() {
		if b.GetDevices() > 0 || b.GetName() == "dcgm" && b.GetState() == "running" {
			t.Errorf("devices that are not there: %v", b)
		}
	}
	l.noRestarts(t)
	if l.lab == "" {
		return
	}
	pid, err := agentProcess(agent)
	if err != nil {
		t.Fatal(err)
	}
	most, err := peak(pid)
	if err != nil {
		t.Fatal(err)
	}
	if limit := float64(agent.Spec.Containers[0].Resources.Limits.Memory().Value()); most > limit/2 {
		t.Errorf("the agent has taken %.0f MiB of its %.0f", most/(1<<20), limit/(1<<20))
	}
}

// askTooMuch sends what the agent must refuse, and takes nothing of what it does not.
func (l *lab) askTooMuch(t *testing.T, conn *agentConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	selector := strings.TrimSuffix(strings.Repeat("!a,", 300_000), ",")
	for _, follow := range []bool{true, false} {
		stream, err := conn.Observe(ctx, &orb8v1.ObserveRequest{Follow: follow, Filters: []*orb8v1.Filter{{LabelSelector: selector}}})
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "at most 64 requirements") {
			t.Errorf("a selector of 300,000 terms: %.300s", err)
		}
	}
	for range 50 { // whatever becomes of them
		_, _ = conn.Observe(ctx, &orb8v1.ObserveRequest{Snapshot: true})
	}
}
