// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net"
	"net/http"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	clientQPS   = 20
	clientBurst = 40
	dialTimeout = 5 * time.Second
	// reviewQPS and reviewBurst are of the questions whether others may read metrics: who
	// asks for a review with each request keeps the agent from nothing else.
	reviewQPS   = 5
	reviewBurst = 10
)

// Clients talk to one API server. They share connections.
type Clients struct {
	// Host is the API server's address, for messages.
	Host string
	// Core and Discovery know the API groups v1 and discovery.k8s.io/v1 only:
	// the types of all groups would cost the agent some MiB.
	Core, Discovery rest.Interface
	// Metadata gets the metadata of anything.
	Metadata metadata.Interface
	// Authentication and Authorization know the groups authentication.k8s.io/v1 and
	// authorization.k8s.io/v1 only.
	Authentication, Authorization rest.Interface
}

// Connect makes clients of the API server that a kubeconfig file names or, with
// an empty path, that the agent's own pod belongs to. It does not talk to it
// yet. version goes into the user agent.
func Connect(kubeconfig, version string) (*Clients, error) {
	cfg, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	return ConnectTo(cfg, version)
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("read the pod's service account: %w; outside a pod give a kubeconfig", err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	return cfg, nil
}

// ConnectTo makes clients from a configuration, which is left as it is.
func ConnectTo(base *rest.Config, version string) (*Clients, error) {
	cfg := rest.CopyConfig(base)
	cfg.UserAgent = "orb8-agent/" + version
	cfg.QPS, cfg.Burst = clientQPS, clientBurst
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.WarningHandler = rest.NoWarnings{}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("set up TLS to %s: %w", cfg.Host, err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()

	out := &Clients{Host: cfg.Host}
	if out.Core, err = restClient(cfg, client, "/api", corev1.SchemeGroupVersion); err != nil {
		return nil, err
	}
	if out.Discovery, err = restClient(cfg, client, "/apis", discoveryv1.SchemeGroupVersion); err != nil {
		return nil, err
	}
	out.Metadata, err = metadata.NewForConfigAndClient(metadata.ConfigFor(cfg), client)
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", cfg.Host, err)
	}
	reviews := rest.CopyConfig(cfg)
	reviews.QPS, reviews.Burst = reviewQPS, reviewBurst
	if out.Authentication, err = restClient(reviews, client, "/apis", authenticationv1.SchemeGroupVersion); err != nil {
		return nil, err
	}
	if out.Authorization, err = restClient(reviews, client, "/apis", authorizationv1.SchemeGroupVersion); err != nil {
		return nil, err
	}
	return out, nil
}

func restClient(base *rest.Config, client *http.Client, path string, gv schema.GroupVersion) (rest.Interface, error) {
	cfg := rest.CopyConfig(base)
	cfg.APIPath, cfg.GroupVersion = path, &gv
	c, err := rest.RESTClientForConfigAndClient(cfg, client)
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", cfg.Host, err)
	}
	return c, nil
}
