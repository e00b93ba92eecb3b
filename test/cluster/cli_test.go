// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// statuses asks `orb8 status -o json`, which prints one line for each agent.
func (l *lab) statuses(ctx context.Context) (map[string]*orb8v1.AgentStatus, error) {
	out, err := l.cli(ctx, "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	all := map[string]*orb8v1.AgentStatus{}
	for text := range strings.Lines(string(out)) {
		s := &orb8v1.AgentStatus{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), s); err != nil {
			return nil, fmt.Errorf("%w: %s", err, text)
		}
		all[s.GetNodeName()] = s
	}
	return all, nil
}

func TestStatus(t *testing.T) {
	// An agent that has lost the API server, as in another test, is well again
	// some time after that.
	eventually(t, time.Minute, func() error {
		all, err := shared.statuses(t.Context())
		if err != nil {
			return err
		}
		if d := cmp.Diff(slices.Sorted(slices.Values(shared.nodes)), slices.Sorted(maps.Keys(all))); d != "" {
			return fmt.Errorf("nodes (-cluster +status):\n%s", d)
		}
		var errs []error
		for node, s := range all {
			if k := s.GetKubernetes(); !s.GetHealthy() || !k.GetEnabled() || !k.GetSynced() || k.GetDegraded() != "" {
				errs = append(errs, fmt.Errorf("%s: healthy %v %q, Kubernetes %v", node, s.GetHealthy(), s.GetHealthMessage(), k))
			}
			for _, p := range s.GetProbes() {
				if p.GetState() == orb8v1.ProbeState_PROBE_STATE_OFF {
					errs = append(errs, fmt.Errorf("%s: probe %s: %v %s", node, p.GetName(), p.GetState(), p.GetReason()))
				}
			}
			if s.GetEventsDropped() != 0 {
				errs = append(errs, fmt.Errorf("%s has lost %d records: %v", node, s.GetEventsDropped(), s.GetLosses()))
			}
		}
		return errors.Join(errs...)
	})
}

// TestServiceFilter asks for a connection by the Service that it went to.
func TestServiceFilter(t *testing.T) {
	l := shared
	res := l.netpeer(t, l.client1, "", "tcp", "-send", "3000", "-receive", "4000", l.clusterIP(t.Context(), "far", 4))
	for flag, want := range map[string]bool{"far": true, l.namespace + "/far": true, "near": false, "no-such/far": false} {
		eventually(t, 10*time.Second, func() error {
			out, err := l.cli(t.Context(), "flows", "-o", "json", "--limit", "0", "-A", "--service", flag)
			if err != nil {
				return err
			}
			events, err := parseEvents(out)
			if err != nil {
				return err
			}
			found := slices.ContainsFunc(events, func(e *orb8v1.Event) bool { return isFrom(e.GetFlow(), res) })
			if found != want {
				return fmt.Errorf("--service %s: found %v, want %v", flag, found, want)
			}
			return nil
		})
	}
}

// TestFilters asks for one connection between two workloads in several ways.
func TestFilters(t *testing.T) {
	l := shared
	args, tx, rx := l.transferTo(l.far, 70)
	res := l.netpeer(t, l.client1, "", args...)
	l.expectBoth(t, l.client1, l.far, res, tx, rx)
	const client, server = 1, 2 // whose rows are wanted
	cases := []struct {
		flags string
		want  int
	}{
		{"-A", client | server},
		{"-A --pod client-1", client},
		{"-A --workload far", server},
		{"-A --workload StatefulSet/far", server},
		{"-A --selector app=far", server},
		{"-A --node " + l.client1.Spec.NodeName, client},
		{"--namespace " + l.namespace, client | server},
		{"--namespace no-such", 0},
		{"-A --not --pod client-1", server},
		{"-A --service far", 0},
	}
	for _, c := range cases {
		t.Run(c.flags, func(t *testing.T) {
			out, err := l.cli(t.Context(), append([]string{"flows", "-o", "json", "--limit", "0"}, strings.Fields(c.flags)...)...)
			if err != nil {
				t.Fatal(err)
			}
			events, err := parseEvents(out)
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			for _, e := range events {
				switch f := e.GetFlow(); {
				case isFrom(f, res):
					got |= client
				case isTo(f, res, route{}):
					got |= server
				}
			}
			if got != c.want {
				t.Errorf("rows %b, want %b (1: the client's, 10: the server's)", got, c.want)
			}
		})
	}
}

// TestTrace watches a Service's connection as it happens.
func TestTrace(t *testing.T) {
	l := shared
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	type answer struct {
		out []byte
		err error
	}
	done := make(chan answer, 1)
	go func() {
		out, err := l.cli(ctx, "trace", "network", "-o", "json", "--duration", "8s", "--namespace", l.namespace)
		done <- answer{out, err}
	}()
	time.Sleep(3 * time.Second)
	res := l.netpeer(t, l.client1, "", "tcp", "-send", "12345", "-receive", "54321", l.clusterIP(t.Context(), "far", 4))
	a := <-done
	if a.err != nil {
		t.Fatal(a.err)
	}
	events, err := parseEvents(a.out)
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	found := false
	for _, e := range events {
		f := e.GetFlow()
		if c := e.GetConnection(); c != nil {
			f = c.GetFlow()
		}
		if f == nil {
			continue
		}
		if e.GetTimeNs() < last {
			t.Errorf("events are not in the order of time: %d after %d", e.GetTimeNs(), last)
		}
		last = e.GetTimeNs()
		if !isFrom(f, res) || f.GetTotal().GetTxBytes() == 0 {
			continue
		}
		found = true
		want := seen{Local: l.client1.identity(), Remote: with(l.far.identity(), "far"), TxBytes: 12345, RxBytes: 54321, Role: "client"}
		if d := cmp.Diff(want, seenIn(f)); d != "" && f.GetEvent() == orb8v1.FlowEvent_FLOW_EVENT_CLOSE {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	if !found {
		t.Error(fmt.Sprint("the connection is not among ", len(events), " events"))
	}
}
