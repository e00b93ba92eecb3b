// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/Ignoramuss/orb8/internal/workload"
)

func imageOf(s *Store, containerID, podUID string) string {
	id, ok := s.Pod(containerID, podUID)
	if !ok {
		return "no pod"
	}
	return id.Image
}

func TestImageOfContainer(t *testing.T) {
	s, _ := newTestStore()
	p := testPod("web-1", addrA)
	p.Containers = []Container{{"c1", "shop/web:1"}, {"c2", "mesh/proxy:3"}, {"c3", ""}}
	s.UpsertOwn(p)
	for id, want := range map[string]string{"c1": "shop/web:1", "c2": "mesh/proxy:3", "c3": "", "sandbox": ""} {
		if got := imageOf(s, id, p.UID); got != want {
			t.Errorf("image of %s is %q, want %q", id, got, want)
		}
	}
	first, _ := s.Pod("c1", p.UID)
	peer, _ := s.Peer(workload.Peer{Addr: addrA})
	if want := *peer; want.Image != "" {
		t.Errorf("the pod by its address has the image %q", want.Image)
	} else if want.Image = "shop/web:1"; cmp.Diff(&want, first) != "" {
		t.Errorf("not that of the pod (-want +got):\n%s", cmp.Diff(&want, first))
	}

	// The next version of the image, in a container that has not started yet.
	p.Containers[0].Image, p.Containers[2].Image = "shop/web:2", "late:1"
	s.UpsertOwn(p)
	if again, _ := s.Pod("c1", p.UID); again != first {
		t.Errorf("another pointer although nothing changed: %+v", again)
	}
	if got := imageOf(s, "c3", ""); got != "late:1" {
		t.Errorf("an image that became known is %q", got)
	}

	p.Labels = map[string]string{"app": "other"}
	s.UpsertOwn(p)
	again, _ := s.Pod("c1", p.UID)
	if again == first || again.Labels["app"] != "other" || again.Image != "shop/web:1" {
		t.Errorf("after a change of the pod: %+v", again)
	}
}

func TestImagesAreShared(t *testing.T) {
	s, clock := newTestStore()
	for i := range 3 * minShared {
		p := testPod("web-1", addrA)
		p.Containers = []Container{{"c1", fmt.Sprintf("web:%d", i)}, {"c2", "proxy:1"}}
		if p.UID = fmt.Sprint("uid-", i); i > 0 {
			s.DeleteOwn(fmt.Sprint("uid-", i-1))
		}
		s.UpsertOwn(p)
	}
	clock.set(61)
	s.Sweep(clock.now)
	s.Sweep(clock.now)
	if got := s.shared.size(); got > 100 {
		t.Errorf("%d shared strings and sets kept for one pod", got)
	}
	for _, c := range s.containers {
		if s.shared.text[c.image] != c.image {
			t.Errorf("image %q is not shared", c.image)
		}
	}
}

func TestTrimImages(t *testing.T) {
	terminated := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "containerd://w0"}}
	p := apiPod("n1", "web-1", "10.0.0.1", func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{{Name: "web", Image: "shop/web:1"}}
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "shop/init:1"}}
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{
			{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "busybox"}},
		}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{
			{Name: "web", ContainerID: "containerd://w1", Image: "sha256:0123", LastTerminationState: terminated},
			{Name: "gone", ContainerID: "containerd://g1", Image: "docker.io/old:1"},
			{Name: "waiting", Image: "none"},
		}
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "init", ContainerID: "containerd://i1", Image: "x"}}
		p.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "debug", ContainerID: "cri-o://d1", Image: "x"}}
	})
	want := []Container{
		{"w1", "shop/web:1"}, {"w0", "shop/web:1"}, {"g1", "docker.io/old:1"},
		{"i1", "shop/init:1"}, {"d1", "busybox"},
	}
	if diff := cmp.Diff(want, trimOwn(p).Containers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
