// SPDX-License-Identifier: Apache-2.0

package doctor

import (
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
	if h.Getenv("KUBERNETES_SERVICE_HOST") != "" && h.there("/var/run/secrets/kubernetes.io/serviceaccount/token") {
		return info("this process runs in a pod", "")
	}
	for _, path := range h.kubeconfigs() {
		if _, err := os.Stat(path); err == nil {
			return info("kubeconfig "+path, "")
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
