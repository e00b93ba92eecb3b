// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func memfd(name string) process.Executable {
	return process.Executable{Path: "memfd:" + name, Memfd: true}
}

func TestAlert(t *testing.T) {
	w := newWorld(t)
	alerts := w.run(w.init, image("/bin/sh"), stdio(socketTo("10.0.0.9:4444"), nil))
	if len(alerts) != 1 {
		t.Fatalf("alerts:\n%s", summaries(alerts))
	}
	a := alerts[0]
	if a.Step == nil || a.Step.Process.Exe.Path != "/bin/sh" || a.Remote.String() != "10.0.0.9:4444" || a.Repeated != 0 {
		t.Errorf("alert %+v", a)
	}
	if want := "orb8 trace exec --exits --pod shop/web-1"; a.LookCloser != want {
		t.Errorf("look closer: %q, want %q", a.LookCloser, want)
	}
	a = w.call(w.init, "mount", capSysAdmin)[0]
	if want := "orb8 trace exec --exits --pod shop/web-1"; a.LookCloser != want {
		t.Errorf("look closer: %q, want %q", a.LookCloser, want)
	}
	w.web.Namespace, w.web.Pod, w.web.Kind, w.web.Name = "", "", workload.KindContainer, containerID[:12]
	a = w.call(w.init, "mount", capSysAdmin)[0]
	if want := "orb8 trace exec --exits --container " + containerID; a.LookCloser != want {
		t.Errorf("look closer: %q, want %q", a.LookCloser, want)
	}
}

func TestRepeats(t *testing.T) {
	w := newWorld(t)
	tell := func(wait time.Duration) string {
		w.now = w.now.Add(wait)
		alerts := w.call(w.init, "mount", capSysAdmin)
		if len(alerts) == 0 {
			return "-"
		}
		return fmt.Sprint(alerts[0].Repeated)
	}
	var got []string
	for _, wait := range []time.Duration{0, 1, time.Second, window - time.Second - 2, 1, 1, window, window} {
		got = append(got, tell(wait))
	}
	if want := []string{"0", "-", "-", "-", "3", "-", "1", "0"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := w.losses.Get(loss.AlertsLimited); got != 4 {
		t.Errorf("%d counted as not told, want 4", got)
	}
	if got := w.losses.Dropped(); got != 0 {
		t.Errorf("%d lost", got)
	}
}

// What differs is told: another call, executable, workload, and of the same up to
// three summaries.
func TestDifferent(t *testing.T) {
	w := newWorld(t)
	count := func(alerts []*Alert) int { return len(alerts) }
	n := count(w.call(w.init, "mount", capSysAdmin)) + count(w.call(w.init, "umount2", capSysAdmin))
	n += count(w.call(w.init, "mount", capSysAdmin, denied))
	p := w.fork(w.init)
	w.exec(p, image("/usr/bin/tool"))
	n += count(w.call(p, "mount", capSysAdmin))
	w.web.Name = "api"
	n += count(w.call(w.init, "mount", capSysAdmin))
	if n != 5 {
		t.Errorf("%d told, want 5", n)
	}
	told := 0
	for port := range 10 {
		told += count(w.run(w.init, image("/bin/sh"), stdio(socketTo(fmt.Sprintf("10.0.0.9:%d", port+1)), nil)))
	}
	if told != perKey {
		t.Errorf("%d shells with different ends told, want %d", told, perKey)
	}
}

func TestLimitOfWorkload(t *testing.T) {
	w := newWorld(t)
	told := 0
	for i := range 100 {
		told += len(w.run(w.init, memfd(fmt.Sprint(i))))
	}
	if told != perWorkload {
		t.Errorf("%d told, want %d", told, perWorkload)
	}
	if got := len(w.call(w.init, "mount", capSysAdmin)); got != 1 {
		t.Errorf("%d alerts of another rule, want 1", got)
	}
	w.web.Namespace = "other"
	if got := len(w.run(w.init, memfd("x"))); got != 1 {
		t.Errorf("%d alerts of another workload, want 1", got)
	}
	w.web.Namespace = "shop"
	w.now = w.now.Add(window)
	alerts := w.run(w.init, memfd("99"))
	if len(alerts) != 1 || alerts[0].Repeated != 100-perWorkload {
		t.Errorf("a window later: %s", summaries(alerts))
	}
	if got := w.losses.Get(loss.AlertsLimited); got != 100-perWorkload {
		t.Errorf("%d counted as not told, want %d", got, 100-perWorkload)
	}
}

// sum is how many matches alerts stand for.
func sum(alerts []*Alert) uint64 {
	n := uint64(len(alerts))
	for _, a := range alerts {
		n += a.Repeated
	}
	return n
}

// TestHeld: eight of the same within 15 seconds are two alerts, the second of which
// comes without a ninth.
func TestHeld(t *testing.T) {
	found := 0
	w := newWorld(t, func(c *Config) {
		c.Found = func(id *workload.Identity, r *Rule, at int64) {
			if id.Name != "web" || r.Name != "mount" || at == 0 {
				t.Errorf("found %s of %v at %d", r.Name, id, at)
			}
			found++
		}
	})
	var told []*Alert
	for range 8 {
		told = append(told, w.call(w.init, "mount", capSysAdmin)...)
		w.now = w.now.Add(2 * time.Second)
	}
	last := w.now.Add(-2 * time.Second).UnixNano()
	if found != 8 || len(told) != 1 || told[0].Repeated != 0 {
		t.Fatalf("found %d, told:\n%s", found, summaries(told))
	}
	if early := w.engine.Held(false); early != nil {
		t.Errorf("before the window is over:\n%s", summaries(early))
	}
	w.now = w.now.Add(window)
	later := w.engine.Held(false)
	if len(later) != 1 || later[0].Repeated != 6 || later[0].Step.Time != last || later[0].Workload.Name != "web" ||
		later[0].LookCloser != told[0].LookCloser || later[0].Exception != told[0].Exception {
		t.Fatalf("after the window: %+v", later)
	}
	if again := w.engine.Held(true); again != nil {
		t.Errorf("told twice:\n%s", summaries(again))
	}
	// It stands for the next ones: an alert a minute, however many there are.
	if next := w.call(w.init, "mount", capSysAdmin); next != nil {
		t.Errorf("right after it:\n%s", summaries(next))
	}
	if rest := w.engine.Held(true); sum(rest) != 1 || found != 9 {
		t.Errorf("at the end: %d of %d", sum(rest), found)
	}
}

// TestNothingIsLostOfMany: whatever the order, and whatever is forgotten in between,
// alerts stand for all that was found, and are not many more than are told one by one.
func TestNothingIsLostOfMany(t *testing.T) {
	found := uint64(0)
	w := newWorld(t, func(c *Config) { c.Found = func(*workload.Identity, *Rule, int64) { found++ } })
	var told []*Alert
	for i := range 3 * maxKeys {
		told = append(told, w.run(w.init, memfd(fmt.Sprint(i)))...)
		w.web.Name = fmt.Sprint("web-", i%(maxKeys+7))
		told = append(told, w.call(w.init, "mount", capSysAdmin)...)
		told = append(told, w.call(w.init, "mount", capSysAdmin)...)
		w.web.Name = "web"
	}
	if before := uint64(len(told)); sum(told) >= found {
		t.Errorf("nothing was held of %d: %d told", found, before)
	}
	rest := w.engine.Held(true)
	if got := sum(told) + sum(rest); got != found {
		t.Errorf("alerts stand for %d of %d", got, found)
	}
	memfds := 0
	for _, a := range slices.Concat(told, rest) {
		if a.Rule.Name == "memfd_execution" {
			memfds++
		}
	}
	if memfds > 2*perWorkload+1 {
		t.Errorf("%d alerts of one rule and workload", memfds)
	}
}

// TestLimitOfWorkloadAlsoLater: what was held is told within the workload's limit, however
// many different ones there were.
func TestLimitOfWorkloadAlsoLater(t *testing.T) {
	found := uint64(0)
	w := newWorld(t, func(c *Config) { c.Found = func(*workload.Identity, *Rule, int64) { found++ } })
	var told []*Alert
	for minute := range 10 {
		before := len(told)
		for i := range perWorkload * (minute + 1) {
			told = append(told, w.run(w.init, memfd(fmt.Sprint(i)))...)
			told = append(told, w.run(w.init, memfd(fmt.Sprint(i)))...)
		}
		for range 61 {
			w.now = w.now.Add(time.Second)
			told = append(told, w.engine.Held(false)...)
		}
		// Those of this minute, and those held in the last one.
		if n := len(told) - before; n > 2*perWorkload+1 {
			t.Errorf("minute %d: %d alerts", minute, n)
		}
	}
	told = append(told, w.engine.Held(true)...)
	if got := sum(told); got != found {
		t.Errorf("alerts stand for %d of %d", got, found)
	}
}

// The kernel tells of each kind of operation once only, so none may be held back.
func TestEachIOUringOperationIsTold(t *testing.T) {
	w := newWorld(t)
	for op := range uint8(perWorkload) {
		if got := w.check(process.Event{What: process.IOUring, Opcode: op}, w.init); len(got) != 1 {
			t.Errorf("operation %d: %d alerts", op, len(got))
		}
	}
}

func TestLimiterIsBounded(t *testing.T) {
	l := newLimiter()
	key := func(i int) alertKey {
		return alertKey{executable: fmt.Sprint(i), workloadKey: workloadKey{owner: owner{name: fmt.Sprint(i)}}}
	}
	m := &match{subject: Subject{Step: new(process.Step)}, summary: "x"}
	for i := range 3 * maxKeys {
		l.tell(epoch, key(i), m)
		if _, ok := l.tell(epoch, key(0), m); ok {
			t.Fatalf("the one in use was told again after %d others", i)
		}
	}
	if len(l.keys.byKey) != maxKeys || l.keys.order.Len() != maxKeys || l.workloads.size() != maxKeys {
		t.Errorf("%d keys, %d in order, %d workloads kept", len(l.keys.byKey), l.keys.order.Len(), l.workloads.size())
	}
	if _, ok := l.tell(epoch, key(1), m); !ok {
		t.Error("one that was forgotten is not told again")
	}
}

func TestOff(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Off = []string{"mount"} })
	if alerts := w.call(w.init, "mount", capSysAdmin); len(alerts) > 0 {
		t.Errorf("alerts:\n%s", summaries(alerts))
	}
	if err := w.engine.Reconfigure([]string{"bpf"}, nil); err != nil {
		t.Fatal(err)
	}
	if alerts := w.call(w.init, "mount", capSysAdmin); len(alerts) != 1 {
		t.Errorf("after it was switched on again: %d alerts", len(alerts))
	}
	if err := w.engine.Reconfigure(nil, []Exception{{}}); err == nil {
		t.Error("an empty exception is taken")
	}
	if alerts := w.call(w.init, "bpf", 39); len(alerts) > 0 {
		t.Errorf("bad settings were taken: %s", summaries(alerts))
	}
}

func TestUnknownRule(t *testing.T) {
	for name, want := range map[string]string{
		"reverse_shel": "is reverse_shell meant?", "revershell": "is reverse_shell meant?",
		"ptraces": "is ptrace meant?", "memfd": "is memfd_execution meant?", "zzz": "the rules, in docs/rules.md, are terminal_shell, ",
		"": "the rules, in docs/rules.md, are terminal_shell, ",
	} {
		_, err := New(Config{Off: []string{"mount", name}, Container: containerOf})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "seccomp_denied") {
			t.Errorf("%q: error %q, want %q and all rules", name, err, want)
		}
	}
}

// ordinary are steps that match nothing.
func ordinary(w *world) map[string]*process.Step {
	w.init.TTY = true
	sh := w.fork(w.init)
	w.exec(sh, image("/bin/sh"))
	child := w.fork(sh)
	nr, _ := syscalls.Number(process.AMD64, "socket")
	step := func(e process.Event) *process.Step {
		e.Time = w.now.UnixNano()
		return &process.Step{Event: e, Process: child, Before: sh, Ancestors: w.ancestors(child), CgroupStart: w.cgroupStart}
	}
	return map[string]*process.Step{
		"fork":       step(process.Event{What: process.Fork}),
		"exec":       step(process.Event{What: process.Exec, Start: &process.Start{TTY: true, NSPID: 9}}),
		"exit":       step(process.Event{What: process.Exit, End: &process.End{Code: 1}}),
		"privileged": step(process.Event{What: process.Privileged, Privilege: &process.Privilege{Capability: capNetRaw, Call: nr, Args: [6]uint64{2}}}),
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	w := newWorld(t)
	id := w.identity(cgroup1)
	for name, step := range ordinary(w) {
		if n := testing.AllocsPerRun(1000, func() {
			if alerts := w.engine.Check(id, step); alerts != nil {
				t.Errorf("%s: %s", name, summaries(alerts))
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	w := newWorld(b)
	id := w.identity(cgroup1)
	for name, step := range ordinary(w) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w.engine.Check(id, step)
			}
		})
	}
	b.Run("repeated", func(b *testing.B) {
		b.ReportAllocs()
		p := w.fork(w.init)
		p.Exe = memfd("x")
		step := &process.Step{
			Event: process.Event{What: process.Exec, Start: &process.Start{}}, Process: p, Ancestors: w.ancestors(p),
		}
		for b.Loop() {
			w.engine.Check(id, step)
		}
	})
}

func TestConcurrency(t *testing.T) {
	w := newWorld(t)
	steps := ordinary(w)
	id := w.identity(cgroup1)
	p := w.fork(w.init)
	p.Exe = memfd("x")
	anc := w.ancestors(p)
	var wg sync.WaitGroup
	told := make([]int, 4)
	for i := range told {
		wg.Go(func() {
			for n := range 500 {
				for _, s := range steps {
					w.engine.Check(id, s)
				}
				q := *p
				q.PID = uint32(n)
				told[i] += len(w.engine.Check(id, &process.Step{Event: process.Event{What: process.Exec}, Process: &q, Ancestors: anc}))
				if n%100 == 0 {
					if err := w.engine.Reconfigure([]string{"bpf"}, []Exception{{Rule: "mount"}}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	all := 0
	for _, n := range told {
		all += n
	}
	if held := w.losses.Get(loss.AlertsLimited); all != 1 || held != 4*500-1 {
		t.Errorf("%d told and %d not, want 1 and %d", all, held, 4*500-1)
	}
	if rest := w.engine.Held(true); sum(rest) != 4*500-1 {
		t.Errorf("%d held, want %d", sum(rest), 4*500-1)
	}
}

func (w *world) flags(name string, change ...func(*syscalls.Call)) []string {
	nr, ok := syscalls.Number(process.AMD64, name)
	if !ok {
		w.t.Fatalf("no call %s", name)
	}
	c := &syscalls.Call{ABI: process.AMD64, Number: nr}
	for _, f := range change {
		f(c)
	}
	return w.engine.Flags(c)
}

func TestFlags(t *testing.T) {
	w := newWorld(t)
	arg := func(i int, v uint64) func(*syscalls.Call) { return func(c *syscalls.Call) { c.Args[i] = v } }
	text := func(i int, s string) func(*syscalls.Call) { return func(c *syscalls.Call) { c.Strings[i] = s } }
	file := func(i int, s string) func(*syscalls.Call) { return func(c *syscalls.Call) { c.Files[i] = s } }
	refused := func(c *syscalls.Call) { c.Refused = true }
	for _, tt := range []struct {
		call   string
		change []func(*syscalls.Call)
		want   []string
	}{
		{"ptrace", nil, []string{"ptrace"}},
		{"process_vm_readv", nil, []string{"process_read"}},
		{"process_vm_writev", nil, []string{"ptrace"}},
		{"memfd_create", nil, []string{"memfd_execution"}},
		{"execveat", []func(*syscalls.Call){arg(4, 0x1000)}, []string{"memfd_execution"}},
		{"execveat", nil, nil},
		{"unshare", []func(*syscalls.Call){arg(0, 0x10000000)}, []string{"namespace_change"}},
		{"unshare", []func(*syscalls.Call){arg(0, 0x400)}, nil},
		{"setns", nil, []string{"namespace_change"}},
		{"clone", []func(*syscalls.Call){arg(0, 0x10000011)}, []string{"namespace_change"}},
		{"clone", []func(*syscalls.Call){arg(0, 17)}, nil},
		{"mount", nil, []string{"mount"}},
		{"open_tree", nil, nil},
		{"open_tree", []func(*syscalls.Call){arg(2, 1)}, []string{"mount"}},
		{"pivot_root", nil, []string{"pivot_root"}},
		{"chroot", nil, []string{"chroot"}},
		{"mknodat", []func(*syscalls.Call){arg(2, 0x6000)}, []string{"device_node"}},
		{"mknodat", []func(*syscalls.Call){arg(2, 0x1000)}, nil},
		{"open_by_handle_at", nil, []string{"open_by_handle"}},
		{"socket", []func(*syscalls.Call){arg(0, 17)}, []string{"packet_socket"}},
		{"socket", []func(*syscalls.Call){arg(0, 2)}, nil},
		{"socket", []func(*syscalls.Call){arg(0, 2), arg(1, 10)}, []string{"packet_socket"}},
		{"finit_module", nil, []string{"kernel_module"}},
		{"bpf", nil, []string{"bpf"}},
		{"perf_event_open", nil, nil},
		{"perf_event_open", []func(*syscalls.Call){arg(1, 7)}, []string{"perf_event_open"}},
		{"iopl", nil, []string{"raw_io"}},
		{"openat", []func(*syscalls.Call){text(1, "/dev/mem")}, []string{"raw_io"}},
		{"openat", []func(*syscalls.Call){text(1, "/dev/kmsg")}, []string{"kernel_log"}},
		{"open", []func(*syscalls.Call){text(0, "/etc/passwd")}, nil},
		{"syslog", nil, []string{"kernel_log"}},
		{"reboot", []func(*syscalls.Call){arg(2, 0x01234567)}, []string{"reboot"}},
		{"reboot", nil, nil},
		{"clock_settime", nil, []string{"clock_change"}},
		{"adjtimex", nil, nil},
		{"io_uring_setup", nil, []string{"io_uring"}},
		{"dup2", []func(*syscalls.Call){file(0, "TCP 10.0.0.1:80->10.0.0.2:4242"), arg(1, 1)}, []string{"reverse_shell"}},
		{"dup2", []func(*syscalls.Call){file(0, "TCP 10.0.0.1:80->10.0.0.2:4242"), arg(1, 7)}, nil},
		{"dup2", []func(*syscalls.Call){file(0, "/dev/null"), arg(1, 1)}, nil},
		{"getpid", []func(*syscalls.Call){refused}, []string{"seccomp_denied"}},
		{"bpf", []func(*syscalls.Call){refused}, []string{"bpf", "seccomp_denied"}},
		{"getpid", nil, nil},
	} {
		if got := w.flags(tt.call, tt.change...); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.call, got, tt.want)
		}
	}
	for _, c := range []syscalls.Call{{Number: -1}, {Number: syscalls.MaxNumber}, {ABI: 9}} {
		if got := w.engine.Flags(&c); got != nil {
			t.Errorf("%+v: %q", c, got)
		}
	}
	i386 := syscalls.Call{ABI: process.I386, Number: 26}
	if got := w.engine.Flags(&i386); !slices.Equal(got, []string{"ptrace"}) {
		t.Errorf("ptrace of a 32-bit program: %q", got)
	}
}

// ordinary are steps that match nothing.
