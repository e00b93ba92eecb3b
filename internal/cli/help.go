// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/Ignoramuss/orb8/internal/cli/render"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// flagGroup is a titled part of a command's flags in its help.
type flagGroup struct {
	title string
	flags *pflag.FlagSet
}

// helpWidth is where descriptions of flags break.
const helpWidth = 100

// groupFlags adds the groups' flags to cmd and has its help show them by group.
func groupFlags(cmd *cobra.Command, groups ...flagGroup) {
	for _, g := range groups {
		g.flags.SortFlags = false
		cmd.Flags().AddFlagSet(g.flags)
	}
	cmd.SetUsageFunc(func(cmd *cobra.Command) error {
		var b strings.Builder
		fmt.Fprintf(&b, "Usage:\n  %s\n", cmd.UseLine())
		if cmd.HasExample() {
			fmt.Fprintf(&b, "\nExamples:\n%s\n", cmd.Example)
		}
		for _, g := range groups {
			fmt.Fprintf(&b, "\n%s:\n%s", g.title, g.flags.FlagUsagesWrapped(helpWidth))
		}
		_, err := fmt.Fprint(cmd.OutOrStdout(), b.String())
		return err
	})
}

func newFlagSet() *pflag.FlagSet { return pflag.NewFlagSet("", pflag.ContinueOnError) }

// completeValues has the shell complete the values of those flags that take one
// of a few words.
func completeValues(cmd *cobra.Command) {
	values := map[string][]string{
		"by":       render.GroupKeys(),
		"call":     syscalls.Names(),
		"except":   syscalls.Names(),
		"output":   render.Formats(),
		"packet":   {"auto", "on", "off"},
		"protocol": {"tcp", "udp", "icmp", "icmpv6"},
		"sort":     sortNames(),
		"type":     flows.Types(),
	}
	for flag, words := range values {
		if cmd.Flags().Lookup(flag) == nil {
			continue
		}
		err := cmd.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return words, cobra.ShellCompDirectiveNoFileComp
		})
		if err != nil {
			panic(err) // registered twice
		}
	}
}
