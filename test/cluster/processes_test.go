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
	"github.com/Ignoramuss/orb8/test/cluster/trouble/cases"
)

// startedProcess is a step of a process as far as the tests compare it.
type startedProcess struct {
	Step                         orb8v1.ProcessStep
	Executable, Called, Previous string
	Arguments                    string
	Parent                       string // its arguments
	ExitCode                     uint32
}

// TestTraceExec looks at what `orb8 trace exec` tells of a shell that a pod starts.
func TestTraceExec(t *testing.T) {
	l := shared
	since := time.Now()
	p := l.troublePods(t, map[string]corev1.PodSpec{"starter": l.troubleSpec(t, l.nodes[0])})["starter"]
	deed := []string{"spawn", "/bin/sh", "-c", "sleep 0; exit 3", "sh", "--password=open-sesame"}
	if o, err := l.deed(t.Context(), p, deed...); err != nil || o.Status != 1 || !strings.Contains(o.Output, "exit status 3") {
		t.Fatalf("%+v, %v", o, err)
	}
	shell := "/bin/sh -c sleep 0; exit 3 sh --password=***"
	spawn := "/trouble " + strings.Join(deed[:len(deed)-1], " ") + " --password=***"
	want := []startedProcess{
		{Step: orb8v1.ProcessStep_PROCESS_STEP_EXEC, Executable: cases.Self, Called: cases.Self, Previous: cases.Self, Arguments: spawn, Parent: "/trouble serve"},
		{Step: orb8v1.ProcessStep_PROCESS_STEP_EXEC, Executable: cases.Busybox, Called: "/bin/sh", Previous: cases.Self, Arguments: shell, Parent: spawn},
		{Step: orb8v1.ProcessStep_PROCESS_STEP_EXEC, Executable: cases.Busybox, Called: "/proc/self/exe", Previous: cases.Busybox, Arguments: "sleep 0", Parent: shell},
		{Step: orb8v1.ProcessStep_PROCESS_STEP_EXIT, Executable: cases.Busybox, Called: "/proc/self/exe", Arguments: "sleep 0", Parent: shell},
		{Step: orb8v1.ProcessStep_PROCESS_STEP_EXIT, Executable: cases.Busybox, Called: "/bin/sh", Arguments: shell, Parent: spawn, ExitCode: 3},
		{Step: orb8v1.ProcessStep_PROCESS_STEP_EXIT, Executable: cases.Self, Called: cases.Self, Arguments: spawn, Parent: "/trouble serve", ExitCode: 1},
	}
	eventually(t, 10*time.Second, func() error {
		out, err := l.cli(t.Context(), "trace", "exec", "-n", l.namespace, "--pod", p.Name, "--exits", "-o", "json", "--since", since.Format(time.RFC3339Nano))
		if err != nil {
			return err
		}
		if strings.Contains(string(out), "open-sesame") {
			t.Fatal("a password is shown")
		}
		events, err := parseEvents(out)
		if err != nil {
			return err
		}
		if d := gocmp.Diff(want, l.stepsOf(t, events, p, spawn)); d != "" {
			return fmt.Errorf("(-want +got):\n%s", d)
		}
		return nil
	})
}

// stepsOf are those of a process and of what it starts.
func (l *lab) stepsOf(t *testing.T, events []*orb8v1.Event, p *pod, arguments string) []startedProcess {
	t.Helper()
	var all []startedProcess
	for _, e := range events {
		s := e.GetProcess()
		chain := append([]*orb8v1.ProcessInfo{s.GetProcess()}, s.GetAncestors()...)
		if !slices.ContainsFunc(chain, func(i *orb8v1.ProcessInfo) bool { return joinedArguments(i) == arguments }) {
			continue
		}
		if len(chain) > 1 && joinedArguments(chain[0]) == joinedArguments(chain[1]) {
			continue // the Go runtime tries whether it can fork in a new way
		}
		if d := gocmp.Diff(p.identity(), identityOf(s.GetWorkload())); d != "" {
			t.Errorf("%s (-want +got):\n%s", joinedArguments(s.GetProcess()), d)
		}
		exe := s.GetProcess().GetExecutable()
		step := startedProcess{
			Step: s.GetStep(), Executable: exe.GetPath(), Called: exe.GetCalled(), Previous: s.GetPreviousExecutable(),
			Arguments: joinedArguments(s.GetProcess()), ExitCode: s.GetExitCode(),
		}
		if len(s.GetAncestors()) > 0 {
			step.Parent = joinedArguments(s.GetAncestors()[0])
		}
		all = append(all, step)
	}
	return all
}

func joinedArguments(p *orb8v1.ProcessInfo) string { return strings.Join(p.GetArguments(), " ") }

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
	eventually(t, 10*time.Second, func() error {
		hooks, err := l.callHooks(t.Context())
		if err == nil && len(hooks[p.Spec.NodeName]) != 0 {
			err = fmt.Errorf("system calls are still traced: %v", hooks)
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
