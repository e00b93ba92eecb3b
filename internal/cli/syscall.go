// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

const traceSyscallLong = `Watch the system calls of selected pods, decoded, with result and latency, or count
them (--summary).

Tracing makes every system call of every process on the node slower for as long as it
runs: about 0.1 to 0.3 µs each, also in pods that are not selected. So it asks for a
selection (--pod, --namespace, --selector, --workload or --container, or --process and
--executable alone), ends by itself after --duration, and ends when this command does. TRACING says which containers are
selected, and when that changes. Containers that come later are taken in from their first
call on if they are in a pod that is selected already, and else once their names are known:
at once, or within half a second.

A line is a call that has returned:

  TIME            PROCESS        CALL
  09:41:02.104233 nginx/4242     openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 3 <12µs>

The arguments are written as strace does: flags by name, paths in quotes (… where they
were longer), what file descriptors stand for in <>. Behind = is the result, an error
by its name; one that has none, or is still going on, has a question mark. In <> stands the time from
the call to its return. !name says which rule flags the call; --anomalies shows only
those. PROCESS is command/pid, and :tid for a thread other than the first. With -o wide
arguments have names. Calls of 32-bit programs are marked [i386] or [arm].

At most --rate calls a second and node are sent; the rest is counted as lost, and told
of in the stream: --rate and --summary show more. What other traces lose does not count.
With --anomalies, --rule, --slower and --process the calls are chosen first: up to 100000 a
second are looked at. --process alone looks for what runs now every half a second, and
traces the containers and units that it runs in: the first calls of a program that is
started later may be missing.

With --summary calls are counted in the kernel, and nothing is lost to a rate: a table
like that of strace -c for each container, also those that have ended, at the end, and on
a terminal every second. There TIME and SECONDS are from the begin of the calls to their
end, also while they wait; P50 and P99 are estimates, within a quarter. They and MAX (with
-o wide) are not known where another trace had counted the container's calls before.

With --tree the calls are added up by process, at the end and on a terminal every second:
each process stands below its parent, with the calls that took most of its time. They are
those that the stream would show, so --rate, --call and all filters count.

The source is found as by 'orb8 trace network'. With -o json every line is an
orb8.v1.Event with a syscall, or a syscallSummary every second, the syscallTargets, a
change of the node's status, or lost events.`

const traceSyscallExamples = `  orb8 trace syscall --pod suspicious-pod-456       # every call, for a minute
  orb8 trace syscall --pod web-7d9f-x2x --call openat,connect --errors-only
  orb8 trace syscall --pod web-7d9f-x2x --except futex,epoll_wait --slower 10ms
  orb8 trace syscall -n shop -l app=web --summary --duration 10s
  orb8 trace syscall --pod web-7d9f-x2x --tree --duration 10s
  orb8 trace syscall -n shop --anomalies --duration 10m
  sudo orb8 trace syscall --container 4f2d9c1e8a7b  # of this host, without an agent
  sudo orb8 trace syscall --process nginx --errors-only
  orb8 trace syscall --pod db-0 -o json | jq -r '.syscall | select(.) | .name' | sort | uniq -c`

const (
	longestTrace = time.Hour
	defaultRate  = 10_000
	highestRate  = 1_000_000
)

// callFlags say how system calls are traced.
type callFlags struct {
	calls, except []string
	slower        time.Duration
	errorsOnly    bool
	anomalies     bool
	summary, tree bool
	rate          uint32

	of      *traceFlags     // once checked
	targets map[string]bool // nodes that have something to trace; nil before any has said so
}

func newTraceSyscall(c *Config) *cobra.Command {
	f := new(callFlags)
	return c.newTrace(&cobra.Command{
		Use: "syscall", Aliases: []string{"syscalls"}, Short: "Watch or count the system calls of selected pods",
		Long: traceSyscallLong, Example: traceSyscallExamples,
	}, traceKind{
		title: "system calls", probe: "syscall", ends: true,
		kinds:    []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_SYSCALL},
		filters:  []string{"rule"},
		subjects: processFilters(), noTraffic: true,
		moreTitle: "System calls", more: f.bind,
		local:   func(s *sourceFlags) { s.only = onlySyscall },
		check:   f.check,
		request: func(r *orb8v1.ObserveRequest) { r.Syscalls = f.request() },
		about: func(_ context.Context, src *source, _ bool) ([]string, error) {
			if f.of.output.quiet {
				return nil, nil
			}
			return []string{costOf(src, f.of.duration)}, nil
		},
		idle:    f.idle,
		after:   f.after,
		lines:   func(w io.Writer, o render.Options) render.Live { return f.lines(w, o, isTerminal(c.Stdout)) },
		summary: func() *render.Summary { return render.NewSyscallSummary(f.summary) },
		of: func(ev *orb8v1.Event) (loopback, ok bool) {
			return false, ev.GetSyscall() != nil || ev.GetSyscallSummary() != nil
		},
	})
}

func (f *callFlags) lines(w io.Writer, o render.Options, terminal bool) render.Live {
	switch {
	case f.summary:
		return newCountsView(w, o, terminal, new(latestCounts))
	case f.tree:
		return newCountsView(w, o, terminal, new(callTree))
	}
	return render.NewSyscalls(w, o, render.SyscallOptions{One: f.of.onePod()})
}

// idle reports whether ev only says that one of several nodes has nothing to trace.
func (f *callFlags) idle(ev *orb8v1.Event, src *source, json bool) bool {
	x := ev.GetSyscallTargets()
	if x == nil {
		return false
	}
	if f.targets == nil {
		f.targets = map[string]bool{}
	}
	if len(x.GetWorkloads()) > 0 {
		f.targets[ev.GetNodeName()] = true
	}
	return src.many() && !f.targets[ev.GetNodeName()] && !json
}

// after says that nothing was traced.
func (f *callFlags) after(well bool) []string {
	if well && f.targets != nil && len(f.targets) == 0 {
		return []string{"nothing was traced: no container matched"}
	}
	return nil
}

func (f *callFlags) bind(fs *pflag.FlagSet) {
	fs.StringSliceVar(&f.calls, "call", nil, "only the system calls `NAME`, as in openat,connect (repeatable)")
	fs.StringSliceVar(&f.except, "except", nil, "not the system calls `NAME` (repeatable)")
	fs.DurationVar(&f.slower, "slower", 0, "only calls that took longer than `TIME`, as in 10ms")
	fs.BoolVar(&f.errorsOnly, "errors-only", false, "only calls that return an error")
	fs.BoolVar(&f.anomalies, "anomalies", false, "only calls that a rule flags")
	fs.BoolVar(&f.summary, "summary", false, "count the calls of whole containers: how many, how long, how many errors")
	fs.BoolVar(&f.tree, "tree", false, "add the calls up by process, each below its parent")
	fs.Uint32Var(&f.rate, "rate", defaultRate, "at most `N` calls a second and node, up to 1000000")
}

func (f *callFlags) check(t *traceFlags) error {
	f.of = t
	if err := t.selective(); err != nil {
		return err
	}
	switch {
	case t.duration > longestTrace:
		return usagef("--duration %s: want 1h or less", t.duration)
	case f.rate == 0:
		return usagef("--rate 0: want at least 1")
	case f.rate > highestRate:
		return usagef("--rate %d: want %d or less", f.rate, highestRate)
	case f.slower < 0:
		return usagef("--slower %s: want more than 0", f.slower)
	case f.summary && f.tree:
		return usagef("--summary counts by container, --tree by process: give one of them")
	case f.summary && f.slower > 0:
		return usagef("--summary counts all calls: leave out --slower")
	case f.summary && f.anomalies:
		return usagef("--summary counts in the kernel, which knows no rules: leave out --anomalies")
	case f.summary && t.filters.narrow():
		return usagef("--summary counts whole containers: leave out --process, --executable and --rule, also after --not")
	}
	for _, list := range []struct {
		flag  string
		names []string
	}{{"call", f.calls}, {"except", f.except}} {
		for _, name := range list.names {
			if err := syscalls.CheckName(name); err != nil {
				return usagef("--%s %q: %w", list.flag, name, err)
			}
		}
	}
	return nil
}

// selective refuses to trace what nobody has selected.
func (f *traceFlags) selective() error {
	p := f.filters.positive
	selected := len(p.GetPods())+len(p.GetNamespaces())+len(p.GetWorkloads())+len(p.GetContainers())+
		len(p.GetProcesses())+len(p.GetExecutables()) > 0
	if selected || slices.ContainsFunc(f.filters.selectors, func(s *orb8v1.Filter) bool { return s.GetLabelSelector() != "" }) {
		return nil
	}
	return usagef("tracing system calls makes those of every process on the node slower: say whose, with --pod, --namespace, --selector, --workload, --container or --process")
}

// narrow reports whether filters choose among the calls of a container.
func (f *filterFlags) narrow() bool {
	return slices.ContainsFunc(append([]*orb8v1.Filter{f.positive}, f.negative...), func(x *orb8v1.Filter) bool {
		return len(x.GetProcesses())+len(x.GetExecutables())+len(x.GetRules()) > 0
	})
}

func (f *callFlags) request() *orb8v1.SyscallTrace {
	return &orb8v1.SyscallTrace{
		Calls: f.calls, Except: f.except, SlowerNs: int64(f.slower), ErrorsOnly: f.errorsOnly, AnomaliesOnly: f.anomalies,
		Summary: f.summary, DurationNs: int64(f.of.duration), Rate: f.rate,
	}
}

// onePod reports whether all that is shown is of one pod or container.
func (f *traceFlags) onePod() bool {
	pods := f.filters.positive.GetPods()
	return len(pods) == 1 && !strings.HasSuffix(pods[0], "*") || len(f.filters.positive.GetContainers()) == 1
}

// costOf says who pays for a trace, and for how long.
func costOf(src *source, d time.Duration) string {
	where := "on each node that runs one of these"
	if all := src.statuses(); len(all) == 1 {
		where = "on node " + all[0].GetNodeName()
	}
	return fmt.Sprintf("for as long as this runs, %s at most, each system call of every process %s takes about 0.1 to 0.3 µs longer",
		render.Span(d), where)
}
