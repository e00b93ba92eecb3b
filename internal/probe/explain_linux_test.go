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
		"not looked at": {&ebpf.VerifierError{Cause: unix.EPERM, Log: []string{"processed 0 insns (limit 1000000)"}},
			"load: : operation not permitted", permission},
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

func TestLack(t *testing.T) {
	rejected := &ebpf.VerifierError{Cause: unix.EACCES, Log: []string{"0: R1=ctx()", "R2 is bad", "processed 3 insns"}}
	advice := fmt.Errorf("load program: %w (MEMLOCK may be too low)", unix.EPERM)
	refused := "the kernel refuses it: operation not permitted"
	if memoryIsLimited() || !mayLoad() {
		refused = advice.Error()
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("the kernel has no such tracepoint"), "the kernel has no such tracepoint"},
		{fmt.Errorf("program x: %w", rejected), "R2 is bad"},
		{advice, refused},
		{fmt.Errorf("program x: %w", &ebpf.VerifierError{Cause: unix.ENOENT}), ": no such file or directory"},
	} {
		if got, want := Lack("this is not told", "tp_btf/x", c.err), "this is not told (tp_btf/x: "+c.want+")"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
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
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	boot := uint64(ts.Nano())
	if d := time.Since(time.Unix(0, c.Unix(boot))); d.Abs() > time.Second {
		t.Errorf("now is %v off", d)
	}
	if got := c.Unix(boot+5) - c.Unix(boot); got != 5 {
		t.Errorf("5 ns became %d", got)
	}
	// Somebody has set the wall clock since the offset was read.
	c.offset.Add(int64(time.Hour))
	if d := time.Since(time.Unix(0, c.Unix(boot))); d.Abs() < time.Minute {
		t.Error("the clocks are read for every conversion")
	}
	c.due.Store(boot)
	if d := time.Since(time.Unix(0, c.Unix(boot))); d.Abs() > time.Second {
		t.Errorf("now is %v off after the clocks were due", d)
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
