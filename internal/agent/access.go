// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Ignoramuss/orb8/internal/agent/metrics"
	"github.com/Ignoramuss/orb8/internal/kube"
)

// newGuard lets those read metrics of whom the API server says that they may; nil where
// nobody is asked who he is.
func (a *Agent) newGuard() (metrics.Guard, error) {
	if !a.Config().Authenticated() {
		return nil, nil
	}
	allow := a.deps.Allow
	if allow == nil {
		return nil, errors.New("metrics.authentication: kubernetes needs the API server, and this agent has none: run it in a pod, or give --kubeconfig")
	}
	var failing atomic.Bool
	return func(r *http.Request) (int, string) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		token = strings.TrimSpace(token)
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return http.StatusUnauthorized, "send a bearer token of a service account that may get " + r.URL.Path
		}
		err := allow(r.Context(), token, r.URL.Path)
		forbidden, isForbidden := errors.AsType[*kube.ForbiddenError](err)
		switch {
		case err == nil:
			failing.Store(false)
			return 0, ""
		case errors.Is(err, kube.ErrUnauthenticated):
			return http.StatusUnauthorized, err.Error()
		case isForbidden:
			return http.StatusForbidden, forbidden.Error()
		case r.Context().Err() == nil && !failing.Swap(true):
			a.log.Warn("nobody new can read metrics", "err", err)
		}
		return http.StatusServiceUnavailable, "the API server does not say who may read metrics, see the agent's log"
	}, nil
}

// certificate is that of the metrics, which is read anew when its files change.
type certificate struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamps  [2]stamp
}

type stamp struct {
	changed time.Time
	size    int64
}

// newTLS returns how metrics are served over TLS.
func newTLS(cert, key string, log *slog.Logger) (*tls.Config, error) {
	c := &certificate{cert: cert, key: key, log: log}
	stamps, err := c.look()
	if err == nil {
		err = c.load(stamps)
	}
	if err != nil {
		return nil, fmt.Errorf("metrics.tls_cert: %w", err)
	}
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}, nil
}

func (c *certificate) look() (stamps [2]stamp, err error) {
	for i, path := range []string{c.cert, c.key} {
		info, err := os.Stat(path)
		if err != nil {
			return stamps, err
		}
		stamps[i] = stamp{info.ModTime(), info.Size()}
	}
	return stamps, nil
}

func (c *certificate) load(stamps [2]stamp) error {
	c.stamps = stamps
	read, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("%s with %s: %w", c.cert, c.key, err)
	}
	c.current = &read
	return nil
}

// get returns the certificate as its files are now, or as they were when they last could
// be read.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamps, err := c.look()
	if err == nil && stamps != c.stamps {
		if err := c.load(stamps); err != nil {
			c.log.Error("read the certificate of the metrics again; the old one stays", "err", err)
		} else {
			c.log.Info("the certificate of the metrics has changed")
		}
	}
	return c.current, nil
}
