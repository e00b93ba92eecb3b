// SPDX-License-Identifier: Apache-2.0

//go:build !linux || !cgo

package nvml

import (
	"context"
	"os"
	"path/filepath"

	"github.com/Ignoramuss/orb8/internal/accel"
)

// Backend of a build that cannot load the driver's library.
type Backend struct{ root string }

// New returns a backend that never reads anything.
func New(cfg Config) *Backend { return &Backend{cfg.HostRoot} }

// Name returns "nvml".
func (*Backend) Name() string { return "nvml" }

// Read returns an *accel.Unsupported, which names a remedy where there is a driver.
func (b *Backend) Read(context.Context) ([]accel.Sample, error) {
	if _, err := os.Stat(filepath.Join("/", b.root, "dev/nvidiactl")); err != nil {
		return nil, &accel.Unsupported{Reason: "no NVIDIA driver"}
	}
	return nil, &accel.Unsupported{
		Reason: "this orb8 was built without cgo, which NVIDIA's library needs",
		Remedy: "use the container image, or build with CGO_ENABLED=1",
	}
}

// Close does nothing.
func (*Backend) Close() error { return nil }
