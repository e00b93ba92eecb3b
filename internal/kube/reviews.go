// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/singleflight"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/util/cache"
)

const (
	// allowedFor and refusedFor are for how long an answer of the API server holds.
	allowedFor, refusedFor = time.Minute, 10 * time.Second
	// maxReviews is how many answers are kept.
	maxReviews = 1024
	// reviewTime bounds how long one takes.
	reviewTime = 10 * time.Second
)

// ErrUnauthenticated says that the API server does not know a token.
var ErrUnauthenticated = errors.New("the API server does not know this token")

// ForbiddenError says that a user may not read a path.
type ForbiddenError struct{ User, Path string }

func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("user %q may not get %s: bind the ClusterRole orb8-metrics-reader to it, or another with that path in nonResourceURLs", e.User, e.Path)
}

// Reviews ask the API server who somebody is by a bearer token (TokenReview), and whether
// he may get a path (SubjectAccessReview), as kubelets and controllers do for their
// metrics. Answers are kept for a while.
type Reviews struct {
	clients *Clients
	kept    *cache.LRUExpireCache
	asked   singleflight.Group
}

// NewReviews returns Reviews by the API server of clients.
func NewReviews(clients *Clients) *Reviews {
	return &Reviews{clients: clients, kept: cache.NewLRUExpireCache(maxReviews)}
}

type reviewKey struct {
	token [sha256.Size]byte
	path  string
}

// Allow returns nil if the holder of a token may get a path, ErrUnauthenticated if nobody
// is known by it, a *ForbiddenError if he may not, and another error if the API server
// does not say.
func (r *Reviews) Allow(ctx context.Context, token, path string) error {
	key := reviewKey{sha256.Sum256([]byte(token)), path}
	if kept, ok := r.kept.Get(key); ok {
		err, _ := kept.(error)
		return err
	}
	// One question for all who wait for its answer, also if the first of them goes.
	done := r.asked.DoChan(fmt.Sprintf("%x %s", key.token, path), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTime)
		defer cancel()
		err := r.review(ctx, token, path)
		switch forbidden := (*ForbiddenError)(nil); {
		case err == nil:
			r.kept.Add(key, nil, allowedFor)
		case errors.Is(err, ErrUnauthenticated), errors.As(err, &forbidden):
			r.kept.Add(key, err, refusedFor)
		}
		return nil, err
	})
	select {
	case result := <-done:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Reviews) review(ctx context.Context, token, path string) error {
	who := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	if err := r.clients.Authentication.Post().Resource("tokenreviews").Body(who).Do(ctx).Into(who); err != nil {
		return fmt.Errorf("ask the API server who holds a token (the agent needs the right to create tokenreviews): %w", err)
	}
	if !who.Status.Authenticated {
		return ErrUnauthenticated
	}
	user := who.Status.User
	may := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: make(map[string]authorizationv1.ExtraValue, len(user.Extra)),
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Verb: "get", Path: path},
	}}
	for name, values := range user.Extra {
		may.Spec.Extra[name] = authorizationv1.ExtraValue(values)
	}
	if err := r.clients.Authorization.Post().Resource("subjectaccessreviews").Body(may).Do(ctx).Into(may); err != nil {
		return fmt.Errorf("ask the API server whether %q may get %s (the agent needs the right to create subjectaccessreviews): %w", user.Username, path, err)
	}
	if !may.Status.Allowed {
		return &ForbiddenError{User: user.Username, Path: path}
	}
	return nil
}
