// SPDX-License-Identifier: Apache-2.0

package agent

import (
	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

func probesPB(all []probe.Status) []*orb8v1.ProbeStatus {
	pbs := make([]*orb8v1.ProbeStatus, len(all))
	for i, s := range all {
		pbs[i] = &orb8v1.ProbeStatus{
			Name: s.Name, State: orb8v1.ProbeState(s.State), Reason: s.Reason, Remedy: s.Remedy,
			Hooks: s.Hooks, Degraded: s.Degraded,
		}
	}
	return pbs
}

func lossesPB(c *loss.Counters) []*orb8v1.LossCount {
	stages := loss.Stages()
	pbs := make([]*orb8v1.LossCount, len(stages))
	for i, s := range stages {
		pbs[i] = &orb8v1.LossCount{Stage: s.String(), Count: c.Get(s), Meaning: s.Meaning()}
	}
	return pbs
}
