// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"

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
