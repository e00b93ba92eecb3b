// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"os"
	"path/filepath"
)

func (h *host) systemd() Finding {
	if h.there("/run/systemd/system") {
		return info("runs this host: workloads outside of containers are named by their units", "")
	}
	return info("does not run this host: workloads outside of containers are named by their commands", "")
}

// kubernetes reports what could be found of a cluster. It asks none.
func (h *host) kubernetes() Finding {
	const later = "; pod names come with a later version"
	if h.Getenv("KUBERNETES_SERVICE_HOST") != "" && h.there("/var/run/secrets/kubernetes.io/serviceaccount/token") {
		return info("this process runs in a pod"+later, "")
	}
	for _, path := range h.kubeconfigs() {
		if _, err := os.Stat(path); err == nil {
			return info("kubeconfig "+path+later, "")
		}
	}
	return info("no service account and no kubeconfig: workloads are named without Kubernetes", "")
}

// kubeconfigs lists where a kubeconfig may be, the user's choice first.
func (h *host) kubeconfigs() []string {
	paths := filepath.SplitList(h.Getenv("KUBECONFIG"))
	if home := h.Getenv("HOME"); home != "" {
		paths = append(paths, filepath.Join(home, ".kube/config"))
	}
	return append(paths, h.under("/etc/kubernetes/admin.conf"), h.under("/etc/rancher/k3s/k3s.yaml"))
}

// gpu reports whether there is NVIDIA hardware with its library.
func (h *host) gpu() Finding {
	const later = "; telemetry of accelerators comes with a later version"
	// The pattern is well-formed, the only reason for an error.
	devices, _ := filepath.Glob(h.under("/dev/nvidia[0-9]*"))
	library := h.nvml()
	switch {
	case library == "" && len(devices) == 0:
		return info("no NVIDIA devices and no libnvidia-ml"+later, "")
	case library == "":
		return info(fmt.Sprintf("%d NVIDIA devices, but no libnvidia-ml%s", len(devices), later),
			"Install the driver's user-space libraries; in a container, use the NVIDIA container toolkit.")
	}
	return info(fmt.Sprintf("%d NVIDIA devices, %s%s", len(devices), library, later), "")
}

// nvml finds the NVIDIA management library where distributions, container
// toolkits and cloud nodes put it.
func (h *host) nvml() string {
	for _, dir := range []string{
		"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib",
		"/usr/local/nvidia/lib64", "/home/kubernetes/bin/nvidia/lib64", "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
		"/run/opengl-driver/lib", "/opt/nvidia/lib64",
	} {
		if path := filepath.Join(dir, "libnvidia-ml.so.1"); h.there(path) {
			return h.under(path)
		}
	}
	return ""
}
