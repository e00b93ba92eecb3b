// SPDX-License-Identifier: Apache-2.0

//go:build !linux || !cgo

package nvml

import (
	"context"

	"github.com/Ignoramuss/orb8/internal/accel"
)

// Backend of a build that cannot load the driver's library.
type Backend struct{}

// New returns a backend that never reads anything.
func New(Config) *Backend { return &Backend{} }

// Name returns "nvml".
func (*Backend) Name() string { return "nvml" }

// Read returns an *accel.Unsupported.
func (*Backend) Read(context.Context) ([]accel.Sample, error) {
	return nil, &accel.Unsupported{
		Reason: "this orb8 was built without cgo, which NVIDIA's library needs",
		Remedy: "on a host with NVIDIA GPUs use the container image, or build with CGO_ENABLED=1",
	}
}

// Close does nothing.
func (*Backend) Close() error { return nil }
