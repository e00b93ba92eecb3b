// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cluster/clustertest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// TestManyNodes: of three hundred agents each answers or is named with the reason, and no
// more port-forwards are opened at a time than the API server should have to bear. The time
// that a node has does not begin before its turn.
func TestManyNodes(t *testing.T) {
	const n, hanging, dead = 300, 5, 7
	s := newServer(t)
	for i := range n {
		node := fmt.Sprintf("n%03d", i)
		switch {
		case i < hanging:
			a := newAgent(t, node)
			a.hang = true
			s.Set(clustertest.AgentPod("agent-"+node, node), a.dial)
		case i < hanging+dead:
			s.Set(clustertest.AgentPod("agent-"+node, node), nil)
		default:
			s.Set(clustertest.AgentPod("agent-"+node, node), newAgent(t, node, at(node, int64(i), uint64(i))).dial)
		}
	}
	f := newFleet(t, connect(t, s), 5*time.Second)
	ctx := testwait.Context(t)
	answers, err := f.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, a := range answers {
		if a.Err == nil && a.Value.GetNodeName() != a.Agent.Node {
			t.Errorf("the answer of %s is %s's", a.Agent.Node, a.Value.GetNodeName())
		}
		if a.Err != nil {
			got[Reason(a.Err)]++
		} else {
			got["well"]++
		}
	}
	want := map[string]int{"well": n - hanging - dead, "no answer in time": hanging, "port 9090 of the pod: connection refused": dead}
	for reason, count := range want {
		if got[reason] != count {
			t.Errorf("%d nodes: %s, want %d; all: %v", got[reason], reason, count, got)
		}
	}
	if most := s.Most(); most > atOnce {
		t.Errorf("%d port-forwards were opened at once", most)
	}
	// The flow table of all, most bytes first.
	stream, err := f.Observe(ctx, &orb8v1.ObserveRequest{Snapshot: true, Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW}})
	if err != nil {
		t.Fatal(err)
	}
	flows, away, last := 0, 0, uint64(n)
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case ev.GetFlow() != nil:
			if flows++; ev.GetFlow().GetTotal().GetTxBytes() > last {
				t.Errorf("%d bytes after %d", ev.GetFlow().GetTotal().GetTxBytes(), last)
			}
			last = ev.GetFlow().GetTotal().GetTxBytes()
		case ev.GetNodeStatus().GetState() == orb8v1.NodeState_NODE_STATE_UNAVAILABLE:
			away++
		}
	}
	if flows != n-hanging-dead || away != hanging+dead {
		t.Errorf("%d flows, %d nodes away; want %d and %d", flows, away, n-hanging-dead, hanging+dead)
	}
}

// TestProxies: where something on the way refuses WebSockets, SPDY is tried (case C3); where
// a port-forward ends at once, the reason is said.
func TestProxies(t *testing.T) {
	for _, code := range []int{http.StatusForbidden, http.StatusBadRequest, http.StatusNotImplemented} {
		s := newServer(t)
		s.Proxy(code)
		s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1").dial)
		answers, err := newFleet(t, connect(t, s), 5*time.Second).Status(testwait.Context(t))
		if err != nil || answers[0].Err != nil {
			t.Errorf("with a proxy that says %d: %v, %v", code, err, answers[0].Err)
		}
	}
	s := newServer(t)
	s.OneStream()
	s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1").dial)
	answers, err := newFleet(t, connect(t, s), 5*time.Second).Status(testwait.Context(t))
	if err != nil || answers[0].Err == nil || Reason(answers[0].Err) == "" || strings.Contains(Reason(answers[0].Err), "EOF") {
		t.Errorf("with a proxy that ends streams: %v, %q", err, Reason(answers[0].Err))
	}
}

// TestLogins: kubeconfigs whose users log in by OIDC work (case C1); of logins that nobody
// has any more it is said what takes their place.
func TestLogins(t *testing.T) {
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	id := part(map[string]string{"alg": "none"}) + "." + part(map[string]any{"exp": time.Now().Add(time.Hour).Unix()}) + ".c2ln"
	s := newServer(t)
	s.Accept(id)
	s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1").dial)
	with := func(provider string, config map[string]string) (*Cluster, error) {
		var text map[string]any
		if err := json.Unmarshal(s.Kubeconfig(), &text); err != nil {
			t.Fatal(err)
		}
		text["users"] = []any{map[string]any{"name": "u", "user": map[string]any{"auth-provider": map[string]any{"name": provider, "config": config}}}}
		out, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(path, out, 0o600); err != nil {
			t.Fatal(err)
		}
		return Connect(Options{Kubeconfig: path})
	}
	c, err := with("oidc", map[string]string{"id-token": id, "idp-issuer-url": "https://login.example.com", "client-id": "kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	answers, err := newFleet(t, c, 5*time.Second).Status(testwait.Context(t))
	if err != nil || answers[0].Err != nil {
		t.Errorf("by OIDC: %v, %+v", err, answers)
	}
	for provider, want := range map[string]string{"gcp": "gke-gcloud-auth-plugin", "azure": "kubelogin"} {
		_, err := with(provider, nil)
		if bad := (&ConfigError{}); !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to say %s", provider, err, want)
		}
	}
}
