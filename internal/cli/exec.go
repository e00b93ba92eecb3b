// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

const traceExecLong = `Watch programs being started: who, by whom, with which arguments.

A line is a process that started an executable (execve). COMMAND has its arguments, as
far as the agent reads them (process_args: the first 1,024 bytes); what looks like a
secret is ***, and … stands for more that were not read. PARENTS are who started it, the
nearest first: the nearest three, with -o wide all that are known, with their ids.
Behind the command stands what is unusual about its file:

  (memfd)    it is in memory only
  (deleted)  it had no name any more when it was started
  (changed)  it is in the writable layer of the container: made or changed after the
             container was created

USER is the host's user id; 1000→root runs with the rights of another (set-user-ID).
PID is the host's. With --exits processes that end are shown too, with their exit
status or the signal, and how long they were there. With -o wide come the container,
the parent's id, the process's id as its container sees it (NSPID), and the path of the
executable, which of a script is its interpreter.

--executable looks at that path and at the one that was started, --process at the
kernel's name of the process, which has 15 characters at most.

The source is found as by 'orb8 trace network'. With -o json every line is an
orb8.v1.Event with a process in it, a change of the node's status, or lost events.`

const traceExecExamples = `  sudo orb8 trace exec                              # this host, without an agent
  orb8 trace exec -n default                        # pods of a namespace, on all nodes
  orb8 trace exec --pod web-7d9f-x2x --exits        # and how they end
  orb8 trace exec --executable sh --executable '*/bash' -A
  orb8 trace exec --not --process 'runc*' --since 5m
  orb8 trace exec -A -o wide | less -S
  orb8 trace exec --duration 1m -o json | jq -r 'select(.process).process | [.workload.podName, (.process.arguments | join(" "))] | @tsv'`

// processFilters are the filters that make sense of what has no address.
func processFilters() []string {
	return []string{"namespace", "pod", "selector", "workload", "container", "process", "executable", "node"}
}

func newTraceExec(c *Config) *cobra.Command {
	var exits bool
	return c.newTrace(&cobra.Command{
		Use: "exec", Short: "Watch programs being started", Long: traceExecLong, Example: traceExecExamples,
	}, traceKind{
		title: "programs started", probe: "exec",
		kinds:    []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_PROCESS},
		subjects: processFilters(), noTraffic: true,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&exits, "exits", false, "processes that end as well")
		},
		local: func(f *sourceFlags) { f.only = onlyExec },
		request: func(r *orb8v1.ObserveRequest) {
			if !exits {
				r.ProcessSteps = []orb8v1.ProcessStep{orb8v1.ProcessStep_PROCESS_STEP_EXEC}
			}
		},
		lines: func(w io.Writer, o render.Options) render.Live {
			return render.NewProcesses(w, o, render.ProcessOptions{Exits: exits})
		},
		summary: render.NewProcessSummary,
		of:      func(ev *orb8v1.Event) (loopback, ok bool) { return false, ev.GetProcess() != nil },
	})
}
