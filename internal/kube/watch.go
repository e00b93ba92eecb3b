// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

const (
	listTimeout  = 2 * time.Minute
	firstRetry   = 500 * time.Millisecond
	slowestRetry = 30 * time.Second
	// retryJitter spreads the attempts of many agents over up to twice the time.
	retryJitter = 1.0
	// steadyAfter is for how long a watch has to have stood for its end to be the first failure.
	steadyAfter = 10 * time.Second
)

// retry is the back-off of one resource: longer with each failure. The first answer after
// failures ends it, so that a watch which the API server cannot go on with, because it has
// been away itself, is begun anew at once.
type retry struct {
	now func() time.Time

	mu             sync.Mutex
	answered, then bool // since the last wait, and before it
	attempts       int
	waited         time.Time
}

// success notes that the API server has answered.
func (r *retry) success() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answered = true
}

// delay is how long to wait now.
func (r *retry) delay() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if r.answered && (!r.then || now.Sub(r.waited) > steadyAfter) {
		r.attempts = 0
	}
	d := slowestRetry
	if r.attempts < 10 {
		d = min(firstRetry<<r.attempts, slowestRetry)
	}
	d = wait.Jitter(d, retryJitter)
	r.attempts++
	r.then, r.answered, r.waited = r.answered, false, now.Add(d)
	return d
}

// apiObject is a type of the API.
type apiObject interface {
	runtime.Object
	message
}

// feed brings one resource from the API server into a Store: O is the API's
// type, T what is kept of it. It is the store of a reflector, so that nothing
// holds a second copy.
type feed[O apiObject, T any] struct {
	link     *link
	client   rest.Interface
	resource string
	selector string // of fields
	example  O
	trim     func(O) T
	// most is how many objects there may be, 0 for any number. With more the feed ends,
	// and link says so; known is how many there are by now.
	most    int
	known   func() int
	upsert  func(T)
	remove  func(O)
	replace func([]T)

	end   func()
	retry retry
	// streamed counts the objects of a streamed list.
	streamed atomic.Int64
}

// run lists and watches until ctx ends, and again after any failure. It returns early if
// there are too many objects.
//
// Lists are served from the API server's memory: pages would be read from etcd, by all
// agents at once after the API server was away.
func (f *feed[O, T]) run(ctx context.Context) {
	ctx, f.end = context.WithCancel(ctx)
	defer f.end()
	f.retry.now = time.Now
	ctx = klog.NewContext(ctx, logr.Discard()) // link logs what matters
	logger := logr.Discard()
	var lists inflight
	r := cache.NewReflectorWithOptions(f.listWatch(ctx, &lists), f.example, f, cache.ReflectorOptions{
		Logger: &logger,
		Name:   f.resource,
		Clock:  retryClock{done: ctx.Done(), delay: f.retry.delay},
	})
	for ctx.Err() == nil {
		_ = r.ListAndWatchWithContext(ctx) // link has noted how it ended
		select {
		case <-ctx.Done():
		case <-time.After(f.retry.delay()):
		}
	}
	// The reflector does not wait for a list that it has given up.
	lists.Lock()
	lists.closed = true
	lists.Unlock()
}

// inflight is read-locked while a list is read, and closed when none may begin
// any more.
type inflight struct {
	sync.RWMutex
	closed bool
}

// listWatch makes the requests, and notes how they end. The reflector lists with
// a context of its own, so that of run is joined to it; lists is read-locked
// meanwhile.
func (f *feed[O, T]) listWatch(run context.Context, lists *inflight) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			lists.RLock()
			defer lists.RUnlock()
			ctx, cancel := context.WithTimeout(ctx, listTimeout)
			defer cancel()
			defer context.AfterFunc(run, cancel)()
			if lists.closed || run.Err() != nil {
				return nil, context.Canceled
			}
			opts.FieldSelector = f.selector
			all, err := f.list(ctx, &opts)
			f.link.done(run, "list", err)
			if err != nil {
				return nil, err
			}
			f.retry.success()
			return all, nil
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector = f.selector
			opts.Watch = true
			f.streamed.Store(0)
			w, err := f.client.Get().Resource(f.resource).VersionedParams(&opts, metav1.ParameterCodec).Watch(ctx)
			if err != nil && opts.SendInitialEvents != nil && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)) {
				return nil, err // a server that can only list: that comes next
			}
			f.link.done(run, "watch", err)
			if err == nil {
				f.retry.success()
			}
			return w, err
		},
	}
}

// list asks for all objects, and keeps of each what is used before it reads the next.
func (f *feed[O, T]) list(ctx context.Context, opts *metav1.ListOptions) (runtime.Object, error) {
	body, err := f.client.Get().Resource(f.resource).VersionedParams(opts, metav1.ParameterCodec).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	kind := reflect.TypeOf(f.example).Elem()
	to := new(metainternal.List)
	meta, err := readList(body, func() O { return reflect.New(kind).Interface().(O) }, func(o O) error {
		if f.most > 0 && len(to.Items) >= f.most {
			return f.overflow()
		}
		to.Items = append(to.Items, &trimmed[T]{f.trim(o)})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.resource, err)
	}
	to.ListMeta = meta
	return to, nil
}

// overflow ends the feed, as there are too many objects.
func (f *feed[O, T]) overflow() error {
	f.link.full(f.most)
	f.end()
	return fmt.Errorf("more than %d %s", f.most, f.resource)
}

// trimmed makes an object of what was kept of one.
type trimmed[T any] struct{ kept T }

func (*trimmed[T]) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

func (t *trimmed[T]) DeepCopyObject() runtime.Object { return t }

// Transformer trims the objects of a streamed list, too, which the reflector
// collects before it calls Replace.
func (f *feed[O, T]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		o, ok := obj.(O)
		if !ok {
			return obj, nil
		}
		if f.most > 0 && f.streamed.Add(1) > int64(f.most) {
			return nil, f.overflow()
		}
		return f.trim(o), nil
	}
}

// Add is told of a new object by the reflector.
func (f *feed[O, T]) Add(obj any) error { return f.Update(obj) }

// Update is told of a changed object.
func (f *feed[O, T]) Update(obj any) error {
	o, ok := obj.(O)
	if !ok {
		return fmt.Errorf("watch %s: unexpected %T", f.resource, obj)
	}
	f.upsert(f.trim(o))
	if f.most > 0 && f.known() > f.most+f.most/10 {
		return f.overflow()
	}
	return nil
}

// Delete is told of a deleted object, or of the last that is known of it.
func (f *feed[O, T]) Delete(obj any) error {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	o, ok := obj.(O)
	if !ok {
		return fmt.Errorf("watch %s: unexpected %T", f.resource, obj)
	}
	f.remove(o)
	return nil
}

// Replace is told all objects.
func (f *feed[O, T]) Replace(all []any, _ string) error {
	list := make([]T, 0, len(all))
	for _, obj := range all {
		switch o := obj.(type) {
		case *trimmed[T]:
			list = append(list, o.kept)
		case O:
			list = append(list, f.trim(o))
		case T:
			list = append(list, o)
		default:
			return fmt.Errorf("list %s: unexpected %T", f.resource, obj)
		}
	}
	f.replace(list)
	f.link.sync()
	return nil
}

// Resync does nothing: what is in the Store stays as it is.
func (f *feed[O, T]) Resync() error { return nil }

// retryClock waits as long as delay says, instead of the reflector's own back-off, and ends
// all waiting when done is closed.
type retryClock struct {
	clock.RealClock
	done  <-chan struct{}
	delay func() time.Duration
}

func (c retryClock) After(time.Duration) <-chan time.Time {
	out := make(chan time.Time, 1)
	timer := time.NewTimer(c.delay())
	go func() {
		defer timer.Stop()
		select {
		case now := <-timer.C:
			out <- now
		case <-c.done:
			out <- time.Now()
		}
	}()
	return out
}
