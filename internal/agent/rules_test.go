// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/testwait"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	shopContainer = "1111111111111111111111111111111111111111111111111111111111111111"
	bankContainer = "2222222222222222222222222222222222222222222222222222222222222222"
)

// containerRig has the containers of the pods shop/web (cgroup 1) and bank/db (cgroup
// 2).
func containerRig(t *testing.T, opts ...rigOption) *rig {
	t.Helper()
	return startRig(t, append([]rigOption{func(_ *config.Config, _ *Deps, r *rig) {
		r.resolver.local = map[uint64]*workload.Identity{
			1: {Namespace: "shop", Pod: "web", Kind: "Deployment", Name: "web", CgroupID: 1, ContainerID: shopContainer, PodUID: "u1"},
			2: {Namespace: "bank", Pod: "db", Kind: "StatefulSet", Name: "db", CgroupID: 2, ContainerID: bankContainer, PodUID: "u2"},
		}
	}}, opts...)...)
}

// aProcess of a cgroup.
func aProcess(pid, parent uint32, cgroup uint64, path string, args ...string) process.Process {
	id := func(n uint32) process.ID { return process.ID{PID: n, Start: uint64(n)} }
	return process.Process{
		ID: id(pid), Parent: id(parent), Comm: path[strings.LastIndexByte(path, '/')+1:], CgroupID: cgroup,
		Exe: process.Executable{Path: path, Called: path}, Args: args, Started: second(0),
	}
}

// begin tells of a container's first process, which the runtime starts.
func (r *rig) begin(pid uint32, cgroup uint64) {
	r.process(&process.Event{What: process.Seen, Process: aProcess(1, 0, 1<<20, "/usr/bin/containerd-shim")})
	r.exec(aProcess(pid, 1, cgroup, "/app", "app", "--password=hunter2"), nil)
}

func (r *rig) exec(p process.Process, start *process.Start) {
	if start == nil {
		start = new(process.Start)
	}
	r.process(&process.Event{What: process.Exec, Time: second(1), Process: p, Start: start})
}

// recent are the events of a kind that the agent keeps.
func (r *rig) recent(t *testing.T, kind orb8v1.EventKind, filters ...*orb8v1.Filter) []*orb8v1.Event {
	t.Helper()
	stream, err := r.client.Observe(t.Context(), &orb8v1.ObserveRequest{
		Kinds: []orb8v1.EventKind{kind}, Filters: filters, Last: 1000, IncludeSelf: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []*orb8v1.Event
	for {
		ev, err := stream.Recv()
		if err != nil {
			return all
		}
		if ev.GetSequence() != 0 && ev.GetNodeStatus() == nil {
			all = append(all, ev)
		}
	}
}

func TestProcesses(t *testing.T) {
	r := containerRig(t)
	r.begin(100, 1)
	r.exec(aProcess(200, 100, 1, "/bin/sh", "sh", "-c", "true"), &process.Start{TTY: true})
	r.exec(aProcess(300, 1, elsewhere, "/bin/other"), nil)
	ended := aProcess(200, 100, 1, "/bin/sh")
	r.process(&process.Event{What: process.Exit, Time: second(3), Process: ended, End: &process.End{Code: 7}})
	events := r.recent(t, orb8v1.EventKind_EVENT_KIND_PROCESS)
	if len(events) != 3 {
		t.Fatalf("%d events, want 3: %v", len(events), events)
	}
	first, sh, exit := events[0].GetProcess(), events[1].GetProcess(), events[2].GetProcess()
	if got := first.GetProcess().GetArguments(); len(got) != 2 || got[1] != "--password=***" {
		t.Errorf("arguments %q", got)
	}
	up := sh.GetAncestors()
	if sh.GetStep() != orb8v1.ProcessStep_PROCESS_STEP_EXEC || sh.GetWorkload().GetPodName() != "web" ||
		!sh.GetProcess().GetTerminal() || len(up) != 2 || up[0].GetExecutable().GetPath() != "/app" || up[1].GetPid() != 1 {
		t.Errorf("exec: %v", sh)
	}
	if exit.GetStep() != orb8v1.ProcessStep_PROCESS_STEP_EXIT || exit.GetExitCode() != 7 || exit.GetLifetimeNs() != 3e9 ||
		exit.GetProcess().GetArguments()[2] != "true" {
		t.Errorf("exit: %v", exit)
	}
	want(t, body(r.http.Handler, "/metrics"), `orb8_process_starts_total{namespace="shop",workload="web",workload_kind="Deployment"} 2`)
}

func want(t *testing.T, page string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("metrics lack %s", line)
		}
	}
}

func TestAlerts(t *testing.T) {
	r := containerRig(t)
	r.begin(100, 1)
	r.begin(101, 2)
	socket := process.Socket{
		Protocol: record.TCP, Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:4444"),
	}
	r.exec(aProcess(200, 100, 1, "/bin/sh", "sh", "-i"), &process.Start{Stdin: &socket, Stdout: &socket})
	r.process(&process.Event{
		What: process.Privileged, Time: second(2), Process: aProcess(101, 1, 2, "/app"),
		Privilege: &process.Privilege{Capability: 18, Call: callNumber(t, "chroot"), Denied: true},
	})
	events := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT)
	if len(events) != 2 {
		t.Fatalf("%d alerts, want 2: %v", len(events), events)
	}
	shell, chroot := events[0].GetAlert(), events[1].GetAlert()
	if shell.GetRule() != "reverse_shell" || shell.GetSeverity() != orb8v1.Severity_SEVERITY_CRITICAL ||
		shell.GetRemote().GetIp() != "10.0.0.2" || shell.GetRemote().GetPort() != 4444 || shell.GetWorkload().GetPodName() != "web" ||
		shell.GetProcess().GetPid() != 200 || len(shell.GetAncestors()) != 2 || shell.GetSummary() == "" || shell.GetReason() == "" ||
		shell.GetTechnique() == "" || shell.GetLookCloser() == "" || shell.GetException() == "" {
		t.Errorf("reverse shell: %v", shell)
	}
	if chroot.GetRule() != "chroot" || chroot.GetSyscall() != "chroot" || !chroot.GetDenied() || len(chroot.GetArguments()) != 1 {
		t.Errorf("chroot: %v", chroot)
	}
	for _, f := range []*orb8v1.Filter{
		{Rules: []string{"chroot"}}, {Namespaces: []string{"bank"}}, {Severities: []string{"notice", "warning"}},
		{Rules: []string{"reverse_shell"}, Negate: true},
	} {
		if got := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT, f); len(got) != 1 || got[0].GetAlert().GetRule() != "chroot" {
			t.Errorf("filter %v: %v", f, got)
		}
	}
	want(t, body(r.http.Handler, "/metrics"),
		`orb8_syscall_alerts_total{namespace="shop",rule="reverse_shell",workload="web",workload_kind="Deployment"} 1`,
		`orb8_syscall_alerts_total{namespace="bank",rule="chroot",workload="db",workload_kind="StatefulSet"} 1`)
	if got := r.recent(t, orb8v1.EventKind_EVENT_KIND_PROCESS); len(got) != 3 {
		t.Errorf("%d starts, want 3: what only rules look at is no event", len(got))
	}
}

// chroot is a privileged call of a container's first process.
func (r *rig) chroot(t *testing.T, pid uint32, cgroup uint64) {
	t.Helper()
	r.process(&process.Event{
		What: process.Privileged, Time: second(2), Process: aProcess(pid, 1, cgroup, "/app"),
		Privilege: &process.Privilege{Capability: 18, Call: callNumber(t, "chroot")},
	})
}

// TestAlertsStandForAllThatWasFound: what is not sent one by one is counted at once,
// told of without another one that comes, and told of by an agent that stops.
func TestAlertsStandForAllThatWasFound(t *testing.T) {
	r := containerRig(t)
	r.begin(100, 1)
	for range 8 {
		r.chroot(t, 100, 1)
	}
	const counted = `orb8_syscall_alerts_total{namespace="shop",rule="chroot",workload="web",workload_kind="Deployment"} 8`
	want(t, body(r.http.Handler, "/metrics"), counted)
	r.alertHeld(true) // as when their window is over
	want(t, body(r.http.Handler, "/metrics"), counted)
	events := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT)
	if len(events) != 2 || events[0].GetAlert().GetRepeated() != 0 || events[1].GetAlert().GetRepeated() != 6 {
		t.Fatalf("alerts %v", events)
	}
	last := events[1].GetAlert()
	if last.GetWorkload().GetPodName() != "web" || last.GetProcess().GetPid() != 100 || last.GetSyscall() != "chroot" || events[1].GetTimeNs() != second(2) {
		t.Errorf("the last one: %v", events[1])
	}
	stream, err := r.client.Observe(t.Context(), &orb8v1.ObserveRequest{Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_ALERT}, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	testwait.True(t, "the stream", func() bool { return r.hub.Subscribers() > 0 })
	r.chroot(t, 100, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.stop(t)
	}()
	defer func() { <-stopped }()
	for {
		ev, err := stream.Recv()
		if err != nil {
			t.Fatalf("no alert at the end: %v", err)
		}
		if a := ev.GetAlert(); a != nil {
			if a.GetRule() != "chroot" {
				t.Errorf("at the end: %v", a)
			}
			return
		}
	}
}

// TestRemoteOfAlert: it is the end that the rule is about, whichever of the program's
// standard files are sockets too.
func TestRemoteOfAlert(t *testing.T) {
	far := netip.MustParseAddrPort("10.0.0.2:4444")
	shell := process.Socket{Protocol: record.TCP, Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: far}
	listening := process.Socket{Protocol: record.UDP, Local: netip.MustParseAddrPort("0.0.0.0:53"), Remote: netip.MustParseAddrPort("0.0.0.0:0")}
	another := process.Socket{Protocol: record.TCP, Local: netip.MustParseAddrPort("10.0.0.1:40001"), Remote: netip.MustParseAddrPort("10.0.0.3:514")}
	for name, start := range map[string]process.Start{
		"a socket without another end before": {Stdin: &listening, Stdout: &shell},
		"another connection behind":           {Stdin: &shell, Stderr: &another},
	} {
		t.Run(name, func(t *testing.T) {
			r := containerRig(t, func(_ *config.Config, _ *Deps, r *rig) {
				r.resolver.remote = map[netip.Addr]*workload.Identity{far.Addr(): {Kind: workload.KindExternal, Name: "far.test"}}
			})
			r.begin(100, 1)
			r.exec(aProcess(200, 100, 1, "/bin/sh", "sh"), &start)
			events := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT)
			if len(events) != 1 {
				t.Fatalf("alerts %v", events)
			}
			got := events[0].GetAlert().GetRemote()
			if got.GetIp() != "10.0.0.2" || got.GetPort() != 4444 || got.GetWorkload().GetName() != "far.test" {
				t.Errorf("remote %v", got)
			}
		})
	}
}

// TestStartsOnTheHost: commands there have one series together, however many they are,
// and containers keep their room.
func TestStartsOnTheHost(t *testing.T) {
	r := containerRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.MetricsMaxSeries = 40 })
	r.resolver.local[7] = &workload.Identity{Kind: workload.KindUnit, Name: "cron.service", CgroupID: 7}
	for i := range uint32(100) {
		r.exec(aProcess(1000+i, 1, 100+uint64(i), "/usr/bin/tool"+string(rune('a'+i%26))), nil)
		ended := aProcess(1000+i, 1, 100+uint64(i), "/usr/bin/tool")
		r.process(&process.Event{What: process.Exit, Time: second(3), Process: ended, End: &process.End{}})
	}
	r.exec(aProcess(2001, 1, 7, "/usr/sbin/cron"), nil)
	r.begin(100, 1)
	r.chroot(t, 100, 1)
	page := body(r.http.Handler, "/metrics")
	want(t, page,
		`orb8_process_starts_total{namespace="",workload="host",workload_kind="Host"} 100`,
		`orb8_process_starts_total{namespace="",workload="cron.service",workload_kind="Unit"} 1`,
		`orb8_process_starts_total{namespace="shop",workload="web",workload_kind="Deployment"} 1`,
		`orb8_syscall_alerts_total{namespace="shop",rule="chroot",workload="web",workload_kind="Deployment"} 1`)
	if strings.Contains(page, `workload="tool`) || strings.Contains(page, `orb8_process_starts_total{namespace="",workload="other"`) {
		t.Error("a command of the host has a series of its own, or has pushed out others")
	}
}

// A process that a container makes in another cgroup is the container's doing; what the
// runtime makes in the container's is not.
func TestForkIntoAnotherCgroup(t *testing.T) {
	r := containerRig(t)
	r.begin(100, 1)
	for pid, cgroups := range map[uint32][2]uint64{200: {100, 1 << 20}, 201: {100, 2}, 202: {100, elsewhere}, 203: {1, 1}} {
		p := aProcess(pid, uint32(cgroups[0]), cgroups[1], "/app")
		r.process(&process.Event{What: process.Fork, Time: second(2), Process: p})
	}
	events := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT)
	if len(events) != 1 || events[0].GetAlert().GetRule() != "cgroup_escape" || events[0].GetAlert().GetWorkload().GetPodName() != "web" {
		t.Errorf("alerts: %v", events)
	}
	want(t, body(r.http.Handler, "/metrics"),
		`orb8_syscall_alerts_total{namespace="shop",rule="cgroup_escape",workload="web",workload_kind="Deployment"} 3`)
}

func TestRulesAreReloaded(t *testing.T) {
	cfg := config.Local()
	r := containerRig(t, func(c *config.Config, d *Deps, _ *rig) {
		c.NodeName = "node-a"
		cfg = *c
		d.Reload = func() (config.Config, error) { return cfg, nil }
	})
	r.begin(100, 1)
	chroot := func() {
		r.process(&process.Event{
			What: process.Privileged, Time: second(2), Process: aProcess(100, 1, 1, "/app"),
			Privilege: &process.Privilege{Capability: 18, Call: callNumber(t, "chroot")},
		})
	}
	cfg.RulesOff = []string{"chroot"}
	r.reload()
	chroot()
	if got := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT); len(got) != 0 {
		t.Errorf("a rule that is off found %v", got)
	}
	cfg.RulesOff = nil
	r.reload()
	chroot()
	got := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT)
	if len(got) != 1 {
		t.Fatalf("%d alerts, want 1", len(got))
	}
	path := filepath.Join(t.TempDir(), "orb8.yaml")
	if err := os.WriteFile(path, []byte("exceptions:\n"+got[0].GetAlert().GetException()), 0o600); err != nil {
		t.Fatal(err)
	}
	silent, err := config.Load(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, got[0].GetAlert().GetException())
	}
	cfg.Exceptions = silent.Exceptions
	r.reload()
	chroot()
	if got := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT); len(got) != 1 {
		t.Errorf("%d alerts, want no more than the one before the exception", len(got))
	}
}

// TestExceptionByImage: an exception by image is about the containers that the cluster says
// are made of it.
func TestExceptionByImage(t *testing.T) {
	r := containerRig(t, inCluster(new(fakeCluster)), func(c *config.Config, _ *Deps, _ *rig) {
		c.Exceptions = []anomaly.Exception{{Rule: "chroot", Image: "registry.test/web"}}
	})
	for cgroup := uint64(1); cgroup <= 2; cgroup++ {
		pid := uint32(100 * cgroup)
		r.begin(pid, cgroup)
		r.process(&process.Event{
			What: process.Privileged, Time: second(2), Process: aProcess(pid, 1, cgroup, "/app"),
			Privilege: &process.Privilege{Capability: 18, Call: callNumber(t, "chroot")},
		})
	}
	got := r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT)
	if len(got) != 1 || got[0].GetAlert().GetWorkload().GetPodName() != "db" {
		t.Errorf("alerts %v, want one of the pod db", got)
	}
}

// TestAlertEvents: alerts that are severe enough become Events of their pods, once each.
func TestAlertEvents(t *testing.T) {
	f := new(fakeCluster)
	r := containerRig(t, inCluster(f), func(c *config.Config, _ *Deps, _ *rig) { c.AlertEvents = "critical" })
	r.begin(100, 1)
	for _, name := range []string{"chroot", "open_by_handle_at"} { // a notice, and critical
		capability := map[string]uint8{"chroot": 18, "open_by_handle_at": 2}[name]
		r.process(&process.Event{
			What: process.Privileged, Time: second(2), Process: aProcess(100, 1, 1, "/app"),
			Privilege: &process.Privilege{Capability: capability, Call: callNumber(t, name)},
		})
	}
	if n := len(r.recent(t, orb8v1.EventKind_EVENT_KIND_ALERT)); n != 2 {
		t.Errorf("%d alerts, want 2", n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.told) != 1 {
		t.Fatalf("told of %+v, want one", f.told)
	}
	e := f.told[0]
	if e.Namespace != "shop" || e.Pod != "web" || e.UID != "u1" || e.Reason != "OpenByHandle" || e.Count != 1 ||
		!e.Time.Equal(time.Unix(0, second(2))) || !strings.Contains(e.Message, "(critical, rule open_by_handle): orb8 trace ") {
		t.Errorf("%+v", e)
	}
	f.untold.Store(3)
	r.countUntold()
	r.countUntold()
	if n := r.losses.Get(loss.AlertEventsUntold); n != 3 {
		t.Errorf("%d counted, want 3", n)
	}
}

func callNumber(t *testing.T, name string) int32 {
	t.Helper()
	n, ok := syscalls.Number(process.AMD64, name)
	if !ok {
		t.Fatalf("%s has no number", name)
	}
	return n
}

// second is so many seconds after a time of the tests' own.
func second(n int64) int64 { return (1_700_000_000 + n) * int64(time.Second) }
