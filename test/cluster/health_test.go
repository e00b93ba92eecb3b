// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

const (
	portClosed   = 9
	portFiltered = 7100 // in a pod
	portStopped  = 7101 // on a node
	portDeaf     = 7001
)

// dropped is a packet that the kernel dropped, as far as the tests compare it.
type dropped struct {
	Node                        string // whose agent told of it
	Local, Remote               identity
	Reason, Protocol, Direction string
}

// events asks `orb8 trace network` for what happened since a time.
func (l *lab) events(ctx context.Context, since time.Time, flags ...string) ([]*orb8v1.Event, error) {
	args := append([]string{"trace", "network", "-A", "-o", "json", "--since", since.Format(time.RFC3339Nano)}, flags...)
	out, err := l.cli(ctx, args...)
	if err != nil {
		return nil, err
	}
	events, err := parseEvents(out)
	return slices.DeleteFunc(events, func(e *orb8v1.Event) bool { return e.GetNodeStatus() != nil || e.GetLostEvents() != nil }), err
}

// expectDrops waits until n packets to a port, or more if n is 0, have been told of,
// all of them as wanted, and counted once by the agents of all nodes together.
func (l *lab) expectDrops(t *testing.T, since time.Time, port, n int, want dropped) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		events, err := l.events(t.Context(), since, "--type", "drop", "--port", strconv.Itoa(port))
		if err != nil {
			return err
		}
		for _, e := range events {
			d := e.GetDrop()
			got := dropped{
				Node: e.GetNodeName(), Local: identityOf(d.GetLocal().GetWorkload()), Remote: identityOf(d.GetRemote().GetWorkload()),
				Reason: d.GetReason(), Protocol: d.GetProtocol(), Direction: d.GetDirection(),
			}
			if d := cmp.Diff(want, got); d != "" {
				return fmt.Errorf("drop (-want +got):\n%s", d)
			}
		}
		if len(events) == 0 || n > 0 && len(events) != n {
			return fmt.Errorf("told of %d dropped packets, want %d", len(events), n)
		}
		return nil
	})
}

// dropsCounted adds up orb8_drops_total of a workload over all agents.
func (l *lab) dropsCounted(t *testing.T, workload, reason string) float64 {
	t.Helper()
	return l.sum(t, "orb8_drops_total", "namespace="+strconv.Quote(l.namespace), "workload="+strconv.Quote(workload), "reason="+strconv.Quote(reason))
}

// needsReasons skips where the tests know of no way to make, or tell, a drop.
func (l *lab) needsReasons(t *testing.T) {
	t.Helper()
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	all, err := l.statuses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for node, s := range all {
		for _, p := range s.GetProbes() {
			if p.GetName() != "drop" || p.GetState() == orb8v1.ProbeState_PROBE_STATE_RUNNING && len(p.GetDegraded()) == 0 {
				continue
			}
			t.Skipf("the drop probe on %s: %s %q", node, p.GetReason(), p.GetDegraded())
		}
	}
}

// send sends datagrams that nobody answers.
func (l *lab) send(t *testing.T, from *pod, count, size int, to string) {
	t.Helper()
	l.netpeer(t, from, "", "udp", "-mute", "-count", strconv.Itoa(count), "-size", strconv.Itoa(size), to)
}

// TestDrops makes the kernel drop what pods send and get, where no socket says whose
// it is.
func TestDrops(t *testing.T) {
	l := shared
	l.needsReasons(t)
	node1 := strings.TrimPrefix(l.nodes[0], "n")
	filtered := l.testPod(t, "filtered", l.podSpec(l.nodes[len(l.nodes)-1], "serve"))
	l.nftIn(t, filtered, fmt.Sprintf("udp dport %d drop", portFiltered))
	rule := []string{"FORWARD", "-p", "udp", "--dport", strconv.Itoa(portStopped), "-j", "DROP"}
	l.script(t, "node.sh", append([]string{"exec", node1, "iptables", "-I"}, rule...)...)
	t.Cleanup(func() { l.script(t, "node.sh", append([]string{"exec", node1, "iptables", "-D"}, rule...)...) })

	const count = 3
	into := func(server, client *pod, reason string) dropped {
		return dropped{server.Spec.NodeName, server.identity(), client.identity(), reason, "UDP", "ingress"}
	}
	cases := []struct {
		name     string
		from, to *pod
		port     int
		want     dropped
	}{
		{"closed port", l.client1, filtered, portClosed, into(filtered, l.client1, "NO_SOCKET")},
		{"closed port, same node", l.client2, filtered, portClosed, into(filtered, l.client2, "NO_SOCKET")},
		{"closed port, from host network", l.hostA, filtered, portClosed, dropped{
			filtered.Spec.NodeName, filtered.identity(), nodeIdentity(l.nodes[0]), "NO_SOCKET", "UDP", "ingress"}},
		{"filtered in the pod", l.client1, filtered, portFiltered, into(filtered, l.client1, "NETFILTER_DROP")},
		{"filtered in the pod, same node", l.client2, filtered, portFiltered, into(filtered, l.client2, "NETFILTER_DROP")},
		{"stopped on the node", l.client1, l.far, portStopped, dropped{
			l.nodes[0], l.client1.identity(), l.far.identity(), "NETFILTER_DROP", "UDP", "egress"}},
	}
	counted := map[[2]string]float64{}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			begun := time.Now()
			who := [2]string{c.want.Local.Name, c.want.Reason}
			if _, ok := counted[who]; !ok {
				counted[who] = l.dropsCounted(t, who[0], who[1])
			}
			l.send(t, c.from, count, 100, joined(c.to.Status.PodIP, c.port))
			l.expectDrops(t, begun, c.port, count, c.want)
			counted[who] += count
			eventually(t, 15*time.Second, func() error {
				if got := l.dropsCounted(t, who[0], who[1]); got != counted[who] {
					return fmt.Errorf("%v have lost %v packets, want %v", who, got, counted[who])
				}
				return nil
			})
		})
	}
}

// nftIn gives a pod a rule for what comes to it.
func (l *lab) nftIn(t *testing.T, p *pod, rule string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "nsenter", "-t", strconv.Itoa(l.process(t, p)), "-n", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table inet orb8test { chain c { type filter hook input priority 0; " + rule + "; }; }")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", filepath.Base(cmd.Path), err, out)
	}
}

// process is one of a pod's.
func (l *lab) process(t *testing.T, p *pod) int {
	t.Helper()
	pids := processes(p.Pod)
	if len(pids) == 0 {
		t.Fatalf("no process of pod %s", p.Name)
	}
	return pids[0]
}

// TestFullQueues has a pod that takes nothing from its sockets.
func TestFullQueues(t *testing.T) {
	l := shared
	l.needsReasons(t)
	deaf := l.testPod(t, "deaf", l.podSpec(l.nodes[len(l.nodes)-1], "deaf", "-listen", fmt.Sprint(":", portDeaf)))
	to := joined(deaf.Status.PodIP, portDeaf)

	t.Run("datagrams", func(t *testing.T) {
		begun := time.Now()
		l.send(t, l.client1, 50, 1000, to)
		l.expectDrops(t, begun, portDeaf, 0, dropped{
			deaf.Spec.NodeName, deaf.identity(), l.client1.identity(), "SOCKET_RCVBUFF", "UDP", "ingress"})
		eventually(t, 15*time.Second, func() error {
			told, err := l.events(t.Context(), begun, "--type", "drop", "--port", strconv.Itoa(portDeaf))
			if err != nil {
				return err
			}
			if got := l.dropsCounted(t, "deaf", "SOCKET_RCVBUFF"); got == 0 || got != float64(len(told)) {
				return fmt.Errorf("%v packets are counted and %d told of", got, len(told))
			}
			return nil
		})
	})
	t.Run("connections", func(t *testing.T) {
		begun := time.Now()
		for range 3 {
			_, _ = l.exec(t.Context(), l.client1, "", "tcp", "-timeout", "300ms", to)
		}
		eventually(t, 15*time.Second, func() error {
			events, err := l.events(t.Context(), begun, "--type", "overflow", "--port", strconv.Itoa(portDeaf))
			if err != nil {
				return err
			}
			var drops uint64
			for _, e := range events {
				o := e.GetListenOverflow()
				drops += o.GetDrops()
				if id := identityOf(o.GetLocal().GetWorkload()); id != deaf.identity() || o.GetBacklog() == 0 || o.GetBacklogMax() != 0 {
					return fmt.Errorf("overflow of %+v, backlog %d of %d", id, o.GetBacklog(), o.GetBacklogMax())
				}
			}
			if drops == 0 {
				return fmt.Errorf("no listen queue has overflowed")
			}
			return nil
		})
	})
}
