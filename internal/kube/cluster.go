// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// contactGrace is how long after the last sign of the API server a pod that
	// is not known may still become known.
	contactGrace = 10 * time.Second
	sweepEvery   = 2 * time.Second
	refreshEvery = 30 * time.Second

	remedy = "apply the ClusterRole and ClusterRoleBinding orb8-agent of deploy/orb8-daemonset.yaml"
)

// Config holds what a Cluster needs.
type Config struct {
	// Clients of the API server, see Connect.
	Clients *Clients
	// Node is the own node's name.
	Node string
	// Peers is the source for the whole cluster; the API server if nil.
	Peers PeerSource
	// OwnOnly: without Peers, the pods of other nodes, EndpointSlices and other nodes are
	// not watched.
	OwnOnly bool
	// MaxPods is of how many pods of the cluster names are kept; with more, only those of
	// this node have names. 0 for any number.
	MaxPods int
	// Log gets a line when a watch fails or recovers. Default: none.
	Log *slog.Logger
	// Linger is how long a deleted pod stays known. Default 60 s.
	Linger time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Cluster keeps a Store up to date and answers from it. Its look-ups may be
// used before, during and after Run: they answer from the last known state.
type Cluster struct {
	cfg    Config
	store  *Store
	owners *climber
	own    *link
	peers  PeerSource
	slices *ResourceSlices
	begun  time.Time
	// settled is set once all there is to know was read once.
	settled atomic.Bool
	events  chan PodEvent
	untold  atomic.Uint64
	reviews *Reviews
}

var _ workload.Cluster = (*Cluster)(nil)

// New makes a Cluster that knows nothing until Run.
func New(cfg Config) (*Cluster, error) {
	if cfg.Node == "" {
		return nil, errors.New("watch the cluster: the name of the own node is not known; " +
			"give it with --node-name, as the DaemonSet does from spec.nodeName")
	}
	if cfg.Clients == nil {
		return nil, errors.New("watch the cluster: no client of the API server")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Cluster{
		cfg:    cfg,
		own:    newLink("pods", cfg.Log, cfg.Now),
		peers:  cfg.Peers,
		begun:  cfg.Now(),
		slices: NewResourceSlices(cfg.Clients, cfg.Node),
		events: make(chan PodEvent, eventQueue), reviews: NewReviews(cfg.Clients),
	}
	c.store = NewStore(StoreConfig{Linger: cfg.Linger, Now: cfg.Now, AllPods: c.allPods})
	c.owners = newClimber(cfg.Clients.Metadata, cfg.Now, c.refreshOwners)
	if c.peers == nil {
		c.peers = newAPISource(&cfg)
	}
	return c, nil
}

// Run watches until ctx ends. That the API server cannot be reached is no
// error: Status says so, and Run tries again.
func (c *Cluster) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		ownFeed(c.cfg.Node, c.cfg.Clients.Core, c.own, c.store, c.owners).run(ctx)
		return nil
	})
	g.Go(func() error {
		if err := c.peers.Run(ctx, c.store); err != nil && ctx.Err() == nil {
			return fmt.Errorf("watch the cluster's pods: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		c.owners.run(ctx)
		return nil
	})
	g.Go(func() error {
		c.writeEvents(ctx)
		return nil
	})
	g.Go(func() error {
		c.tidy(ctx)
		return nil
	})
	return g.Wait()
}

// allPods reports whether the source of peers tells of all pods; one that does not say does.
func (c *Cluster) allPods() bool {
	s, says := c.peers.(interface{ AllPods() bool })
	return !says || s.AllPods()
}

// Allow is Reviews.Allow.
func (c *Cluster) Allow(ctx context.Context, token, path string) error {
	return c.reviews.Allow(ctx, token, path)
}

// tidy forgets what is old, and asks again for owners that were not to be had.
func (c *Cluster) tidy(ctx context.Context) {
	sweep, refresh := time.NewTicker(sweepEvery), time.NewTicker(refreshEvery)
	defer sweep.Stop()
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			c.store.Sweep(c.cfg.Now())
		case <-refresh.C:
			c.refreshOwners()
		case p := <-c.store.asked:
			c.store.Climb(p, c.owners.top)
		}
	}
}

func (c *Cluster) refreshOwners() { c.store.RefreshOwners(c.owners.top) }

// Pod implements workload.Cluster.
func (c *Cluster) Pod(containerID, podUID string) (*workload.Identity, bool) {
	return c.store.Pod(containerID, podUID)
}

// Images returns what a container may be made of, see Store.Images.
func (c *Cluster) Images(containerID, podUID string) []Image {
	return c.store.Images(containerID, podUID)
}

// Named finds a pod of the own node by its name, see Store.Named.
func (c *Cluster) Named(namespace, name string) (id *workload.Identity, runs, known bool) {
	return c.store.Named(namespace, name)
}

// Addrs returns the addresses of pods of the own node, see Store.Addrs.
func (c *Cluster) Addrs(namespace string, match func(labels map[string]string) bool) []netip.Addr {
	return c.store.Addrs(namespace, match)
}

// ResourceSlices returns what knows the devices of this node's DRA drivers.
func (c *Cluster) ResourceSlices() *ResourceSlices { return c.slices }

// Peer implements workload.Cluster. Until everything was read once it names pods
// only: what looks like a node's or a Service's address may yet turn out to be a
// pod's, and a flow keeps the name that it was given first.
func (c *Cluster) Peer(p workload.Peer) (*workload.Identity, bool) {
	id, ok := c.store.Peer(p)
	if ok && id.Pod == "" && !c.isSettled() {
		return nil, false
	}
	return id, ok
}

func (c *Cluster) isSettled() bool {
	if c.settled.Load() {
		return true
	}
	if !c.own.health().Settled || !c.peers.Health().Settled {
		return false
	}
	c.settled.Store(true)
	return true
}

// Backs implements workload.Cluster.
func (c *Cluster) Backs(service, server *workload.Identity, addr netip.Addr, port uint16, protocol uint8) (backs, known bool) {
	return c.store.Backs(service, server, addr, port, protocol)
}

// Waiting implements workload.Cluster: the watch of the own node's pods stands,
// or did less than 10 s ago.
func (c *Cluster) Waiting() bool { return c.own.waiting(contactGrace) }

// Changed gets a value when the own node's pods changed, or something did that
// was asked for in vain: what waits for a name should ask again.
func (c *Cluster) Changed() <-chan struct{} { return c.store.Changed() }

// Status is how much a Cluster knows, and how well.
type Status struct {
	Counts
	// Synced: the own node's pods, all peers, Services and nodes were read once.
	Synced bool
	// Degraded says what is wrong and what to do; empty if all is well.
	Degraded string
}

// Status may be called at any time.
func (c *Cluster) Status() Status {
	own := c.own.health()
	all := own.and(c.peers.Health())
	var parts []string
	switch {
	case all.Err != nil:
		what, todo := trouble(all.Err)
		effect := "pods have no names"
		if own.Synced {
			effect = "names are those known then"
		}
		said := fmt.Sprintf("API server %s %s since %s (%v): %s",
			c.cfg.Clients.Host, what, all.Since.UTC().Format(time.RFC3339), all.Err, effect)
		if todo != "" {
			said += "; " + todo
		}
		parts = append(parts, said)
	case !all.Synced && len(all.Missing) == 0 && c.cfg.Now().Sub(c.begun) > contactGrace:
		parts = append(parts, fmt.Sprintf("API server %s has not told all pods, Services and nodes since %s",
			c.cfg.Clients.Host, c.begun.UTC().Format(time.RFC3339)))
	}
	if err := c.slices.Err(); err != nil {
		parts = append(parts, err.Error()+"; devices of resource claims are not told apart")
	}
	parts = append(parts, all.Bounded...)
	missing := slices.Concat(all.Missing, c.owners.missing())
	slices.Sort(missing)
	if missing = slices.Compact(missing); len(missing) > 0 {
		parts = append(parts, strings.Join(missing, "; ")+"; "+remedy)
	}
	return Status{Counts: c.store.Counts(), Synced: all.Synced, Degraded: strings.Join(parts, "; ")}
}
