// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// writeCertificate writes a certificate of 127.0.0.1 that signs itself, and its key.
func writeCertificate(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: signed}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		// Other content at the same time would be taken for the same.
		if err := os.WriteFile(path, append(pem.EncodeToMemory(block), strings.Repeat("\n", int(serial))...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// TestMetricsAreForWhomTheAPIServerNames: over TLS, by token; health is for everybody.
func TestMetricsAreForWhomTheAPIServerNames(t *testing.T) {
	dir := t.TempDir()
	cert, key := writeCertificate(t, dir, 1)
	var mu sync.Mutex
	var paths []string
	r := newRig(t, func(c *config.Config, d *Deps, _ *rig) {
		c.MetricsTLSCert, c.MetricsTLSKey, c.MetricsAuthentication, c.MetricsDCGM = cert, key, config.AuthenticateByKubernetes, true
		d.Allow = func(_ context.Context, token, path string) error {
			mu.Lock()
			defer mu.Unlock()
			paths = append(paths, path)
			switch token {
			case "prometheus":
				return nil
			case "someone":
				return &kube.ForbiddenError{User: "shop:someone", Path: path}
			case "unlucky":
				return errors.New("connection refused")
			}
			return kube.ErrUnauthenticated
		}
	})
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.serveHTTP(l) }()
	t.Cleanup(func() {
		_ = r.http.Close()
		if err := testwait.Receive(t, "the server's end", served); err != nil {
			t.Error(err)
		}
		if err := r.manager.Close(); err != nil {
			t.Error(err)
		}
	})
	var serial int64
	client := &http.Client{Timeout: testwait.Limit, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // which certificate it is, is looked at below
		VerifyConnection: func(s tls.ConnectionState) error {
			serial = s.PeerCertificates[0].SerialNumber.Int64()
			return nil
		},
	}}}
	get := func(scheme, path, authorization string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://"+l.Addr().String()+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body), resp.Header
	}
	for _, c := range []struct {
		path, authorization string
		code                int
		says                string
	}{
		{"/metrics", "", 401, "send a bearer token of a service account that may get /metrics"},
		{"/metrics", "Basic cHJvbWV0aGV1czpwcm9tZXRoZXVz", 401, "send a bearer token"},
		{"/metrics", "Bearer ", 401, "send a bearer token"},
		{"/metrics", "Bearer stranger", 401, kube.ErrUnauthenticated.Error()},
		{"/metrics", "Bearer someone", 403, `user "shop:someone" may not get /metrics: bind the ClusterRole orb8-metrics-reader to it`},
		{"/metrics", "Bearer unlucky", 503, "the API server does not say who may read metrics"},
		{"/metrics", "bearer prometheus", 200, "orb8_agent_"},
		{"/metrics/dcgm", "Bearer someone", 403, "may not get /metrics/dcgm"},
		{"/metrics/dcgm", "Bearer prometheus", 200, ""},
		{"/healthz", "", 200, "ok"},
		{"/readyz", "", 503, ""},
	} {
		code, body, header := get("https", c.path, c.authorization)
		if code != c.code || !strings.Contains(body, c.says) {
			t.Errorf("%s with %q: %d %.200q, want %d %q", c.path, c.authorization, code, body, c.code, c.says)
		}
		if asks := header.Get("WWW-Authenticate"); (asks == "Bearer") != (c.code == 401) {
			t.Errorf("%s with %q: WWW-Authenticate %q", c.path, c.authorization, asks)
		}
		if strings.Contains(body, "connection refused") {
			t.Error("what is wrong with the API server is no reader's business")
		}
	}
	if code, body, _ := get("http", "/metrics", "Bearer prometheus"); code != 400 || strings.Contains(body, "orb8_agent_") {
		t.Errorf("in the clear: %d %.100q", code, body)
	}
	if len(paths) != 6 {
		t.Errorf("asked for %q", paths)
	}

	if serial != 1 {
		t.Fatalf("certificate %d, want the first", serial)
	}
	writeCertificate(t, dir, 2)
	if get("https", "/healthz", ""); serial != 2 {
		t.Errorf("certificate %d, want that which is there now", serial)
	}
	if err := os.WriteFile(key, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if get("https", "/healthz", ""); serial != 2 {
		t.Errorf("certificate %d, want the last one that could be read", serial)
	}
}

// TestMetricsAccessNeedsItsParts: what is missing is said before anything starts.
func TestMetricsAccessNeedsItsParts(t *testing.T) {
	cert, key := writeCertificate(t, t.TempDir(), 1)
	for want, change := range map[string]func(*config.Config){
		"needs the API server, and this agent has none": func(c *config.Config) {
			c.MetricsTLSCert, c.MetricsTLSKey, c.MetricsAuthentication = cert, key, config.AuthenticateByKubernetes
		},
		"metrics.tls_cert: stat /nowhere: no such file": func(c *config.Config) { c.MetricsTLSCert, c.MetricsTLSKey = "/nowhere", key },
		cert + " with " + cert + ": tls: ":              func(c *config.Config) { c.MetricsTLSCert, c.MetricsTLSKey = cert, cert },
	} {
		r := newRig(t)
		cfg := *r.Config()
		change(&cfg)
		if a, err := New(cfg, r.deps, quiet()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v %v, want %q", a != nil, err, want)
		}
	}
}
