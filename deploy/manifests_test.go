// SPDX-License-Identifier: Apache-2.0

// Package deploy has the ways to install orb8 in a cluster. Its tests read every
// rendered manifest with the API's own types, strictly, and hold them to the
// published schemas of the oldest and the newest supported version of Kubernetes.
package deploy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

// read decodes all objects of a manifest; a field that the API lacks, or one that
// is there twice, is an error. Objects of the Prometheus operator, whose types
// are not here, are left out and counted.
func read(t *testing.T, path string) (objects []runtime.Object, others int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		doc, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, others
		}
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case len(bytes.TrimSpace(withoutComments(doc))) == 0:
			continue
		case bytes.Contains(doc, []byte("apiVersion: monitoring.coreos.com/v1\n")):
			others++
			continue
		}
		object, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Errorf("%s: %v in\n%s", path, err, doc)
			continue
		}
		objects = append(objects, object)
	}
}

func withoutComments(doc []byte) []byte {
	var out []byte
	for _, line := range bytes.SplitAfter(doc, []byte("\n")) {
		if !bytes.HasPrefix(line, []byte("#")) {
			out = append(out, line...)
		}
	}
	return out
}

func one[T runtime.Object](t *testing.T, objects []runtime.Object) T {
	t.Helper()
	var found []T
	for _, o := range objects {
		if o, ok := o.(T); ok {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T, want 1", len(found), *new(T))
	}
	return found[0]
}

func TestManifests(t *testing.T) {
	for _, c := range []struct {
		path            string
		objects, others int
	}{
		{"orb8-daemonset.yaml", 6, 0},
		{"testdata/all.yaml", 9, 2},
	} {
		t.Run(c.path, func(t *testing.T) {
			objects, others := read(t, c.path)
			if len(objects) != c.objects || others != c.others {
				t.Errorf("%d objects and %d others, want %d and %d", len(objects), others, c.objects, c.others)
			}
		})
	}
}

// TestPrivileges holds the agent to no more than it needs.
func TestPrivileges(t *testing.T) {
	objects, _ := read(t, "orb8-daemonset.yaml")
	spec := one[*appsv1.DaemonSet](t, objects).Spec.Template.Spec
	if spec.HostNetwork || spec.HostIPC || !spec.HostPID {
		t.Error("want the host's pids, and neither its network nor its IPC")
	}
	if len(spec.Containers) != 1 || len(spec.InitContainers) != 0 {
		t.Fatal("want one container")
	}
	// A flag wins over the configuration, so that no key of it opens the API.
	if !slices.Contains(spec.Containers[0].Args, "--listen=localhost:9090") {
		t.Errorf("the API may listen beyond the pod: %q", spec.Containers[0].Args)
	}
	s := spec.Containers[0].SecurityContext
	if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem {
		t.Errorf("security context %v", s)
	}
	want := []corev1.Capability{"BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"}
	if !slices.Equal(s.Capabilities.Add, want) || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("capabilities %v", s.Capabilities)
	}
	if p := spec.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("seccomp profile %v", p)
	}
	// On every node, whatever is wrong with it.
	if len(spec.Tolerations) != 1 || spec.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
		t.Errorf("tolerations %v", spec.Tolerations)
	}
	c := spec.Containers[0]
	if r := c.Resources; r.Requests.Cpu().IsZero() || r.Requests.Memory().IsZero() || r.Limits.Memory().IsZero() {
		t.Errorf("resources %v", r)
	}
	if c.LivenessProbe == nil || c.ReadinessProbe == nil {
		t.Error("want a liveness and a readiness probe")
	}
	for _, m := range spec.Containers[0].VolumeMounts {
		if !m.ReadOnly {
			t.Errorf("%s is mounted for writing", m.MountPath)
		}
	}
	for _, rule := range one[*rbacv1.ClusterRole](t, objects).Rules {
		for _, verb := range rule.Verbs {
			if !slices.Contains([]string{"get", "list", "watch"}, verb) || slices.Contains(rule.Resources, "secrets") {
				t.Errorf("the agent may %s %s", verb, strings.Join(rule.Resources, ", "))
			}
		}
	}
}
