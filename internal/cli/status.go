// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/Ignoramuss/orb8/internal/cli/render"
)

const statusLong = `Show what agents say of themselves: their probes and what these lack, what was
lost and where, how many flows they keep.

Asked are this host's agent if one answers, else all agents of the
kubeconfig's current cluster. Several agents are shown in a line each, a node
that does not answer with the reason; a single one, as with --node, in full,
where stages that lost nothing are shown with -o wide only. With -o json every
line is one node's orb8.v1.AgentStatus.

Exit code 1 if there is no agent, if one does not answer, or if none of its probes
runs.`

// statusFlags are those of commands that ask agents for their status.
type statusFlags struct {
	agent   agentFlag
	cluster clusterFlags
	output  outputFlags
}

func (f *statusFlags) bind(cmd *cobra.Command, c *Config) {
	output, source := newFlagSet(), newFlagSet()
	f.agent.bind(source, c.DefaultAgent)
	f.cluster.bind(source)
	source.StringSliceVar(&f.cluster.nodes, "node", nil, "ask the cluster's agent on node `NAME` (repeatable)")
	f.output.bind(output)
	groupFlags(cmd, flagGroup{"Source", source}, flagGroup{"Output", output})
	completeValues(cmd)
}

// chosen reports whether the flags say whom to ask.
func (f *statusFlags) chosen(cmd *cobra.Command) bool {
	return cmd.Flags().Changed("agent") || f.cluster.only()
}

// open finds the agents to ask.
func (f *statusFlags) open(cmd *cobra.Command, c *Config) (*source, error) {
	addr, err := f.agent.addr()
	if err != nil {
		return nil, err
	}
	given := cmd.Flags().Changed("agent")
	if given && f.cluster.only() {
		return nil, usagef("--agent names another source than --context, --kubeconfig, --orb8-namespace and --node")
	}
	if err := f.cluster.check(); err != nil {
		return nil, err
	}
	return c.statusSource(cmd.Context(), addr, given, &f.cluster)
}

func newStatus(c *Config) *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show agents' probes, losses and sizes",
		Long:  statusLong,
		Example: "  orb8 status\n  orb8 status --node n1 -o wide\n  orb8 status --agent 10.0.0.5 -o wide\n" +
			"  orb8 status -o json | jq '.probes[] | {name, state}'",
		GroupID: groupRun,
		Args:    noArguments,
	}
	cmd.RunE = running(func(cmd *cobra.Command) error { return c.status(cmd, &f) })
	f.bind(cmd, c)
	return cmd
}

func (c *Config) status(cmd *cobra.Command, f *statusFlags) (err error) {
	options, err := f.output.options(c, c.Stdout)
	if err != nil {
		return err
	}
	src, err := f.open(cmd, c)
	if err != nil {
		return unlessDone(cmd.Context(), err)
	}
	defer closing(src.close, &err)
	if len(src.nodes) > 1 {
		err = render.Statuses(c.Stdout, options, src.nodeStatuses())
	} else {
		err = render.Status(c.Stdout, options, src.name, src.statuses()[0])
	}
	if err != nil {
		return err
	}
	for _, n := range src.nodeStatuses() {
		if n.Away != "" || !n.Status.GetHealthy() {
			return errSilent
		}
	}
	return nil
}

// statusSource finds the agents to ask: like open, but without probes in this
// process.
func (c *Config) statusSource(ctx context.Context, addr string, given bool, f *clusterFlags) (*source, error) {
	if given {
		src, err := dial(ctx, addr, dialTimeout)
		if err != nil {
			return nil, noAgent(addr, err)
		}
		return src, nil
	}
	if f.only() {
		src, err := c.openCluster(ctx, f)
		if errors.Is(err, errNoCluster) {
			err = c.noKubeconfig()
		}
		return src, err
	}
	src, err := c.dialHost(ctx)
	if err == nil || ctx.Err() != nil {
		return src, err
	}
	src, clusterErr := c.openCluster(ctx, f)
	switch {
	case clusterErr == nil:
		return src, nil
	case errors.Is(clusterErr, errNoCluster):
		return nil, noAgent(addr, err)
	}
	why := asFailure(clusterErr)
	return nil, &failure{what: why.summaryLine(), remedy: why.remedy,
		tried: append([]string{"agent on " + addr + ": " + err.Error()}, why.tried...)}
}
