// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/holders"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const uuidA = "GPU-11111111-2222-3333-4444-555555555555"

// podResources is a kubelet that has given one GPU to two pods.
type podResources struct {
	podresources.UnimplementedPodResourcesListerServer
}

func (podResources) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	var answer podresources.ListPodResourcesResponse
	for i, pod := range []string{"train", "new"} {
		answer.PodResources = append(answer.PodResources, &podresources.PodResources{
			Namespace: "ml", Name: pod, Containers: []*podresources.ContainerResources{{Name: "main", Devices: []*podresources.ContainerDevices{
				{ResourceName: "nvidia.com/gpu", DeviceIds: []string{uuidA + "::" + string(rune('0'+i))}},
			}}},
		})
	}
	return &answer, nil
}

func (podResources) GetAllocatableResources(context.Context, *podresources.AllocatableResourcesRequest) (*podresources.AllocatableResourcesResponse, error) {
	return &podresources.AllocatableResourcesResponse{Devices: []*podresources.ContainerDevices{
		{ResourceName: "nvidia.com/gpu", DeviceIds: []string{uuidA + "::0", uuidA + "::1"}},
	}}, nil
}

// heldGPU is a backend of one GPU on which pod train runs.
type heldGPU struct{ gpus }

func (g *heldGPU) Read(ctx context.Context) ([]accel.Sample, error) {
	all, err := g.gpus.Read(ctx)
	device := *all[0].Device
	device.ID, all[0].Device = uuidA, &device
	all[0].Processes = all[0].Processes[:1]
	return all[:1], err
}

func withHolders(socket string, hidden bool) rigOption {
	return func(cfg *config.Config, deps *Deps, r *rig) {
		cfg.GPUInterval = config.MinGPUInterval
		// Until there are devices the kubelet is left alone.
		deps.Kubelet = holders.New(holders.Config{Socket: socket, Wanted: func() bool { return r.Agent != nil && r.HasAccelerators() }})
		deps.HiddenPIDs = hidden
		named := func(_, pod string) (id *workload.Identity, runs, known bool) {
			if pod == "new" {
				return nil, false, false
			}
			return &workload.Identity{Namespace: "ml", Pod: pod, Kind: "Job", Name: "train-job"}, true, true
		}
		deps.Accelerators = func(interval func() time.Duration, report func([]accel.Report)) *accel.Collector {
			return accel.NewCollector(accel.Config{
				Sources: []accel.Source{{Backend: new(heldGPU)}}, Interval: interval, Report: report, Log: quiet(),
				Holders: deps.Kubelet.Holders(named),
				Owner: func(uint32) (*workload.Identity, string) {
					return &workload.Identity{Namespace: "ml", Pod: "train", Kind: "Job", Name: "train-job"}, "python"
				},
			})
		}
	}
}

// What the kubelet has handed out is joined with who runs there.
func TestHolders(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "kubelet.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var served atomic.Bool
	server := grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(server, podResources{})
	go func() { _ = server.Serve(l); served.Store(true) }()
	t.Cleanup(server.Stop)

	r := startRig(t, withHolders(socket, false))
	r.await(t, "the holders", func() bool {
		all := r.accel.ledger.Reports()
		return len(all) == 1 && len(all[0].Shares) == 3
	})
	sample := gpuEvents(t, r, 1, &orb8v1.ObserveRequest{Snapshot: true})[0]
	if !sample.GetAllocatable() {
		t.Error("the device is not allocatable")
	}
	if !sample.GetHoldersKnown() || len(sample.GetPastErrors()) == 0 {
		t.Errorf("holders known %t, %d past errors", sample.GetHoldersKnown(), len(sample.GetPastErrors()))
	} else if e := sample.GetPastErrors()[0]; e.GetCode() != 79 || e.GetWorkload().GetPodName() != "train" {
		t.Errorf("past error %v", e)
	}
	newcomer, train, rest := sample.GetShares()[0], sample.GetShares()[1], sample.GetShares()[2]
	if newcomer.GetWorkload().GetPodName() != "new" || !newcomer.GetHeld() || !newcomer.GetShared() || newcomer.GetIdle() != "no_process" {
		t.Errorf("a pod that only the kubelet knows: %v", newcomer)
	}
	if w := train.GetWorkload(); w.GetPodName() != "train" || w.GetName() != "train-job" || !train.GetHeld() ||
		train.GetResource() != "nvidia.com/gpu" || len(train.GetProcesses()) != 1 {
		t.Errorf("the pod that runs there: %v", train)
	}
	if rest.GetWorkload() != nil {
		t.Errorf("what is left: %v", rest)
	}
	if m := r.status().GetHealthMessage(); m != "" {
		t.Errorf("unhealthy: %s", m)
	}
	if f := r.gpuFacts(time.Now()); f.Kubelet == nil || !*f.Kubelet {
		t.Error("orb8_gpu_kubelet_up is not 1")
	}
}

// Names that are missing are said to be, with what would help.
func TestNamelessAccelerators(t *testing.T) {
	r := startRig(t, withHolders(filepath.Join(t.TempDir(), "none.sock"), true))
	for _, want := range []string{"has no names (hostPID: true in the agent's pod", "none.sock: the agent's pod needs the hostPath"} {
		r.await(t, want, func() bool { return strings.Contains(r.status().GetHealthMessage(), want) })
	}
	if f := r.gpuFacts(time.Now()); f.Kubelet == nil || *f.Kubelet {
		t.Error("orb8_gpu_kubelet_up is not 0")
	}
	// A node without accelerators lacks nothing.
	none := startRig(t, withHolders("/nowhere", true), func(_ *config.Config, deps *Deps, _ *rig) {
		deps.Accelerators = func(interval func() time.Duration, report func([]accel.Report)) *accel.Collector {
			return accel.NewCollector(accel.Config{
				Sources: []accel.Source{{Backend: new(noGPUs)}}, Interval: interval, Report: report, Log: quiet(),
			})
		}
	})
	none.await(t, "the outcome", func() bool { return none.accel.collector.Status()[0].Reason == "no driver" })
	if m := none.status().GetHealthMessage(); m != "" || none.gpuFacts(time.Now()).Kubelet != nil {
		t.Errorf("without accelerators: %q", m)
	}
}
