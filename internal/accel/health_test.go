// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHealthOf(t *testing.T) {
	const reboot = "drain the node and reboot it; if it comes again, have the device replaced"
	for name, tt := range map[string]struct {
		change func(*Sample)
		want   Health
	}{
		"well":               {func(*Sample) {}, Health{Verdict: Healthy}},
		"clocks by the user": {func(s *Sample) { s.ClockEvents = []string{"sw_power_cap", "sync_boost"} }, Health{Verdict: Healthy}},
		"corrected errors":   {func(s *Sample) { s.Values[ECCCorrected] = Of(7, Driver) }, Health{Verdict: Healthy}},
		"old errors":         {func(s *Sample) { s.Values[ECCUncorrectedLifetime] = Of(7, Driver) }, Health{Verdict: Healthy}},
		"errors that the driver has dealt with": {func(s *Sample) {
			s.Values[ECCUncorrected], s.Recovery = Of(2, Driver), RecoveryNone
		}, Health{Verdict: Healthy}},
		"errors, and the driver does not say": {
			func(s *Sample) { s.Values[ECCUncorrected] = Of(2, Driver) },
			Health{Degraded, []string{"2 memory errors could not be corrected since the driver was loaded"}, "reset it when nothing runs on it"},
		},
		"too hot": {
			func(s *Sample) { s.ClockEvents = []string{"hw_thermal_slowdown"} },
			Health{Degraded, []string{"the hardware holds its clocks back: hw_thermal_slowdown"}, "look at the cooling and the power of the node"},
		},
		"a reset": {
			func(s *Sample) { s.Recovery, s.ResetRequired = RecoveryReset, true },
			Health{ResetNeeded, []string{"the driver wants it reset"}, "end what runs on it and reset it: nvidia-smi --gpu-reset -i 3"},
		},
		"a reset, by an older driver": {
			func(s *Sample) { s.ResetRequired = true },
			Health{ResetNeeded, []string{"the driver answers that it requires a reset"}, "end what runs on it and reset it: nvidia-smi --gpu-reset -i 3"},
		},
		"a reboot": {func(s *Sample) { s.Recovery = RecoveryReboot }, Health{Drain, []string{"the driver wants the node rebooted"}, reboot}},
		"lost":     {func(s *Sample) { s.Lost = true }, Health{Drain, []string{"it does not answer any more"}, reboot}},
		"the worst first": {
			func(s *Sample) {
				s.Values[RowRemapPending], s.Values[RowRemapFailure], s.Recovery = Of(1, Driver), Of(1, Driver), RecoveryReset
			},
			Health{Replace, []string{
				"rows of its memory have failed and could not be replaced", "the driver wants it reset",
				"rows of its memory are to be replaced at the next reset",
			}, "have the device replaced"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := Sample{Device: &Device{ID: "GPU-1", Index: "3"}}
			tt.change(&s)
			if diff := cmp.Diff(tt.want, HealthOf(&s)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
