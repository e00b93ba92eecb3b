// SPDX-License-Identifier: Apache-2.0

// Package doctor looks at the machine it runs on and says whether orb8 can work
// there and, where it cannot, what to do. It changes nothing that outlives the
// process. It knows nothing of how findings are shown.
package doctor

import (
	"context"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// Status says how a check went.
type Status string

const (
	// OK means that all is as it should be.
	OK Status = "ok"
	// Info is good to know, or a check that could not be made here.
	Info Status = "info"
	// Warn means that orb8 does less, or costs more, than it could.
	Warn Status = "warn"
	// Fail means that orb8's main work is not possible.
	Fail Status = "fail"
)

// Finding is the result of one check.
type Finding struct {
	// Name is short, stable and lower-case with dashes.
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	// Remedy is an instruction to the user. Every Warn and Fail has one, OK has
	// none.
	Remedy string `json:"remedy,omitempty"`
}

// Config says where to look; the zero value is the machine itself.
type Config struct {
	// Proc and Sys are where procfs and sysfs are mounted. Default /proc, /sys.
	Proc, Sys string
	// Root is the directory below which files of the system are looked for, for
	// instance /host in a container that has the host's files there. Default /.
	Root string
	// CgroupRoot is the cgroup2 mount that the agent is told to use, if any.
	CgroupRoot string
	// AgentPort and MetricsPort are what the agent listens on. Default 9090 and
	// 9091.
	AgentPort, MetricsPort uint16
	// Getenv reads the environment. Default os.Getenv.
	Getenv func(string) string
	// Probes, if set, tries the real probes and returns how each of them is. It
	// is called only with the privileges to load them.
	Probes func(context.Context) []probe.Status
	// Accelerators, if set, reads the accelerators once and returns how each way to
	// do so went.
	Accelerators func(context.Context) []accel.Status
}
