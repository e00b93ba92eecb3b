// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package dashboards loads what deploy/grafana asks for into a real Prometheus that
// scrapes a running agent.
package dashboards

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
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
		"Who holds what": "nobody holds a device", "Used without being held": "nobody tells who holds one", "Backends that do not answer": "all do",
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
		fmt.Sprintf("proc0 %d 600 80 0", os.Getpid()),
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
		"--interval=500ms", "--gpu-interval=500ms", fmt.Sprintf("--dns-ports=%d", dnsPort), fmt.Sprint("--dns-timeout=", dnsTimeout))
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

// traffic makes connections of every fate, and datagrams, until ctx is done.
func traffic(ctx context.Context, t *testing.T) {
	t.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := 0; ; i++ {
			c, err := server.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello"))
			if i%2 == 0 {
				_ = c.(*net.TCPConn).SetLinger(0) // a reset
			}
			_ = c.Close()
		}
	}()
	// Nobody accepts there: when its queue is full, SYNs are sent again.
	full, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(full, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(full, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(full)
	if err != nil {
		t.Fatal(err)
	}
	crowded := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	closed := freePort(t)
	go func() {
		defer server.Close()
		defer func() { _ = syscall.Close(full) }()
		d := net.Dialer{Timeout: 200 * time.Millisecond}
		for i := 0; ctx.Err() == nil; i++ {
			if c, err := d.DialContext(ctx, "tcp", server.Addr().String()); err == nil {
				_, _ = io.ReadAll(c)
				_ = c.Close()
			}
			_, _ = d.DialContext(ctx, "tcp", closed)
			if c, err := d.DialContext(ctx, "udp", closed); err == nil {
				_, _ = c.Write([]byte("datagram"))
				_ = c.Close()
			}
			if i%10 == 0 {
				go func() {
					slow := net.Dialer{Timeout: 3 * time.Second}
					if c, err := slow.DialContext(ctx, "tcp", crowded); err == nil {
						<-ctx.Done()
						_ = c.Close()
					}
				}()
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
}

// query returns how many series an expression has now.
func query(ctx context.Context, server, expr string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/api/v1/query?query="+url.QueryEscape(expr), nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("%s", answer.Error)
	}
	return len(answer.Data.Result), nil
}

// TestPanelsHaveData asks Prometheus every question of every panel.
func TestPanelsHaveData(t *testing.T) {
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skip("SKIP: no prometheus: apt-get install prometheus")
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIP: not root: an agent could not load its probes")
	}
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no dashboards", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	traffic(ctx, t)
	contained(ctx, t)
	server := prometheus(t, agent(t, names(ctx, t)))

	type question struct{ board, panel, expr string }
	var open []question
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
		variables := strings.NewReplacer("$instance", ".*", "$vendor", ".*", "$namespace", ".*", "$workload", ".*", "$__rate_interval", "10s")
		for _, p := range board.Panels {
			for _, target := range p.Targets {
				open = append(open, question{filepath.Base(file), p.Title, variables.Replace(target.Expr)})
			}
		}
	}
	asked := len(open)
	var last error
	for end := time.Now().Add(40 * time.Second); len(open) > 0 && time.Now().Before(end); time.Sleep(time.Second) {
		var still []question
		for _, q := range open {
			n, err := query(ctx, server, q.expr)
			if err != nil {
				last = err
			}
			if n == 0 && (err != nil || without()[q.panel] == "") {
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
