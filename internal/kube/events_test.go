// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

// TestEvents: an Event is written of the pod, a refusal is counted, and who tells does not
// wait.
func TestEvents(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme).UniversalDeserializer()
	got := make(chan *corev1.Event, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		if req.Method != http.MethodPost || req.URL.Path == "/api/v1/namespaces/forbidden/events" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		o, _, err := decoder.Decode(body, nil, nil)
		e, ok := o.(*corev1.Event)
		if err != nil || !ok || req.URL.Path != "/api/v1/namespaces/shop/events" {
			t.Errorf("%s: %T, %v", req.URL.Path, o, err)
		}
		got <- e
		w.WriteHeader(http.StatusCreated)
	}))
	defer server.Close()
	clients, err := ConnectTo(&rest.Config{Host: server.URL}, "test")
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{Clients: clients, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 0)
	c.Tell(&PodEvent{Namespace: "forbidden", Pod: "p", Reason: "Mount"})
	c.Tell(&PodEvent{
		Namespace: "shop", Pod: "web", UID: "u1", Reason: "ReverseShell", Time: at, Count: 3,
		Message: "a shell\x1b[31m" + strings.Repeat("é", maxMessage),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.writeEvents(ctx); close(done) }()
	e := testwait.Receive(t, "an Event", got)
	if o := e.InvolvedObject; o.Kind != "Pod" || o.Namespace != "shop" || o.Name != "web" || o.UID != "u1" {
		t.Errorf("it is of %+v", o)
	}
	if e.Reason != "ReverseShell" || e.Type != corev1.EventTypeWarning || e.Count != 3 || !e.LastTimestamp.Time.Equal(at) ||
		e.Source != (corev1.EventSource{Component: "orb8", Host: "n1"}) || e.GenerateName == "" {
		t.Errorf("%+v", e)
	}
	if m := e.Message; len(m) > maxMessage || !strings.HasPrefix(m, "a shell\uFFFD[31m\u00e9") || !strings.HasSuffix(m, "\u00e9…") {
		t.Errorf("message of %d bytes: %.40q", len(m), m)
	}
	if n := c.Untold(); n != 1 {
		t.Errorf("%d untold, want the one that was refused", n)
	}
	cancel()
	testwait.Receive(t, "the end", done)
	before := c.Untold() // the last answer may have come too late
	for range eventQueue + 2 {
		c.Tell(&PodEvent{Namespace: "shop", Pod: "web"})
	}
	if n := c.Untold(); n != before+2 {
		t.Errorf("%d untold after %d, want two more that found no room", n, before)
	}
}
