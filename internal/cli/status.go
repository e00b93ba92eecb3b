// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/Ignoramuss/orb8/internal/cli/render"
)

const statusLong = `Show what an agent says of itself: its probes and what they lack, what was lost
and where, how many flows it keeps. Stages that lost nothing are shown with
-o wide only.

Exit code 1 if there is no agent or none of its probes runs.`

func newStatus(c *Config) *cobra.Command {
	var agent agentFlag
	var output outputFlags
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show an agent's probes, losses and sizes",
		Long:    statusLong,
		Example: "  orb8 status\n  orb8 status --agent 10.0.0.5 -o wide\n  orb8 status -o json | jq '.probes[] | {name, state}'",
		GroupID: groupRun,
		Args:    cobra.NoArgs,
	}
	cmd.RunE = running(func(cmd *cobra.Command) error { return c.status(cmd, &agent, &output) })
	fs := newFlagSet()
	agent.bind(fs, c.DefaultAgent)
	output.bind(fs)
	groupFlags(cmd, flagGroup{"Flags", fs})
	completeValues(cmd)
	return cmd
}

func (c *Config) status(cmd *cobra.Command, agent *agentFlag, output *outputFlags) (err error) {
	options, err := output.options(c, c.Stdout)
	if err != nil {
		return err
	}
	addr, err := agent.addr()
	if err != nil {
		return err
	}
	src, err := dial(cmd.Context(), addr, dialTimeout)
	if err != nil {
		return unlessDone(cmd.Context(), noAgent(addr, err))
	}
	defer closing(src.close, &err)
	if err := render.Status(c.Stdout, options, src.name, src.status); err != nil {
		return err
	}
	if !src.status.GetHealthy() {
		return errSilent
	}
	return nil
}
