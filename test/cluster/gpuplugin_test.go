// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// gpuPlugin is a device plugin that hands out GPUs which are not there.
type gpuPlugin struct {
	deviceplugin.UnimplementedDevicePluginServer
	ids  []string
	done chan struct{}
}

// visible is the variable in a container that names its GPUs, as NVIDIA's plugin
// sets it.
const visible = "NVIDIA_VISIBLE_DEVICES"

// startPlugin serves a resource to the kubelet of a node whose directory is at dir.
func startPlugin(t *testing.T, dir, resource string, ids []string) {
	t.Helper()
	sockets := filepath.Join(dir, "device-plugins")
	name := strings.NewReplacer("/", "-", ".", "-").Replace(resource) + ".sock"
	_ = os.Remove(filepath.Join(sockets, name))
	l, err := net.Listen("unix", filepath.Join(sockets, name))
	if err != nil {
		t.Fatal(err)
	}
	p := &gpuPlugin{ids: ids, done: make(chan struct{})}
	s := grpc.NewServer()
	deviceplugin.RegisterDevicePluginServer(s, p)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		close(p.done)
		s.Stop()
		wg.Wait()
	})
	conn, err := grpc.NewClient("unix://"+filepath.Join(sockets, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = deviceplugin.NewRegistrationClient(conn).Register(t.Context(), &deviceplugin.RegisterRequest{
		Version: deviceplugin.Version, Endpoint: name, ResourceName: resource,
	})
	if err != nil {
		t.Fatalf("register %s: %v", resource, err)
	}
}

func (p *gpuPlugin) GetDevicePluginOptions(context.Context, *deviceplugin.Empty) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{}, nil
}

func (p *gpuPlugin) ListAndWatch(_ *deviceplugin.Empty, stream grpc.ServerStreamingServer[deviceplugin.ListAndWatchResponse]) error {
	var all []*deviceplugin.Device
	for _, id := range p.ids {
		all = append(all, &deviceplugin.Device{ID: id, Health: deviceplugin.Healthy})
	}
	if err := stream.Send(&deviceplugin.ListAndWatchResponse{Devices: all}); err != nil {
		return err
	}
	select {
	case <-stream.Context().Done():
	case <-p.done:
	}
	return nil
}

func (p *gpuPlugin) Allocate(_ context.Context, req *deviceplugin.AllocateRequest) (*deviceplugin.AllocateResponse, error) {
	answer := &deviceplugin.AllocateResponse{}
	for _, c := range req.GetContainerRequests() {
		answer.ContainerResponses = append(answer.ContainerResponses, &deviceplugin.ContainerAllocateResponse{
			Envs: map[string]string{visible: strings.Join(c.GetDevicesIds(), ",")},
		})
	}
	return answer, nil
}

// gpuUUID is that of the GPU with a number.
func gpuUUID(i int) string { return fmt.Sprintf("GPU-%08d-0000-1111-2222-333344445555", i) }
