// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package doctor

import (
	"context"
	"runtime"
)

// Run says in one finding what orb8 can do on a system other than Linux.
func Run(context.Context, Config) []Finding {
	return []Finding{{
		Name:   "platform",
		Status: Info,
		Detail: "this is " + runtime.GOOS + ": commands that ask an agent elsewhere work (trace, flows and status with --agent), " +
			"but probes need Linux",
		Remedy: "Run the agent on a Linux host or virtual machine and point --agent at it.",
	}}
}
