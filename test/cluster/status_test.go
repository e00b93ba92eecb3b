// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// atWork are the states of probes in which nothing lacks.
var atWork = []orb8v1.ProbeState{
	orb8v1.ProbeState_PROBE_STATE_RUNNING, orb8v1.ProbeState_PROBE_STATE_FALLBACK, orb8v1.ProbeState_PROBE_STATE_IDLE,
}

func TestStatus(t *testing.T) {
	// An agent that has lost the API server, as in another test, is well again
	// some time after that: this one comes late, so that it need not wait for it.
	eventually(t, time.Minute, func() error {
		all, err := shared.statuses(t.Context())
		if err != nil {
			return err
		}
		if d := cmp.Diff(slices.Sorted(slices.Values(shared.nodes)), slices.Sorted(maps.Keys(all))); d != "" {
			return fmt.Errorf("nodes (-cluster +status):\n%s", d)
		}
		var errs []error
		for node, s := range all {
			if k := s.GetKubernetes(); !s.GetHealthy() || !k.GetEnabled() || !k.GetSynced() || k.GetDegraded() != "" {
				errs = append(errs, fmt.Errorf("%s: healthy %v %q, Kubernetes %v", node, s.GetHealthy(), s.GetHealthMessage(), k))
			}
			for _, p := range s.GetProbes() {
				if !slices.Contains(atWork, p.GetState()) {
					errs = append(errs, fmt.Errorf("%s: probe %s: %v %s", node, p.GetName(), p.GetState(), p.GetReason()))
				}
			}
			// An agent that the tests have started anew had lost nothing before.
			if before := shared.lost[agentRun{node, s.GetStartedNs()}]; lost(s) != before {
				errs = append(errs, fmt.Errorf("%s has lost %d records, before the tests %d: %v", node, lost(s), before, s.GetLosses()))
			}
		}
		return errors.Join(errs...)
	})
}
