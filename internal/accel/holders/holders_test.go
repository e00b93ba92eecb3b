// SPDX-License-Identifier: Apache-2.0

package holders

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

const (
	gpuA = "GPU-11111111-2222-3333-4444-555555555555"
	gpuB = "GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
	migA = "MIG-99999999-2222-3333-4444-555555555555"
)

func none() Device { return Device{Minor: -1, Index: -1, Instance: -1} }

func with(change func(*Device)) Device {
	d := none()
	change(&d)
	return d
}

func TestParse(t *testing.T) {
	nvidia := func(change func(*Device)) Device {
		return with(func(d *Device) { d.Vendor = accel.NVIDIA; change(d) })
	}
	for _, c := range []struct {
		resource, id string
		want         Device
		replica      string
		shared       bool
	}{
		{"nvidia.com/gpu", gpuA, nvidia(func(d *Device) { d.UUID = gpuA }), "", false},
		{"nvidia.com/gpu", gpuA + "::3", nvidia(func(d *Device) { d.UUID = gpuA }), "3", true},
		{"nvidia.com/gpu.shared", gpuA, nvidia(func(d *Device) { d.UUID = gpuA }), "", true},
		{"example.com/renamed", gpuA, nvidia(func(d *Device) { d.UUID = gpuA }), "", false},
		{"nvidia.com/gpu", gpuA + "-7", nvidia(func(d *Device) { d.UUID = gpuA }), "", true},
		{"volcano.sh/vgpu-number", gpuA + "_2", nvidia(func(d *Device) { d.UUID = gpuA }), "", true},
		{"nvidia.com/mig-1g.10gb", migA, nvidia(func(d *Device) { d.UUID = migA }), "", false},
		{"nvidia.com/mig-1g.10gb", migA + "::0", nvidia(func(d *Device) { d.UUID = migA }), "0", true},
		{"nvidia.com/mig-1g.5gb", "MIG-" + gpuA + "/7/0", nvidia(func(d *Device) { d.UUID, d.Instance = gpuA, 7 }), "", false},
		{"nvidia.com/gpu", "nvidia0", nvidia(func(d *Device) { d.Minor = 0 }), "", false},
		{"nvidia.com/gpu", "nvidia0/vgpu1", nvidia(func(d *Device) { d.Minor = 0 }), "", true},
		{"nvidia.com/gpu", "nvidia2/gi1", nvidia(func(d *Device) { d.Minor, d.Instance = 2, 1 }), "", false},
		{"nvidia.com/gpu", "nvidia2/gi1/vgpu4", nvidia(func(d *Device) { d.Minor, d.Instance = 2, 1 }), "", true},
		{"nvidia.com/gpu", "4", nvidia(func(d *Device) { d.Index = 4 }), "", false},
		{"amd.com/gpu", "0000:3B:00.0", with(func(d *Device) { d.Vendor, d.PCI = accel.AMD, "0000:3b:00.0" }), "", false},
		{"amd.com/gpu", "amdgpu_xcp_3", with(func(d *Device) { d.Vendor = accel.AMD }), "", false},
		{"google.com/tpu", "2", with(func(d *Device) { d.Vendor, d.Index = accel.Google, 2 }), "", false},
		{"google.com/tpu", "accel2", with(func(d *Device) { d.Vendor, d.Index = accel.Google, 2 }), "", false},
		{"aws.amazon.com/neuron", "neuron5", with(func(d *Device) { d.Vendor, d.Index = accel.AWS, 5 }), "", false},
		{"aws.amazon.com/neuroncore", "nc-5", with(func(d *Device) { d.Vendor = accel.AWS }), "", false},
		{"aws.amazon.com/neuroncore", "5", with(func(d *Device) { d.Vendor = accel.AWS }), "", false},
		{"amd.com/gpu", "3", with(func(d *Device) { d.Vendor, d.Index = accel.AMD, 3 }), "", false},
		// Numbers of other things: network cards, IOMMU groups.
		{"rdma/hca", "7", none(), "", false},
		{"nvidia.com/PGPU", "1", nvidia(func(*Device) {}), "", false},
		{"nvidia.com/GA102GL_A10", "1", nvidia(func(*Device) {}), "", false},
		{"amd.com/xilinx_u250", "0", with(func(d *Device) { d.Vendor = accel.AMD }), "", false},
		{"nvidia.com/gpu", "99999999999999999999", nvidia(func(*Device) {}), "", false},
		{"", "", none(), "", false},
	} {
		got, replica, shared := Parse(c.resource, c.id)
		c.want.Raw = c.id
		if diff := cmp.Diff(c.want, got); diff != "" || replica != c.replica || shared != c.shared {
			t.Errorf("%s %s: replica %q, shared %t, want %q, %t (-want +got):\n%s", c.resource, c.id, replica, shared, c.replica, c.shared, diff)
		}
	}
}

func TestIs(t *testing.T) {
	gpu := &accel.Device{Vendor: accel.NVIDIA, ID: gpuA, Index: "4", PCI: "0000:3b:00.0", Minor: 0, Instance: -1}
	mig := &accel.Device{Vendor: accel.NVIDIA, ID: migA, Index: "4:0", PCI: "0000:3b:00.0", Minor: 0, Parent: gpuA, Instance: 7}
	amd := &accel.Device{Vendor: accel.AMD, ID: "amd-1", Index: "4", PCI: "0000:3b:00.0", Minor: 0, Instance: -1}
	for _, c := range []struct {
		resource, id  string
		gpu, mig, amd bool
	}{
		{"nvidia.com/gpu", gpuA, true, false, false},
		{"nvidia.com/gpu", strings.ToLower(gpuA), false, false, false}, // no known form
		{"nvidia.com/gpu", gpuB, false, false, false},
		{"nvidia.com/mig-1g.10gb", migA, false, true, false},
		{"nvidia.com/mig-1g.10gb", "MIG-" + gpuA + "/7/0", false, true, false},
		{"nvidia.com/mig-1g.10gb", "MIG-" + gpuA + "/8/0", false, false, false},
		{"nvidia.com/gpu", "nvidia0", true, false, false},
		{"nvidia.com/gpu", "nvidia0/gi7", false, true, false},
		{"nvidia.com/gpu", "4", true, false, false},
		{"amd.com/gpu", "0000:3b:00.0", false, false, true},
		{"amd.com/gpu", "amdgpu_xcp_3", false, false, false},
		{"rdma/hca", "4", false, false, false}, // nobody knows whose
	} {
		r, _, _ := Parse(c.resource, c.id)
		if r.Is(gpu) != c.gpu || r.Is(mig) != c.mig || r.Is(amd) != c.amd {
			t.Errorf("%s %s: GPU %t, MIG %t, AMD %t", c.resource, c.id, r.Is(gpu), r.Is(mig), r.Is(amd))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, id := range []string{gpuA + "::3", "MIG-" + gpuA + "/7/0", "nvidia2/gi1/vgpu4", "0000:3b:00.0", "accel2", ""} {
		f.Add("nvidia.com/gpu", id)
	}
	f.Fuzz(func(t *testing.T, resource, id string) {
		d, _, _ := Parse(resource, id)
		if d.Raw != id || d.Minor < -1 || d.Index < -1 || d.Instance < -1 {
			t.Errorf("%q %q: %+v", resource, id, d)
		}
	})
}

// kubelet serves PodResources on a socket.
type kubelet struct {
	podresources.UnimplementedPodResourcesListerServer
	mu     sync.Mutex
	answer *podresources.ListPodResourcesResponse
	hang   bool
	// allocatable is nil for a kubelet before 1.23.
	allocatable []*podresources.ContainerDevices
}

func (k *kubelet) List(ctx context.Context, _ *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if k.answer == nil {
		return nil, status.Error(codes.Unimplemented, "method List not implemented")
	}
	return k.answer, nil
}

func (k *kubelet) GetAllocatableResources(context.Context, *podresources.AllocatableResourcesRequest) (*podresources.AllocatableResourcesResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.allocatable == nil {
		return nil, status.Error(codes.Unimplemented, "method GetAllocatableResources not implemented")
	}
	return &podresources.AllocatableResourcesResponse{Devices: k.allocatable}, nil
}

// serve starts a kubelet at a socket and returns what ends it.
func serve(t *testing.T, socket string, k *kubelet) (stop func()) {
	t.Helper()
	_ = os.Remove(socket)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.MaxSendMsgSize(64 << 20))
	podresources.RegisterPodResourcesListerServer(s, k)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	stop = sync.OnceFunc(func() { s.Stop(); testwait.Return(t, "the end of the kubelet", wg.Wait) })
	t.Cleanup(stop)
	return stop
}

func pods(n int, devices []*podresources.ContainerDevices, claims ...*podresources.DynamicResource) *podresources.ListPodResourcesResponse {
	answer := &podresources.ListPodResourcesResponse{}
	for i := range n {
		answer.PodResources = append(answer.PodResources, &podresources.PodResources{
			Namespace: "ml", Name: fmt.Sprint("train-", i),
			Containers: []*podresources.ContainerResources{
				{Name: "main", Devices: devices, DynamicResources: claims}, {Name: "sidecar"},
			},
		})
	}
	return answer
}

func TestKubelet(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "kubelet.sock")
	share := "share-1"
	claim := &podresources.DynamicResource{ClaimNamespace: "ml", ClaimName: "gpus", ClaimResources: []*podresources.ClaimResource{
		{DriverName: "gpu.nvidia.com", PoolName: "n1", DeviceName: "gpu-0"},
		{DriverName: "gpu.nvidia.com", PoolName: "n1", DeviceName: "gpu-1", ShareId: &share},
		{DriverName: "gpu.nvidia.com", PoolName: "n1", DeviceName: "gpu-9", CdiDevices: []*podresources.CDIDevice{
			{Name: "k8s.gpu.nvidia.com/claim=1234-gpu-9"}, {Name: "nvidia.com/gpu=3"}}},
		{DriverName: "other.example.com", DeviceName: "nic-0"},
	}}
	server := &kubelet{answer: pods(1, []*podresources.ContainerDevices{
		{ResourceName: "nvidia.com/gpu", DeviceIds: []string{gpuA + "::0", gpuA + "::1"}},
		{ResourceName: "rdma/hca", DeviceIds: []string{"0"}},
	}, claim)}
	stop := serve(t, socket, server)
	running := map[string]bool{"train-0": true}
	k := New(Config{
		Socket: socket,
		Resolve: func(_ context.Context, driver, pool, device string) (Device, bool) {
			uuids := map[string]string{"gpu.nvidia.com/n1/gpu-0": gpuB, "gpu.nvidia.com/n1/gpu-1": gpuB}
			id, ok := uuids[driver+"/"+pool+"/"+device]
			return with(func(d *Device) { d.Vendor, d.UUID = accel.NVIDIA, id }), ok
		},
		Running: func(_, pod string) (bool, bool) { r, ok := running[pod]; return r, ok },
	})
	if err := k.Refresh(testwait.Context(t)); err != nil {
		t.Fatal(err)
	}
	holds, at, err := k.Holds()
	if err != nil || at.IsZero() {
		t.Fatal(at, err)
	}
	type brief struct {
		Resource, Claim, Source, UUID, Replica string
		Index                                  int
		Shared                                 bool
	}
	var got []brief
	for _, h := range holds {
		got = append(got, brief{h.Resource, h.Claim, h.Source, h.Device.UUID, h.Replica, h.Device.Index, h.Shared})
		if h.Namespace != "ml" || h.Pod != "train-0" || h.Container != "main" {
			t.Errorf("%+v", h)
		}
	}
	want := []brief{
		{"nvidia.com/gpu", "", DevicePlugin, gpuA, "0", -1, true},
		{"nvidia.com/gpu", "", DevicePlugin, gpuA, "1", -1, true},
		{"", "ml/gpus", DRA, gpuB, "", -1, false},
		{"", "ml/gpus", DRA, gpuB, "share-1", -1, true},
		{"", "ml/gpus", DRA, "", "", 3, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("holds (-want +got):\n%s", diff)
	}
	device := &accel.Device{Vendor: accel.NVIDIA, ID: gpuA, Instance: -1}
	if n := len(k.Of(device)); n != 2 {
		t.Errorf("%d holds of the device, want 2", n)
	}
	if k.Allocatable(device) {
		t.Error("allocatable, which this kubelet did not say")
	}
	server.mu.Lock()
	server.allocatable = []*podresources.ContainerDevices{
		{ResourceName: "nvidia.com/gpu", DeviceIds: []string{gpuA + "::0", gpuA + "::1"}}, {ResourceName: "rdma/hca", DeviceIds: []string{"0"}},
	}
	server.mu.Unlock()
	if err := k.Refresh(testwait.Context(t)); err != nil {
		t.Fatal(err)
	}
	if other := (&accel.Device{Vendor: accel.NVIDIA, ID: gpuB, Instance: -1}); !k.Allocatable(device) || k.Allocatable(other) {
		t.Errorf("allocatable: %t and %t", k.Allocatable(device), k.Allocatable(other))
	}
	running["train-0"] = false
	if n := len(k.Of(device)); n != 0 {
		t.Errorf("%d holds of a pod that is over", n)
	}

	// A kubelet that is away leaves what was known, and says so.
	stop()
	_ = os.Remove(socket)
	if err := k.Refresh(testwait.Context(t)); err == nil || !strings.Contains(err.Error(), "hostPath") {
		t.Errorf("no socket: %v", err)
	}
	if holds, _, err := k.Holds(); len(holds) != 5 || err == nil {
		t.Errorf("%d holds, %v", len(holds), err)
	}
	// It comes back with a socket of its own.
	server.answer = pods(3000, []*podresources.ContainerDevices{{ResourceName: "nvidia.com/gpu", DeviceIds: []string{gpuA}}})
	serve(t, socket, server)
	if err := k.Refresh(testwait.Context(t)); err != nil {
		t.Fatal(err)
	}
	if holds, _, err := k.Holds(); len(holds) != 3000 || err != nil {
		t.Errorf("%d holds, %v", len(holds), err)
	}
	server.answer = nil
	if err := k.Refresh(testwait.Context(t)); err == nil || !strings.Contains(err.Error(), "PodResources v1") {
		t.Errorf("an old kubelet: %v", err)
	}
}

func TestKubeletThatHangs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "kubelet.sock")
	serve(t, socket, &kubelet{hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := New(Config{Socket: socket}).Refresh(ctx)
	if took := time.Since(began); err == nil || took >= answerTimeout { // that of a context without a deadline
		t.Errorf("%v after %v", err, took)
	}
}

func TestRun(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "kubelet.sock")
	k := New(Config{Socket: socket, Interval: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { k.Run(ctx) })
	serve(t, socket, &kubelet{answer: pods(2, []*podresources.ContainerDevices{{ResourceName: "nvidia.com/gpu", DeviceIds: []string{gpuA}}})})
	testwait.Until(t, "2 holds", func() error {
		holds, _, err := k.Holds()
		if err == nil && len(holds) != 2 {
			return fmt.Errorf("%d holds", len(holds))
		}
		return err
	})
	cancel()
	testwait.Return(t, "the end of Run", wg.Wait)
}

func TestFromAttributes(t *testing.T) {
	for _, c := range []struct {
		driver     string
		attributes map[string]string
		want       Device
		ok         bool
	}{
		{"gpu.nvidia.com", map[string]string{"type": "gpu", "uuid": gpuA, "minor": "3", "index": "2"}, with(func(d *Device) {
			d.Vendor, d.UUID, d.Raw, d.Minor, d.Index = accel.NVIDIA, gpuA, gpuA, 3, 2
		}), true},
		{"gpu.nvidia.com", map[string]string{"type": "mig", "uuid": migA, "parentUUID": gpuA}, with(func(d *Device) {
			d.Vendor, d.UUID, d.Raw = accel.NVIDIA, migA, migA
		}), true},
		// Made when it is handed out: which part it is, nobody knows yet; never all of the device.
		{
			"gpu.nvidia.com", map[string]string{"type": "mig", "parentUUID": gpuA, "pciBusID": "0000:3b:00.0", "profile": "1g.10gb", "index": "0"},
			with(func(d *Device) { d.Vendor = accel.NVIDIA }), false,
		},
		{"gpu.amd.com", map[string]string{"pciAddr": "0000:3B:00.0"}, with(func(d *Device) { d.Vendor, d.PCI = accel.AMD, "0000:3b:00.0" }), true},
		{"gpu.nvidia.com", map[string]string{"pciBusID": "00000000:3B:00.0"}, with(func(d *Device) { d.Vendor, d.PCI = accel.NVIDIA, "0000:3b:00.0" }), true},
		{"tpu.google.com", map[string]string{"index": "1"}, with(func(d *Device) { d.Vendor, d.Index = accel.Google, 1 }), true},
		{"gpu.nvidia.com", map[string]string{"pciBusID": "over there", "index": "x"}, with(func(d *Device) { d.Vendor = accel.NVIDIA }), false},
		{"dranet", nil, none(), false},
	} {
		got, ok := FromAttributes(c.driver, c.attributes)
		if diff := cmp.Diff(c.want, got); diff != "" || ok != c.ok {
			t.Errorf("%s %v: %t, want %t (-want +got):\n%s", c.driver, c.attributes, ok, c.ok, diff)
		}
	}
}

// Where there is nothing to ask for, the kubelet is left alone.
func TestRunWhileWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wanted atomic.Bool
		k := New(Config{Socket: filepath.Join(t.TempDir(), "none"), Wanted: wanted.Load})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { k.Run(ctx); close(done) }()
		time.Sleep(time.Minute)
		if _, _, err := k.Holds(); err != nil {
			t.Errorf("asked although nothing is wanted: %v", err)
		}
		wanted.Store(true)
		testwait.True(t, "a question", func() bool {
			_, _, err := k.Holds()
			return err != nil
		})
		cancel()
		testwait.Receive(t, "the end of Run", done)
	})
}
