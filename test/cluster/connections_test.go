// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

const (
	portMute  = 7102 // in a pod: whatever comes is dropped
	portLossy = 7103
)

// expectFailure waits until `--type connect --failed` has the one attempt of a pod.
func (l *lab) expectFailure(t *testing.T, since time.Time, want seen, end orb8v1.TcpEnd, flags ...string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		events, err := l.events(t.Context(), since, append([]string{"--type", "connect", "--failed"}, flags...)...)
		if err != nil {
			return err
		}
		if len(events) != 1 || events[0].GetConnection() == nil {
			return fmt.Errorf("%d failed connections, want 1: %v", len(events), events)
		}
		f := events[0].GetConnection().GetFlow()
		if d := cmp.Diff(want, seenIn(f)); d != "" || f.GetTcp().GetEnd() != end {
			return fmt.Errorf("ended by %v, want %v (-want +got):\n%s", f.GetTcp().GetEnd(), end, d)
		}
		return nil
	})
}

// TestRefused connects to where nobody listens.
func TestRefused(t *testing.T) {
	l := shared
	begun := time.Now()
	_, err := l.exec(t.Context(), l.client1, "", "tcp", joined(l.far.Status.PodIP, portClosed))
	if err == nil {
		t.Fatal("somebody listens at the port")
	}
	want := seen{Local: l.client1.identity(), Remote: l.far.identity(), Role: "client"}
	l.expectFailure(t, begun, want, orb8v1.TcpEnd_TCP_END_REFUSED, "--pod", l.client1.Name)
}

// TestServiceWithoutEndpoints: the node's own filter answers with an ICMP message while
// the program is still in connect.
func TestServiceWithoutEndpoints(t *testing.T) {
	l := shared
	if err := l.createService(t.Context(), "empty", corev1.ServiceTypeClusterIP); err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			to := l.clusterIP(t.Context(), "empty", family)
			if to == "" {
				t.Skipf("the cluster has no IPv%d here", family)
			}
			l.refusing(t, to)
			client := l.testPod(t, fmt.Sprintf("refused-%d", family), l.podSpec(l.nodes[0], "wait"))
			begun := time.Now()
			if _, err := l.exec(t.Context(), client, "", "tcp", "-timeout", "5s", to); !isRefused(err) {
				t.Errorf("the program was told: %v", err)
			}
			want := seen{Local: client.identity(), Role: "client",
				Remote: identity{Namespace: l.namespace, Kind: "Service", Name: "empty", Service: "empty"}}
			l.expectFailure(t, begun, want, orb8v1.TcpEnd_TCP_END_REFUSED, "--pod", client.Name)
			l.expectMetric(t, "orb8_tcp_connect_failures_total", client.Name, `reason="refused"`)
		})
	}
}

func isRefused(err error) bool {
	return err != nil && strings.Contains(err.Error(), "connection refused")
}

// refusing waits until kube-proxy knows of a Service without endpoints.
func (l *lab) refusing(t *testing.T, to string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		_, err := l.exec(t.Context(), l.client1, "", "tcp", "-timeout", "3s", to)
		if isRefused(err) {
			return nil
		}
		return fmt.Errorf("not refused: %w", err)
	})
}

// expectMetric waits until a series of a workload with all of these labels is not 0.
func (l *lab) expectMetric(t *testing.T, name, workload string, labels ...string) {
	t.Helper()
	labels = append(labels, "namespace="+strconv.Quote(l.namespace), "workload="+strconv.Quote(workload))
	eventually(t, 15*time.Second, func() error {
		if l.sum(t, name, labels...) == 0 {
			return fmt.Errorf("no %s with %q", name, labels)
		}
		return nil
	})
}

// sum adds up the series with all of these labels over all agents.
func (l *lab) sum(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
	for _, p := range l.agentPods(t) {
		out, err := l.client.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, "9091", "/metrics", nil).DoRaw(t.Context())
		if err != nil {
			t.Fatal(err)
		}
	lines:
		for text := range strings.Lines(string(out)) {
			if !strings.HasPrefix(text, name+"{") {
				continue
			}
			for _, label := range labels {
				if !strings.Contains(text, label) {
					continue lines
				}
			}
			value, err := strconv.ParseFloat(strings.TrimSpace(text[strings.LastIndexByte(text, ' '):]), 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += value
		}
	}
	return sum
}

// ofPair waits for an event of a type between two pods for which ok holds.
func (l *lab) ofPair(t *testing.T, since time.Time, kind string, from, to *pod, ok func(*orb8v1.Flow) bool) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		events, err := l.events(t.Context(), since, "--type", kind, "--pod", from.Name)
		if err != nil {
			return err
		}
		for _, e := range events {
			f := e.GetFlow()
			if c := e.GetConnection(); c != nil {
				f = c.GetFlow()
			}
			if identityOf(f.GetRemote().GetWorkload()) == to.identity() && ok(f) {
				return nil
			}
		}
		return fmt.Errorf("no %s of %s to %s among %v", kind, from.Name, to.Name, events)
	})
}

// TestConnectionHealth has connections wait for an answer, lose segments and lie idle.
func TestConnectionHealth(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	server := l.testPod(t, "sick", l.podSpec(l.nodes[len(l.nodes)-1], "serve", "-listen", fmt.Sprintf(":%d,:%d", port, portLossy)))
	l.nftIn(t, server, fmt.Sprintf("tcp dport %d drop; tcp dport %d numgen random mod 100 < 20 drop", portMute, portLossy))
	client := l.testPod(t, "patient", l.podSpec(l.nodes[0], "wait"))
	begun := time.Now()
	to := func(port int) string { return joined(server.Status.PodIP, port) }

	idle := make(chan error, 1)
	go func() {
		_, err := l.exec(t.Context(), client, "", "tcp", "-hold", "50s", to(port))
		idle <- err
	}()
	t.Run("lossy", func(t *testing.T) {
		l.netpeer(t, client, "", "tcp", "-send", "3000000", "-timeout", "30s", to(portLossy))
		l.ofPair(t, begun, "retransmit", client, server, func(f *orb8v1.Flow) bool {
			return f.GetTcp().GetRetransmits() > 0 && f.GetRemote().GetPort() == portLossy
		})
		l.ofPair(t, begun, "close", client, server, func(f *orb8v1.Flow) bool {
			return f.GetTcp().GetRetransmits() > 0 && f.GetTcp().GetRttUs() > 0 && f.GetTotal().GetTxBytes() == 3000000
		})
		l.expectMetric(t, "orb8_tcp_retransmits_total", client.workload)
		l.expectMetric(t, "orb8_tcp_rtt_seconds_count", client.workload)
	})
	t.Run("half-open", func(t *testing.T) {
		waiting := make(chan struct{})
		go func() {
			defer close(waiting)
			_, _ = l.exec(t.Context(), client, "", "tcp", "-timeout", "15s", to(portMute))
		}()
		l.expectMetric(t, "orb8_tcp_connections", client.workload, `state="half_open"`)
		l.ofPair(t, begun, "half-open", client, server, func(f *orb8v1.Flow) bool { return f.GetRemote().GetPort() == portMute })
		<-waiting
		want := seen{Local: client.identity(), Remote: server.identity(), Role: "client"}
		l.expectFailure(t, begun, want, orb8v1.TcpEnd_TCP_END_ABORTED, "--pod", client.Name)
	})
	t.Run("idle", func(t *testing.T) {
		l.ofPair(t, begun, "idle", client, server, func(f *orb8v1.Flow) bool { return f.GetRemote().GetPort() == port })
	})
	if err := <-idle; err != nil {
		t.Error(err)
	}
}

// TestPeers has the agents count by the workload at the other end as well.
func TestPeers(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	defer l.restartWith(t, "metrics:\n  peers: true\n")()
	server := l.testPod(t, "peer", l.podSpec(l.nodes[len(l.nodes)-1], "serve", "-listen", fmt.Sprintf(":%d", portLossy)))
	l.nftIn(t, server, "tcp dport "+strconv.Itoa(portLossy)+" numgen random mod 100 < 20 drop")
	l.netpeer(t, l.client2, "", "tcp", "-send", "3000000", "-timeout", "30s", joined(server.Status.PodIP, portLossy))
	peer := []string{"peer_namespace=" + strconv.Quote(l.namespace), "peer_workload=" + strconv.Quote(server.workload)}
	l.expectMetric(t, "orb8_tcp_peer_retransmits_total", l.client2.workload, peer...)
	l.expectMetric(t, "orb8_tcp_peer_rtt_seconds_count", l.client2.workload, peer...)
}

// restartWith adds to the configuration of new agents, and returns what takes it away
// again.
func (l *lab) restartWith(t *testing.T, text string) (restore func()) {
	t.Helper()
	maps := l.client.CoreV1().ConfigMaps(l.agents)
	set := func(change func(string) string) {
		m, err := maps.Get(t.Context(), "orb8-agent", metav1.GetOptions{})
		if err == nil {
			m.Data["orb8.yaml"] = change(m.Data["orb8.yaml"])
			_, err = maps.Update(t.Context(), m, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		l.replaceAgents(t)
	}
	set(func(now string) string { return now + text })
	return func() { set(func(now string) string { return strings.Replace(now, text, "", 1) }) }
}

// TestBadChecksum sends datagrams whose checksum is wrong from one pod to another. The
// node is kept from finding that out first: kube-proxy drops what is not valid to
// connection tracking.
func TestBadChecksum(t *testing.T) {
	l := shared
	l.needsReasons(t)
	l.trackBadChecksums(t, strings.TrimPrefix(l.nodes[0], "n"))
	begun, before := time.Now(), l.dropsCounted(t, l.near.workload, "UDP_CSUM")
	const count = 3
	l.within(t, l.client1, func() error { return sendBadChecksum(l.client1.ip(4), l.near.ip(4), count) })
	l.expectDrops(t, begun, port, count, dropped{
		l.near.Spec.NodeName, l.near.identity(), l.client1.identity(), "UDP_CSUM", "UDP", "ingress"})
	eventually(t, 15*time.Second, func() error {
		if got := l.dropsCounted(t, l.near.workload, "UDP_CSUM"); got != before+count {
			return fmt.Errorf("%v packets are counted, want %v", got, before+count)
		}
		return nil
	})
}

func (l *lab) trackBadChecksums(t *testing.T, node string) {
	t.Helper()
	set := func(value string) {
		l.script(t, "node.sh", "exec", node, "sysctl", "-qw", "net.netfilter.nf_conntrack_checksum="+value)
	}
	set("0")
	t.Cleanup(func() { set("1") })
}

// within runs f in a pod's network.
func (l *lab) within(t *testing.T, p *pod, f func() error) {
	t.Helper()
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", l.process(t, p)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with this goroutine
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// sendBadChecksum sends datagrams to port, with their own UDP header.
func sendBadChecksum(from, to string, count int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	address := func(ip string) *unix.SockaddrInet4 { return &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(ip).To4())} }
	if err := unix.Bind(fd, address(from)); err != nil {
		return err
	}
	datagram := []byte{0x23, 0x28, port >> 8, port & 0xff, 0, 16, 0xba, 0xd0, 1, 2, 3, 4, 5, 6, 7, 8}
	for range count {
		if err := unix.Sendto(fd, datagram, 0, address(to)); err != nil {
			return err
		}
	}
	return nil
}
