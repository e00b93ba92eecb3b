// SPDX-License-Identifier: Apache-2.0

package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// DefaultSocket is the kubelet's PodResources API.
	DefaultSocket = "/var/lib/kubelet/pod-resources/kubelet.sock"

	defaultInterval = 10 * time.Second
	answerTimeout   = 5 * time.Second
	// maxAnswer bounds the kubelet's list: about 16 KiB for each of 1,000 pods.
	maxAnswer = 16 << 20
)

// Sources of a Hold.
const (
	DevicePlugin = "device_plugin"
	DRA          = "dra"
)

// Hold is one device that a container was given. The kubelet does not tell the
// pod's UID: a pod that was made anew under its old name is the same here.
type Hold struct {
	Namespace, Pod, Container string
	// Resource as the container asks for it; for DRA empty.
	Resource string
	// Claim is NAMESPACE/NAME of the ResourceClaim; only for DRA.
	Claim  string
	Source string
	Device Device
	// Shared: others may be given the same device. Replica is the share's number.
	Shared  bool
	Replica string
}

// Config of a Kubelet.
type Config struct {
	// Socket is DefaultSocket if empty.
	Socket string
	// Interval between two questions; 10 s if 0.
	Interval time.Duration
	// Resolve finds the device behind a DRA driver's name, from its ResourceSlices;
	// may be nil. Where it knows nothing the CDI names are tried.
	Resolve func(ctx context.Context, driver, pool, device string) (Device, bool)
	// Running reports whether a pod runs: the kubelets of some versions also list
	// devices of pods that are over. May be nil.
	Running func(namespace, pod string) (running, known bool)
	// Wanted reports whether there is anything to ask for; nil for always.
	Wanted func() bool
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Kubelet knows what this node's kubelet has handed out. Holds may be called at
// any time; it answers from the last good list.
type Kubelet struct {
	cfg Config

	mu    sync.Mutex
	holds []Hold
	// offered are the devices of plugins that may be given to pods.
	offered []Device
	// at is when the list was read, zero if never.
	at  time.Time
	err error
}

// New returns a Kubelet that has not asked anything yet.
func New(cfg Config) *Kubelet {
	if cfg.Socket == "" {
		cfg.Socket = DefaultSocket
	}
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Kubelet{cfg: cfg}
}

// wantedEvery is how often is looked whether there is anything to ask for.
const wantedEvery = time.Second

// Run asks again and again until ctx is done, while the list is wanted.
func (k *Kubelet) Run(ctx context.Context) {
	ticker := time.NewTicker(min(k.cfg.Interval, wantedEvery))
	defer ticker.Stop()
	var last time.Time
	for {
		if (k.cfg.Wanted == nil || k.cfg.Wanted()) && time.Since(last) >= k.cfg.Interval {
			last = time.Now()
			_ = k.Refresh(ctx) // Holds tells
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// Holds returns the latest list, when it was read (zero if never), and why there is
// none that is newer.
func (k *Kubelet) Holds() (holds []Hold, at time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.holds, k.at, k.err
}

// Of returns the holds of a device, of pods that run.
func (k *Kubelet) Of(d *accel.Device) []Hold {
	all, _, _ := k.Holds()
	var found []Hold
	for i := range all {
		h := &all[i]
		if !h.Device.Is(d) {
			continue
		}
		if k.cfg.Running != nil {
			if running, known := k.cfg.Running(h.Namespace, h.Pod); known && !running {
				continue
			}
		}
		found = append(found, *h)
	}
	return found
}

// Allocatable reports whether a device, or a share of it, may be given to pods by a
// device plugin.
func (k *Kubelet) Allocatable(d *accel.Device) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.offered, func(o Device) bool { return o.Is(d) })
}

// Refresh asks now. A list that cannot be had leaves the last one in place.
func (k *Kubelet) Refresh(ctx context.Context) error {
	holds, offered, err := k.list(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err = err; err == nil {
		k.holds, k.offered, k.at = holds, offered, k.cfg.Now()
	}
	return err
}

func (k *Kubelet) list(ctx context.Context) (holds []Hold, offered []Device, err error) {
	if _, err := os.Stat(k.cfg.Socket); err != nil {
		return nil, nil, k.unreachable(err)
	}
	// A connection each time: the kubelet makes its socket anew when it restarts.
	conn, err := grpc.NewClient("unix://"+k.cfg.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, nil, fmt.Errorf("ask the kubelet for its devices: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	kubelet := podresources.NewPodResourcesListerClient(conn)
	answer, err := kubelet.List(ctx, &podresources.ListPodResourcesRequest{})
	if err != nil {
		return nil, nil, k.unreachable(err)
	}
	for _, pod := range answer.GetPodResources() {
		for _, c := range pod.GetContainers() {
			holds = k.append(ctx, holds, Hold{Namespace: pod.GetNamespace(), Pod: pod.GetName(), Container: c.GetName()}, c)
		}
	}
	// What may be allocated is told since Kubernetes 1.23; holders are worth more.
	if all, err := kubelet.GetAllocatableResources(ctx, &podresources.AllocatableResourcesRequest{}); err == nil {
		for _, devices := range all.GetDevices() {
			for _, id := range devices.GetDeviceIds() {
				if d, _, _ := Parse(devices.GetResourceName(), id); d.known() && !slices.Contains(offered, d) {
					offered = append(offered, d)
				}
			}
		}
	}
	return holds, offered, nil
}

// unreachable says what was tried and what to do.
func (k *Kubelet) unreachable(err error) error {
	const what = "ask the kubelet which pods have which devices"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: no %s: the agent's pod needs the hostPath of the kubelet's pod-resources directory there (or say --kubelet-socket)", what, k.cfg.Socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %s may only be used by root", what, k.cfg.Socket)
	}
	switch status.Code(err) {
	case codes.Unimplemented:
		return fmt.Errorf("%s: it does not serve PodResources v1, which Kubernetes has since 1.20", what)
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: no answer in %v on %s", what, answerTimeout, k.cfg.Socket)
	}
	return fmt.Errorf("%s on %s: %w", what, k.cfg.Socket, err)
}

// append adds what a container has; of is who it is.
func (k *Kubelet) append(ctx context.Context, holds []Hold, of Hold, c *podresources.ContainerResources) []Hold {
	for _, devices := range c.GetDevices() {
		for _, id := range devices.GetDeviceIds() {
			h := of
			h.Source, h.Resource = DevicePlugin, devices.GetResourceName()
			h.Device, h.Replica, h.Shared = Parse(h.Resource, id)
			if h.Device.known() {
				holds = append(holds, h)
			}
		}
	}
	for _, claim := range c.GetDynamicResources() {
		for _, r := range claim.GetClaimResources() {
			h := of
			h.Source, h.Claim = DRA, claim.GetClaimNamespace()+"/"+claim.GetClaimName()
			h.Device, h.Shared = k.claimed(ctx, r)
			if r.ShareId != nil {
				h.Shared, h.Replica = true, r.GetShareId()
			}
			if h.Device.known() {
				holds = append(holds, h)
			}
		}
	}
	return holds
}

// known is false for resources that are no accelerators.
func (r Device) known() bool { return r.Vendor != "" || r.UUID != "" }

func (k *Kubelet) claimed(ctx context.Context, r *podresources.ClaimResource) (d Device, shared bool) {
	if k.cfg.Resolve != nil {
		if d, ok := k.cfg.Resolve(ctx, r.GetDriverName(), r.GetPoolName(), r.GetDeviceName()); ok {
			return d, false
		}
	}
	d = Device{Vendor: vendorOf(r.GetDriverName()), Minor: -1, Index: -1, Instance: -1, Raw: r.GetDeviceName()}
	for _, cdi := range r.GetCdiDevices() {
		kind, name, ok := strings.Cut(cdi.GetName(), "=")
		if !ok {
			continue
		}
		if named, _, also := Parse(kind, name); named.UUID != "" || named.PCI != "" || named.Index >= 0 {
			if named.Vendor == "" {
				named.Vendor = d.Vendor
			}
			return named, also
		}
	}
	return d, false
}

// Holders returns who holds a device as the kubelet says, with their names. named finds a pod of
// this node; one that the API server has not told of yet has its name only.
func (k *Kubelet) Holders(named func(namespace, pod string) (id *workload.Identity, runs, known bool)) func(*accel.Device) []accel.Holder {
	return func(d *accel.Device) []accel.Holder {
		var all []accel.Holder
		for _, h := range k.Of(d) {
			id, _, known := named(h.Namespace, h.Pod)
			if !known {
				id = &workload.Identity{Namespace: h.Namespace, Pod: h.Pod, Kind: "Pod", Name: h.Pod}
			}
			resource := h.Resource
			if h.Claim != "" {
				resource = h.Claim
			}
			all = append(all, accel.Holder{
				Owner: id, Container: h.Container, Resource: resource, Shared: h.Shared, Source: h.Source,
			})
		}
		return all
	}
}
