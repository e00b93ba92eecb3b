// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

// apiServer is as much of an API server as this package asks for: list and watch
// with resource versions, pages (but for resource version 0, which is answered from
// memory, where a limit is ignored), streamed lists, field selectors; GET of metadata; RBAC;
// it can be stopped and started at the same address. With protobuf it answers lists in that.
type apiServer struct {
	t     *testing.T
	addr  string
	dials atomic.Int64 // of its clients, also while it is shut

	mu      sync.Mutex
	http    *http.Server
	streams bool // streamed lists (1.32 and later)
	rv      int
	oldest  int // events before it are expired
	objects map[string]map[string]obj
	events  map[string][]event
	wake    chan struct{}
	deny    map[string]bool // "list pods"
	gets    []string
	lists   int
	limits  []string       // of the lists that were answered in pages
	listed  map[string]int // by resource
	// protobuf is what lists are answered with, by resource; JSON where it has none.
	protobuf map[string]func(w http.ResponseWriter)
	stop     chan struct{}
	held     map[string]chan struct{} // by resource
}

type obj = map[string]any

type event struct {
	rv     int
	Type   string `json:"type"`
	Object obj    `json:"object"`
	before obj
}

func newAPIServer(t *testing.T) *apiServer {
	a := &apiServer{
		t: t, rv: 10, objects: make(map[string]map[string]obj), events: make(map[string][]event),
		wake: make(chan struct{}), deny: make(map[string]bool), held: make(map[string]chan struct{}), addr: "127.0.0.1:0",
		listed: make(map[string]int), protobuf: make(map[string]func(http.ResponseWriter)),
	}
	a.start()
	t.Cleanup(a.shut)
	return a
}

func (a *apiServer) start() {
	a.t.Helper()
	l, err := net.Listen("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.addr = l.Addr().String()
	a.mu.Lock()
	a.stop = make(chan struct{})
	a.http = &http.Server{Handler: http.HandlerFunc(a.serve)}
	srv := a.http
	a.mu.Unlock()
	go srv.Serve(l)
}

func (a *apiServer) shut() {
	a.mu.Lock()
	srv := a.http
	a.http = nil
	if srv != nil {
		close(a.stop)
	}
	a.mu.Unlock()
	if srv != nil {
		srv.Close()
	}
}

// clients speak to this server.
func (a *apiServer) clients() *Clients {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		a.dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	c, err := ConnectTo(&rest.Config{Host: "http://" + a.addr, Dial: dial}, "test")
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// put adds or changes an object; resource is "pods", "deployments.apps".
func (a *apiServer) put(resource string, object any) {
	a.t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		a.t.Fatal(err)
	}
	var o obj
	if err := json.Unmarshal(text, &o); err != nil {
		a.t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rv++
	m := o["metadata"].(obj)
	m["resourceVersion"] = strconv.Itoa(a.rv)
	key := fmt.Sprint(m["namespace"], "/", m["name"])
	if a.objects[resource] == nil {
		a.objects[resource] = make(map[string]obj)
	}
	kind := "ADDED"
	if a.objects[resource][key] != nil {
		kind = "MODIFIED"
	}
	before := a.objects[resource][key]
	a.objects[resource][key] = o
	a.emit(resource, event{a.rv, kind, o, before})
}

func (a *apiServer) remove(resource, namespace, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rv++
	o := a.objects[resource][namespace+"/"+name]
	delete(a.objects[resource], namespace+"/"+name)
	a.emit(resource, event{a.rv, "DELETED", o, nil})
}

func (a *apiServer) emit(resource string, e event) {
	a.events[resource] = append(a.events[resource], e)
	close(a.wake)
	a.wake = make(chan struct{})
}

func (a *apiServer) allow(what string, yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deny[what] = !yes
}

// hold lets requests for a resource wait until the function that it returns is
// called.
func (a *apiServer) hold(resource string) (release func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	held := make(chan struct{})
	a.held[resource] = held
	return func() { close(held) }
}

// expire makes all resource versions until now too old.
func (a *apiServer) expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rv++
	a.oldest = a.rv
	a.events = make(map[string][]event)
}

// parse splits a path into resource (with group), namespace and name.
func parse(path string) (resource, namespace, name string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	group := ""
	if parts[0] == "apis" {
		group, parts = "."+parts[1], parts[1:]
	}
	parts = parts[2:]
	if len(parts) > 2 && parts[0] == "namespaces" {
		namespace, parts = parts[1], parts[2:]
	}
	if len(parts) > 1 {
		name = parts[1]
	}
	return parts[0] + group, namespace, name
}

func (a *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	resource, namespace, name := parse(r.URL.Path)
	q := r.URL.Query()
	verb := "list"
	if q.Get("watch") != "" {
		verb = "watch"
	}
	if name != "" {
		verb = "get"
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if held := a.held[resource]; held != nil {
		a.mu.Unlock()
		select {
		case <-held:
		case <-r.Context().Done():
		}
		a.mu.Lock()
	}
	if a.deny[verb+" "+resource] {
		short, group, _ := strings.Cut(resource, ".")
		fail(w, 403, "Forbidden", fmt.Sprintf("%s is forbidden: User %q cannot %s resource %q in API group %q at the cluster scope",
			resource, "system:serviceaccount:orb8-system:orb8-agent", verb, short, group))
		return
	}
	switch verb {
	case "get":
		a.gets = append(a.gets, resource+" "+name)
		if o := a.objects[resource][namespace+"/"+name]; o != nil {
			reply(w, obj{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": o["metadata"]})
			return
		}
		fail(w, 404, "NotFound", name+" not found")
	case "list":
		a.list(w, r, resource)
	case "watch":
		if q.Get("sendInitialEvents") != "" && !a.streams {
			fail(w, 422, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
			return
		}
		a.watch(w, r, resource)
	}
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request, resource string) {
	a.lists++
	a.listed[resource+" "+r.URL.Query().Get("fieldSelector")]++
	q := r.URL.Query()
	if answer := a.protobuf[resource]; answer != nil && q.Get("fieldSelector") == running {
		answer(w)
		return
	}
	items := a.selected(resource, q.Get("fieldSelector"))
	m := obj{"resourceVersion": strconv.Itoa(a.rv)}
	if from, _ := strconv.Atoi(q.Get("continue")); from > 0 {
		items = items[from:]
	}
	if limit, _ := strconv.Atoi(q.Get("limit")); limit > 0 && q.Get("resourceVersion") != "0" && len(items) > limit {
		a.limits = append(a.limits, resource)
		from, _ := strconv.Atoi(q.Get("continue"))
		m["continue"] = strconv.Itoa(from + limit)
		items = items[:limit]
	}
	reply(w, obj{"kind": listKind[resource], "apiVersion": apiVersion[resource], "metadata": m, "items": items})
}

func (a *apiServer) selected(resource, selector string) []obj {
	items := []obj{}
	for _, o := range a.objects[resource] {
		if matches(o, selector) {
			items = append(items, o)
		}
	}
	slices.SortFunc(items, func(a, b obj) int {
		return strings.Compare(a["metadata"].(obj)["name"].(string), b["metadata"].(obj)["name"].(string))
	})
	return items
}

func matches(o obj, selector string) bool {
	for _, one := range strings.Split(selector, ",") {
		if node, ok := strings.CutPrefix(one, "spec.nodeName="); ok && o["spec"].(obj)["nodeName"] != node {
			return false
		}
		if name, ok := strings.CutPrefix(one, "metadata.name="); ok && o["metadata"].(obj)["name"] != name {
			return false
		}
		if phase, ok := strings.CutPrefix(one, "status.phase!="); ok && o["status"].(obj)["phase"] == phase {
			return false
		}
	}
	return true
}

// watch is called with a.mu held, and gives it up while it waits.
func (a *apiServer) watch(w http.ResponseWriter, r *http.Request, resource string) {
	q := r.URL.Query()
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	selector := q.Get("fieldSelector")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := json.NewEncoder(w)
	switch {
	case q.Get("sendInitialEvents") != "":
		for _, o := range a.selected(resource, selector) {
			out.Encode(event{Type: "ADDED", Object: o})
		}
		out.Encode(event{Type: "BOOKMARK", Object: obj{
			"kind": strings.TrimSuffix(listKind[resource], "List"), "apiVersion": apiVersion[resource],
			"metadata": obj{
				"resourceVersion": strconv.Itoa(a.rv),
				"annotations":     obj{metav1.InitialEventsAnnotationKey: "true"},
			},
		}})
		from = a.rv
	case from < a.oldest:
		out.Encode(event{Type: "ERROR", Object: status(410, "Expired", "too old resource version")})
		return
	}
	for {
		for _, e := range a.events[resource] {
			if e.rv <= from {
				continue
			}
			if matches(e.Object, selector) {
				out.Encode(e)
			} else if e.before != nil && matches(e.before, selector) {
				out.Encode(event{Type: "DELETED", Object: e.Object}) // it is not selected any more
			}
		}
		from = a.rv
		wake, stop := a.wake, a.stop
		a.mu.Unlock()
		w.(http.Flusher).Flush()
		select {
		case <-wake:
		case <-stop:
			a.mu.Lock()
			return
		case <-r.Context().Done():
			a.mu.Lock()
			return
		}
		a.mu.Lock()
	}
}

var listKind = map[string]string{
	"pods": "PodList", "services": "ServiceList", "nodes": "NodeList",
	"endpointslices.discovery.k8s.io": "EndpointSliceList", "resourceslices.resource.k8s.io": "ResourceSliceList",
}

var apiVersion = map[string]string{
	"pods": "v1", "services": "v1", "nodes": "v1", "endpointslices.discovery.k8s.io": "discovery.k8s.io/v1",
	"resourceslices.resource.k8s.io": "resource.k8s.io/v1",
}

func status(code int, reason, message string) obj {
	return obj{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
	}
}

func fail(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(status(code, reason, message))
}

func reply(w http.ResponseWriter, o obj) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(o)
}

// eventually waits until ok says yes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testwait.True(t, what, ok)
}
