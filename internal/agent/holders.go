// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel"
)

// maxHoldsAge is how old the kubelet's list may be without a complaint.
const maxHoldsAge = time.Minute

// HasAccelerators reports whether any device was read of late.
func (a *Agent) HasAccelerators() bool {
	if a.accel == nil {
		return false
	}
	for _, s := range a.accel.collector.Status() {
		if s.Devices > 0 {
			return true
		}
	}
	return false
}

// kubeletUp is nil where no kubelet is asked.
func (a *Agent) kubeletUp(now time.Time) *bool {
	if a.deps.Kubelet == nil || !a.HasAccelerators() {
		return nil
	}
	_, at, err := a.deps.Kubelet.Holds()
	up := err == nil && now.Sub(at) < maxHoldsAge
	return &up
}

// holdersAt is when the kubelet told who holds what; zero if that is not known.
func (a *Agent) holdersAt() time.Time {
	if up := a.kubeletUp(time.Now()); up == nil || !*up {
		return time.Time{}
	}
	_, at, _ := a.deps.Kubelet.Holds()
	return at
}

// holdersKnown reports whether a workload that does not hold a device is known not to.
func (a *Agent) holdersKnown() bool { return !a.holdersAt().IsZero() }

// allocatable reports whether the kubelet has a device to give.
func (a *Agent) allocatable(d *accel.Device) bool {
	return a.deps.Kubelet != nil && a.deps.Kubelet.Allocatable(d)
}

// nameless says why the users of accelerators are not known as well as they could be;
// nothing if they are, or if there are no accelerators.
func (a *Agent) nameless() []*orb8v1.AcceleratorStatus {
	if !a.HasAccelerators() {
		return nil
	}
	var all []*orb8v1.AcceleratorStatus
	if a.deps.HiddenPIDs {
		all = append(all, &orb8v1.AcceleratorStatus{
			Name: "processes", State: "off", Reason: "this process does not see those of the host: what runs on accelerators has no names",
			Remedy: "hostPID: true in the agent's pod, --pid=host for a container",
		})
	}
	if a.deps.Kubelet == nil {
		return all
	}
	if _, _, err := a.deps.Kubelet.Holds(); err != nil {
		all = append(all, &orb8v1.AcceleratorStatus{Name: "kubelet", State: "failed", Reason: err.Error()})
	}
	return all
}
