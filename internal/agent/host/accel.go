// SPDX-License-Identifier: Apache-2.0

//go:build linux

package host

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/amd"
	"github.com/Ignoramuss/orb8/internal/accel/dcgm"
	"github.com/Ignoramuss/orb8/internal/accel/holders"
	"github.com/Ignoramuss/orb8/internal/accel/neuron"
	"github.com/Ignoramuss/orb8/internal/accel/nvml"
	"github.com/Ignoramuss/orb8/internal/accel/tpu"
	"github.com/Ignoramuss/orb8/internal/agent"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/procnet"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// newKubelet returns what asks this node's kubelet for the holders of devices.
func newKubelet(cfg config.Config, cluster *kube.Cluster, wanted func() bool) *holders.Kubelet {
	socket := cfg.Kubelet
	if socket == "" {
		socket = holders.DefaultSocket
		if below := filepath.Join(cfg.HostRoot, holders.DefaultSocket); exists(below) {
			socket = below
		}
	}
	slices := cluster.ResourceSlices()
	return holders.New(holders.Config{
		Socket: socket, Wanted: wanted,
		Resolve: func(ctx context.Context, driver, pool, device string) (holders.Device, bool) {
			attributes, ok := slices.Attributes(ctx, kube.ResourceDevice{Driver: driver, Pool: pool, Name: device})
			if !ok {
				return holders.Device{}, false
			}
			return holders.FromAttributes(driver, attributes)
		},
		Running: func(namespace, pod string) (runs, known bool) {
			_, runs, known = cluster.Named(namespace, pod)
			return runs, known
		},
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// driverRoot is where the host's root is looked for if nothing is said: that of the
// first process, in a container that sees it and may.
func driverRoot(cfg config.Config) string {
	if cfg.HostRoot != "" || !workload.SeesPIDs() {
		return cfg.HostRoot
	}
	const first = "/proc/1/root"
	var own, host unix.Stat_t
	if unix.Stat("/", &own) != nil || unix.Stat(first+"/", &host) != nil || own.Dev == host.Dev && own.Ino == host.Ino {
		return ""
	}
	return first
}

// acceleratorSources are the backends that read accelerators. A new one is one more
// line.
func acceleratorSources(cfg config.Config, cluster *kube.Cluster, log *slog.Logger) []accel.Source {
	root := driverRoot(cfg)
	sources := []accel.Source{
		{Backend: nvml.New(nvml.Config{HostRoot: root, Log: log})},
		{Backend: amd.New(amd.Config{})},
		{Backend: tpu.New(tpu.Config{})},
		{Backend: neuron.New(neuron.Config{HostRoot: root, Log: log})},
	}
	if cfg.DCGMURL != "off" {
		exporter := dcgm.Config{URL: cfg.DCGMURL, Find: func() ([]string, []string) { return exporters(cluster, cfg.DCGMNamespace) }}
		sources = append(sources, accel.Source{Backend: dcgm.New(exporter), Fills: true})
	}
	return sources
}

// tryTime is how long all backends together may take to be tried.
const tryTime = 5 * time.Second

// TryAccelerators reads the accelerators of this host once, and returns how that went.
func TryAccelerators(ctx context.Context) []accel.Status {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	c := accel.NewCollector(accel.Config{
		Sources:  acceleratorSources(config.Default(), nil, log),
		Interval: func() time.Duration { return tryTime }, Report: func([]accel.Report) {}, Log: log,
		Owner: func(uint32) (*workload.Identity, string) { return nil, "" },
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	for ctx.Err() == nil && !c.Answered() {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	<-done
	return c.Status()
}

// newAccelerators returns what makes the collector.
func newAccelerators(cfg config.Config, deps *agent.Deps, names *workload.Resolver, cluster *kube.Cluster, log *slog.Logger) agent.Accelerators {
	owner := names.Process
	if deps.HiddenPIDs {
		owner = func(uint32) (*workload.Identity, string) { return nil, "" }
	}
	var held func(*accel.Device) []accel.Holder
	if deps.Kubelet != nil {
		held = deps.Kubelet.Holders(cluster.Named)
	}
	sources := acceleratorSources(cfg, cluster, log)
	return func(interval func() time.Duration, report func([]accel.Report)) *accel.Collector {
		return accel.NewCollector(accel.Config{
			Sources:  sources,
			Interval: interval, Report: report, Owner: owner, HiddenPIDs: deps.HiddenPIDs, Holders: held, Log: log,
		})
	}
}

// exporters are where a dcgm-exporter of this node may be: in one of its pods, or on
// the host itself. Any pod may have the label of one and any user may listen at its port:
// pods are believed in one namespace only, and on the host root alone. passed says who is
// not.
func exporters(cluster *kube.Cluster, namespace string) (urls, passed []string) {
	l, held, err := procnet.Loopback("/proc", dcgm.LocalPort)
	switch {
	case err != nil:
		passed = append(passed, err.Error())
	case held && l.UID != 0:
		passed = append(passed, fmt.Sprintf("port %d is user %d's, not root's: name it with dcgm_url if it is one", dcgm.LocalPort, l.UID))
	default:
		urls = append(urls, dcgm.LocalURL)
	}
	if cluster == nil || namespace == "" {
		return urls, passed
	}
	for _, addr := range cluster.Addrs(namespace, isExporter) {
		urls = append(urls, "http://"+net.JoinHostPort(addr.String(), "9400")+"/metrics")
	}
	return urls, passed
}

// isExporter goes by the labels of NVIDIA's GPU operator and of the exporter's chart.
func isExporter(labels map[string]string) bool {
	return labels["app"] == "nvidia-dcgm-exporter" || labels["app.kubernetes.io/name"] == "dcgm-exporter" || labels["app.kubernetes.io/name"] == "nvidia-dcgm-exporter" ||
		labels["app.kubernetes.io/name"] == "gke-managed-dcgm-exporter"
}
