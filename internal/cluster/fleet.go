// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// DefaultTimeout is how long a node may take to answer.
const DefaultTimeout = 5 * time.Second

// Finder lists agents and connects to them; *Cluster is one.
type Finder interface {
	Agents(ctx context.Context) ([]Agent, error)
	Dial(a Agent) (*Conn, error)
}

// Fleet is all agents of a cluster, or those of some nodes, asked as one. It is
// safe for concurrent use.
type Fleet struct {
	finder  Finder
	nodes   []string
	timeout time.Duration
	// goneAfter is goneAfter but in tests.
	goneAfter time.Duration

	mu    sync.Mutex
	conns map[string]member // by node
}

type member struct {
	uid  string
	conn *Conn
}

// NewFleet returns the agents of the nodes, or of all nodes if there are none
// given. timeout bounds how long a node may take to answer; 0 means
// DefaultTimeout.
func NewFleet(f Finder, nodes []string, timeout time.Duration) *Fleet {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	return &Fleet{finder: f, nodes: nodes, timeout: timeout, goneAfter: goneAfter, conns: map[string]member{}}
}

// Close closes all connections.
func (f *Fleet) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for node, m := range f.conns {
		errs = append(errs, m.conn.Close())
		delete(f.conns, node)
	}
	return errors.Join(errs...)
}

// agents lists the fleet's agents, by node. A node that was asked for and has
// none is an Agent without a pod.
func (f *Fleet) agents(ctx context.Context) ([]Agent, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	all, err := f.finder.Agents(ctx)
	if err != nil || len(f.nodes) == 0 {
		return all, err
	}
	var some []Agent
	for _, node := range f.nodes {
		at, ok := slices.BinarySearchFunc(all, node, func(a Agent, node string) int { return cmp.Compare(a.Node, node) })
		a := Agent{Node: node, Reason: "no agent's pod is on this node"}
		if ok {
			a = all[at]
		}
		some = append(some, a)
	}
	slices.SortFunc(some, func(a, b Agent) int { return cmp.Compare(a.Node, b.Node) })
	return slices.CompactFunc(some, func(a, b Agent) bool { return a.Node == b.Node }), nil
}

// conn returns the connection to a, made when it is first needed. A connection
// to the pod that a replaces is closed.
func (f *Fleet) conn(a Agent) (*Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.conns[a.Node]
	if ok && m.uid == a.UID {
		return m.conn, nil
	}
	conn, err := f.finder.Dial(a)
	if err != nil {
		return nil, err
	}
	f.conns[a.Node] = member{a.UID, conn}
	if ok {
		return conn, m.conn.Close()
	}
	return conn, nil
}

// Answer is what one agent said, or why it said nothing.
type Answer[T any] struct {
	Agent Agent
	Value T
	Err   error
}

// Status asks every agent for its status. Each has an answer, by node.
func (f *Fleet) Status(ctx context.Context) ([]Answer[*orb8v1.AgentStatus], error) {
	return ask(ctx, f, func(ctx context.Context, c orb8v1.OrbitAgentServiceClient) (*orb8v1.AgentStatus, error) {
		return c.GetStatus(ctx, &orb8v1.GetStatusRequest{})
	})
}

// QueryFlows asks every agent for rows of its flow table. Each has an answer, by
// node; the limit is each agent's.
func (f *Fleet) QueryFlows(ctx context.Context, req *orb8v1.QueryFlowsRequest) ([]Answer[*orb8v1.QueryFlowsResponse], error) {
	return ask(ctx, f, func(ctx context.Context, c orb8v1.OrbitAgentServiceClient) (*orb8v1.QueryFlowsResponse, error) {
		return c.QueryFlows(ctx, req)
	})
}

// notReadyError is why an agent is not even asked.
type notReadyError struct{ reason string }

func (e *notReadyError) Error() string { return e.reason }

// atOnce bounds how many agents are asked, and port-forwards opened, at a time: each is a
// connection of its own to the API server.
const atOnce = 64

// ask calls the agents, atOnce at a time, and returns when each has answered or the time is
// up that it has from its own turn on.
func ask[T any](ctx context.Context, f *Fleet, call func(context.Context, orb8v1.OrbitAgentServiceClient) (T, error)) ([]Answer[T], error) {
	agents, err := f.agents(ctx)
	if err != nil {
		return nil, err
	}
	answers := make([]Answer[T], len(agents))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, a := range agents {
		answers[i].Agent = a
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, f.timeout)
			defer cancel()
			answers[i].Value, answers[i].Err = one(ctx, f, a, call)
			return nil
		})
	}
	return answers, g.Wait()
}

func one[T any](ctx context.Context, f *Fleet, a Agent, call func(context.Context, orb8v1.OrbitAgentServiceClient) (T, error)) (value T, err error) {
	if !a.running {
		return value, &notReadyError{a.Reason}
	}
	conn, err := f.conn(a)
	if err != nil {
		return value, err
	}
	value, err = call(ctx, orb8v1.NewOrbitAgentServiceClient(conn))
	return value, because(conn, err)
}

// because prefers what the connection knows to what gRPC makes of it.
func because(conn *Conn, err error) error {
	if err == nil {
		return nil
	}
	if trouble := conn.Trouble(); trouble != nil {
		return trouble
	}
	return err
}
