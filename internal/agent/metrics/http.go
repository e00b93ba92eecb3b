// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Guard decides whether a request for metrics is answered: it returns 0 if so, and else
// the status and why.
type Guard func(*http.Request) (code int, reason string)

// NewServer serves /metrics, /metrics/dcgm unless dcgm is nil, /healthz (live
// returns nil) and /readyz (ready returns nil). Metrics are for those whom guard lets in;
// nil lets in everybody. Profiles are not exposed.
func NewServer(e *Exporter, dcgm prometheus.Collector, guard Guard, live, ready func() error, log *slog.Logger) *http.Server {
	errorLog := slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	mux := http.NewServeMux()
	serve := func(path string, all ...prometheus.Collector) {
		reg := prometheus.NewRegistry()
		reg.MustRegister(all...)
		mux.Handle("GET "+path, guarded(guard, newSharedPage(promhttp.HandlerFor(reg, promhttp.HandlerOpts{
			ErrorLog:          errorLog,
			ErrorHandling:     promhttp.ContinueOnError,
			EnableOpenMetrics: true,
		}))))
	}
	serve("/metrics", e, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if dcgm != nil {
		serve("/metrics/dcgm", dcgm)
	}
	for path, check := range map[string]func() error{"/healthz": live, "/readyz": ready} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if err := check(); err != nil {
				answer(w, http.StatusServiceUnavailable, err.Error())
				return
			}
			answer(w, http.StatusOK, "ok")
		})
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "orb8 agent: /metrics /healthz /readyz")
	})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // also over TLS: a connection is one page at a time
	return &http.Server{
		Handler:           mux,
		Protocols:         protocols,
		ErrorLog:          errorLog,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         newClients().track,
	}
}

func guarded(guard Guard, page http.Handler) http.Handler {
	if guard == nil {
		return page
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, reason := guard(r)
		if code == 0 {
			page.ServeHTTP(w, r)
			return
		}
		if code == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		answer(w, code, reason)
	})
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = fmt.Fprintln(w, text) // the client may have gone
}
