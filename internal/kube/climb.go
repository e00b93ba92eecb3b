// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/util/flowcontrol"
)

const (
	maxOwners   = 4096
	maxLevels   = 6
	getTimeout  = 10 * time.Second
	getsPerSec  = 10
	getsAtOnce  = 50
	ownerQueue  = 512
	retryErrors = 30 * time.Second
	// retryAbsent is for owners that are gone or that we may not get.
	retryAbsent = 5 * time.Minute
)

// climber finds the owners of owners, by one GET for each. What it does not know
// yet it asks for in the background, and meanwhile guesses.
type climber struct {
	client metadata.Interface
	now    func() time.Time
	// learned is called after each answer.
	learned func()
	limit   flowcontrol.RateLimiter
	queue   chan child

	mu      sync.Mutex
	known   map[child]owner
	pending map[child]struct{}
	denied  map[string]string // what is missing, by resource
}

// child is an object whose owner is asked for.
type child struct {
	namespace string
	ref       Ref
}

// owner is what is known of a child's owner. Failed ones are asked again at
// retry.
type owner struct {
	ref    Ref
	failed bool
	retry  time.Time
}

func newClimber(client metadata.Interface, now func() time.Time, learned func()) *climber {
	return &climber{
		client:  client,
		now:     now,
		learned: learned,
		limit:   flowcontrol.NewTokenBucketRateLimiter(getsPerSec, getsAtOnce),
		queue:   make(chan child, ownerQueue),
		known:   make(map[child]owner),
		pending: make(map[child]struct{}),
		denied:  make(map[string]string),
	}
}

// top names the owner of all of a pod, as far as it is known now; pending says that more
// is being asked. It does not block.
func (c *climber) top(p *Pod) (kind, name string, pending bool) {
	ref := controller(p)
	if ref.Kind == "" {
		return KindPod, p.Name, false
	}
	for range maxLevels {
		if owners[ref.groupKind()] == "" {
			break
		}
		above, known, pending := c.above(child{p.Namespace, ref})
		if !known {
			ref = guessAbove(ref, p.Labels)
			return ref.Kind, ref.Name, pending
		}
		if !counts(ref, above) {
			break
		}
		ref = above
	}
	return ref.Kind, ref.Name, false
}

// above returns the owner of an object, empty if it has none. If it is not known, it is asked
// for, and pending unless it could not be had a moment ago.
func (c *climber) above(of child) (above Ref, known, pending bool) {
	if c.client == nil {
		return Ref{}, false, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, answered := c.known[of]
	if answered && (!o.failed || c.now().Before(o.retry)) {
		return o.ref, !o.failed, false
	}
	if _, asked := c.pending[of]; asked {
		return Ref{}, false, !answered
	}
	select {
	case c.queue <- of:
		c.pending[of] = struct{}{}
	default: // asked again with the next look at the pods
	}
	return Ref{}, false, !answered
}

// run answers what is asked for, until ctx ends.
func (c *climber) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case of := <-c.queue:
			if c.limit.Wait(ctx) != nil {
				return
			}
			o, denied := c.get(ctx, of)
			if ctx.Err() != nil {
				return
			}
			c.learn(of, o, denied)
			c.learned()
		}
	}
}

// get asks the API server. denied says which permission is missing, if one is.
func (c *climber) get(ctx context.Context, of child) (o owner, denied string) {
	gv, err := schema.ParseGroupVersion(of.ref.APIVersion)
	if err != nil {
		return owner{failed: true, retry: c.now().Add(retryAbsent)}, ""
	}
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	resource := gv.WithResource(owners[of.ref.groupKind()])
	objects := c.client.Resource(resource).Namespace(of.namespace)
	// Out of the API server's memory, which may not have yet what was made just now.
	got, err := objects.Get(ctx, of.ref.Name, metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		got, err = objects.Get(ctx, of.ref.Name, metav1.GetOptions{})
	}
	switch {
	case err == nil:
		if ref := metav1.GetControllerOfNoCopy(got); ref != nil {
			o.ref = Ref{ref.APIVersion, ref.Kind, ref.Name}
		}
		return o, ""
	case apierrors.IsForbidden(err):
		o.retry = c.now().Add(retryAbsent)
		denied = fmt.Sprintf("get %s: forbidden: %s lacks it", resource.GroupResource(), account(err))
	case apierrors.IsNotFound(err):
		o.retry = c.now().Add(retryAbsent)
	default:
		o.retry = c.now().Add(retryErrors)
	}
	o.failed = true
	return o, denied
}

func (c *climber) learn(of child, o owner, denied string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, of)
	for key := range c.known {
		if len(c.known) < maxOwners {
			break
		}
		delete(c.known, key) // any: it is asked for again if it is needed
	}
	c.known[of] = o
	resource := owners[of.ref.groupKind()]
	if denied != "" {
		c.denied[resource] = denied
	} else if !o.failed {
		delete(c.denied, resource)
	}
}

// missing lists the permissions that are missing, in a stable order.
func (c *climber) missing() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Values(c.denied))
}
