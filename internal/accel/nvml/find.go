// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package nvml

import (
	"os"
	"path/filepath"
)

const libraryName = "libnvidia-ml.so.1"

// places are where drivers are installed: by distributions, by NVIDIA's own
// installer and container toolkit, by the GPU operator, on GKE and Bottlerocket,
// and under WSL.
func places() []string {
	return []string{
		"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib",
		"/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib/aarch64-linux-gnu/nvidia/current",
		"/usr/local/nvidia/lib64", "/usr/local/nvidia/lib",
		"/run/nvidia/driver/usr/lib/x86_64-linux-gnu", "/run/nvidia/driver/usr/lib/aarch64-linux-gnu", "/run/nvidia/driver/usr/lib64",
		"/home/kubernetes/bin/nvidia/lib64",
		"/x86_64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia/tesla", "/aarch64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia/tesla",
		"/opt/nvidia/lib64", "/usr/lib/wsl/lib",
	}
}

// find returns the path of the library below root, or an empty string.
func find(root string) string {
	for _, dir := range places() {
		p := filepath.Join(root, dir, libraryName)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p
		}
	}
	return ""
}
