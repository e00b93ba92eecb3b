// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A static pod's hash is that of a pod that the kubelet has mirrored, not of any that
// says so.
func TestConfigHashOfMirrorPodsOnly(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{configHash: "0123456789abcdef"}}}
	if got := trimOwn(p).ConfigHash; got != "" {
		t.Errorf("a tenant's pod has the hash %q", got)
	}
	p.Annotations[configMirror] = "0123456789abcdef"
	if got := trimOwn(p).ConfigHash; got != "0123456789abcdef" {
		t.Errorf("a mirrored pod has the hash %q", got)
	}
}

// TestImages: containers of all kinds are known by what the kubelet says that they run, one
// that it has not told of by all that the pod is to run, and one of the past not at all.
func TestImages(t *testing.T) {
	terminated := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "containerd://before"}}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{UID: "uid", Name: "web"},
		Spec: corev1.PodSpec{
			Containers:     []corev1.Container{{Name: "web", Image: "web:1"}, {Name: "side", Image: "side"}},
			InitContainers: []corev1.Container{{Name: "init", Image: "init"}},
			EphemeralContainers: []corev1.EphemeralContainer{
				{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "debug"}},
			},
		},
		Status: corev1.PodStatus{
			ContainerStatuses: []corev1.ContainerStatus{
				{
					Name: "web", ContainerID: "containerd://now", Image: "registry.test/web:1",
					ImageID: "registry.test/web@sha256:12ab", LastTerminationState: terminated,
				},
				{Name: "side", ContainerID: "docker://side", Image: "sha256:34cd", ImageID: "docker-pullable://side@sha256:56ef"},
			},
			InitContainerStatuses:      []corev1.ContainerStatus{{Name: "init", ContainerID: "containerd://init", Image: "docker.io/init", ImageID: "sha256:9"}},
			EphemeralContainerStatuses: []corev1.ContainerStatus{{Name: "debug", Image: "debug"}},
		},
	}
	s := NewStore(StoreConfig{})
	s.UpsertOwn(trimOwn(p))
	spec := []Image{{Name: "web:1"}, {Name: "side"}, {Name: "init"}, {Name: "debug"}}
	for id, want := range map[string][]Image{
		"now":    {{"registry.test/web:1", "registry.test/web@sha256:12ab"}},
		"side":   {{"side", "side@sha256:56ef"}},
		"init":   {{Name: "docker.io/init"}},
		"before": nil,
		"new":    spec,
	} {
		if d := cmp.Diff(want, s.Images(id, "uid")); d != "" {
			t.Errorf("container %s (-want +got):\n%s", id, d)
		}
	}
	if got := s.Images("new", "other"); got != nil {
		t.Errorf("images of a pod that is not there: %v", got)
	}
	// The pod's image is changed in place: the container that ran before keeps its own.
	p.Spec.Containers[0].Image = "web:2"
	p.Status.ContainerStatuses[0] = corev1.ContainerStatus{
		Name: "web", ContainerID: "containerd://next", Image: "registry.test/web:2", ImageID: "registry.test/web@sha256:78",
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "containerd://now"}},
	}
	s.UpsertOwn(trimOwn(p))
	if d := cmp.Diff([]Image{{"registry.test/web:1", "registry.test/web@sha256:12ab"}}, s.Images("now", "uid")); d != "" {
		t.Errorf("the container before (-want +got):\n%s", d)
	}
	if got := s.Images("next", "uid"); len(got) != 1 || got[0].Name != "registry.test/web:2" {
		t.Errorf("the next container: %v", got)
	}
}

func TestTrimNodeRanges(t *testing.T) {
	got := trimNode(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{
			"projectcalico.org/IPv4VXLANTunnelAddr": "10.250.7.64", "network.cilium.io/ipv4-cilium-host": "10.0.0.9/32", "projectcalico.org/IPv4IPIPTunnelAddr": "what",
		}},
		Spec:   corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:10:244:1::/64", "none"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.1"}}},
	})
	want := &Node{
		Name:     "a",
		Addrs:    []netip.Addr{netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("10.250.7.64"), netip.MustParseAddr("10.0.0.9")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestNetworkStatus: as Multus writes it, and whatever anybody else does.
func TestNetworkStatus(t *testing.T) {
	for text, want := range map[string]string{
		`[{"name":"cni0","interface":"eth0","ips":["10.244.1.9"],"default":true,"dns":{}},
		  {"name":"rdma/net","interface":"net1","ips":["192.0.2.7","fd01::7"],"mac":"02:00:00:00:00:01"}]`: "[192.0.2.7 fd01::7]",
		"": "[]", "[]": "[]", "{": "[]", `{"ips":["1.2.3.4"]}`: "[]", `[{"ips":["none",""]}]`: "[]",
		`[{"ips":[` + strings.TrimSuffix(strings.Repeat(`"192.0.2.1",`, 100), ",") + `]}]`: fmt.Sprint(slices.Repeat([]string{"192.0.2.1"}, maxSecondary)),
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{networkStatus: text}}}
		if got := fmt.Sprint(trimPeer(p).Secondary); got != want {
			t.Errorf("%.60s: %s, want %s", text, got, want)
		}
	}
}
