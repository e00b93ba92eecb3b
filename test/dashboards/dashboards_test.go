// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package dashboards loads what deploy/grafana asks for into a real Prometheus that
// scrapes a running agent.
package dashboards

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/accel/nvml/nvmltest"
)

// without are the panels that an agent outside Kubernetes has no data for, and why.
func without() map[string]string {
	return map[string]string{
		"Between zones": "zones are Kubernetes'", "Across zones": "zones are Kubernetes'", "Names": "pods are Kubernetes'",
		"Held in vain, devices": "nobody holds a device", "Held in vain, device-hours per hour": "nobody holds a device",
		"Who holds what": "nobody holds a device", "Backends that do not answer": "all do",
	}
}

// quiet reports whether 0 is all that a panel has to show.
func quiet(board, panel string) bool {
	switch board {
	case "overview.json", "gpus.json":
		return true
	}
	return panel == "Losses"
}

// hubble is what dashboards for Hubble ask for.
func hubble() map[string]string {
	return map[string]string{
		"hubble: verdicts":          `sum by (verdict) (rate(hubble_flows_processed_total{verdict="FORWARDED"}[1m]))`,
		"hubble: protocols":         `sum by (protocol) (rate(hubble_flows_processed_total{type="Trace",protocol=~"TCP|UDP"}[1m]))`,
		"hubble: layer 7":           `sum by (type,subtype) (rate(hubble_flows_processed_total{type="L7",subtype="DNS"}[1m]))`,
		"hubble: missing responses": `sum(rate(hubble_dns_queries_total[1m])) - sum(rate(hubble_dns_responses_total[1m]))`,
		"hubble: DNS errors":        `sum by (qtypes,rcode) (rate(hubble_dns_responses_total{rcode!="No Error"}[1m]))`,
		"hubble: addresses":         `sum by (qtypes) (rate(hubble_dns_responses_total{ips_returned="1"}[1m]))`,
		"hubble: resets":            `sum(rate(hubble_tcp_flags_total{flag="RST",family="IPv4"}[1m]))`,
		"hubble: drops":             `sum by (reason) (rate(hubble_drop_total[1m]))`,
		"hubble: verdict DROPPED":   `sum(rate(hubble_flows_processed_total{type="Drop",verdict="DROPPED"}[1m]))`,
	}
}

// start runs a program until the test ends.
func start(t *testing.T, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", filepath.Base(name), text)
		}
		_ = log.Close()
	})
}

// freePort is one that nobody listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// agent runs a new agent with a GPU that is not there, for which DNS is what goes to a
// port, and returns its address.
func agent(t *testing.T, dnsPort int) string {
	t.Helper()
	driver := nvmltest.New(t)
	state := "count 1\ndriver 570.124.06\n"
	for _, line := range []string{
		"uuid GPU-11111111-2222-3333-4444-555555555555", "name NVIDIA H100", "minor 0", "bus 7", "util 80", "mem.used 1000", "mem.total 10000",
		"power 350000", "energy 1000", "temp 50", "clockevents 0x4", "field138 7", "field139 8", "gpm 1", "gpm2 75", "gpm3 50", "gpm5 40", "gpm10 30",
		fmt.Sprintf("proc0 %d 600 80 -1", os.Getpid()),
	} {
		state += "gpu0." + line + "\n"
	}
	driver.Set(state + "xid 0 31\n")
	root := t.TempDir()
	lib := filepath.Join(root, "usr/lib64")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(driver.Library, filepath.Join(lib, "libnvidia-ml.so.1")); err != nil {
		t.Fatal(err)
	}
	orb8 := filepath.Join(t.TempDir(), "orb8")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", orb8, "github.com/Ignoramuss/orb8/cmd/orb8")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build orb8: %v\n%s", err, out)
	}
	addr := freePort(t)
	start(t, orb8, "agent", "--listen=", "--metrics-listen="+addr, "--kubernetes=off", "--dcgm-url=off", "--host-root="+root,
		"--interval=500ms", "--gpu-interval=500ms", "--metrics-peers", "--metrics-aliases=hubble",
		fmt.Sprintf("--dns-ports=%d", dnsPort), fmt.Sprint("--dns-timeout=", dnsTimeout))
	return addr
}

// prometheus scrapes an address twice a second.
func prometheus(t *testing.T, target string) string {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 500ms, scrape_timeout: 400ms}\nscrape_configs: [{job_name: orb8, static_configs: [{targets: [%q]}]}]\n", target)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freePort(t)
	start(t, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)
	return "http://" + addr
}

// query returns the values that an expression has now.
func query(ctx context.Context, server, expr string) ([]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/api/v1/query?query="+url.QueryEscape(expr), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct{ Result []struct{ Value [2]any } }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, errors.New(answer.Error)
	}
	var values []float64
	for _, r := range answer.Data.Result {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

// question is one that a panel asks.
type question struct{ board, panel, expr string }

// answered reports whether values are what the panel is there to show: numbers, and
// where there is traffic for it not only 0.
func (q question) answered(values []float64) bool {
	return slices.ContainsFunc(values, func(v float64) bool {
		return !math.IsNaN(v) && (v != 0 || quiet(q.board, q.panel))
	})
}

// questions are those of all dashboards, and of some for Hubble.
func questions(t *testing.T) []question {
	t.Helper()
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no dashboards", err)
	}
	var all []question
	variables := strings.NewReplacer("$instance", ".*", "$vendor", ".*", "$namespace", ".*", "$workload", ".*", "$__rate_interval", "10s")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(text, &board); err != nil {
			t.Fatal(err)
		}
		for _, p := range board.Panels {
			for _, target := range p.Targets {
				all = append(all, question{filepath.Base(file), p.Title, variables.Replace(target.Expr)})
			}
		}
	}
	for panel, expr := range hubble() {
		all = append(all, question{"hubble", panel, expr})
	}
	return all
}

// TestPanelsHaveData asks Prometheus every question of every panel.
func TestPanelsHaveData(t *testing.T) {
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skip("SKIP: no prometheus: apt-get install prometheus")
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIP: not root: an agent could not load its probes")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dnsPort := names(ctx, t)
	traffic(ctx, t)
	server := prometheus(t, agent(t, dnsPort))

	open := questions(t)
	asked := len(open)
	var last error
	for end := time.Now().Add(60 * time.Second); len(open) > 0 && time.Now().Before(end); time.Sleep(time.Second) {
		var still []question
		for _, q := range open {
			values, err := query(ctx, server, q.expr)
			if err != nil {
				last = err
			}
			if !q.answered(values) && (err != nil || without()[q.panel] == "") {
				still = append(still, q)
			}
		}
		open = still
	}
	for _, q := range open {
		t.Errorf("%s: panel %q has no data: %s", q.board, q.panel, q.expr)
	}
	if t.Failed() {
		t.Logf("last error: %v", last)
	}
	t.Logf("%d questions", asked)
}
