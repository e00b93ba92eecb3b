// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"iter"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	configHash   = "kubernetes.io/config.hash"
	configMirror = corev1.MirrorPodAnnotationKey

	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// trimOwn keeps what is used of a pod of the own node.
func trimOwn(p *corev1.Pod) *Pod {
	out := trimPeer(p)
	// Anybody may write the hash; what a kubelet has made of its own file is marked so,
	// and nobody may add the mark later.
	if p.Annotations[configMirror] != "" {
		out.ConfigHash = p.Annotations[configHash]
	}
	out.Containers = containerIDs(&p.Status)
	out.Images, out.SpecImages = images(p)
	return out
}

// images says what the containers that run, or ran last, are made of, and what all of them
// are to be made of. The image of a running pod's container may be changed: what the
// kubelet reports is what runs.
func images(p *corev1.Pod) (reported map[string]Image, spec []string) {
	byName := make(map[string]string)
	for name, image := range specImages(&p.Spec) {
		byName[name] = image
		spec = append(spec, image)
	}
	reported = make(map[string]Image)
	for _, all := range containerStatuses(&p.Status) {
		for i := range all {
			c := &all[i]
			image := Image{Name: c.Image}
			if image.Name == "" || strings.HasPrefix(image.Name, "sha256:") {
				image.Name = byName[c.Name]
			}
			if strings.Contains(c.ImageID, "@") {
				_, bare, ok := strings.Cut(c.ImageID, "://")
				if !ok {
					bare = c.ImageID
				}
				image.Digest = bare
			}
			if id := bareID(c.ContainerID); id != "" && image != (Image{}) {
				reported[id] = image
			}
		}
	}
	return reported, spec
}

// specImages yields the containers of all kinds by their names.
func specImages(s *corev1.PodSpec) iter.Seq2[string, string] {
	return func(yield func(name, image string) bool) {
		for _, all := range [][]corev1.Container{s.Containers, s.InitContainers} {
			for i := range all {
				if !yield(all[i].Name, all[i].Image) {
					return
				}
			}
		}
		for i := range s.EphemeralContainers {
			if !yield(s.EphemeralContainers[i].Name, s.EphemeralContainers[i].Image) {
				return
			}
		}
	}
}

// containerStatuses are those of containers of all kinds.
func containerStatuses(s *corev1.PodStatus) [][]corev1.ContainerStatus {
	return [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses}
}

// bareID is a container's id without the runtime's scheme.
func bareID(id string) string {
	if _, bare, ok := strings.Cut(id, "://"); ok {
		return bare
	}
	return id
}

// trimPeer keeps what is used of any pod.
func trimPeer(p *corev1.Pod) *Pod {
	out := &Pod{
		UID:         string(p.UID),
		Namespace:   p.Namespace,
		Name:        p.Name,
		Node:        p.Spec.NodeName,
		HostNetwork: p.Spec.HostNetwork,
		QoS:         string(p.Status.QOSClass),
		Labels:      p.Labels,
		Started:     p.CreationTimestamp.UnixNano(),
		Finished:    p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if p.Status.StartTime != nil {
		out.Started = p.Status.StartTime.UnixNano()
	}
	if out.Finished {
		out.Ended = ended(&p.Status)
	}
	if c := metav1.GetControllerOfNoCopy(p); c != nil {
		out.Controller = Ref{c.APIVersion, c.Kind, c.Name}
	}
	for _, ip := range p.Status.PodIPs {
		out.IPs = appendAddr(out.IPs, ip.IP)
	}
	if len(out.IPs) == 0 {
		out.IPs = appendAddr(nil, p.Status.PodIP)
	}
	out.Secondary = secondary(p)
	out.Ports = hostPorts(out.Ports, p.Spec.Containers, p.Spec.HostNetwork)
	out.Ports = hostPorts(out.Ports, p.Spec.InitContainers, p.Spec.HostNetwork)
	return out
}

func hostPorts(ports []HostPort, containers []corev1.Container, hostNetwork bool) []HostPort {
	for i := range containers {
		for _, port := range containers[i].Ports {
			number := port.HostPort
			if number == 0 && hostNetwork {
				number = port.ContainerPort
			}
			if number > 0 {
				ports = append(ports, HostPort{uint16(number), protocol(&port.Protocol)})
			}
		}
	}
	return ports
}

// containerIDs lists the containers of all kinds that run, ran last or ran
// before that.
func containerIDs(status *corev1.PodStatus) []string {
	var ids []string
	add := func(id string) {
		if id = bareID(id); id != "" {
			ids = append(ids, id)
		}
	}
	for _, all := range containerStatuses(status) {
		for i := range all {
			add(all[i].ContainerID)
			if last := all[i].LastTerminationState.Terminated; last != nil {
				add(last.ContainerID)
			}
		}
	}
	return ids
}

// ended is when the last container of a finished pod ended, rounded up: the API
// has full seconds. 0 if no container says.
func ended(status *corev1.PodStatus) int64 {
	var last int64
	for _, all := range [][]corev1.ContainerStatus{status.ContainerStatuses, status.InitContainerStatuses} {
		for i := range all {
			if t := all[i].State.Terminated; t != nil && !t.FinishedAt.IsZero() {
				last = max(last, t.FinishedAt.UnixNano()+int64(time.Second)-1)
			}
		}
	}
	return last
}

func trimService(s *corev1.Service) *Service {
	out := &Service{Namespace: s.Namespace, Name: s.Name}
	for _, ip := range s.Spec.ClusterIPs {
		out.ClusterIPs = appendAddr(out.ClusterIPs, ip)
	}
	if len(out.ClusterIPs) == 0 {
		out.ClusterIPs = appendAddr(nil, s.Spec.ClusterIP)
	}
	for _, ip := range s.Spec.ExternalIPs {
		out.ExternalIPs = appendAddr(out.ExternalIPs, ip)
	}
	for i := range s.Status.LoadBalancer.Ingress {
		out.ExternalIPs = appendAddr(out.ExternalIPs, s.Status.LoadBalancer.Ingress[i].IP)
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		out.Ports = append(out.Ports, ServicePort{
			Name:     p.Name,
			Protocol: protocol(&p.Protocol),
			Port:     uint16(p.Port),
			NodePort: uint16(p.NodePort),
		})
	}
	return out
}

func trimSlice(s *discoveryv1.EndpointSlice) *EndpointSlice {
	out := &EndpointSlice{Namespace: s.Namespace, Name: s.Name, Service: s.Labels[discoveryv1.LabelServiceName]}
	for _, p := range s.Ports {
		port := EndpointPort{Protocol: protocol(p.Protocol)}
		if p.Name != nil {
			port.Name = *p.Name
		}
		if p.Port != nil {
			port.Port = uint16(*p.Port)
		}
		out.Ports = append(out.Ports, port)
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		away := e.Conditions.Ready != nil && !*e.Conditions.Ready
		if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" && ref.UID != "" {
			out.Endpoints = append(out.Endpoints, Endpoint{PodUID: string(ref.UID), Away: away})
			continue
		}
		// All addresses of an endpoint are the same thing (KEP-752).
		for _, a := range e.Addresses {
			if addr, err := netip.ParseAddr(a); err == nil {
				out.Endpoints = append(out.Endpoints, Endpoint{Addr: addr.Unmap(), Away: away})
			}
		}
	}
	return out
}

func trimNode(n *corev1.Node) *Node {
	out := &Node{Name: n.Name, Zone: n.Labels[corev1.LabelTopologyZone]}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			out.Addrs = appendAddr(out.Addrs, a.Address)
		}
	}
	for _, key := range gatewayAnnotations {
		text, _, _ := strings.Cut(n.Annotations[key], "/")
		out.Addrs = appendAddr(out.Addrs, text)
	}
	for _, text := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			out.PodCIDRs = append(out.PodCIDRs, p.Masked())
		}
	}
	return out
}

// gatewayAnnotations are where network plugins with ranges of their own write the addresses
// by which a node speaks to pods: Calico's tunnels, Cilium's router.
var gatewayAnnotations = []string{
	"projectcalico.org/IPv4IPIPTunnelAddr", "projectcalico.org/IPv4VXLANTunnelAddr", "projectcalico.org/IPv6VXLANTunnelAddr",
	"projectcalico.org/IPv4WireguardInterfaceAddr", "projectcalico.org/IPv6WireguardInterfaceAddr",
	"network.cilium.io/ipv4-cilium-host", "network.cilium.io/ipv6-cilium-host",
}

// networkStatus is the annotation by which Multus, and who does as it does, tells of a pod's
// interfaces (the Network Plumbing Working Group's multi-network specification).
const networkStatus = "k8s.v1.cni.cncf.io/network-status"

// maxSecondary bounds how many addresses of further interfaces a pod may have.
const maxSecondary = 32

// secondary are the addresses of a pod's further interfaces.
func secondary(p *corev1.Pod) (addrs []netip.Addr) {
	text := p.Annotations[networkStatus]
	if text == "" {
		return nil
	}
	var all []struct {
		IPs     []string `json:"ips"`
		Default bool     `json:"default"`
	}
	if json.Unmarshal([]byte(text), &all) != nil {
		return nil // anybody's text
	}
	for _, one := range all {
		if one.Default {
			continue
		}
		for _, ip := range one.IPs {
			if addrs = appendAddr(addrs, ip); len(addrs) == maxSecondary {
				return addrs
			}
		}
	}
	return addrs
}

// appendAddr appends an address unless it is none, such as the ClusterIP None.
func appendAddr(addrs []netip.Addr, s string) []netip.Addr {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return addrs
	}
	return append(addrs, addr.Unmap())
}

// protocol is the IP protocol number; TCP where the API leaves it out.
func protocol(p *corev1.Protocol) uint8 {
	switch {
	case p == nil:
		return protoTCP
	case *p == corev1.ProtocolUDP:
		return protoUDP
	case *p == corev1.ProtocolSCTP:
		return protoSCTP
	}
	return protoTCP
}
