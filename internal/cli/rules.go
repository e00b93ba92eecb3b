// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

const rulesLong = `Show the rules by which what containers do is judged: how severe what they find is,
whether they are on, and how often each has found something since the agents began.
With a rule's name, or with -o wide, it is shown in full: why it matters, examples of
what it finds and of what it leaves alone, and the exception that silences it.

Asked are this host's agent if one answers, else all agents of the kubeconfig's current
cluster; FOUND is their sum. Where no agent is found the rules of this version are shown
without it.

Rules are switched off, and exceptions made, in the agent's configuration (rules_off,
exceptions; docs/rules.md). With -o json every line is a rule.`

func newRules(c *Config) *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use: "rules [RULE]", Short: "Show the rules that raise alerts", Long: rulesLong, GroupID: groupSee,
		Example: "  orb8 rules\n  orb8 rules reverse_shell\n  orb8 rules -o json | jq -r 'select(.found > 0) | .name'",
		Args:    cobra.MaximumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, r := range anomaly.Rules() {
				names = append(names, r.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rule := strings.Join(args, "") // there is one at most
		return running(func(cmd *cobra.Command) error { return c.rules(cmd, &f, rule) })(cmd, args)
	}
	f.bind(cmd, c)
	return cmd
}

func (c *Config) rules(cmd *cobra.Command, f *statusFlags, rule string) error {
	options, err := f.output.options(c, c.Stdout)
	if err != nil {
		return err
	}
	if rule != "" {
		if err := anomaly.CheckRules([]string{rule}); err != nil {
			return usagef("%w", err)
		}
	}
	rows, err := c.ruleRows(cmd, f)
	if err != nil {
		return unlessDone(cmd.Context(), err)
	}
	if rule != "" {
		for _, r := range rows {
			if r.Name == rule {
				return render.Rule(c.Stdout, options, &r)
			}
		}
	}
	return render.Rules(c.Stdout, options, rows)
}

// ruleRows are all rules, with what agents say of them if there are any.
func (c *Config) ruleRows(cmd *cobra.Command, f *statusFlags) (rows []render.RuleRow, err error) {
	rows = render.RuleRows(anomaly.Rules())
	src, err := f.open(cmd, c)
	if err != nil {
		if f.chosen(cmd) || cmd.Context().Err() != nil {
			return nil, err
		}
		fmt.Fprintln(c.Stderr, "no agent was found: these are the rules of this version, whether they are on and what they found is not known")
		return rows, nil
	}
	defer closing(src.close, &err)
	for _, s := range src.statuses() {
		for _, said := range s.GetRules() {
			for i := range rows {
				if rows[i].Name == said.GetName() {
					rows[i].Add(s.GetNodeName(), said.GetOff(), said.GetFound())
				}
			}
		}
	}
	return rows, nil
}
