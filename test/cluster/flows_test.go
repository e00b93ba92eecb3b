// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// source answers what flows the agents know, of all nodes.
type source interface {
	// flows returns the flow tables' rows now.
	flows(ctx context.Context) ([]*orb8v1.Event, error)
	close()
}

// recorder keeps the last rows of a source, so that one answer, which takes a
// start of the command line, serves several expectations.
type recorder struct {
	source source

	asking sync.Mutex // held while the source answers, which is asked once at a time
	rows   []*orb8v1.Event
	// began and ended are when the rows were asked for and answered.
	began, ended time.Time

	mu      sync.Mutex
	touched time.Time
}

const (
	keptFor = 2 * time.Second  // how long rows may be used again
	askFor  = 30 * time.Second // how long an answer may take
)

// touch notes that what has just happened may have changed the rows.
func (r *recorder) touch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.touched = time.Now()
}

func (r *recorder) lastTouch() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.touched
}

// flows returns the kept rows if they were asked for after all that may have
// changed them, otherwise, and with fresh always, new ones.
func (r *recorder) flows(ctx context.Context, fresh bool) ([]*orb8v1.Event, error) {
	r.asking.Lock()
	defer r.asking.Unlock()
	if !fresh && !r.ended.IsZero() && r.began.After(r.lastTouch()) && time.Since(r.ended) < keptFor {
		return r.rows, nil
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	rows, err := r.source.flows(ctx)
	if err != nil {
		r.rows, r.ended = nil, time.Time{}
		return nil, err
	}
	r.rows, r.began, r.ended = rows, began, time.Now()
	return rows, nil
}

func (r *recorder) close() {
	r.asking.Lock()
	defer r.asking.Unlock()
	r.source.close()
}

func (l *lab) newSource(ctx context.Context) (source, error) {
	switch l.source {
	case "cli":
		return &cliSource{l}, nil
	case "grpc":
		return newGRPCSource(ctx, l)
	}
	return nil, fmt.Errorf("ORB8_TEST_SOURCE=%s: want cli or grpc", l.source)
}

// cliSource asks `orb8 flows`.
type cliSource struct{ lab *lab }

func (s *cliSource) close() {}

func (s *cliSource) flows(ctx context.Context) ([]*orb8v1.Event, error) {
	out, err := s.lab.cli(ctx, "flows", "-o", "json", "--limit", "0")
	if err != nil {
		return nil, err
	}
	return parseEvents(out)
}

// cli runs orb8 against the cluster and returns its standard output.
func (l *lab) cli(ctx context.Context, args ...string) ([]byte, error) {
	args = append(args, "--kubeconfig", l.kubeconfig, "--orb8-namespace", l.agents)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, l.orb8, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("orb8 %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return stdout.Bytes(), nil
}

// parseEvents reads what -o json prints.
func parseEvents(out []byte) ([]*orb8v1.Event, error) {
	var events []*orb8v1.Event
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		e := &orb8v1.Event{}
		if err := protojson.Unmarshal(lines.Bytes(), e); err != nil {
			return nil, fmt.Errorf("%w: %s", err, lines.Bytes())
		}
		events = append(events, e)
	}
	return events, lines.Err()
}

// grpcSource asks the agents themselves, through the API server's port-forward.
// An agent that has gone is replaced by its successor.
type grpcSource struct {
	lab    *lab
	agents map[string]*agentConn // by pod name
}

type agentConn struct {
	orb8v1.OrbitAgentServiceClient
	conn *grpc.ClientConn
	stop chan struct{}
}

func (c *agentConn) close() {
	_ = c.conn.Close()
	close(c.stop)
}

func newGRPCSource(ctx context.Context, l *lab) (*grpcSource, error) {
	s := &grpcSource{lab: l, agents: map[string]*agentConn{}}
	return s, s.find(ctx)
}

func (s *grpcSource) close() {
	for _, a := range s.agents {
		a.close()
	}
}

const agentLabels = "app.kubernetes.io/name=orb8,app.kubernetes.io/component=agent"

// find connects to agents that are new and leaves those that have gone.
func (s *grpcSource) find(ctx context.Context) error {
	pods, err := s.lab.client.CoreV1().Pods(s.lab.agents).List(ctx, metav1.ListOptions{LabelSelector: agentLabels})
	if err != nil {
		return err
	}
	if len(pods.Items) == 0 {
		return fmt.Errorf("no pods with %s in namespace %s", agentLabels, s.lab.agents)
	}
	there := map[string]bool{}
	for _, p := range pods.Items {
		if p.DeletionTimestamp != nil {
			continue
		}
		there[p.Name] = true
		if s.agents[p.Name] != nil {
			continue
		}
		if s.agents[p.Name], err = s.lab.forward(p.Name); err != nil {
			delete(s.agents, p.Name)
			return err
		}
	}
	for name, a := range s.agents {
		if !there[name] {
			a.close()
			delete(s.agents, name)
		}
	}
	return nil
}

// forward connects to port 9090 on the loopback of an agent's pod.
func (l *lab) forward(name string) (*agentConn, error) {
	addr, stop, err := l.forwardPort(name, 9090)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &agentConn{orb8v1.NewOrbitAgentServiceClient(conn), conn, stop}, nil
}

// forwardPort makes a port of an agent's pod one of this host, until stop is closed.
func (l *lab) forwardPort(name string, remote int) (addr string, stop chan struct{}, err error) {
	transport, upgrader, err := spdy.RoundTripperFor(l.config)
	if err != nil {
		return "", nil, err
	}
	url := l.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(l.agents).Name(name).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", url)
	stop = make(chan struct{})
	up, failed := make(chan struct{}), make(chan error, 1)
	fw, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", remote)}, stop, up, io.Discard, io.Discard)
	if err != nil {
		return "", nil, err
	}
	go func() { failed <- fw.ForwardPorts() }()
	select {
	case <-up:
	case err := <-failed:
		return "", nil, fmt.Errorf("forward a port to %s: %w", name, err)
	case <-time.After(askFor):
		close(stop)
		return "", nil, fmt.Errorf("forward a port to %s: not up after %v", name, askFor)
	}
	ports, err := fw.GetPorts()
	if err != nil {
		return "", nil, err
	}
	return "127.0.0.1:" + strconv.Itoa(int(ports[0].Local)), stop, nil
}

func (s *grpcSource) flows(ctx context.Context) ([]*orb8v1.Event, error) {
	if err := s.find(ctx); err != nil {
		return nil, err
	}
	var all []*orb8v1.Event
	for name, a := range s.agents {
		rows, err := observe(ctx, a, &orb8v1.ObserveRequest{Snapshot: true})
		if err != nil {
			a.close()
			delete(s.agents, name)
			return nil, fmt.Errorf("agent %s: %w", name, err)
		}
		all = append(all, rows...)
	}
	return all, nil
}

// observe returns the flows that an agent answers.
func observe(ctx context.Context, a orb8v1.OrbitAgentServiceClient, req *orb8v1.ObserveRequest) ([]*orb8v1.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := a.Observe(ctx, req)
	if err != nil {
		return nil, err
	}
	var all []*orb8v1.Event
	for {
		e, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		case e.GetFlow() != nil:
			all = append(all, e)
		}
	}
}

// identity is what of a workload the tests compare.
type identity struct{ Namespace, Pod, Kind, Name, Service, Node string }

func identityOf(w *orb8v1.Workload) identity {
	return identity{w.GetNamespace(), w.GetPodName(), w.GetKind(), w.GetName(), w.GetService(), w.GetNodeName()}
}

// seen is one end's view of a flow, as far as the tests compare it.
type seen struct {
	Local, Remote    identity
	TxBytes, RxBytes uint64
	Role             string
}

func seenIn(f *orb8v1.Flow) seen {
	return seen{
		Local: identityOf(f.GetLocal().GetWorkload()), Remote: identityOf(f.GetRemote().GetWorkload()),
		TxBytes: f.GetTotal().GetTxBytes(), RxBytes: f.GetTotal().GetRxBytes(),
		Role: strings.ToLower(strings.TrimPrefix(f.GetRole().String(), "ROLE_")),
	}
}

// line is a flow in one line, for messages.
func line(e *orb8v1.Event) string {
	f := e.GetFlow()
	end := func(p *orb8v1.Endpoint) string {
		return fmt.Sprintf("%s %+v", net.JoinHostPort(p.GetIp(), strconv.Itoa(int(p.GetPort()))), identityOf(p.GetWorkload()))
	}
	return fmt.Sprintf("%s: %s %s, %s -> %s, tx %d rx %d, %s, %s", e.GetNodeName(), f.GetProtocol(), f.GetRole(),
		end(f.GetLocal()), end(f.GetRemote()), f.GetTotal().GetTxBytes(), f.GetTotal().GetRxBytes(),
		f.GetEvent(), f.GetLocal().GetWorkload().GetCgroupPath())
}

// untilRows calls f with all rows until it returns nil. Only its first call may
// get rows that were kept.
func (l *lab) untilRows(t *testing.T, limit time.Duration, f func(rows []*orb8v1.Event) error) {
	t.Helper()
	fresh := false
	eventually(t, limit, func() error {
		rows, err := l.flows.flows(t.Context(), fresh)
		fresh = true
		if err != nil {
			return err
		}
		return f(rows)
	})
}

// find returns the rows that match; if none does, the error shows what is there
// of the same protocol.
func find(all []*orb8v1.Event, protocol string, match func(*orb8v1.Flow) bool) ([]*orb8v1.Event, error) {
	var found []*orb8v1.Event
	var others strings.Builder
	for _, e := range all {
		f := e.GetFlow()
		switch {
		case f.GetProtocol() != protocol:
		case match(f):
			found = append(found, e)
		default:
			others.WriteString("\n  " + line(e))
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no such %s flow; there are:%s", protocol, &others)
	}
	return found, nil
}
