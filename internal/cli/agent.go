// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Agent adds the node agent's flags to fs and returns the function that runs it
// with what they were set to, until ctx is done. The log goes to stderr.
type Agent func(fs *pflag.FlagSet) func(ctx context.Context, version string, stderr io.Writer) error

const agentLong = `Run the node agent until SIGINT or SIGTERM: it loads the probes, keeps the flow
table, and serves gRPC on port 9090 and Prometheus metrics on port 9091. Outside
Kubernetes both listen on this host only.

Settings come from flags and from a YAML file (--config; its keys are in
docs/config.md); a flag wins. SIGHUP reads the file again. The log goes to
standard error.`

const agentExamples = `  sudo orb8 agent
  sudo orb8 agent --config /etc/orb8/agent.yaml
  sudo orb8 agent --packet off --log-format json`

func newAgent(c *Config) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "agent",
		Short:   "Run the node agent",
		Long:    agentLong,
		Example: agentExamples,
		GroupID: groupRun,
		Args:    noArguments,
	}
	if c.Agent == nil {
		cmd.Short += " (on Linux)"
		cmd.FParseErrWhitelist.UnknownFlags = true
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = running(func(*cobra.Command) error {
			return &failure{what: "the agent does not run here: its probes need Linux",
				remedy: []string{"run it on a Linux host and name that: orb8 trace network --agent HOST:PORT"}}
		})
		return cmd
	}
	fs := newFlagSet()
	run := c.Agent(fs)
	cmd.RunE = running(func(cmd *cobra.Command) error {
		if !c.MayProbe() {
			return &failure{what: "the agent needs root to load its probes", remedy: []string{
				"sudo orb8 agent",
				"or give it the capabilities BPF, PERFMON, NET_ADMIN, SYS_PTRACE and DAC_READ_SEARCH",
			}}
		}
		return run(cmd.Context(), versionOf(c.Version), c.Stderr)
	})
	groupFlags(cmd, flagGroup{"Flags", fs})
	return cmd
}
