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

// NewServer serves /metrics, /metrics/dcgm unless dcgm is nil, /healthz (live
// returns nil) and /readyz (ready returns nil). Profiles are not exposed.
func NewServer(e *Exporter, dcgm prometheus.Collector, live, ready func() error, log *slog.Logger) *http.Server {
	errorLog := slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	mux := http.NewServeMux()
	serve := func(path string, all ...prometheus.Collector) {
		reg := prometheus.NewRegistry()
		reg.MustRegister(all...)
		mux.Handle("GET "+path, newSharedPage(promhttp.HandlerFor(reg, promhttp.HandlerOpts{
			ErrorLog:          errorLog,
			ErrorHandling:     promhttp.ContinueOnError,
			EnableOpenMetrics: true,
		})))
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
	return &http.Server{
		Handler:           mux,
		ErrorLog:          errorLog,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         newClients().track,
	}
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = fmt.Fprintln(w, text) // the client may have gone
}
