// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/rest"

	"golang.org/x/sync/errgroup"
)

// PeerSource tells a Store of the pods, Services, EndpointSlices and nodes of
// the whole cluster. Without another one a Cluster watches them itself.
type PeerSource interface {
	// Run keeps the Store up to date until ctx ends, and survives whatever can be
	// mended by trying again. It calls UpsertPeer, DeletePeer and ReplacePeers
	// for pods, those of the own node included or not, and the like for the rest.
	Run(ctx context.Context, into *Store) error
	// Health may be called at any time from any goroutine.
	Health() Health
}

// running leaves out the pods that have ended: batch clusters keep tens of thousands. One
// that ends is told of as deleted.
const running = "status.phase!=Succeeded,status.phase!=Failed"

// apiSource watches the cluster through the API server.
type apiSource struct {
	clients *Clients
	// node is the own one, own leaves out all that is of others.
	node string
	own  bool
	most int

	pods, services, slices, nodes *link
}

func newAPISource(cfg *Config) *apiSource {
	return &apiSource{
		clients: cfg.Clients, node: cfg.Node, own: cfg.OwnOnly, most: cfg.MaxPods,
		pods:     newLink("pods", cfg.Log, cfg.Now),
		services: newLink("services", cfg.Log, cfg.Now),
		slices:   newLink("endpointslices.discovery.k8s.io", cfg.Log, cfg.Now),
		nodes:    newLink("nodes", cfg.Log, cfg.Now),
	}
}

// Run watches until ctx ends.
func (a *apiSource) Run(ctx context.Context, into *Store) error {
	core := a.clients.Core
	pods := &feed[*corev1.Pod, *Pod]{
		link: a.pods, client: core, resource: "pods", selector: running, example: &corev1.Pod{},
		trim: func(p *corev1.Pod) *Pod { return into.Share(trimPeer(p)) },
		most: a.most, known: into.size,
		upsert:  into.UpsertPeer,
		remove:  func(p *corev1.Pod) { into.DeletePeer(string(p.UID)) },
		replace: into.ReplacePeers,
	}
	services := &feed[*corev1.Service, *Service]{
		link: a.services, client: core, resource: "services", example: &corev1.Service{}, trim: trimService,
		upsert:  into.UpsertService,
		remove:  func(s *corev1.Service) { into.DeleteService(s.Namespace, s.Name) },
		replace: into.ReplaceServices,
	}
	slices := &feed[*discoveryv1.EndpointSlice, *EndpointSlice]{
		link: a.slices, client: a.clients.Discovery, resource: "endpointslices",
		example: &discoveryv1.EndpointSlice{}, trim: trimSlice,
		upsert:  into.UpsertSlice,
		remove:  func(s *discoveryv1.EndpointSlice) { into.DeleteSlice(s.Namespace, s.Name) },
		replace: into.ReplaceSlices,
	}
	nodes := &feed[*corev1.Node, *Node]{
		link: a.nodes, client: core, resource: "nodes", example: &corev1.Node{}, trim: trimNode,
		upsert:  into.UpsertNode,
		remove:  func(n *corev1.Node) { into.DeleteNode(n.Name) },
		replace: into.ReplaceNodes,
	}
	all := []func(context.Context){nodes.run, services.run, slices.run, func(ctx context.Context) {
		pods.run(ctx)
		if a.pods.isFull() {
			into.ReplacePeers(nil)
		}
	}}
	if a.own {
		nodes.selector = "metadata.name=" + a.node
		all = all[:2]
	}
	var g errgroup.Group
	for _, run := range all {
		g.Go(func() error {
			run(ctx)
			return nil
		})
	}
	return g.Wait()
}

// Health joins that of the watches.
func (a *apiSource) Health() Health {
	if a.own {
		return a.services.health().and(a.nodes.health())
	}
	return a.pods.health().and(a.services.health()).and(a.slices.health()).and(a.nodes.health())
}

// AllPods reports whether the watch of all pods stands.
func (a *apiSource) AllPods() bool { return !a.own && !a.pods.isFull() && a.pods.waiting(0) }

// ownFeed watches the pods of one node.
func ownFeed(node string, client rest.Interface, l *link, into *Store, c *climber) *feed[*corev1.Pod, *Pod] {
	return &feed[*corev1.Pod, *Pod]{
		link: l, client: client, resource: "pods", selector: "spec.nodeName=" + node, example: &corev1.Pod{},
		trim: func(p *corev1.Pod) *Pod {
			own := trimOwn(p)
			own.Kind, own.Workload, own.OwnerPending = c.top(own)
			return own
		},
		upsert:  into.UpsertOwn,
		remove:  func(p *corev1.Pod) { into.DeleteOwn(string(p.UID)) },
		replace: into.ReplaceOwn,
	}
}
