// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
)

const (
	// Localhost stands for both loopback addresses of this host.
	Localhost = "localhost"
	// DefaultSocket is where an agent on a host is asked.
	DefaultSocket = "/run/orb8/agent.sock"
	// maxSocketPath is what the kernel takes.
	maxSocketPath = 107
)

// checkAddr refuses what is no address, and tells whether others than this machine can
// reach it. port is the one to suggest.
func checkAddr(addr string, port int) (remote bool, service string, err error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return false, "", fmt.Errorf("%q: want HOST:PORT, for instance localhost:%d", addr, port)
	}
	if _, err := strconv.ParseUint(service, 10, 16); err != nil {
		return false, "", fmt.Errorf("%q: want a port number from 0 to 65535 after the colon", addr)
	}
	if host == Localhost {
		return false, service, nil
	}
	ip, err := netip.ParseAddr(host)
	return err != nil || !ip.Unmap().IsLoopback(), service, nil
}

// checkAPIAddr refuses addresses that other machines can reach: whoever may ask the API
// sees everything.
func checkAPIAddr(addr string) error {
	if addr == "" {
		return nil
	}
	remote, service, err := checkAddr(addr, 9090)
	if err == nil && remote {
		err = fmt.Errorf("%q can be reached from other machines, and the API has no access control: listen on localhost:%s, "+
			"and reach it from elsewhere through ssh (ssh -L %[2]s:localhost:%[2]s HOST) or kubectl port-forward", addr, service)
	}
	return err
}

func checkMetricsAddr(addr string, allowed bool) error {
	if addr == "" {
		return nil
	}
	remote, service, err := checkAddr(addr, 9091)
	if err == nil && remote && !allowed {
		err = fmt.Errorf("%q can be reached from other machines, and there is no access control: "+
			"listen on localhost:%s, set metrics.authentication (--metrics-authentication=kubernetes, with TLS), "+
			"or metrics.allow_remote (--metrics-allow-remote) where the network keeps others out", addr, service)
	}
	return err
}

// AuthenticateByKubernetes is a value of metrics.authentication: the API server says who
// holds a token, and whether he may get the page.
const AuthenticateByKubernetes = "kubernetes"

// TLS reports whether metrics are served over it.
func (c *Config) TLS() bool { return c.MetricsTLSCert != "" || c.MetricsTLSKey != "" }

// Authenticated reports whether readers of metrics have to say who they are.
func (c *Config) Authenticated() bool { return c.MetricsAuthentication == AuthenticateByKubernetes }

func (c *Config) checkTLS() error {
	if (c.MetricsTLSCert == "") != (c.MetricsTLSKey == "") {
		return errors.New("a certificate and its key belong together: set metrics.tls_cert and metrics.tls_key, or neither")
	}
	return nil
}

func (c *Config) checkAuthentication() error {
	if err := oneOf(&c.MetricsAuthentication, "none", AuthenticateByKubernetes)(); err != nil {
		return err
	}
	if c.Authenticated() && !c.TLS() {
		return errors.New("tokens are not to cross the network in the clear: set metrics.tls_cert and metrics.tls_key too")
	}
	return nil
}

func checkSocket(path string) error {
	switch {
	case path == "":
		return nil
	case !filepath.IsAbs(path):
		return fmt.Errorf("%q: want an absolute path, for instance %s", path, DefaultSocket)
	case len(path) > maxSocketPath:
		return fmt.Errorf("%q: a socket's path has at most %d bytes", path, maxSocketPath)
	}
	return nil
}
