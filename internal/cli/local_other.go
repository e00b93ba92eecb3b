// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cli

import (
	"context"

	"github.com/Ignoramuss/orb8/internal/doctor"
)

// platform leaves out what needs Linux.
func platform(c *Config) {
	c.MayProbe = func() bool { return false }
	c.Doctor = func(ctx context.Context) []doctor.Finding { return doctor.Run(ctx, doctor.Config{}) }
}
