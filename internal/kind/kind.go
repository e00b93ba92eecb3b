// SPDX-License-Identifier: Apache-2.0

// Package kind has what the folders below it share: each of them is one kind of record,
// with all that only this kind tells.
package kind

import (
	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// Workload returns an owner or peer as the API has it, nil if nothing is known.
func Workload(id *workload.Identity) *orb8v1.Workload {
	if id == nil {
		return nil
	}
	return &orb8v1.Workload{
		Namespace: id.Namespace, PodName: id.Pod, Kind: id.Kind, Name: id.Name,
		ContainerId: id.ContainerID, ContainerRuntime: id.ContainerRuntime,
		Service: id.Service, NodeName: id.Node, Zone: id.Zone,
		CgroupId: id.CgroupID, CgroupPath: id.CgroupPath,
		Labels: id.Labels, QosClass: id.QoS, PodUid: id.PodUID,
	}
}

// Process returns that of a record as the API has it, nil if it has none.
func Process(h *record.Header) *orb8v1.Process {
	if h.PID == 0 && h.Comm == (record.Comm{}) {
		return nil
	}
	return &orb8v1.Process{Pid: h.PID, Command: h.Comm.String(), Executable: h.Executable}
}

// Arguments are those of a system call as the API has them.
func Arguments(c *syscalls.Call) []*orb8v1.SyscallArgument {
	decoded := syscalls.Decode(c)
	all := make([]*orb8v1.SyscallArgument, 0, len(decoded))
	for _, arg := range decoded {
		all = append(all, &orb8v1.SyscallArgument{Name: arg.Name, Value: arg.Value, Text: arg.Text})
	}
	return all
}
