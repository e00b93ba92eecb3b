// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// page is what /metrics answers.
func page(t *testing.T, e *Exporter) (code int, body string) {
	t.Helper()
	s := NewServer(e, nil, nil, func() error { return nil }, func() error { return nil }, slog.New(slog.DiscardHandler))
	w := httptest.NewRecorder()
	s.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	text, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(text)
}

// FuzzNames: a record of any command can be marshalled, and its workload, named by the
// command, can be scraped beside others.
func FuzzNames(f *testing.F) {
	f.Add([]byte("curl"))
	f.Add([]byte("abcdefghij\u65e5\xe6\x9c"))
	f.Add([]byte("\xff\xfebad\x1b]0;x\x07"))
	f.Add([]byte("\x00\xff"))
	f.Fuzz(func(t *testing.T, command []byte) {
		s := flowtest.TCP(1, 10, 20)
		s.Comm = record.Comm{}
		copy(s.Comm[:15], command)
		r := flowtest.Record(flow.EventOpen, s, s.Total)
		r.Owner = &workload.Identity{Kind: workload.KindProcess, Name: s.Comm.String(), CgroupID: 5}
		other := flowtest.Record(flow.EventOpen, flowtest.UDP(2, 30, 40), flow.Counters{TxBytes: 30, TxPackets: 1})
		other.Owner = &workload.Identity{Namespace: "shop", Kind: "Deployment", Name: "web"}
		for _, m := range []proto.Message{flows.Event(r, "node-a"), kind.Process(&r.Header)} {
			if _, err := proto.Marshal(m); err != nil {
				t.Errorf("%q: %v", command, err)
			}
			if _, err := protojson.Marshal(m); err != nil {
				t.Errorf("%q: %v", command, err)
			}
		}
		m := NewWorkloads(false, 1000, new(loss.Counters))
		m.Observe(r)
		m.Observe(other)
		code, body := page(t, exporterOf(m, *r, *other))
		if code != http.StatusOK || !strings.Contains(body, `orb8_network_bytes_total{direction="egress",namespace="shop",protocol="UDP",workload="web",workload_kind="Deployment"} 30`) {
			t.Errorf("%q: status %d\n%s", command, code, body)
		}
		if n := strings.Count(body, "orb8_network_bytes_total{"); n != 4 {
			t.Errorf("%q: %d series of bytes, want 4\n%s", command, n, body)
		}
	})
}

// A series that Prometheus' library refuses costs itself, not the page.
func TestBadSeriesCostsItself(t *testing.T) {
	m := NewWorkloads(false, 1000, new(loss.Counters))
	for _, name := range []string{"bad\xff", "web"} {
		r := flowtest.Record(flow.EventOpen, flowtest.UDP(2, 30, 40), flow.Counters{TxBytes: 30, TxPackets: 1})
		r.Owner = &workload.Identity{Namespace: "shop", Kind: "Deployment", Name: name}
		m.Observe(r)
	}
	code, body := page(t, exporterOf(m))
	if code != http.StatusOK || !strings.Contains(body, `workload="web"`) || !strings.Contains(body, "orb8_agent_workload_series 10") || !strings.Contains(body, "go_goroutines") {
		t.Errorf("status %d\n%s", code, body)
	}
}
