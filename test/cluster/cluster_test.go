// SPDX-License-Identifier: Apache-2.0

//go:build cluster

// Package cluster tests orb8 in a real cluster where its agents already run, with
// workloads that transfer exactly known amounts. test/cluster/run.sh makes such a
// cluster and runs the tests; see there for the environment that they take.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// env is what run.sh tells the tests.
type env struct {
	kubeconfig string // KUBECONFIG
	orb8       string // the command line, ORB8_TEST_ORB8
	image      string // with /netpeer in it, ORB8_TEST_IMAGE
	trouble    string // with /trouble and busybox in it, ORB8_TEST_TROUBLE; empty where there is none
	agents     string // namespace of the agents, ORB8_TEST_NAMESPACE
	outside4   string // netpeer serves there on port 7000, ORB8_TEST_OUTSIDE4
	outside6   string
	lab        string // folder of the lab's scripts, ORB8_TEST_LAB; empty on other clusters
	source     string // of the flows: cli or grpc, ORB8_TEST_SOURCE
	// proxies are modes of kube-proxy to test Services in after all else, ORB8_TEST_PROXIES
	proxies []string
}

func environment() env {
	get := func(key, otherwise string) string {
		if v := os.Getenv(key); v != "" {
			return v
		}
		return otherwise
	}
	return env{
		kubeconfig: get("KUBECONFIG", os.Getenv("HOME")+"/.kube/config"),
		orb8:       get("ORB8_TEST_ORB8", "../../bin/orb8"),
		image:      get("ORB8_TEST_IMAGE", "orb8.test/netpeer:1"),
		trouble:    get("ORB8_TEST_TROUBLE", ""),
		agents:     get("ORB8_TEST_NAMESPACE", "orb8-system"),
		outside4:   get("ORB8_TEST_OUTSIDE4", ""),
		outside6:   get("ORB8_TEST_OUTSIDE6", ""),
		lab:        get("ORB8_TEST_LAB", ""),
		source:     get("ORB8_TEST_SOURCE", "cli"),
		proxies:    strings.Fields(os.Getenv("ORB8_TEST_PROXIES")),
	}
}

// lab is the cluster with the workloads that most tests use.
type lab struct {
	env
	config *rest.Config
	client *kubernetes.Clientset
	// namespace of everything that the tests make.
	namespace string
	// nodes that are ready, at least one.
	nodes []string
	// nested: nodes share a kernel, as in this lab and in kind.
	nested bool
	flows  *recorder
	// lost is what the agents had lost before the tests began.
	lost map[agentRun]uint64

	client1, client2 *pod // bare pods on the first and the second node
	near             *pod // of Deployment near, on the first node
	far              *pod // of StatefulSet far, on the second node
	hostA, hostB     *pod // with hostNetwork, on the first node
	ported           *pod // with a port of the second node
}

// shared is set by TestMain before any test runs.
var shared *lab

func TestMain(m *testing.M) {
	code, err := run(context.Background(), m)
	if err != nil {
		fmt.Fprintf(os.Stderr, "set up: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M) (code int, err error) {
	l, err := connect(ctx)
	if err != nil {
		return 1, err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupted
		_ = l.remove(ctx)
		os.Exit(130)
	}()
	defer func() { err = errors.Join(err, l.remove(ctx)) }()
	began := time.Now()
	if err := l.deploy(ctx); err != nil {
		return 1, err
	}
	fmt.Printf("workloads ready after %.1f s on nodes %v\n", time.Since(began).Seconds(), l.nodes)
	if err := l.noteLosses(ctx); err != nil {
		return 1, err
	}
	shared = l
	return m.Run(), nil
}

// remove deletes what the tests have made.
func (l *lab) remove(ctx context.Context) error {
	l.flows.close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	zero := int64(0)
	err := l.client.CoreV1().Namespaces().Delete(ctx, l.namespace, metav1.DeleteOptions{GracePeriodSeconds: &zero})
	if err != nil {
		return err
	}
	// The nodes' ports that its pods have are wanted by whoever tests next.
	err = poll(ctx, 25*time.Second, func() error {
		list, err := l.client.CoreV1().Pods(l.namespace).List(ctx, metav1.ListOptions{LabelSelector: "fake!=yes"})
		if err != nil {
			return err
		}
		if left := len(list.Items); left > 0 {
			return fmt.Errorf("%d pods are left, %s the first", left, list.Items[0].Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove namespace %s: %w", l.namespace, err)
	}
	return nil
}

// connect finds the cluster and makes the namespace.
func connect(ctx context.Context) (*lab, error) {
	l := &lab{env: environment()}
	var err error
	if l.config, err = clientcmd.BuildConfigFromFlags("", l.kubeconfig); err != nil {
		return nil, err
	}
	l.config.QPS, l.config.Burst = 100, 200
	if l.client, err = kubernetes.NewForConfig(l.config); err != nil {
		return nil, err
	}
	if err := l.findNodes(ctx); err != nil {
		return nil, err
	}
	from, err := l.newSource(ctx)
	if err != nil {
		return nil, err
	}
	l.flows = &recorder{source: from}
	ns, err := l.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "orb8-test-",
			Labels:       map[string]string{"pod-security.kubernetes.io/enforce": "privileged"},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	l.namespace = ns.Name
	return l, nil
}

func (l *lab) findNodes(ctx context.Context) error {
	nodes, err := l.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/os=linux"})
	if err != nil {
		return err
	}
	boots := map[string]bool{}
	for _, n := range nodes.Items {
		l.nested = l.nested || l.lab != "" || boots[n.Status.NodeInfo.BootID]
		boots[n.Status.NodeInfo.BootID] = true
		if ready(n.Status.Conditions) && !n.Spec.Unschedulable {
			l.nodes = append(l.nodes, n.Name)
		}
	}
	if len(l.nodes) == 0 {
		return errors.New("no node is ready")
	}
	return nil
}

func ready(conditions []corev1.NodeCondition) bool {
	for _, c := range conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// eventually calls f, at first often, until it returns nil, and fails with its
// last error after limit.
func eventually(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	var last error
	began := time.Now()
	err := poll(t.Context(), limit, func() error {
		err := f()
		if err != nil {
			last = err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Logf("took %.1f s: %v", took.Seconds(), last)
	}
}

func poll(ctx context.Context, limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := f()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still after %v: %w", limit, err)
		}
		time.Sleep(wait)
	}
}
