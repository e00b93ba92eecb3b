// SPDX-License-Identifier: Apache-2.0

// Package cluster is a client's way to the agents of a Kubernetes cluster: it
// finds them by their labels, reaches each through the API server's
// port-forward, and puts one question to all of them. It knows nothing of
// command lines or of how answers are shown.
package cluster

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // logins: OIDC; of others, what to use instead
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// How agents are found.
const (
	DefaultNamespace = "orb8-system"
	// Selector matches the agents' pods and nothing else of orb8's.
	Selector = "app.kubernetes.io/name=orb8,app.kubernetes.io/component=agent"
	// agentPort is where an agent serves gRPC, on its pod's loopback.
	agentPort = 9090
)

// Options say which cluster. The zero value means the current context of the
// usual kubeconfig.
type Options struct {
	// Kubeconfig is a file; empty means $KUBECONFIG, else ~/.kube/config.
	Kubeconfig string
	// Context of the kubeconfig; empty means its current one.
	Context string
	// Namespace that the agents run in; empty means DefaultNamespace.
	Namespace string
	// UserAgent tells the API server who asks.
	UserAgent string
}

// Cluster is a Kubernetes cluster whose agents can be asked.
type Cluster struct {
	// Context is how the user knows the cluster; "in-cluster" inside one.
	Context string
	// Server is the API server's address.
	Server string
	// Namespace that the agents run in.
	Namespace string

	config *rest.Config
	core   rest.Interface
	// opening has a token for each port-forward that is being opened.
	opening chan struct{}
}

// Connect reads the configuration; it does not talk to the cluster. It returns
// ErrNoConfig where there is none, and a *ConfigError where it is of no use.
func Connect(o Options) (*Cluster, error) {
	c := &Cluster{Namespace: o.Namespace, opening: make(chan struct{}, atOnce)}
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	if err := c.configure(o); err != nil {
		return nil, err
	}
	c.Server = c.config.Host
	c.config.UserAgent = o.UserAgent
	// Warnings of the API server concern those who keep things in it.
	c.config.WarningHandler = rest.NoWarnings{}
	var err error
	if c.core, err = coreClient(c.config); err != nil {
		return nil, &ConfigError{Err: err}
	}
	return c, nil
}

// coreClient knows the API group v1 only: the types of all groups would cost an
// agent, which is the same program, some MiB.
func coreClient(base *rest.Config) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	cfg := rest.CopyConfig(base)
	cfg.APIPath, cfg.GroupVersion = "/api", &corev1.SchemeGroupVersion
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", cfg.Host, err)
	}
	return client, nil
}

func (c *Cluster) configure(o Options) error {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	rules.WarnIfAllMissing = false
	raw, err := rules.Load()
	if err != nil {
		return &ConfigError{Err: err}
	}
	if api.IsConfigEmpty(raw) {
		return c.inside(o)
	}
	c.Context = raw.CurrentContext
	if o.Context != "" {
		c.Context = o.Context
	}
	if _, ok := raw.Contexts[c.Context]; !ok {
		known := slices.Sorted(maps.Keys(raw.Contexts))
		if c.Context == "" {
			return &ConfigError{Err: errors.New("the kubeconfig has no current context"), Contexts: known}
		}
		return &ConfigError{Err: fmt.Errorf("the kubeconfig has no context %q", c.Context), Contexts: known}
	}
	c.config, err = clientcmd.NewNonInteractiveClientConfig(*raw, c.Context, &clientcmd.ConfigOverrides{}, rules).ClientConfig()
	if err != nil {
		return &ConfigError{Err: err}
	}
	return nil
}

// inside is for processes that run in a pod: they need no kubeconfig.
func (c *Cluster) inside(o Options) error {
	if o.Kubeconfig != "" {
		return &ConfigError{Err: fmt.Errorf("%s is empty", o.Kubeconfig)}
	}
	if os.Getenv("KUBERNETES_SERVICE_HOST") == "" {
		return ErrNoConfig
	}
	if o.Context != "" {
		return &ConfigError{Err: fmt.Errorf("there is no kubeconfig that could have a context %q", o.Context)}
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return &ConfigError{Err: err}
	}
	c.Context, c.config = "in-cluster", config
	return nil
}
