// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// pod is a running pod, with who the tests expect it to be.
type pod struct {
	*corev1.Pod
	// kind and workload are what it belongs to.
	kind, workload string
}

// ip returns the pod's address of family 4 or 6, or an empty string.
func (p *pod) ip(family int) string {
	for _, ip := range p.Status.PodIPs {
		if (net.ParseIP(ip.IP).To4() != nil) == (family == 4) {
			return ip.IP
		}
	}
	return ""
}

// has tells whether an address may be the pod's: those of its node are not told apart.
func (p *pod) has(ip string) bool {
	return ip != "" && (p.Spec.HostNetwork || ip == p.ip(4) || ip == p.ip(6))
}

// identity of the pod as a flow shows it.
func (p *pod) identity() identity {
	return identity{Namespace: p.Namespace, Pod: p.Name, Kind: p.kind, Name: p.workload, Node: p.Spec.NodeName}
}

// podSpec runs netpeer with args on a node.
func (l *lab) podSpec(node string, args ...string) corev1.PodSpec {
	zero, no := int64(0), false
	return corev1.PodSpec{
		NodeName:                      node,
		TerminationGracePeriodSeconds: &zero,
		AutomountServiceAccountToken:  &no,
		EnableServiceLinks:            &no,
		Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Containers:                    []corev1.Container{l.container("main", args...)},
	}
}

func (l *lab) container(name string, args ...string) corev1.Container {
	return corev1.Container{Name: name, Image: l.image, ImagePullPolicy: corev1.PullIfNotPresent, Args: args}
}

// newPod starts a bare pod and waits for it to run.
func (l *lab) newPod(ctx context.Context, name string, spec corev1.PodSpec) (*pod, error) {
	p, err := l.client.CoreV1().Pods(l.namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       spec,
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	defer l.flows.touch()
	return l.waitPod(ctx, p.Name, "Pod", p.Name)
}

// testPod is newPod for the length of a test.
func (l *lab) testPod(t *testing.T, name string, spec corev1.PodSpec) *pod {
	t.Helper()
	p, err := l.newPod(t.Context(), name, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.deletePod(t, name) })
	return p
}

func (l *lab) deletePod(t *testing.T, name string) {
	t.Helper()
	zero := int64(0)
	_ = l.client.CoreV1().Pods(l.namespace).Delete(context.WithoutCancel(t.Context()), name,
		metav1.DeleteOptions{GracePeriodSeconds: &zero})
	l.flows.touch()
}

// waitPod waits until a pod has run or runs, with all its containers.
func (l *lab) waitPod(ctx context.Context, name, kind, workload string) (*pod, error) {
	var p *corev1.Pod
	err := poll(ctx, time.Minute, func() (err error) {
		p, err = l.client.CoreV1().Pods(l.namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return started(p)
	})
	return &pod{Pod: p, kind: kind, workload: workload}, err
}

func started(p *corev1.Pod) error {
	if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodSucceeded || p.Status.PodIP == "" {
		return fmt.Errorf("pod %s is %s", p.Name, p.Status.Phase)
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Running == nil && c.State.Terminated == nil {
			return fmt.Errorf("container %s of pod %s has not started", c.Name, p.Name)
		}
	}
	return nil
}

// podOf waits for the one pod with label app=name.
func (l *lab) podOf(ctx context.Context, name, kind string) (*pod, error) {
	var found string
	err := poll(ctx, time.Minute, func() error {
		pods, err := l.client.CoreV1().Pods(l.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d pods with app=%s, want 1", len(pods.Items), name)
		}
		found = pods.Items[0].Name
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l.waitPod(ctx, found, kind, name)
}

// result is what netpeer prints.
type result struct {
	Local, Remote  string
	Sent, Received int
	ID             int
	Addresses      []string
	TookNS         time.Duration `json:"took_ns"`
	Done           bool
}

// netpeer runs netpeer in a container, the first if container is empty, and
// returns what it has done.
func (l *lab) netpeer(t *testing.T, p *pod, container string, args ...string) result {
	t.Helper()
	r, err := l.tryNetpeer(t.Context(), p, container, args...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (l *lab) tryNetpeer(ctx context.Context, p *pod, container string, args ...string) (result, error) {
	out, err := l.exec(ctx, p, container, args...)
	r, e := lastResult(out)
	if err = errors.Join(err, e); err == nil && !r.Done {
		err = errors.New("not done")
	}
	if err != nil {
		return r, fmt.Errorf("netpeer %s in %s: %w: %s", strings.Join(args, " "), p.Name, err, out)
	}
	return r, nil
}

// exec runs netpeer in a container and returns its standard output.
func (l *lab) exec(ctx context.Context, p *pod, container string, args ...string) (string, error) {
	defer l.flows.touch()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // netpeer itself gives up earlier
	defer cancel()
	return l.command(ctx, p, container, false, append([]string{"/netpeer"}, args...)...)
}

// command runs a command in a container, the first if container is empty, and returns what
// it writes: with a terminal all of it, else its standard output.
func (l *lab) command(ctx context.Context, p *pod, container string, terminal bool, command ...string) (string, error) {
	if container == "" {
		container = p.Spec.Containers[0].Name
	}
	req := l.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).
		SubResource("exec").VersionedParams(&corev1.PodExecOptions{
		Container: container, Command: command, TTY: terminal, Stdout: true, Stderr: !terminal,
	}, scheme.ParameterCodec)
	executor, err := remotecommand.NewSPDYExecutor(l.config, "POST", req.URL())
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	options := remotecommand.StreamOptions{Stdout: &stdout, Tty: terminal}
	if !terminal {
		options.Stderr = &stderr
	}
	if err = executor.StreamWithContext(ctx, options); err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return stdout.String(), err
}

func lastResult(out string) (r result, err error) {
	d := json.NewDecoder(strings.NewReader(out))
	for {
		switch err := d.Decode(&r); {
		case err == io.EOF:
			return r, nil
		case err != nil:
			return r, err
		}
	}
}

// resultOf reads the last line of a container's log that netpeer has printed.
func (l *lab) resultOf(t *testing.T, name, container string) result {
	t.Helper()
	var r result
	eventually(t, 30*time.Second, func() error {
		out, err := l.client.CoreV1().Pods(l.namespace).
			GetLogs(name, &corev1.PodLogOptions{Container: container}).DoRaw(t.Context())
		if err != nil {
			return err
		}
		if r, err = lastResult(string(out)); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if r.Local == "" {
			return fmt.Errorf("%s has not connected: %s", name, out)
		}
		return nil
	})
	l.flows.touch()
	return r
}

// script runs one of the lab's own scripts.
func (l *lab) script(t *testing.T, name string, args ...string) {
	t.Helper()
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(l.lab, name), args...).CombinedOutput()
	l.flows.touch()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}
