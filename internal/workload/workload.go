// SPDX-License-Identifier: Apache-2.0

// Package workload answers who a cgroup or an address is. It knows nothing of
// flows or of BPF.
package workload

// Kinds of workloads that are none of Kubernetes' own kinds.
const (
	KindContainer = "Container"
	KindUnit      = "Unit"
	KindProcess   = "Process"
	KindKernel    = "Kernel"
	// KindExternal is an address of which nothing is known but the name by which it
	// was looked up.
	KindExternal = "External"
)

// Identity says who a local or remote end is. It is immutable once published:
// a change makes a new one. Empty fields are not known.
type Identity struct {
	Namespace, Pod string
	// Kind and Name of the owner: a Deployment in Kubernetes; outside it the
	// container, systemd unit or command.
	Kind, Name       string
	ContainerID      string
	ContainerRuntime string
	// PodUID as the cgroup path shows it, with dashes.
	PodUID string
	// Service, in Namespace, is the one that the address or port belongs to.
	Service    string
	Node, Zone string
	// QoS is Guaranteed, Burstable or BestEffort.
	QoS string
	// Labels of the pod. The map is never changed.
	Labels   map[string]string
	CgroupID uint64
	// CgroupPath is below the cgroup2 root and begins with a slash.
	CgroupPath string
	// OwnerPending: Kind and Name are a guess, and what they are is being asked.
	OwnerPending bool
}
