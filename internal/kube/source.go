// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"log/slog"
	"time"

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

// peerPage is how many pods are listed at once where the API server does not
// stream lists: the objects of a whole cluster, before they are trimmed, would
// not fit into an agent's memory.
const peerPage = 500

// apiSource watches the cluster through the API server.
type apiSource struct {
	clients *Clients

	pods, services, slices, nodes *link
}

func newAPISource(clients *Clients, log *slog.Logger, now func() time.Time) *apiSource {
	return &apiSource{
		clients:  clients,
		pods:     newLink("pods", log, now),
		services: newLink("services", log, now),
		slices:   newLink("endpointslices.discovery.k8s.io", log, now),
		nodes:    newLink("nodes", log, now),
	}
}

// Run watches until ctx ends.
func (a *apiSource) Run(ctx context.Context, into *Store) error {
	core := a.clients.Core
	pods := &feed[*corev1.Pod, *Pod]{
		link: a.pods, client: core, resource: "pods", page: peerPage, example: &corev1.Pod{}, trim: trimPeer,
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
	var g errgroup.Group
	for _, run := range []func(context.Context){nodes.run, services.run, slices.run, pods.run} {
		g.Go(func() error {
			run(ctx)
			return nil
		})
	}
	return g.Wait()
}

// Health joins that of the four watches.
func (a *apiSource) Health() Health {
	return a.pods.health().and(a.services.health()).and(a.slices.health()).and(a.nodes.health())
}

// ownFeed watches the pods of one node.
func ownFeed(node string, client rest.Interface, l *link, into *Store, c *climber) *feed[*corev1.Pod, *Pod] {
	return &feed[*corev1.Pod, *Pod]{
		link: l, client: client, resource: "pods", selector: "spec.nodeName=" + node, example: &corev1.Pod{},
		trim: func(p *corev1.Pod) *Pod {
			own := trimOwn(p)
			own.Kind, own.Workload = c.top(own)
			return own
		},
		upsert:  into.UpsertOwn,
		remove:  func(p *corev1.Pod) { into.DeleteOwn(string(p.UID)) },
		replace: into.ReplaceOwn,
	}
}
