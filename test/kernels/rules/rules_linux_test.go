// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/exec"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/probe/syscall"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
	"github.com/Ignoramuss/orb8/test/cluster/trouble/cases"
)

// rig is what the agent makes of its parts: the exec probe, the table of processes and
// the rules.
type rig struct {
	*exec.Probe
	table  *process.Table
	engine *anomaly.Engine
	losses loss.Counters

	mu         sync.Mutex
	containers map[uint64]string // ids by cgroup
	alerts     []*anomaly.Alert

	verdicts map[string]*verdict // by rule
}

// verdict is what is known of a rule.
type verdict struct {
	// tried: it found what it is to find. failed: it did not, or found something else.
	tried, failed bool
	// lacks is why the kernel does not tell of something that it is about.
	lacks string
}

func start(t *testing.T) *rig {
	t.Helper()
	probetest.NeedRoot(t)
	r := &rig{containers: map[uint64]string{}, verdicts: map[string]*verdict{}}
	for _, rule := range anomaly.Rules() {
		r.verdicts[rule.Name] = new(verdict)
	}
	r.table = process.NewTable(process.Config{Losses: &r.losses})
	var err error
	r.engine, err = anomaly.New(anomaly.Config{Container: r.container, Process: r.table.Find, Losses: &r.losses})
	must(t, err)
	r.Probe = exec.New(exec.Config{
		Apply: r.apply, Losses: &r.losses, Clock: probe.NewClock(), RingBytes: 16 << 20,
		Watched:       syscalls.Numbers(syscalls.Native(), syscalls.Privileged()...),
		WatchedCompat: syscalls.Numbers(syscalls.Compat(), syscalls.Privileged()...),
	})
	err = r.Start()
	if u, ok := errors.AsType[*probe.Unsupported](err); ok {
		for _, rule := range anomaly.Rules() {
			t.Logf("orb8-feature: rule %s: off: %v", rule.Name, u)
		}
		t.Skipf("SKIP: %v", u)
	}
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	probetest.Run(t, r)
	return r
}

func (r *rig) container(cgroup uint64) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.containers[cgroup]
}

// newContainer makes a cgroup that counts as a container's.
func (r *rig) newContainer(t *testing.T) (cgroup string) {
	t.Helper()
	dir, id := probetest.NewCgroup(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id] = fmt.Sprintf("%064x", id)
	return dir
}

// apply judges what happened, as internal/agent does.
func (r *rig) apply(e *process.Event) {
	step := r.table.Apply(e)
	if step == nil {
		return
	}
	alerts := r.engine.Check(&workload.Identity{ContainerID: r.container(r.engine.Whose(step))}, step)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alerts = append(r.alerts, alerts...)
}

// found returns the alerts since it was called last.
func (r *rig) found(t *testing.T) []cases.Found {
	t.Helper()
	must(t, r.Collect())
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []cases.Found
	for _, a := range r.alerts {
		f := cases.Found{Rule: a.Rule.Name, Executable: a.Step.Process.Exe.Path}
		if p := a.Step.Privilege; p != nil {
			f.Call, f.Denied = syscalls.Name(p.ABI, p.Call), p.Denied
		}
		all = append(all, f)
	}
	r.alerts = nil
	return cases.Sorted(all)
}

// hookOf is part of the name of the hook that tells what a rule needs.
var hookOf = map[string]string{
	anomaly.NeedsCapable: "cap_capable",
	anomaly.NeedsIOUring: "/io_uring_submit",
	anomaly.NeedsCgroup:  "/cgroup_attach_task",
}

// lacks tells why the kernel does not tell of what an alert is about, empty if it does.
func (r *rig) lacks(f cases.Found) string {
	rules := anomaly.Rules()
	at := slices.IndexFunc(rules, func(rule *anomaly.Rule) bool { return rule.Name == f.Rule })
	for _, need := range rules[at].Needs {
		if need == anomaly.NeedsCapable && f.Call == "" {
			continue // it is about something else that the rule finds
		}
		hook, ok := hookOf[need]
		for _, d := range r.Degraded() {
			if ok && strings.Contains(d, hook) {
				return d
			}
		}
	}
	return ""
}

// TestRules has containers do what each rule is about, and what looks like it.
func TestRules(t *testing.T) {
	r := start(t)
	h := newHost(t)
	t.Logf("attached: %v, degraded: %q", r.Hooks(), r.Degraded())
	containers := map[string]*container{}
	for _, k := range h.kinds(t) {
		containers[k.name] = h.run(t, &k, r.newContainer(t))
	}
	if got := r.found(t); len(got) > 0 {
		t.Errorf("the start of containers raised %+v", got)
	}
	hostTrue, err := filepath.EvalSymlinks("/bin/true")
	must(t, err)
	all := cases.Troubles(containers["calm"].ends, filepath.Base(r.newContainer(t)), hostTrue)
	calm := cases.Twins("")
	for _, lacks := range cases.Untried(all, calm) {
		t.Errorf("rule %s", lacks)
	}
	r.beCalm(t, h, containers, calm)
	for _, c := range all {
		r.try(t, h, containers[c.Pod], &c)
	}
	r.report(t)
	for _, stage := range []loss.Stage{loss.ExecRingFull, loss.ProcessTableFull, loss.DecodeFailed} {
		if n := r.losses.Get(stage); n > 0 {
			t.Errorf("%d events were lost: %v", n, stage)
		}
	}
	t.Run("seccomp_denied", func(t *testing.T) { r.trace(t, containers["calm"]) })
}

// beCalm runs the twins, which raise no alert.
func (r *rig) beCalm(t *testing.T, h *host, containers map[string]*container, calm []cases.Twin) {
	t.Helper()
	for _, twin := range calm {
		c := containers[twin.Pod]
		if c == nil {
			// Which cgroups belong to a container is for the agent to know: what is
			// about cgroups below a container's is tried in a cluster.
			if twin.Rule != "cgroup_escape" {
				t.Errorf("no container %s", twin.Pod)
			}
			continue
		}
		res, err := c.do(twin.Deed)
		if err != nil || !twin.Ended(&res) {
			t.Errorf("%s: %s: %+v, %v; want %q", twin.Pod, twin.Deed, res, err, twin.Answer)
		}
		if got := r.found(t); len(got) > 0 {
			r.verdicts[twin.Rule].failed = true
			t.Errorf("%s: %s raised %+v", twin.Pod, twin.Deed, got)
		}
	}
	if err := containers["calm"].exec(t, h, nil, "/bin/sh", "-c", ":"); err != nil {
		t.Errorf("start a shell without a terminal: %v", err)
	}
	if got := r.found(t); len(got) > 0 {
		r.verdicts["terminal_shell"].failed = true
		t.Errorf("a shell without a terminal raised %+v", got)
	}
}

// try runs one case.
func (r *rig) try(t *testing.T, h *host, c *container, tried *cases.Trouble) {
	t.Helper()
	if tried.Terminal {
		if err := c.exec(t, h, terminal(t), strings.Fields(tried.Deed)...); err != nil {
			t.Errorf("%s: %v", tried.Key(), err)
			r.fail(tried)
		}
	} else {
		res, err := c.do(tried.Deed)
		// A kernel of the matrix has all that rules are about.
		if why := tried.NotTried(&res); why != "" && !inMatrix() {
			t.Logf("%s: not tried: %s", tried.Key(), why)
			r.found(t)
			return
		}
		if err != nil || !res.Is(tried.Answer) {
			t.Errorf("%s: %+v, %v; want %q", tried.Key(), res, err, tried.Answer)
			r.fail(tried)
		}
	}
	var want []cases.Found
	for _, f := range tried.Alerts {
		if why := r.lacks(f); why != "" {
			r.verdicts[f.Rule].lacks = why
			continue
		}
		want = append(want, f)
		r.verdicts[f.Rule].tried = true
	}
	if d := gocmp.Diff(cases.Sorted(want), r.found(t)); d != "" {
		t.Errorf("%s: alerts (-want +got):\n%s", tried.Key(), d)
		r.fail(tried)
	}
}

func (r *rig) fail(tried *cases.Trouble) {
	for _, f := range tried.Alerts {
		r.verdicts[f.Rule].failed = true
	}
}

// report notes for docs/kernels.md what is known of the rules that judge steps.
func (r *rig) report(t *testing.T) {
	t.Helper()
	for _, rule := range anomaly.Rules() {
		switch v := r.verdicts[rule.Name]; {
		case v.failed || slices.Contains(cases.CallRules(), rule.Name):
		case v.tried && v.lacks != "":
			t.Logf("orb8-feature: rule %s: fallback: %s", rule.Name, v.lacks)
		case v.lacks != "":
			t.Logf("orb8-feature: rule %s: off: %s", rule.Name, v.lacks)
		case v.tried:
			t.Logf("orb8-feature: rule %s: works", rule.Name)
		default:
			t.Logf("rule %s was not tried", rule.Name)
		}
	}
}

// trace tries the rule that flags calls of traced containers.
func (r *rig) trace(t *testing.T, c *container) {
	const bit, rule = 0, "rule seccomp_denied"
	selection, err := probe.NewSelection()
	must(t, err)
	t.Cleanup(func() { _ = selection.Close() })
	var mu sync.Mutex
	var flagged []string
	p := syscall.New(syscall.Config{
		Selection: selection, Bit: bit, Losses: &r.losses, Clock: probe.NewClock(),
		Apply: func(e *syscall.Event) {
			mu.Lock()
			defer mu.Unlock()
			for _, name := range r.engine.Flags(&e.Call) {
				flagged = append(flagged, syscalls.Name(e.ABI, e.Number)+": "+name)
			}
		},
	})
	must(t, p.Tell(bit, syscall.Wanted{PerSecond: 1 << 30}))
	must(t, selection.Add(probetest.CgroupID(t, c.cgroup), bit))
	probetest.Start(t, p, rule+": off")
	probetest.Run(t, p)
	for _, deed := range []string{"nothing", "seccomp-deny"} {
		if res, err := c.do(deed); err != nil || !res.Is("") {
			t.Errorf("%s: %+v, %v", deed, res, err)
		}
	}
	must(t, p.Collect())
	mu.Lock()
	defer mu.Unlock()
	if d := gocmp.Diff([]string{"getsid: seccomp_denied"}, flagged); d != "" {
		t.Errorf("flagged calls (-want +got):\n%s", d)
	}
	probetest.Works(t, rule)
}
