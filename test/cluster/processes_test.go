// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// ran is what is told of a process, as far as the tests compare it.
type ran struct {
	Pod                   identity
	Step                  orb8v1.ProcessStep
	Executable, Arguments string
	First                 bool // it is its container's first process
	ExitCode, Signal      uint32
}

// TestTraceExec looks at what `orb8 trace exec` tells of a pod from its first process to
// its last.
func TestTraceExec(t *testing.T) {
	l := shared
	begun := time.Now()
	p := l.testPod(t, "starter", l.podSpec(l.nodes[0], "wait"))
	if out, err := l.exec(t.Context(), p, "", "nonsense", "--password=open-sesame"); err == nil {
		t.Fatalf("netpeer takes nonsense: %s", out)
	}
	const exec, exit = orb8v1.ProcessStep_PROCESS_STEP_EXEC, orb8v1.ProcessStep_PROCESS_STEP_EXIT
	const wrong = "/netpeer nonsense --password=***"
	want := []ran{
		{Pod: p.identity(), Step: exec, Executable: "/netpeer", Arguments: "/netpeer wait", First: true},
		{Pod: p.identity(), Step: exec, Executable: "/netpeer", Arguments: wrong},
		{Pod: p.identity(), Step: exit, Executable: "/netpeer", Arguments: wrong, ExitCode: 2},
	}
	l.expectRan(t, begun, p, want)
	l.deletePod(t, p.Name)
	last := ran{Pod: p.identity(), Step: exit, Executable: "/netpeer", Arguments: "/netpeer wait", First: true}
	eventually(t, 30*time.Second, func() error {
		got, err := l.processes(t, begun, p)
		if err != nil {
			return err
		}
		n := len(got)
		if n <= len(want) {
			return fmt.Errorf("%d steps: the pod's end is not there", n)
		}
		end := got[n-1]
		end.ExitCode, end.Signal = 0, 0 // by a signal, or for one
		if d := gocmp.Diff(last, end); d != "" {
			return fmt.Errorf("the last step (-want +got):\n%s", d)
		}
		return nil
	})
}

func (l *lab) expectRan(t *testing.T, since time.Time, p *pod, want []ran) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		got, err := l.processes(t, since, p)
		if err != nil {
			return err
		}
		if d := gocmp.Diff(want, got); d != "" {
			return fmt.Errorf("%s (-want +got):\n%s", p.Name, d)
		}
		return nil
	})
}

// processes asks `orb8 trace exec` for what a pod did since a time: what runs the pod's
// executable.
func (l *lab) processes(t *testing.T, since time.Time, p *pod) ([]ran, error) {
	out, err := l.cli(t.Context(), "trace", "exec", "-n", p.Namespace, "--pod", p.Name, "--executable", "netpeer",
		"--exits", "-o", "json", "--since", since.Format(time.RFC3339Nano))
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(out), "open-sesame") {
		t.Fatal("a password is shown")
	}
	events, err := parseEvents(out)
	if err != nil {
		return nil, err
	}
	events = slices.DeleteFunc(events, func(e *orb8v1.Event) bool { return e.GetProcess() == nil })
	all := make([]ran, 0, len(events))
	for _, e := range events {
		x := e.GetProcess()
		if e.GetNodeName() != p.Spec.NodeName {
			return nil, fmt.Errorf("a process of %s is on node %s, want %s", p.Name, e.GetNodeName(), p.Spec.NodeName)
		}
		all = append(all, ran{
			Pod: identityOf(x.GetWorkload()), Step: x.GetStep(), Executable: x.GetProcess().GetExecutable().GetPath(),
			Arguments: strings.Join(x.GetProcess().GetArguments(), " "), First: x.GetProcess().GetPidInNamespace() == 1,
			ExitCode: x.GetExitCode(), Signal: x.GetSignal(),
		})
	}
	return all, nil
}
