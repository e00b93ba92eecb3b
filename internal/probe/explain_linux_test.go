// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func TestExplain(t *testing.T) {
	if err := Explain("load", nil); err != nil {
		t.Errorf("Explain of nil = %v", err)
	}
	if missingBTF() {
		t.Skip("this kernel has no BTF, which is what Explain says of every error")
	}
	rejected := &ebpf.VerifierError{Cause: unix.EACCES, Log: []string{
		"0: R1=ctx()", "R2 is bad", "stack depth 40", "verification time 5 usec", "processed 3 insns (limit 1000000)", "",
	}}
	if !mayLoad() {
		t.Run("without the capability", func(t *testing.T) {
			u, ok := errors.AsType[*Unsupported](Explain("load", fmt.Errorf("map: %w", ebpf.ErrNotSupported)))
			if !ok || u.Error() != "load: permission denied" || u.Remedy == "" {
				t.Errorf("%v", u)
			}
		})
		return
	}
	permission := "lacks a capability"
	if os.Geteuid() != 0 {
		permission = "run as root"
	}
	for name, c := range map[string]struct {
		err            error
		reason, remedy string
	}{
		"permission": {fmt.Errorf("map create: %w", unix.EPERM), "load: map create: operation not permitted", permission},
		"rejected":   {fmt.Errorf("program x: %w", rejected), "load: R2 is bad", "docs/kernels.md"},
		"rejected EPERM": {&ebpf.VerifierError{Cause: unix.EPERM, Log: rejected.Log},
			"load: R2 is bad", "docs/kernels.md"},
		"no log":        {&ebpf.VerifierError{Cause: unix.EINVAL}, "load: : invalid argument", "docs/kernels.md"},
		"not supported": {fmt.Errorf("map: %w", ebpf.ErrNotSupported), "load: map: not supported", "newer kernel"},
		"anything else": {unix.ENOMEM, "load: cannot allocate memory", ""},
	} {
		t.Run(name, func(t *testing.T) {
			u, ok := errors.AsType[*Unsupported](Explain("load", c.err))
			if !ok {
				t.Fatal("not an Unsupported")
			}
			if u.Error() != c.reason {
				t.Errorf("reason %q, want %q", u.Error(), c.reason)
			}
			if !strings.Contains(u.Remedy, c.remedy) || (c.remedy == "") != (u.Remedy == "") {
				t.Errorf("remedy %q, want %q", u.Remedy, c.remedy)
			}
		})
	}
}

func TestUnsupported(t *testing.T) {
	u := &Unsupported{Reason: "no BTF"}
	if u.Error() != "no BTF" || u.Unwrap() != nil {
		t.Errorf("%v, cause %v", u, u.Unwrap())
	}
	u.Err = unix.ENOENT
	if u.Error() != "no BTF: no such file or directory" || !errors.Is(u, os.ErrNotExist) {
		t.Errorf("%v", u)
	}
}

func TestClock(t *testing.T) {
	c := NewClock()
	if got := c.Unix(0); got != 0 {
		t.Errorf("Unix(0) = %d: never must stay never", got)
	}
	if d := time.Since(time.Unix(0, c.Unix(uint64(bootTime())))); d.Abs() > time.Second {
		t.Errorf("now is %v off", d)
	}
	if got := c.Unix(105) - c.Unix(100); got != 5 {
		t.Errorf("5 ns became %d", got)
	}
	if d := time.Since(c.Now()); d.Abs() > time.Second || c.Correction().Abs() > time.Second {
		t.Errorf("now is %v off, corrected by %v", d, c.Correction())
	}
}

// Somebody sets the wall clock.
func TestClockStep(t *testing.T) {
	const second = int64(time.Second)
	boot, wall := 100*second, 1_000_000*second
	c := newClock(func() (int64, int64) { return boot, wall })
	if got := c.Now().UnixNano(); got != wall || c.Correction() != 0 {
		t.Fatalf("begins at %d, corrected by %v", got, c.Correction())
	}
	for _, step := range []time.Duration{-time.Hour, 2 * time.Hour, -time.Hour} {
		before := c.Now()
		boot, wall = boot+5*second, wall+5*second+int64(step)
		if d := c.Now().Sub(before); d != 5*time.Second {
			t.Errorf("after a step of %v 5 s are %v", step, d)
		}
		if got := c.Now().Add(c.Correction()).UnixNano(); got != wall {
			t.Errorf("after a step of %v it is %d, want %d", step, got, wall)
		}
		if got := c.Unix(uint64(boot)); got != c.Now().UnixNano() {
			t.Errorf("now is %d and %d", got, c.Now().UnixNano())
		}
	}
	if c.Correction() != 0 {
		t.Errorf("corrected by %v in the end", c.Correction())
	}
	wall += 1000
	if c.Now(); c.Correction() != 0 {
		t.Errorf("corrected by %v, which is no step", c.Correction())
	}
}

func TestOnly(t *testing.T) {
	spec := &ebpf.CollectionSpec{
		Maps:     map[string]*ebpf.MapSpec{"m": {}},
		Programs: map[string]*ebpf.ProgramSpec{"a": {}, "b": {}, "c": {}},
	}
	sub := Only(spec, "a", "c")
	if len(sub.Programs) != 2 || sub.Programs["a"] == nil || sub.Programs["c"] == nil || len(sub.Maps) != 1 {
		t.Errorf("%+v", sub)
	}
	if len(spec.Programs) != 3 || sub.Programs["a"] == spec.Programs["a"] {
		t.Error("the original was changed")
	}
}

// TestAdviceOfTheLibraryIsLeftOut: what the library guesses when something may not be loaded
// is not said to users, wherever it is shown.
func TestAdviceOfTheLibraryIsLeftOut(t *testing.T) {
	err := fmt.Errorf("load program: %w (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", unix.EPERM)
	o := NewObject("p", nil)
	o.Lacks("no names", "hook", err)
	for _, text := range []string{(&Unsupported{Reason: "r", Err: err}).Error(), o.Degraded()[0]} {
		if strings.Contains(text, "MEMLOCK") || !strings.Contains(text, "load program: operation not permitted") {
			t.Errorf("%q", text)
		}
	}
}
