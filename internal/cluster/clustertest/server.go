// SPDX-License-Identifier: Apache-2.0

// Package clustertest is an API server for tests: it lists pods and forwards
// their port, over WebSockets and SPDY, as the real one and a kubelet do.
package clustertest

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	gwebsocket "github.com/gorilla/websocket"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

const (
	token    = "let-me-in"
	protocol = portforward.PortForwardProtocolV1Name
)

// Server is the API server. It speaks TLS and wants a token, both of which are
// in its kubeconfig.
type Server struct {
	*httptest.Server

	mu        sync.Mutex
	pods      map[string]*pod
	forbidden []string
	old       bool
	used      []string
	tokens    []string
	proxy     int
	oneStream bool
	// opening is how many port-forwards are being opened, most how many were at once.
	opening, most int
}

type pod struct {
	api  v1.Pod
	dial func() (net.Conn, error)
}

// New starts a server without pods. The caller must Close it.
func New() *Server {
	s := &Server{pods: map[string]*pod{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods", s.list)
	mux.HandleFunc("/api/v1/namespaces/{namespace}/pods/{pod}/portforward", s.forward)
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.accepts(r.Header.Get("Authorization")) {
			refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "Unauthorized")
			return
		}
		mux.ServeHTTP(w, r)
	}))
	return s
}

func (s *Server) accepts(authorization string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	bearer, ok := strings.CutPrefix(authorization, "Bearer ")
	return ok && (bearer == token || slices.Contains(s.tokens, bearer))
}

// Accept has the server accept another token.
func (s *Server) Accept(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = append(s.tokens, token)
}

// Proxy puts something before the server that answers a request for a WebSocket with a code
// of its own.
func (s *Server) Proxy(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proxy = code
}

// OneStream has port-forwards end once their second stream is opened.
func (s *Server) OneStream() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oneStream = true
}

// Most is how many port-forwards were being opened at once.
func (s *Server) Most() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

func (s *Server) begin() (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opening++
	s.most = max(s.most, s.opening)
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.opening--
	})
}

// Kubeconfig is a kubeconfig of the server with the current context "test".
func (s *Server) Kubeconfig() []byte {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	text, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{
			"server": s.URL, "certificate-authority-data": ca}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": token}}},
		"contexts": []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "c", "user": "u"}}},
	})
	if err != nil {
		panic(err) // a map of strings
	}
	return text
}

// AgentPod is a pod of the agents' DaemonSet, running and ready.
func AgentPod(name, node string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "orb8-system", UID: types.UID("uid-" + name),
			Labels: map[string]string{"app.kubernetes.io/name": "orb8", "app.kubernetes.io/component": "agent"},
		},
		Spec: v1.PodSpec{NodeName: node},
		Status: v1.PodStatus{Phase: v1.PodRunning, Conditions: []v1.PodCondition{
			{Type: v1.PodReady, Status: v1.ConditionTrue}}},
	}
}

// Set adds or replaces a pod. dial connects to its port; nil is a port that
// nobody listens on.
func (s *Server) Set(p *v1.Pod, dial func() (net.Conn, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[p.Name] = &pod{*p, dial}
}

// Remove deletes a pod.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, name)
}

// Forbid takes rights away, each as "VERB RESOURCE".
func (s *Server) Forbid(rights ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forbidden = rights
}

// Old makes the server one that knows SPDY only.
func (s *Server) Old() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.old = true
}

// Used lists what ports were forwarded over so far: websocket or spdy.
func (s *Server) Used() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.used)
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{ // the client is gone
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}

// may answers for a user without the right to do it.
func (s *Server) may(w http.ResponseWriter, r *http.Request, verb, resource string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.forbidden, verb+" "+resource) {
		return true
	}
	refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, fmt.Sprintf(
		`pods is forbidden: User "u" cannot %s resource %q in API group "" in the namespace %q`, verb, resource, r.PathValue("namespace")))
	return false
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	if !s.may(w, r, "list", "pods") {
		return
	}
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
	s.mu.Lock()
	for _, p := range s.pods {
		if p.api.Namespace == r.PathValue("namespace") && selector.Matches(labels.Set(p.api.Labels)) {
			list.Items = append(list.Items, p.api)
		}
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // the client is gone
}

func (s *Server) forward(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	p, old, proxy := s.pods[r.PathValue("pod")], s.old, s.proxy
	s.mu.Unlock()
	opened := s.begin()
	defer opened()
	ws := gwebsocket.IsWebSocketUpgrade(r)
	if ws && proxy != 0 {
		http.Error(w, "upgrades are not allowed here", proxy)
		return
	}
	verb := "create"
	if ws {
		verb = "get"
	}
	switch {
	case !s.may(w, r, verb, "pods/portforward"):
	case p == nil:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("pods %q not found", r.PathValue("pod")))
	case ws && old:
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "unable to upgrade: missing upgrade headers in request")
	case ws:
		s.note("websocket")
		s.overWebSocket(w, r, p, opened)
	default:
		s.note("spdy")
		s.overSPDY(w, r, p, opened)
	}
}

func (s *Server) note(how string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = append(s.used, how)
}

func (s *Server) overWebSocket(w http.ResponseWriter, r *http.Request, p *pod, opened func()) {
	upgrader := gwebsocket.Upgrader{Subprotocols: []string{"SPDY/3.1+" + protocol}}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // it has answered
	}
	k := s.kubelet(p, opened)
	conn, err := spdy.NewServerConnection(portforward.NewTunnelingConnection("server", ws), k.stream)
	if err != nil {
		return
	}
	k.serve(conn)
}

func (s *Server) overSPDY(w http.ResponseWriter, r *http.Request, p *pod, opened func()) {
	if _, err := httpstream.Handshake(r, w, []string{protocol}); err != nil {
		return // it has answered
	}
	k := s.kubelet(p, opened)
	if conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, k.stream); conn != nil {
		k.serve(conn)
	}
}

// kubelet is the other end of one port-forward.
type kubelet struct {
	pod     *pod
	streams chan httpstream.Stream
	opened  func()
	// one: it ends with the second stream.
	one bool
}

func (s *Server) kubelet(p *pod, opened func()) *kubelet {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &kubelet{pod: p, streams: make(chan httpstream.Stream, 2), opened: opened, one: s.oneStream}
}

func (k *kubelet) stream(stream httpstream.Stream, replied <-chan struct{}) error {
	if stream.Headers().Get(v1.PortHeader) != "9090" {
		return errors.New("not the agent's port")
	}
	go func() {
		<-replied
		k.streams <- stream
	}()
	return nil
}

// serve connects the data stream with the pod until either end closes.
func (k *kubelet) serve(conn httpstream.Connection) {
	defer conn.Close()
	byType := map[string]httpstream.Stream{}
	for len(byType) < 2 {
		select {
		case stream := <-k.streams:
			byType[stream.Headers().Get(v1.StreamType)] = stream
		case <-conn.CloseChan():
			return
		case <-time.After(10 * time.Second):
			return
		}
	}
	k.opened()
	if k.one {
		return
	}
	errs, data := byType[v1.StreamTypeError], byType[v1.StreamTypeData]
	defer func() { // the client closes the connection
		_ = errs.Close()
		_ = data.Close()
		select {
		case <-conn.CloseChan():
		case <-time.After(10 * time.Second):
		}
	}()
	if k.pod.dial == nil {
		_, _ = io.WriteString(errs, "an error occurred forwarding 9090 -> 9090: error forwarding port 9090 to pod, uid : "+
			"failed to execute portforward in network namespace: dial tcp4 127.0.0.1:9090: connect: connection refused\n")
		return
	}
	backend, err := k.pod.dial()
	if err != nil {
		_, _ = io.WriteString(errs, "an error occurred forwarding 9090 -> 9090: "+err.Error())
		return
	}
	go func() {
		_, _ = io.Copy(backend, data)
		_ = backend.Close()
	}()
	_, err = io.Copy(data, backend)
	if err != nil && !strings.Contains(err.Error(), "closed") {
		_, _ = io.WriteString(errs, err.Error())
	}
	_ = backend.Close()
}
