// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// callTrace is an `orb8 trace syscall` that goes on.
type callTrace struct {
	cmd    *exec.Cmd
	events []*orb8v1.Event // to be read after wait
	begun  chan struct{}
	done   chan error
}

// traceCalls begins a trace of a pod's calls and waits until the pod is traced.
func (l *lab) traceCalls(t *testing.T, p *pod, flags ...string) *callTrace {
	t.Helper()
	args := append([]string{"trace", "syscall", "-n", l.namespace, "--pod", p.Name, "-o", "json",
		"--kubeconfig", l.kubeconfig, "--orb8-namespace", l.agents}, flags...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	c := &callTrace{cmd: exec.CommandContext(ctx, l.orb8, args...), begun: make(chan struct{}), done: make(chan error, 1)}
	var stderr strings.Builder
	c.cmd.Stderr = &stderr
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		err := c.read(lines, p.Name)
		if e := c.cmd.Wait(); err == nil && e != nil {
			err = fmt.Errorf("%w: %s", e, &stderr)
		}
		c.done <- err
	}()
	select {
	case <-c.begun:
	case err := <-c.done:
		t.Fatalf("orb8 %s ended before it traced anything: %v", strings.Join(args, " "), err)
	}
	return c
}

func (c *callTrace) read(lines *bufio.Scanner, name string) error {
	begun := false
	for lines.Scan() {
		e := &orb8v1.Event{}
		if err := protojson.Unmarshal(lines.Bytes(), e); err != nil {
			return fmt.Errorf("%w: %s", err, lines.Bytes())
		}
		c.events = append(c.events, e)
		traced := slices.ContainsFunc(e.GetSyscallTargets().GetWorkloads(), func(w *orb8v1.Workload) bool { return w.GetPodName() == name })
		if traced && !begun {
			begun = true
			close(c.begun)
		}
	}
	return lines.Err()
}

// wait returns what the trace has told, at its end.
func (c *callTrace) wait(t *testing.T) []*orb8v1.Event {
	t.Helper()
	if err := <-c.done; err != nil {
		t.Fatal(err)
	}
	return c.events
}

// TestTraceSyscalls counts and lists the calls of a pod that makes a known number of
// them, at the same time.
func TestTraceSyscalls(t *testing.T) {
	l := shared
	const n = 300
	specs := map[string]corev1.PodSpec{"caller": l.troubleSpec(t, l.nodes[0])}
	p := l.troublePods(t, specs)["caller"]
	sums := l.traceCalls(t, p, "--summary", "--duration", "5s")
	list := l.traceCalls(t, p, "--call", "getppid,openat,readv,getsid", "--duration", "5s")
	l.onlyTracedOn(t, p.Spec.NodeName)
	for _, deed := range [][]string{{"calls", fmt.Sprint(n)}, {"seccomp-deny"}} {
		if o, err := l.deed(t.Context(), p, deed...); err != nil || !o.Is("") {
			t.Fatalf("%s: %+v, %v", deed, o, err)
		}
	}
	l.checkSums(t, sums.wait(t), p, n)
	l.checkCalls(t, list.wait(t), p, n)
	l.nothingTraced(t)
}

// TestTraceSyscallsToCome: a pod that is made while it is traced, with all that it calls from
// then on, and its end.
func TestTraceSyscallsToCome(t *testing.T) {
	l := shared
	const n = 50
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := l.cli(t.Context(), "trace", "syscall", "-n", l.namespace, "--pod", "late*", "--call", "getppid,exit_group",
			"-o", "json", "--duration", "20s")
		done <- result{out, err}
	}()
	p := l.troublePods(t, map[string]corev1.PodSpec{"late": l.troubleSpec(t, l.nodes[1])})["late"]
	if o, err := l.deed(t.Context(), p, "calls", fmt.Sprint(n)); err != nil || !o.Is("") {
		t.Fatalf("%+v, %v", o, err)
	}
	l.deletePod(t, p.Name)
	var r result
	select {
	case r = <-done:
	case <-time.After(40 * time.Second):
		t.Fatal("the trace does not end by itself")
	}
	if r.err != nil {
		t.Fatal(r.err)
	}
	events, err := parseEvents(r.out)
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]int{}
	for _, e := range events {
		if c := e.GetSyscall(); c != nil {
			// The runtime makes calls too, within the container, before it becomes the program.
			if c.GetProcess().GetCommand() == "trouble" {
				calls[c.GetName()]++
			}
			if who := identityOf(c.GetWorkload()); who != p.identity() {
				t.Errorf("%s is of %v, want %v", c.GetName(), who, p.identity())
			}
		}
		if e.GetLostEvents() != nil {
			t.Errorf("lost: %v", e)
		}
	}
	if calls["getppid"] != n || calls["exit_group"] < 1 {
		t.Errorf("calls %v, want %d of getppid and the end", calls, n)
	}
	l.nothingTraced(t)
}

// TestTraceContainers: of a pod with two containers that call alike, one alone, and both.
func TestTraceContainers(t *testing.T) {
	l := shared
	spec := l.troubleSpec(t, l.nodes[0])
	second := l.container("second")
	second.Image, second.Command = l.trouble, []string{"/bin/sh", "-c", "while :; do /trouble calls 10; sleep 1; done"}
	spec.Containers = append(spec.Containers, second)
	p := l.troublePods(t, map[string]corev1.PodSpec{"double": spec})["double"]
	ids := map[string]string{}
	for _, c := range p.Status.ContainerStatuses {
		_, ids[c.Name], _ = strings.Cut(c.ContainerID, "://")
	}
	one := l.traceCalls(t, p, "--container", ids["second"], "--call", "getppid", "--duration", "4s")
	both := l.traceCalls(t, p, "--call", "getppid", "--duration", "4s")
	if o, err := l.deed(t.Context(), p, "calls", "30"); err != nil || !o.Is("") {
		t.Fatalf("%+v, %v", o, err)
	}
	count := func(events []*orb8v1.Event) map[string]int {
		n := map[string]int{}
		for _, e := range events {
			if c := e.GetSyscall(); c != nil && c.GetProcess().GetCommand() == "trouble" {
				n[c.GetWorkload().GetContainerId()]++
			}
			if e.GetLostEvents() != nil {
				t.Errorf("lost: %v", e)
			}
		}
		return n
	}
	if n := count(one.wait(t)); len(n) != 1 || n[ids["second"]] < 20 {
		t.Errorf("getppid by container: %v, want some of %s alone", n, ids["second"])
	}
	if n := count(both.wait(t)); len(n) != 2 || n[ids["second"]] < 20 || n[ids[p.Spec.Containers[0].Name]] != 30 {
		t.Errorf("getppid by container: %v, want some of %s and 30 of the other", n, ids["second"])
	}
	l.nothingTraced(t)
}

// nothingTraced waits until no node has anything attached.
func (l *lab) nothingTraced(t *testing.T) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		hooks, err := l.callHooks(t.Context())
		for node := range hooks {
			if err == nil && len(hooks[node]) != 0 {
				err = fmt.Errorf("system calls are still traced on %s: %v", node, hooks[node])
			}
		}
		return err
	})
}

// callHooks are those that trace system calls, by node.
func (l *lab) callHooks(ctx context.Context) (map[string][]string, error) {
	all, err := l.statuses(ctx)
	if err != nil {
		return nil, err
	}
	hooks := map[string][]string{}
	for node, s := range all {
		for _, p := range s.GetProbes() {
			if p.GetName() == "syscall" {
				hooks[node] = p.GetHooks()
			}
		}
	}
	return hooks, nil
}

// onlyTracedOn checks that no other node than one has anything attached.
func (l *lab) onlyTracedOn(t *testing.T, node string) {
	t.Helper()
	hooks, err := l.callHooks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.nodes {
		if got := len(hooks[n]) > 0; got != (n == node) {
			t.Errorf("hooks on %s for a trace on %s: %v", n, node, hooks[n])
		}
	}
}

// checkSums compares the last counts.
func (l *lab) checkSums(t *testing.T, events []*orb8v1.Event, p *pod, n uint64) {
	t.Helper()
	var last *orb8v1.SyscallSummary
	for _, e := range events {
		if s := e.GetSyscallSummary(); s.GetWorkload().GetContainerId() == containerID(p) {
			last = s
		}
		if e.GetLostEvents() != nil {
			t.Errorf("lost: %v", e)
		}
	}
	if d := gocmp.Diff(p.identity(), identityOf(last.GetWorkload())); d != "" {
		t.Errorf("counts are of (-want +got):\n%s", d)
	}
	type count struct{ Calls, Errors uint64 }
	got := map[string]count{}
	for _, c := range last.GetCalls() {
		got[c.GetName()] = count{c.GetCalls(), c.GetErrors()}
		refused := c.GetErrors() == c.GetCalls() // which takes no time if seccomp does
		if c.GetTimeNs() <= 0 && !refused || c.GetMaxNs() > c.GetTimeNs() {
			t.Errorf("time of %v", c)
		}
	}
	for name, want := range map[string]count{"getppid": {n, 0}, "readv": {n, 0}} {
		if got[name] != want {
			t.Errorf("%s: %+v, want %+v", name, got[name], want)
		}
	}
	if c := got["openat"]; c.Errors < n || c.Calls <= c.Errors { // the Go runtime opens files, too
		t.Errorf("openat: %+v, want %d errors and more calls", c, n)
	}
}

// checkCalls counts the calls that were listed.
func (l *lab) checkCalls(t *testing.T, events []*orb8v1.Event, p *pod, n int) {
	t.Helper()
	got := map[string]int{}
	for _, e := range events {
		c := e.GetSyscall()
		if e.GetLostEvents() != nil {
			t.Errorf("lost: %v", e)
		}
		if c == nil {
			continue
		}
		if who := identityOf(c.GetWorkload()); who != p.identity() {
			t.Errorf("%s is of %v, want %v", c.GetName(), who, p.identity())
		}
		if c.GetName() == "openat" && !strings.Contains(fmt.Sprint(c.GetArguments()), "/no/such/file") {
			continue
		}
		result := c.GetError()
		switch {
		case c.GetRefused():
			result = "refused " + strings.Join(c.GetRules(), ",")
		case result == "" && c.GetReturnValue() > 0:
			result = "ok"
		}
		got[c.GetName()+" "+result]++
	}
	want := map[string]int{"getppid ok": n, "openat ENOENT": n, "readv ok": n, "getsid refused seccomp_denied": 1}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("calls (-want +got):\n%s", d)
	}
}
