// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestStopSendsTheLast: what the kernel gathered up to the end reaches those who
// follow, and then their stream ends.
func TestStopSendsTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where time is that of the agent alone
		r := startRig(t)
		stream := r.follow(t.Context(), t, &orb8v1.ObserveRequest{})
		s := flowtest.TCP(1, 1, 1)
		s.Last = time.Now().UnixNano()
		r.probe.feed(s)
		took := r.stop(t)
		got, err := until(t, "the end of the stream", stream.Recv, func(*orb8v1.Event) bool { return false })
		if diff := cmp.Diff([]string{"connected", "opened 1"}, briefs(got)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "the agent is stopping" {
			t.Errorf("the stream ended with %v", err)
		}
		if took > 2*time.Second {
			t.Errorf("took %v", took)
		}
		if !r.probe.closed.Load() || !r.packet.closed.Load() {
			t.Error("a probe was not closed")
		}
		_ = r.conn.Close()
	})
}

// TestStopWithStalledStream: a client that takes nothing does not hold the
// agent up for more than 5 s.
func TestStopWithStalledStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t)
		stream, err := r.client.Observe(t.Context(), &orb8v1.ObserveRequest{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for n := range 3000 { // far beyond HTTP/2's window of 64 KiB
			r.probe.feed(flowtest.UDP(uint16(n), 1, 1))
		}
		r.query(t, &orb8v1.QueryFlowsRequest{})
		synctest.Wait()
		took := r.stop(t)
		if took > 5*time.Second || took < drainTime {
			t.Errorf("took %v", took)
		}
		_, err = until(t, "the end of the stream", stream.Recv, func(*orb8v1.Event) bool { return false })
		if status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
		_ = r.conn.Close()
	})
}

// TestSamplingInterval: once per interval, and every second while somebody
// follows.
func TestSamplingInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.Interval = 5 * time.Second })
		if err := r.manager.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.sample(ctx); close(done) }()
		during := func(d time.Duration) int64 {
			before := r.probe.collects.Load()
			time.Sleep(d)
			synctest.Wait()
			return r.probe.collects.Load() - before
		}
		if n := during(30 * time.Second); n != 6 {
			t.Errorf("%d samples in 30 s, want 6", n)
		}
		if got := r.interval(); got != 5*time.Second {
			t.Errorf("interval %v", got)
		}
		s, _ := r.hub.Subscribe(hub.Options{Queue: 1})
		if n := during(30 * time.Second); n < 29 || n > 31 {
			t.Errorf("%d samples in 30 s while somebody follows, want 30", n)
		}
		s.Close()
		if n := during(30 * time.Second); n < 6 || n > 7 {
			t.Errorf("%d samples in 30 s after that, want 6", n)
		}
		cancel()
		<-done
		if r.resolver.swept < 15 || r.resolver.swept > 20 {
			t.Errorf("swept %d times in 90 s", r.resolver.swept)
		}
	})
}

func TestIdleFlowsExpire(t *testing.T) {
	r := startRig(t, idleTimeout(30*time.Second))
	old := flowtest.UDP(1, 1, 1)
	old.Last = time.Now().Add(-time.Minute).UnixNano()
	r.probe.feed(old)
	r.query(t, &orb8v1.QueryFlowsRequest{})
	r.tick(t.Context(), time.Now())
	if diff := cmp.Diff([]string{"connected", "open 1", "expire 1"}, r.observe(t, &orb8v1.ObserveRequest{Last: 9})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func idleTimeout(d time.Duration) rigOption {
	return func(c *config.Config, _ *Deps, _ *rig) { c.IdleTimeout = d }
}

func TestFullTableIsTold(t *testing.T) {
	r := startRig(t, idleTimeout(time.Second), func(c *config.Config, _ *Deps, _ *rig) { c.MaxFlows = 2 })
	stream := r.follow(t.Context(), t, &orb8v1.ObserveRequest{})
	var all []flow.Sample
	for port := range uint16(3) {
		s := flowtest.UDP(port+1, 1, 1)
		s.Last = time.Now().Add(-time.Minute).UnixNano()
		all = append(all, s)
	}
	r.probe.feed(all...) // one pass takes them all
	got, err := until(t, "the loss", stream.Recv, func(e *orb8v1.Event) bool { return e.GetLostEvents() != nil })
	if err != nil {
		t.Fatal(err)
	}
	// The flows have long been idle, so the rest expires at once.
	want := []string{"connected", "open 1", "open 2", "evict 1", "open 3", "expire 2", "expire 3", "lost flow_table_full 1"}
	if diff := cmp.Diff(want, briefs(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestLoopbackOff(t *testing.T) {
	r := startRig(t, func(c *config.Config, d *Deps, _ *rig) {
		d.Reload = func() (config.Config, error) { n := *c; n.Loopback = false; return n, nil }
	})
	lo := flowtest.UDP(1, 100, 0)
	lo.Loopback = true
	r.probe.feed(lo, flowtest.UDP(2, 50, 0))
	if _, total := r.query(t, &orb8v1.QueryFlowsRequest{Filters: []*orb8v1.Filter{{Ports: []uint32{1}}}}); total == 0 {
		t.Error("loopback is not shown at first")
	}
	r.reload()
	lo.Total.TxBytes = 200
	r.probe.feed(lo)
	if _, total := r.query(t, &orb8v1.QueryFlowsRequest{Filters: []*orb8v1.Filter{{Ports: []uint32{1}}}}); total != 0 {
		t.Error("loopback is shown although it is off")
	}
	if diff := cmp.Diff([]string{"connected", "open 1", "open 2"}, r.observe(t, &orb8v1.ObserveRequest{Last: 9})); diff != "" {
		t.Errorf("events (-want +got)\n%s", diff)
	}
}

func TestIncludeSelf(t *testing.T) {
	own := flowtest.UDP(1, 100, 0)
	own.PID, own.Total.RxPackets = selfPID, 0
	for _, include := range []bool{false, true} {
		r := startRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.IncludeSelf = include })
		r.probe.feed(own)
		_, total := r.query(t, &orb8v1.QueryFlowsRequest{})
		counted := strings.Contains(body(r.http.Handler, "/metrics"), "\norb8_network_bytes_total{")
		if (total > 0) != include || counted != include {
			t.Errorf("include_self %v: %d rows, in metrics: %v", include, total, counted)
		}
		r.stop(t)
	}
}

func TestRequireProbe(t *testing.T) {
	broken := &probe.Unsupported{Reason: "kernel has no BTF", Remedy: "use a kernel with BTF"}
	r := newRig(t, func(_ *config.Config, d *Deps, r *rig) {
		d.RequireProbe = true
		r.probe.startErr, r.packet.startErr = broken, errors.New("no cgroup2")
	})
	err := r.Run(testwait.Context(t))
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "no cgroup2") {
		t.Errorf("got %v", err)
	}
	if _, err := r.listener.Dial(); err == nil {
		t.Error("the listener is still open")
	}
}

func TestModeOnIsRequired(t *testing.T) {
	r := newRig(t, func(c *config.Config, _ *Deps, r *rig) {
		c.Packet = config.ModeOn
		r.packet.startErr = &probe.Unsupported{Reason: "no cgroup2", Remedy: "mount it"}
	})
	err := r.Run(testwait.Context(t))
	if want := "probe packet is set to on and does not run: no cgroup2: mount it"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestWithoutProbesTheAgentStaysUp(t *testing.T) {
	r := startRig(t, func(c *config.Config, _ *Deps, r *rig) {
		c.MetricsListen = "127.0.0.1:0"
		r.probe.startErr, r.packet.startErr = errors.New("no BTF"), errors.New("no cgroup2")
	})
	got, err := r.client.GetStatus(t.Context(), &orb8v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const want = "no probe runs: tcp is in state off: no BTF; packet is in state off: no cgroup2"
	if got.GetHealthy() || got.GetHealthMessage() != want {
		t.Errorf("healthy %v: %q", got.GetHealthy(), got.GetHealthMessage())
	}
	if err := r.readiness(); err == nil || err.Error() != want {
		t.Errorf("ready: %v", err)
	}
	if diff := cmp.Diff([]string{"unavailable"}, r.observe(t, &orb8v1.ObserveRequest{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPortTaken(t *testing.T) {
	before := fds(t)
	var lc net.ListenConfig
	other, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []func(*config.Config){
		func(c *config.Config) { c.Listen = other.Addr().String() },
		func(c *config.Config) { c.Listen, c.MetricsListen = "localhost:0", other.Addr().String() },
	} {
		r := newRig(t, func(c *config.Config, _ *Deps, _ *rig) { set(c) })
		err := r.Run(testwait.Context(t))
		_, port, _ := net.SplitHostPort(other.Addr().String())
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "port "+port+" is taken") || !strings.Contains(err.Error(), "listen localhost:PORT") {
			t.Errorf("got %v", err)
		}
		if r.probe.collects.Load() != 0 {
			t.Error("probes were started")
		}
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if after := fds(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
}

// fds counts this process's open files.
func fds(t *testing.T) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestNothingLeaks: agents with real sockets and clients leave no goroutine
// (TestMain) and no file descriptor behind.
func TestNothingLeaks(t *testing.T) {
	defer goleak.VerifyNone(t)
	run := func() {
		r := startRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.Listen, c.MetricsListen = "localhost:0", "localhost:0" })
		r.follow(t.Context(), t, &orb8v1.ObserveRequest{Snapshot: true})
		r.probe.feed(flowtest.TCP(1, 1, 1))
		r.query(t, &orb8v1.QueryFlowsRequest{})
		r.stop(t)
		_ = r.conn.Close()
	}
	run() // opens what the runtime keeps, such as its poller
	before := fds(t)
	for range 5 {
		run()
	}
	if after := fds(t); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(testwait.Context(t), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHTTP(t *testing.T) {
	r := newRig(t)
	ls, err := listen(t.Context(), "127.0.0.1:0", "metrics-listen")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.serveHTTP(ls[0]) }()
	url := "http://" + ls[0].Addr().String()

	type answer struct {
		Code int
		Body string
	}
	check := func(path string, want answer) {
		t.Helper()
		code, body := get(t, url+path)
		if diff := cmp.Diff(want, answer{code, body}); diff != "" {
			t.Errorf("%s (-want +got)\n%s", path, diff)
		}
	}
	check("/healthz", answer{200, "ok\n"})
	check("/readyz", answer{503, "starting\n"})
	if err := r.start(); err != nil {
		t.Fatal(err)
	}
	check("/readyz", answer{200, "ok\n"})
	check("/", answer{200, "orb8 agent: /metrics /healthz /readyz\n"})
	check("/debug/pprof/", answer{404, "404 page not found\n"})
	r.probe.feed(flowtest.UDP(1, 100, 0))
	r.collect()
	code, body := get(t, url+"/metrics")
	for _, want := range []string{
		`orb8_network_bytes_total{direction="egress",namespace="",protocol="UDP",workload="curl",workload_kind="Process"} 100`,
		`orb8_probe_up{probe="tcp"} 1`,
		`orb8_agent_info{kernel="6.18.0",node="node-a",version="1.2.3"} 1`,
		"go_goroutines ",
	} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("/metrics (%d) lacks %s", code, want)
		}
	}
	if err := r.http.Close(); err != nil {
		t.Error(err)
	}
	if err := testwait.Receive(t, "the end of the server", done); err != nil {
		t.Error(err)
	}
}

func TestReloadOnHangup(t *testing.T) {
	level := new(slog.LevelVar)
	answers := make(chan func(config.Config) (config.Config, error), 3)
	var base config.Config
	r := startRig(t, idleTimeout(30*time.Second), func(c *config.Config, d *Deps, _ *rig) {
		base = *c
		d.LogLevel = level
		d.Reload = func() (config.Config, error) { return (<-answers)(base) }
	})
	hangup := func(answer func(config.Config) (config.Config, error)) {
		t.Helper()
		before := r.reloads.Load() + r.failedReloads.Load()
		answers <- answer
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		r.await(t, "reload", func() bool { return r.reloads.Load()+r.failedReloads.Load() > before })
	}
	hangup(func(c config.Config) (config.Config, error) {
		c.Interval, c.LogLevel, c.MetricsMaxSeries, c.Listen = time.Minute, "debug", 17, "localhost:1"
		c.IdleTimeout = time.Hour
		return c, nil
	})
	want := base
	want.Interval, want.LogLevel, want.MetricsMaxSeries, want.IdleTimeout = time.Minute, "debug", 17, time.Hour
	if diff := cmp.Diff(want, *r.Config()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if level.Level() != slog.LevelDebug {
		t.Errorf("log level %v", level.Level())
	}
	if page := body(r.http.Handler, "/metrics"); !strings.Contains(page, "\norb8_agent_workload_series_limit 17\n") {
		t.Errorf("the metrics' cap is not 17:\n%s", page)
	}
	idle := flowtest.UDP(1, 1, 1)
	idle.Last = time.Now().Add(-time.Minute).UnixNano()
	r.probe.feed(idle)
	r.tick(t.Context(), time.Now())
	if r.table.Len() != 1 {
		t.Error("a flow expired before the idle timeout in force")
	}
	hangup(func(config.Config) (config.Config, error) { return config.Config{}, errors.New("no such file") })
	hangup(func(c config.Config) (config.Config, error) { c.Interval = 1; return c, nil })
	if diff := cmp.Diff(want, *r.Config()); diff != "" {
		t.Errorf("after reloads that failed (-want +got)\n%s", diff)
	}
	if ok, failed := r.reloads.Load(), r.failedReloads.Load(); ok != 1 || failed != 2 {
		t.Errorf("%d reloads, %d failed", ok, failed)
	}
}

func TestReloadWakesTheSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *config.Config, d *Deps, _ *rig) {
			n := *c
			n.Interval = time.Second
			d.Reload = func() (config.Config, error) { return n, nil }
		})
		if err := r.manager.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.sample(ctx); close(done) }()
		synctest.Wait()
		r.reload()
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if n := r.probe.collects.Load(); n < 9 || n > 10 {
			t.Errorf("%d samples in 10 s", n)
		}
		cancel()
		<-done
	})
}

func TestNewChecksTheConfiguration(t *testing.T) {
	cfg := config.Local()
	cfg.Listen = "0.0.0.0:9090"
	if _, err := New(cfg, Deps{}, quiet()); err == nil || !strings.HasPrefix(err.Error(), "configuration: listen: ") {
		t.Errorf("got %v", err)
	}
}

func TestHealthOf(t *testing.T) {
	run := func(name string) probe.Status { return probe.Status{Name: name, State: probe.StateRunning} }
	off := func(name, why, remedy string) probe.Status {
		return probe.Status{Name: name, State: probe.StateOff, Reason: why, Remedy: remedy}
	}
	packetOff := config.Default()
	packetOff.Packet = config.ModeOff
	bothOff := packetOff
	bothOff.TCP = config.ModeOff
	auto := config.Default()
	tests := []struct {
		name   string
		probes []probe.Status
		cfg    config.Config
		want   string
	}{
		{"all run", []probe.Status{run("tcp"), run("packet")}, auto, "CONNECTED "},
		{"one cannot", []probe.Status{off("tcp", "no BTF", "get one"), run("packet")}, auto, "DEGRADED tcp is in state off: no BTF (get one)"},
		{"one is turned off", []probe.Status{run("tcp"), off("packet", "turned off", "")}, packetOff, "CONNECTED "},
		{"none can", []probe.Status{off("tcp", "a", ""), off("packet", "b", "")}, auto, "UNAVAILABLE no probe runs: tcp is in state off: a; packet is in state off: b"},
		{"all are turned off", []probe.Status{off("tcp", "a", ""), off("packet", "b", "")}, bothOff, "UNAVAILABLE no probe runs: all are turned off"},
		{"no probes", nil, auto, "UNAVAILABLE no probe runs: all are turned off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			state, message := healthOf(tt.probes, &tt.cfg)
			got := fmt.Sprintf("%s %s", strings.TrimPrefix(state.String(), "NODE_STATE_"), message)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// BenchmarkRecord is the whole way of a record from the table to the metrics,
// the history and one subscriber's filter.
func BenchmarkRecord(b *testing.B) {
	r := newRig(b)
	rec := flowtest.Record(flow.EventUpdate, flowtest.TCP(1, 1000, 1000), flow.Counters{TxBytes: 1000, TxPackets: 1})
	b.ReportAllocs()
	for b.Loop() {
		r.record(rec)
	}
}
