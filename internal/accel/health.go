// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"fmt"
	"slices"
)

// Verdict is what is to be done about a device, if anything.
type Verdict string

// Verdicts, from the best to the worst.
const (
	Healthy Verdict = "ok"
	// Degraded: it goes on, with less than it could do, or not for long.
	Degraded Verdict = "degraded"
	// ResetNeeded: nothing can run on it before a reset.
	ResetNeeded Verdict = "reset_needed"
	// Drain: its node is to be emptied.
	Drain Verdict = "drain"
	// Replace: it does not recover.
	Replace Verdict = "replace"
)

// Verdicts lists them, from the best to the worst.
func Verdicts() []Verdict { return []Verdict{Healthy, Degraded, ResetNeeded, Drain, Replace} }

// Recovery is what a driver itself asks for, to have a device well again (NVML's field
// GET_GPU_RECOVERY_ACTION).
type Recovery uint8

// Recoveries. The zero value means that the driver does not say.
const (
	RecoveryUnknown Recovery = iota
	RecoveryNone
	RecoveryReset
	RecoveryReboot
	RecoveryDrain
	RecoveryDrainAndReset
	RecoveryDomain
	RecoveryBusReset
	RecoverySystemReboot
)

// Health is a verdict with its reasons.
type Health struct {
	Verdict Verdict
	// Causes are sentences, the worst first; none of a healthy device.
	Causes []string
	// Remedy for the worst of them.
	Remedy string
}

// finding is one thing that is wrong.
type finding struct {
	verdict       Verdict
	cause, remedy string
}

// HealthOf judges a device by what its driver says of it: one that cannot be asked, what the
// driver wants done, memory that failed, and clocks that the hardware holds back.
func HealthOf(s *Sample) Health {
	var all []finding
	add := func(wrong bool, f finding) {
		if wrong {
			all = append(all, f)
		}
	}
	is := func(m Metric) bool { return s.Values[m].Known() && s.Values[m].V > 0 }
	reset := "end what runs on it and reset it: nvidia-smi --gpu-reset -i " + s.Device.Index
	const reboot = "drain the node and reboot it; if it comes again, have the device replaced"
	add(s.Lost, finding{Drain, "it does not answer any more", reboot})
	add(is(RowRemapFailure), finding{Replace, "rows of its memory have failed and could not be replaced", "have the device replaced"})
	switch s.Recovery {
	case RecoveryReset, RecoveryBusReset:
		add(true, finding{ResetNeeded, "the driver wants it reset", reset})
	case RecoveryReboot, RecoverySystemReboot:
		add(true, finding{Drain, "the driver wants the node rebooted", reboot})
	case RecoveryDrain:
		add(true, finding{Drain, "the driver wants what it shares with other devices drained", "drain the node"})
	case RecoveryDrainAndReset:
		add(true, finding{Drain, "the driver wants what it shares with other devices drained, and then a reset", "drain the node, then: " + reset})
	case RecoveryDomain:
		add(true, finding{Degraded, "the driver wants its IMEX domain recovered", "restart the IMEX daemons of the domain"})
	}
	add(s.ResetRequired && s.Recovery <= RecoveryNone, finding{ResetNeeded, "the driver answers that it requires a reset", reset})
	add(is(RowRemapPending), finding{Degraded, "rows of its memory are to be replaced at the next reset", "reset it when nothing runs on it"})
	add(is(ECCUncorrected) && s.Recovery == RecoveryUnknown, finding{
		Degraded, fmt.Sprintf("%.0f memory errors could not be corrected since the driver was loaded", s.Values[ECCUncorrected].V), "reset it when nothing runs on it",
	})
	for _, reason := range []string{"hw_thermal_slowdown", "hw_power_brake", "hw_slowdown"} {
		add(slices.Contains(s.ClockEvents, reason), finding{
			Degraded, "the hardware holds its clocks back: " + reason, "look at the cooling and the power of the node",
		})
	}
	return judge(all)
}

func judge(all []finding) Health {
	worst := func(v Verdict) int { return slices.Index(Verdicts(), v) }
	slices.SortStableFunc(all, func(a, b finding) int { return worst(b.verdict) - worst(a.verdict) })
	h := Health{Verdict: Healthy}
	for i, f := range all {
		if i == 0 {
			h.Verdict, h.Remedy = f.verdict, f.remedy
		}
		h.Causes = append(h.Causes, f.cause)
	}
	return h
}
