// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/Ignoramuss/orb8/test/cluster/trouble/cases"
)

// portTrouble is where the first process of a pod takes deeds, portTrouble+1 where it
// ends shells; see test/cluster/trouble.
const portTrouble = 7000

// troubleSpec is of a pod on a node whose first process takes deeds.
func (l *lab) troubleSpec(t *testing.T, node string) corev1.PodSpec {
	t.Helper()
	if l.trouble == "" {
		t.Skip("no image with test/cluster/trouble is known (ORB8_TEST_TROUBLE)")
	}
	spec := l.podSpec(node, "serve")
	spec.Containers[0].Image = l.trouble
	return spec
}

// deed has the first process of a pod start one of the trouble program's commands, and
// waits for its end.
func (l *lab) deed(ctx context.Context, p *pod, args ...string) (cases.Outcome, error) {
	var o cases.Outcome
	req := l.client.CoreV1().RESTClient().Get().Namespace(p.Namespace).Resource("pods").
		Name(fmt.Sprintf("http:%s:%d", p.Name, troublePort(p))).SubResource("proxy").Suffix("run")
	for _, a := range args {
		req.Param("arg", a)
	}
	out, err := req.DoRaw(ctx)
	if err == nil {
		err = json.Unmarshal(out, &o)
	}
	if err != nil {
		return o, fmt.Errorf("pod %s: trouble %q: %w: %s", p.Name, args, err, out)
	}
	return o, nil
}

// troublePort is 7000, or another one on the host's network.
func troublePort(p *pod) int {
	if ports := p.Spec.Containers[0].Ports; len(ports) > 0 {
		return int(ports[0].ContainerPort)
	}
	return portTrouble
}

// troublePods starts pods together, until the test ends, and waits until they take
// deeds. Those with a command of their own take none.
func (l *lab) troublePods(t *testing.T, specs map[string]corev1.PodSpec) map[string]*pod {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	pods := map[string]*pod{}
	for name, spec := range specs {
		t.Cleanup(func() { l.deletePod(t, name) })
		wg.Go(func() {
			p, err := l.newPod(t.Context(), name, spec)
			if err == nil && len(spec.Containers[0].Command) == 0 {
				err = poll(t.Context(), 30*time.Second, func() error {
					_, err := l.deed(t.Context(), p, "nothing")
					return err
				})
			}
			if err != nil {
				t.Errorf("pod %s: %v", name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			pods[name] = p
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return pods
}

// containerID of a pod's first container, without the runtime.
func containerID(p *pod) string {
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	return id
}

// configMap makes one for the length of a test.
func (l *lab) configMap(t *testing.T, name string, data map[string]string) {
	t.Helper()
	maps := l.client.CoreV1().ConfigMaps(l.namespace)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if _, err := maps.Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = maps.Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
	})
}
