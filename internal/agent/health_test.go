// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// page is the answer of the agent's HTTP server.
func (r *rig) page(path string) (code int, text string) {
	w := httptest.NewRecorder()
	r.http.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, strings.TrimSpace(w.Body.String())
}

// A helper alone sees nothing: the agent says so.
func TestHelperAloneIsNotHealthy(t *testing.T) {
	r := startRig(t, func(c *config.Config, _ *Deps, r *rig) {
		c.Packet = config.ModeOff
		r.options = map[string][]probe.Option{"tcp": {probe.Helper()}, "packet": {probe.Off("turned off")}}
	})
	if s := r.status(); s.GetHealthy() || s.GetHealthMessage() != "no probe runs: all are turned off" {
		t.Errorf("healthy %v, %q", s.GetHealthy(), s.GetHealthMessage())
	}
	if code, text := r.page("/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("ready: %d %s", code, text)
	}
	required := newRig(t, func(_ *config.Config, d *Deps, r *rig) {
		d.RequireProbe = true
		r.options = map[string][]probe.Option{"tcp": {probe.Helper()}, "packet": {probe.Off("turned off")}}
	})
	if err := required.Run(testwait.Context(t)); err == nil {
		t.Error("a helper is enough where a probe is required")
	}
}

// A probe that cannot be read is not a healthy one.
func TestUnreadableProbe(t *testing.T) {
	r := startRig(t)
	state := func() orb8v1.NodeState { return r.nodeStatus().GetState() }
	r.probe.failToRead(errors.New("input/output error"))
	r.tick(t.Context(), time.Now())
	if state() != orb8v1.NodeState_NODE_STATE_CONNECTED {
		t.Errorf("after one reading that failed: %v", state())
	}
	r.tick(t.Context(), time.Now())
	if s := r.nodeStatus(); s.GetState() != orb8v1.NodeState_NODE_STATE_DEGRADED || !strings.Contains(s.GetMessage(), "tcp cannot be read: last read failed: input/output error") {
		t.Errorf("after two: %v %q", s.GetState(), s.GetMessage())
	}
	if _, text := r.page("/metrics"); !strings.Contains(text, `orb8_probe_read_errors_total{probe="tcp"} 2`) {
		t.Error("the failed readings are not counted")
	}
	r.probe.failToRead(nil)
	r.tick(t.Context(), time.Now())
	if state() != orb8v1.NodeState_NODE_STATE_CONNECTED {
		t.Errorf("after one that went well: %v", state())
	}
}

// Where a pass over the probes does not end, the process counts as dead, and only then.
func TestLiveness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stuck atomic.Pointer[chan struct{}]
		r := newRig(t, func(c *config.Config, _ *Deps, r *rig) {
			c.Interval = 5 * time.Second
			r.probe.onRead = func() {
				if c := stuck.Load(); c != nil {
					<-*c
				}
			}
		})
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- r.Run(ctx) }()
		time.Sleep(10*time.Minute + time.Second)
		if code, text := r.page("/healthz"); code != http.StatusOK {
			t.Errorf("while all goes well: %d %s", code, text)
		}
		driver := make(chan struct{})
		stuck.Store(&driver)
		time.Sleep(time.Minute)
		if code, text := r.page("/healthz"); code != http.StatusOK {
			t.Errorf("after a minute: %d %s", code, text)
		}
		time.Sleep(10 * time.Second)
		if code, text := r.page("/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "the last pass over the probes ended 1m") {
			t.Errorf("stuck: %d %s", code, text)
		}
		close(driver)
		time.Sleep(5 * time.Second)
		if code, text := r.page("/healthz"); code != http.StatusOK {
			t.Errorf("afterwards: %d %s", code, text)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
