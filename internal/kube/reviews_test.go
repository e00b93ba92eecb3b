// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

// reviewer answers reviews: it knows the token of "prometheus", who may get /metrics.
type reviewer struct {
	t       *testing.T
	codec   serializer.CodecFactory
	mu      sync.Mutex
	asked   []string
	broken  bool
	hold    chan struct{} // reviews of tokens wait until it is closed
	waiting chan struct{}
}

func (v *reviewer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		v.t.Error(err)
	}
	o, _, err := v.codec.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil || req.Method != http.MethodPost {
		v.t.Errorf("%s %s: %v", req.Method, req.URL.Path, err)
	}
	v.mu.Lock()
	v.asked = append(v.asked, req.URL.Path)
	broken := v.broken
	v.mu.Unlock()
	if broken {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	switch o := o.(type) {
	case *authenticationv1.TokenReview:
		if v.hold != nil {
			v.waiting <- struct{}{}
			<-v.hold
		}
		if o.Spec.Token == "secret" {
			o.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{
				Username: "prometheus", UID: "7", Groups: []string{"scrapers"}, Extra: map[string]authenticationv1.ExtraValue{"pod": {"p-0"}},
			}}
		}
	case *authorizationv1.SubjectAccessReview:
		s := o.Spec
		o.Status.Allowed = s.User == "prometheus" && s.UID == "7" && slices.Equal(s.Groups, []string{"scrapers"}) &&
			slices.Equal(s.Extra["pod"], authorizationv1.ExtraValue{"p-0"}) && s.ResourceAttributes == nil &&
			*s.NonResourceAttributes == authorizationv1.NonResourceAttributes{Verb: "get", Path: "/metrics"}
	}
	info, _ := runtime.SerializerInfoForMediaType(v.codec.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	w.WriteHeader(http.StatusCreated)
	versions := schema.GroupVersions{authenticationv1.SchemeGroupVersion, authorizationv1.SchemeGroupVersion}
	if err := v.codec.EncoderForVersion(info.Serializer, versions).Encode(o, w); err != nil {
		v.t.Error(err)
	}
}

func (v *reviewer) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.asked)
}

func (v *reviewer) setBroken(b bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.broken = b
}

func newReviewer(t *testing.T) (*reviewer, *Reviews) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{authenticationv1.AddToScheme, authorizationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	v := &reviewer{t: t, codec: serializer.NewCodecFactory(scheme)}
	server := httptest.NewServer(v)
	t.Cleanup(server.Close)
	clients, err := ConnectTo(&rest.Config{Host: server.URL}, "test")
	if err != nil {
		t.Fatal(err)
	}
	return v, NewReviews(clients)
}

// TestReviews: who holds a token and whether he may read is for the API server to say. It
// is asked once for an answer, and again if it gave none.
func TestReviews(t *testing.T) {
	v, r := newReviewer(t)
	ctx := testwait.Context(t)
	for range 3 {
		if err := r.Allow(ctx, "secret", "/metrics"); err != nil {
			t.Error(err)
		}
		if err := r.Allow(ctx, "guess", "/metrics"); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("a token that nobody knows: %v", err)
		}
		forbidden, ok := errors.AsType[*ForbiddenError](r.Allow(ctx, "secret", "/metrics/dcgm"))
		if !ok || forbidden.User != "prometheus" || forbidden.Path != "/metrics/dcgm" {
			t.Errorf("another path: %v", forbidden)
		}
	}
	if n := v.count(); n != 5 {
		t.Errorf("asked %d times, want twice for each that is known and once for the other: %q", n, v.asked)
	}
	v.setBroken(true)
	for range 2 {
		if err := r.Allow(ctx, "other", "/metrics"); err == nil || errors.Is(err, ErrUnauthenticated) {
			t.Errorf("no answer: %v", err)
		}
	}
	if err := r.Allow(ctx, "secret", "/metrics"); err != nil {
		t.Errorf("what is known is lost: %v", err)
	}
	v.setBroken(false)
	if err := r.Allow(ctx, "other", "/metrics"); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("no answer is kept for one: %v", err)
	}
}

// TestReviewIsShared: one question for all who wait for its answer, whoever goes.
func TestReviewIsShared(t *testing.T) {
	v, r := newReviewer(t)
	v.hold, v.waiting = make(chan struct{}), make(chan struct{}, 8)
	first, leave := context.WithCancel(testwait.Context(t))
	gone, served := make(chan error, 1), make(chan error, 1)
	go func() { gone <- r.Allow(first, "secret", "/metrics") }()
	testwait.Receive(t, "the question", v.waiting)
	leave()
	if err := testwait.Receive(t, "the end of who left", gone); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go func() { served <- r.Allow(testwait.Context(t), "secret", "/metrics") }()
	close(v.hold)
	if err := testwait.Receive(t, "the answer", served); err != nil {
		t.Error(err)
	}
	if n := v.count(); n != 2 {
		t.Errorf("asked %d times, want one question for both: %q", n, v.asked)
	}
}
