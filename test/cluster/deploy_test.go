// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	port        = 7000 // of every server that has its own network
	portHostA   = 17101
	portHostB   = 17102
	portPorted  = 17103
	servicePort = 80

	// Of the Service open; nobody else has them.
	external4, external6 = "203.0.113.10", "2001:db8:10::10"
	balancer4, balancer6 = "203.0.113.20", "2001:db8:20::20"
)

// deploy starts the workloads that most tests use.
func (l *lab) deploy(ctx context.Context) error {
	first, second := l.nodes[0], l.nodes[len(l.nodes)-1]
	steps := []func() error{
		func() error { return l.createService(ctx, "near", corev1.ServiceTypeClusterIP) },
		func() error { return l.createService(ctx, "far", corev1.ServiceTypeNodePort) },
		func() error { return l.createOpen(ctx) },
		func() error { return l.createDeployment(ctx, "near", first) },
		func() error { return l.createStatefulSet(ctx, "far", second) },
		func() (err error) { l.client1, err = l.newPod(ctx, "client-1", l.podSpec(first, "wait")); return },
		func() (err error) { l.client2, err = l.newPod(ctx, "client-2", l.podSpec(second, "wait")); return },
		func() (err error) { l.hostA, err = l.newPod(ctx, "host-a", l.hostSpec(ctx, first, portHostA)); return },
		func() (err error) { l.hostB, err = l.newPod(ctx, "host-b", l.hostSpec(ctx, first, portHostB)); return },
		func() (err error) { l.ported, err = l.newPod(ctx, "ported", l.portedSpec(second)); return },
		func() (err error) { l.near, err = l.podOf(ctx, "near", "Deployment"); return },
		func() (err error) { l.far, err = l.podOf(ctx, "far", "StatefulSet"); return },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return l.listening(ctx)
}

// listening waits until the servers answer.
func (l *lab) listening(ctx context.Context) error {
	for _, to := range []string{
		net.JoinHostPort(l.near.Status.PodIP, fmt.Sprint(port)),
		net.JoinHostPort(l.far.Status.PodIP, fmt.Sprint(port)),
		net.JoinHostPort(l.hostA.Status.HostIP, fmt.Sprint(portHostA)),
		net.JoinHostPort(l.hostB.Status.HostIP, fmt.Sprint(portHostB)),
		net.JoinHostPort(l.ported.Status.PodIP, fmt.Sprint(port)),
		l.clusterIP(ctx, "near", 4), l.clusterIP(ctx, "far", 4), l.clusterIP(ctx, "open", 4),
	} {
		err := poll(ctx, 30*time.Second, func() error {
			_, err := l.exec(ctx, l.client1, "", "tcp", "-timeout", "1s", to)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", to, err)
		}
	}
	return nil
}

// createOpen makes a Service in front of far with addresses from outside, some of
// them a load balancer's.
func (l *lab) createOpen(ctx context.Context) error {
	if err := l.createService(ctx, "open", corev1.ServiceTypeLoadBalancer); err != nil {
		return err
	}
	services := l.client.CoreV1().Services(l.namespace)
	s, err := services.Get(ctx, "open", metav1.GetOptions{})
	if err != nil {
		return err
	}
	s.Spec.Selector = map[string]string{"app": "far"}
	s.Spec.ExternalIPs = []string{external4, external6}
	if s, err = services.Update(ctx, s, metav1.UpdateOptions{}); err != nil {
		return err
	}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: balancer4}, {IP: balancer6}}
	_, err = services.UpdateStatus(ctx, s, metav1.UpdateOptions{})
	return err
}

func (l *lab) portedSpec(node string) corev1.PodSpec {
	spec := l.podSpec(node, "serve")
	spec.Containers[0].Ports = []corev1.ContainerPort{
		{Name: "tcp", ContainerPort: port, HostPort: portPorted},
		{Name: "udp", ContainerPort: port, HostPort: portPorted, Protocol: corev1.ProtocolUDP},
	}
	return spec
}

// hostSpec serves at the node's own addresses: a UDP server that listens on all
// of them would answer from the one nearest to the client.
func (l *lab) hostSpec(ctx context.Context, node string, port int) corev1.PodSpec {
	var listen []string
	for _, family := range []int{4, 6} {
		if ip := l.nodeIP(ctx, node, family); ip != "" {
			listen = append(listen, joined(ip, port))
		}
	}
	spec := l.podSpec(node, "serve", "-listen", strings.Join(listen, ","))
	spec.HostNetwork = true
	spec.Containers[0].Ports = []corev1.ContainerPort{
		{Name: "tcp", ContainerPort: int32(port)},
		{Name: "udp", ContainerPort: int32(port), Protocol: corev1.ProtocolUDP},
	}
	return spec
}

func template(name string, spec corev1.PodSpec) (*metav1.LabelSelector, corev1.PodTemplateSpec) {
	labels := map[string]string{"app": name}
	return &metav1.LabelSelector{MatchLabels: labels},
		corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec}
}

func (l *lab) createDeployment(ctx context.Context, name, node string) error {
	selector, t := template(name, l.podSpec(node, "serve"))
	_, err := l.client.AppsV1().Deployments(l.namespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.DeploymentSpec{Selector: selector, Template: t},
	}, metav1.CreateOptions{})
	return err
}

func (l *lab) createStatefulSet(ctx context.Context, name, node string) error {
	selector, t := template(name, l.podSpec(node, "serve"))
	_, err := l.client.AppsV1().StatefulSets(l.namespace).Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.StatefulSetSpec{Selector: selector, Template: t, ServiceName: name},
	}, metav1.CreateOptions{})
	return err
}

func (l *lab) createService(ctx context.Context, name string, kind corev1.ServiceType) error {
	dual := corev1.IPFamilyPolicyPreferDualStack
	_, err := l.client.CoreV1().Services(l.namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type: kind, IPFamilyPolicy: &dual, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{
				{Name: "tcp", Port: servicePort, TargetPort: intstr.FromInt32(port)},
				{Name: "udp", Port: servicePort, TargetPort: intstr.FromInt32(port), Protocol: corev1.ProtocolUDP},
			},
		},
	}, metav1.CreateOptions{})
	return err
}

// clusterIP returns a Service's ADDRESS:PORT of a family, or an empty string.
func (l *lab) clusterIP(ctx context.Context, name string, family int) string {
	s, err := l.client.CoreV1().Services(l.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	for _, ip := range s.Spec.ClusterIPs {
		if (net.ParseIP(ip).To4() != nil) == (family == 4) {
			return net.JoinHostPort(ip, fmt.Sprint(servicePort))
		}
	}
	return ""
}

// nodePort returns a node's ADDRESS:PORT for a Service, or an empty string.
func (l *lab) nodePort(ctx context.Context, name, node, protocol string, family int) (string, error) {
	s, err := l.client.CoreV1().Services(l.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	for _, p := range s.Spec.Ports {
		if p.Name == protocol {
			return joined(l.nodeIP(ctx, node, family), int(p.NodePort)), nil
		}
	}
	return "", nil
}

// nodeIP returns a node's address of a family, or an empty string.
func (l *lab) nodeIP(ctx context.Context, node string, family int) string {
	n, err := l.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && (net.ParseIP(a.Address).To4() != nil) == (family == 4) {
			return a.Address
		}
	}
	return ""
}

// joined is net.JoinHostPort, or empty where there is no address.
func joined(ip string, port int) string {
	if ip == "" {
		return ""
	}
	return net.JoinHostPort(ip, fmt.Sprint(port))
}
