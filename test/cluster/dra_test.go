// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	dra "k8s.io/kubelet/pkg/apis/dra/v1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const draDriver = "gpu.nvidia.com"

// draPlugin is the kubelet's part of a DRA driver whose devices are not there.
type draPlugin struct {
	dra.UnimplementedDRAPluginServer
	registration.UnimplementedRegistrationServer
	pool, device string

	mu         sync.Mutex
	registered bool
	refused    string
}

func (p *draPlugin) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.DRAPlugin, Name: draDriver, SupportedVersions: []string{dra.DRAPluginService},
		Endpoint: "/var/lib/kubelet/plugins/" + draDriver + "/dra.sock", // as the kubelet sees it
	}, nil
}

func (p *draPlugin) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.registered, p.refused = s.GetPluginRegistered(), s.GetError()
	return &registration.RegistrationStatusResponse{}, nil
}

func (p *draPlugin) NodePrepareResources(_ context.Context, req *dra.NodePrepareResourcesRequest) (*dra.NodePrepareResourcesResponse, error) {
	answer := &dra.NodePrepareResourcesResponse{Claims: make(map[string]*dra.NodePrepareResourceResponse)}
	for _, c := range req.GetClaims() {
		answer.Claims[c.GetUid()] = &dra.NodePrepareResourceResponse{Devices: []*dra.Device{{PoolName: p.pool, DeviceName: p.device}}}
	}
	return answer, nil
}

func (p *draPlugin) NodeUnprepareResources(_ context.Context, req *dra.NodeUnprepareResourcesRequest) (*dra.NodeUnprepareResourcesResponse, error) {
	answer := &dra.NodeUnprepareResourcesResponse{Claims: make(map[string]*dra.NodeUnprepareResourceResponse)}
	for _, c := range req.GetClaims() {
		answer.Claims[c.GetUid()] = &dra.NodeUnprepareResourceResponse{}
	}
	return answer, nil
}

// startDRA registers a driver with the kubelet whose directory is at dir.
func startDRA(t *testing.T, dir string, p *draPlugin) {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // after the servers were stopped
	for path, register := range map[string]func(*grpc.Server){
		"plugins/" + draDriver + "/dra.sock":          func(s *grpc.Server) { dra.RegisterDRAPluginServer(s, p) },
		"plugins_registry/" + draDriver + "-reg.sock": func(s *grpc.Server) { registration.RegisterRegistrationServer(s, p) },
	} {
		socket := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(socket)
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		wg.Go(func() { _ = s.Serve(l) })
		t.Cleanup(s.Stop)
	}
	eventually(t, 30*time.Second, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.registered {
			return fmt.Errorf("the kubelet has not registered the driver %s", p.refused)
		}
		return nil
	})
}

// claims gives a pod a GPU by a resource claim: the agent finds the device by the
// driver's ResourceSlice.
func (n *gpuNode) claims(t *testing.T, gpu int) {
	t.Helper()
	const device = "gpu-by-claim"
	p := &draPlugin{pool: n.name, device: device}
	startDRA(t, n.kubelet, p)
	api := n.l.client.ResourceV1()
	ctx := context.WithoutCancel(t.Context())
	uuid, kind := gpuUUID(gpu), "gpu"
	name := n.l.namespace // nobody else's
	_, err := api.ResourceSlices().Create(ctx, &resourcev1.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: resourcev1.ResourceSliceSpec{
			Driver: draDriver, NodeName: &n.name, Pool: resourcev1.ResourcePool{Name: n.name, Generation: 1, ResourceSliceCount: 1},
			Devices: []resourcev1.Device{{Name: device, Attributes: map[resourcev1.QualifiedName]resourcev1.DeviceAttribute{
				"uuid": {StringValue: &uuid}, "type": {StringValue: &kind},
			}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.ResourceSlices().Delete(ctx, name, metav1.DeleteOptions{}) })
	_, err = api.DeviceClasses().Create(ctx, &resourcev1.DeviceClass{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: resourcev1.DeviceClassSpec{Selectors: []resourcev1.DeviceSelector{
			{CEL: &resourcev1.CELDeviceSelector{Expression: fmt.Sprintf("device.driver == %q", draDriver)}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.DeviceClasses().Delete(ctx, name, metav1.DeleteOptions{}) })
	_, err = api.ResourceClaims(n.l.namespace).Create(ctx, &resourcev1.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "one-gpu"},
		Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{
			{Name: "gpu", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: name}},
		}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := n.l.podSpec(n.name, "wait")
	spec.NodeName = "" // the scheduler allocates the claim
	spec.NodeSelector = map[string]string{"kubernetes.io/hostname": n.name}
	claim := "one-gpu"
	spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimName: &claim}}
	spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "gpu"}}
	pod := n.l.testPod(t, "gpu-by-claim", spec)
	eventually(t, time.Minute, func() error {
		all, err := n.samples(t.Context())
		if err != nil {
			return err
		}
		s := shareOf(all[uuid], pod)
		if !s.GetHeld() || s.GetResource() != n.l.namespace+"/one-gpu" || s.GetIdle() != "no_process" {
			status, err := n.l.statuses(t.Context())
			return errors.Join(fmt.Errorf("pod with a claim: %v; agent: %s", s, status[n.name].GetHealthMessage()), err)
		}
		for id, other := range all {
			if id != uuid && shareOf(other, pod) != nil {
				return fmt.Errorf("it holds %s, too", id)
			}
		}
		return nil
	})
	n.l.deletePod(t, pod.Name)
	n.l.untilGone(t, pod.Name) // while the driver still answers
}
