// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"net/netip"
	"strings"
)

// Pod is what a Store is told of a pod.
type Pod struct {
	// UID of the API object.
	UID, Namespace, Name string
	// ConfigHash is the kubelet's hash of a static pod's manifest, which is its
	// UID in cgroup paths; else empty.
	ConfigHash string
	Node       string
	// HostNetwork: IPs are those of the node.
	HostNetwork bool
	IPs         []netip.Addr
	// Secondary are addresses of further interfaces, as the network plugin, or whoever may
	// write the pod's annotations, says.
	Secondary []netip.Addr
	// Ports that the pod has on its node's addresses.
	Ports []HostPort
	// Containers are ids without the runtime's scheme: all kinds of containers,
	// also those that were restarted since. Only used for pods of the own node.
	Containers []string
	// Images has what these containers are made of, by their ids, and SpecImages what
	// the pod's containers of all kinds are to be made of. Only used as Containers.
	Images     map[string]Image
	SpecImages []string
	// QoS is Guaranteed, Burstable or BestEffort.
	QoS    string
	Labels map[string]string
	// Controller is the owner that the pod names; empty for a bare pod.
	Controller Ref
	// Kind and Workload name the owner of all. Where Kind is empty the Store
	// guesses both from Controller and Labels.
	Kind, Workload string
	// OwnerPending: these are a guess, and what they are is being asked.
	OwnerPending bool
	// Started is when the kubelet took the pod, in Unix nanoseconds.
	Started int64
	// Finished: all containers ended for good, at Ended (Unix nanoseconds, 0 if
	// not known). Its IPs may belong to another pod.
	Finished bool
	Ended    int64
}

// Image is what a container is made of: Name as the runtime or the pod names it, Digest with
// the hash of its contents, as in registry.test/app@sha256:12ab...; empty if not known.
type Image struct{ Name, Digest string }

// Ref refers to an owner in the pod's namespace.
type Ref struct {
	// APIVersion is group and version, apps/v1.
	APIVersion, Kind, Name string
}

// HostPort is a port with its IP protocol number. The zero value stands for one
// that is not known.
type HostPort struct {
	Port     uint16
	Protocol uint8
}

// Service is what a Store is told of a Service.
type Service struct {
	Namespace, Name string
	ClusterIPs      []netip.Addr
	// ExternalIPs has those of the specification and of load balancers.
	ExternalIPs []netip.Addr
	Ports       []ServicePort
}

// ServicePort is one port of a Service.
type ServicePort struct {
	// Name joins it with the ports of EndpointSlices; may be empty.
	Name     string
	Protocol uint8
	Port     uint16
	// NodePort is 0 where there is none.
	NodePort uint16
}

// EndpointSlice is what a Store is told of an EndpointSlice. The Store keeps the
// slices that it is given.
type EndpointSlice struct {
	Namespace, Name string
	// Service that the slice belongs to.
	Service   string
	Ports     []EndpointPort
	Endpoints []Endpoint
}

// EndpointPort is a port that all endpoints of a slice have.
type EndpointPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// Endpoint is a pod, or an address where no pod is named.
type Endpoint struct {
	PodUID string
	Addr   netip.Addr
	// Away: it gets no new connections; those that it has may go on.
	Away bool
}

func compareEndpoints(a, b Endpoint) int {
	return cmp.Or(strings.Compare(a.PodUID, b.PodUID), a.Addr.Compare(b.Addr))
}

// Node is what a Store is told of a node.
type Node struct {
	Name, Zone string
	Addrs      []netip.Addr
	// PodCIDRs are the ranges that the node gives its pods addresses from, empty where the
	// network plugin has ranges of its own. What of these is no pod's is the node's, as its
	// gateway is.
	PodCIDRs []netip.Prefix
}
