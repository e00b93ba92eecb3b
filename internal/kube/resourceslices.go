// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// sliceGap is the least time between two readings of the ResourceSlices, sliceAge how old
	// what is known may be: a device may be another one under the same name.
	sliceGap     = 30 * time.Second
	sliceAge     = time.Minute
	sliceTimeout = 10 * time.Second
	// maxSlices bounds one answer, in bytes.
	maxSlices = 16 << 20
)

// ResourceSlices knows the devices that DRA drivers of the own node offer. It asks
// the API server when it is asked for a device that it does not know, twice a
// minute at most, or for one that it has known for a minute, and never where nobody
// uses DRA. It may be used from any goroutine; only the one that asks the API server
// waits.
type ResourceSlices struct {
	clients *Clients
	node    string
	now     func() time.Time

	asking sync.Mutex // held while the API server is asked

	mu      sync.Mutex
	devices map[ResourceDevice]map[string]string
	read    time.Time
	err     error
}

// ResourceDevice is how a ResourceClaim's result names a device.
type ResourceDevice struct{ Driver, Pool, Name string }

// NewResourceSlices returns one that has not read anything.
func NewResourceSlices(clients *Clients, node string) *ResourceSlices {
	return &ResourceSlices{clients: clients, node: node, now: time.Now}
}

// Attributes returns what the driver says of a device, by the attribute's name
// without its domain; numbers and truth values as text.
func (r *ResourceSlices) Attributes(ctx context.Context, d ResourceDevice) (map[string]string, bool) {
	r.asking.Lock()
	defer r.asking.Unlock()
	found, ok, due := r.known(d)
	if !due {
		return found, ok
	}
	devices, err := r.list(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err = err; err != nil {
		return found, ok // what was known stays
	}
	r.devices = devices
	found, ok = r.devices[d]
	return found, ok
}

// known looks a device up, and says whether it is time to ask; then it counts as asked.
func (r *ResourceSlices) known(d ResourceDevice) (found map[string]string, ok, due bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, ok = r.devices[d]
	after := sliceGap
	if ok {
		after = sliceAge
	}
	if due = r.read.IsZero() || r.now().Sub(r.read) >= after; due {
		r.read = r.now()
	}
	return found, ok, due
}

// Err is why the last reading failed; nil if it did not.
func (r *ResourceSlices) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *ResourceSlices) list(ctx context.Context) (map[ResourceDevice]map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, sliceTimeout)
	defer cancel()
	var err error
	for _, version := range []string{"v1", "v1beta2", "v1beta1"} { // since 1.34, 1.33, 1.32
		var text []byte
		text, err = r.clients.Discovery.Get().AbsPath("/apis/resource.k8s.io/"+version+"/resourceslices").
			Param("fieldSelector", "spec.nodeName="+r.node).SetHeader("Accept", "application/json").Do(ctx).Raw()
		if apierrors.IsNotFound(err) {
			continue
		}
		if apierrors.IsForbidden(err) {
			var why struct{ Message string }
			_ = json.Unmarshal(text, &why) // then the account has no name
			return nil, fmt.Errorf("list resourceslices.resource.k8s.io: forbidden: %s lacks it; %s", account(errors.New(why.Message)), remedy)
		}
		if err != nil {
			break
		}
		return parseSlices(text)
	}
	return nil, fmt.Errorf("list resourceslices.resource.k8s.io: %w", short(err))
}

// parseSlices reads a ResourceSliceList of any version since v1beta1, in which
// attributes were one level deeper.
func parseSlices(text []byte) (map[ResourceDevice]map[string]string, error) {
	if len(text) > maxSlices {
		return nil, fmt.Errorf("list resourceslices.resource.k8s.io: an answer of %d bytes", len(text))
	}
	type attributes map[string]map[string]any
	var list struct {
		Items []struct {
			Spec struct {
				Driver string
				// Slices of an older generation than others of the pool have had their time.
				Pool struct {
					Name       string
					Generation int64
				}
				// Devices of v1 have Attributes, those of v1beta1 Basic.
				Devices []struct {
					Name       string
					Attributes attributes
					Basic      struct{ Attributes attributes }
				}
			}
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("read resourceslices.resource.k8s.io: %w", err)
	}
	type pool struct{ driver, name string }
	newest := make(map[pool]int64)
	for _, slice := range list.Items {
		p := pool{slice.Spec.Driver, slice.Spec.Pool.Name}
		newest[p] = max(newest[p], slice.Spec.Pool.Generation)
	}
	all := make(map[ResourceDevice]map[string]string)
	for _, slice := range list.Items {
		if slice.Spec.Pool.Generation < newest[pool{slice.Spec.Driver, slice.Spec.Pool.Name}] {
			continue
		}
		for _, d := range slice.Spec.Devices {
			flat := make(map[string]string)
			for _, from := range []attributes{d.Basic.Attributes, d.Attributes} {
				for name, value := range from {
					name = name[strings.LastIndexByte(name, '/')+1:]
					for _, v := range value { // one of string, int, bool, version
						flat[name] = fmt.Sprint(v)
					}
				}
			}
			all[ResourceDevice{slice.Spec.Driver, slice.Spec.Pool.Name, d.Name}] = flat
		}
	}
	return all, nil
}
