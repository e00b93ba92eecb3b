// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tpu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/acceltest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// answer writes a MetricResponse with a gauge per device.
func answer(name string, values ...float64) []byte {
	message := func(n protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), content)
	}
	metric := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), name)
	for device, v := range values {
		var number []byte
		if device > 0 { // as protobuf does with 0 outside a oneof; see zero
			number = protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), uint64(device))
		}
		attribute := append(protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "device-id"), message(2, number)...)
		gauge := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), uint64(v))
		if v != math.Trunc(v) {
			gauge = protowire.AppendFixed64(protowire.AppendTag(nil, 1, protowire.Fixed64Type), math.Float64bits(v))
		}
		one := append(message(1, attribute), message(2, []byte{8, 1})...)
		metric = append(metric, message(3, append(one, message(3, gauge)...))...)
	}
	return message(1, metric)
}

// serve runs a runtime on a port of 127.0.0.1 in this network namespace.
func serve(t *testing.T, answers map[string][]byte) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(runtimeServer(l, answers).Stop)
	return l.Addr().(*net.TCPAddr).Port
}

func runtimeServer(l net.Listener, answers map[string][]byte) *grpc.Server {
	s := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		name, _ := grpc.MethodFromServerStream(stream)
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		if name != method {
			return status.Error(codes.Unimplemented, name)
		}
		metric, _ := protowire.ConsumeString(request[1:])
		a, ok := answers[metric]
		if !ok {
			return status.Error(codes.NotFound, metric)
		}
		return stream.SendMsg(&a)
	}))
	go func() { _ = s.Serve(l) }()
	return s
}

// host has a sysfs with two TPU chips and a network card, and a proc in which process
// 100 has both open by VFIO and process 101 the second one as well.
func host(t *testing.T) Config {
	t.Helper()
	root := t.TempDir()
	cfg := Config{Sys: filepath.Join(root, "sys"), Proc: filepath.Join(root, "proc")}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
			t.Fatal(err)
		}
	}
	for i, device := range []string{"0x0063", "0x0042", "0x0063"} {
		dir := fmt.Sprintf("%s/bus/pci/devices/0000:00:%02d.0", cfg.Sys, i)
		write(dir+"/vendor", "0x1ae0\n")
		write(dir+"/device", device+"\n")
		link(fmt.Sprint("../../../kernel/iommu_groups/", i), dir+"/iommu_group")
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for pid, files := range map[int][]string{100: {"/dev/null", "/dev/vfio/0", "/dev/vfio/2", "/dev/vfio/2"}, 101: {"/dev/vfio/2"}, 102: {"/dev/vfio/9", "socket:[1]"}} {
		dir := filepath.Join(cfg.Proc, strconv.Itoa(pid))
		for fd, target := range files {
			link(target, fmt.Sprint(dir, "/fd/", fd))
		}
		write(dir+"/stat", strconv.Itoa(pid)+" (a ) b) S "+strings.Repeat("0 ", 18)+"777 0")
		link(own, dir+"/ns/net")
	}
	return cfg
}

const (
	usage = "tpu.runtime.hbm.memory.usage.bytes"
	total = "tpu.runtime.hbm.memory.total.bytes"
	duty  = "tpu.runtime.tensorcore.dutycycle.percent"
)

// linkNetns makes the processes' network namespace one that can be opened.
func linkNetns(t *testing.T, cfg Config, target string) {
	t.Helper()
	for _, pid := range []string{"100", "101", "102"} {
		path := filepath.Join(cfg.Proc, pid, "ns/net")
		if err := errors.Join(os.Remove(path), os.Symlink(target, path)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRead(t *testing.T) {
	cfg := host(t)
	linkNetns(t, cfg, "/proc/self/ns/net")
	if os.Geteuid() != 0 {
		t.Skip("SKIP: not root: cannot enter a network namespace")
	}
	cfg.Port = serve(t, map[string][]byte{
		usage: answer(usage, 1000, 2000), total: answer(total, 16<<30, 16<<30), duty: answer(duty, 50, 12.5),
	})
	b := New(cfg)
	all, err := b.Read(testwait.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 {
		t.Fatalf("%d chips: %+v", len(all), all)
	}
	want := &accel.Device{Vendor: accel.Google, ID: "tpu-0000:00:02.0", Index: "1", Model: "TPU v5e", PCI: "0000:00:02.0", Minor: -1, Instance: -1}
	if diff := cmp.Diff(want, all[1].Device); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	for i, want := range []map[string]string{
		{"utilization_ratio": "0.5 (runtime)", "memory_used_bytes": "1000 (runtime)", "memory_total_bytes": "1.7179869184e+10 (runtime)"},
		{"utilization_ratio": "0.125 (runtime)", "memory_used_bytes": "2000 (runtime)", "memory_total_bytes": "1.7179869184e+10 (runtime)"},
	} {
		if diff := cmp.Diff(want, acceltest.Values(&all[i].Values)); diff != "" {
			t.Errorf("chip %d (-want +got):\n%s", i, diff)
		}
	}
	// The only process of a chip has all of it; of several nobody knows who has what.
	if p := all[0].Processes; len(p) != 1 || p[0].PID != 100 || p[0].Memory.V != 1000 {
		t.Errorf("chip 0: %+v", p)
	}
	if p := all[1].Processes; len(p) != 2 || p[0].Memory.Known() || p[1].Utilization.Known() {
		t.Errorf("chip 1: %+v", p)
	}
	// Processes that end are noticed at once.
	if err := errors.Join(os.RemoveAll(filepath.Join(cfg.Proc, "100")), os.RemoveAll(filepath.Join(cfg.Proc, "101"))); err != nil {
		t.Fatal(err)
	}
	if all, err = b.Read(testwait.Context(t)); err != nil {
		t.Fatal(err)
	}
	if s := all[0]; len(s.Processes) != 0 || acceltest.Values(&s.Values)["utilization_ratio"] != "0 (runtime)" || s.Values[accel.MemoryUsed].Known() {
		t.Errorf("after its process ended: %+v", s)
	}
}

// The runtime is reached in the network namespace of its pod.
func TestOtherNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: not root: cannot make a network namespace")
	}
	name := fmt.Sprint("orb8-tpu-", os.Getpid())
	if out, err := exec.CommandContext(t.Context(), "ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("SKIP: cannot make a network namespace: %s", out)
	}
	t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "ip", "netns", "del", name).Run() })
	if out, err := exec.CommandContext(t.Context(), "ip", "-n", name, "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	port, netns := serve(t, nil), "/run/netns/"+name
	if _, err := dialIn(t.Context(), netns, fmt.Sprint("127.0.0.1:", port)); err == nil {
		t.Error("this namespace's server was reached from within the other one")
	}
	// However often it is left, every thread comes back to its own.
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		_, _ = dialIn(t.Context(), netns, "127.0.0.1:1")
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if ns, err := os.Readlink(thread); err == nil && ns != own {
			t.Errorf("%s is in %s, not %s", thread, ns, own)
		}
	}
	if conn, err := dialIn(t.Context(), "/proc/self/ns/net", fmt.Sprint("127.0.0.1:", port)); err != nil {
		t.Error(err)
	} else {
		_ = conn.Close()
	}
}

// A runtime that cannot be asked leaves the chips with their users.
func TestRuntimeThatFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: not root: cannot enter a network namespace")
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	for _, c := range []struct {
		name, want string
		port       int
	}{
		{"none", "connection refused", 1},
		{"silent", "has not answered", silent.Addr().(*net.TCPAddr).Port},
		{"without the metric", "NotFound", serve(t, map[string][]byte{usage: answer(usage, 1, 2)})},
		{"nonsense", "cannot be read", serve(t, map[string][]byte{usage: {0x0a, 0xff}})},
	} {
		cfg := host(t)
		linkNetns(t, cfg, "/proc/self/ns/net")
		cfg.Port = c.port
		all, err := New(cfg).Read(testwait.Context(t))
		if err != nil || len(all) != 2 {
			t.Fatal(c.name, err)
		}
		if l := strings.Join(all[0].Device.Limits, ";"); !strings.Contains(l, c.want) || len(all[0].Processes) != 1 || all[0].Values[accel.Utilization].Known() {
			t.Errorf("%s: limits %q, %+v", c.name, l, all[0])
		}
	}
	if s := explain(fmt.Errorf("enter: %w", os.ErrPermission), 1).Error(); !strings.Contains(s, "port 1") {
		t.Error(s)
	}
}

func TestPerChip(t *testing.T) {
	for _, c := range []struct {
		values map[int64]float64
		chips  int
		mean   bool
		want   []accel.Value
	}{
		{map[int64]float64{0: 1, 1: 2, 2: 3, 3: 4}, 2, false, []accel.Value{accel.Of(3, accel.Runtime), accel.Of(7, accel.Runtime)}},
		{map[int64]float64{0: 1, 1: 2, 2: 3, 3: 4}, 2, true, []accel.Value{accel.Of(1.5, accel.Runtime), accel.Of(3.5, accel.Runtime)}},
		{map[int64]float64{0: 1, 1: 2, 2: 3}, 2, false, nil},
		{map[int64]float64{0: 1, 7: 2}, 2, false, nil},
		{map[int64]float64{0: math.NaN(), 1: 2}, 2, false, nil},
		{nil, 2, false, nil}, {map[int64]float64{0: 1}, 0, false, nil},
	} {
		if diff := cmp.Diff(c.want, perChip(c.values, c.chips, c.mean)); diff != "" {
			t.Errorf("%v on %d chips (-want +got):\n%s", c.values, c.chips, diff)
		}
	}
}

func TestNone(t *testing.T) {
	unsupported := new(accel.Unsupported)
	b := New(Config{Sys: t.TempDir(), Proc: t.TempDir(), Now: time.Now})
	if _, err := b.Read(testwait.Context(t)); !errors.As(err, &unsupported) {
		t.Errorf("%v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(answer(usage, 1, 2, 3.5))
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, message []byte) {
		values, err := decode(message)
		if err == nil {
			perChip(values, 2, true)
		}
	})
}
