// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagError says in words what is wrong with a flag: parsers of values speak of their own
// functions, and a misspelt name is mostly close to the right one.
func flagError(cmd *cobra.Command, err error) error {
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		number := errors.As(err, new(*strconv.NumError)) || strings.HasPrefix(bad.Unwrap().Error(), "time: ")
		if want := wantOf(bad.GetFlag().Value.Type()); want != "" && number {
			return usagef("invalid argument %q for --%s: want %s", bad.GetValue(), bad.GetFlag().Name, want)
		}
		return err
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok && unknown.GetSpecifiedShortnames() == "" {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if near := nearest(unknown.GetSpecifiedName(), names); near != "" {
			return usagef("unknown flag: --%s; did you mean --%s?", unknown.GetSpecifiedName(), near)
		}
	}
	return err
}

// wantOf is what a flag of a type takes, empty for those that say it themselves.
func wantOf(kind string) string {
	switch kind {
	case "uint32":
		return fmt.Sprintf("a whole number from 0 to %d", uint32(math.MaxUint32))
	case "int":
		return "a whole number"
	case "duration":
		return "a time with its unit, as in 500ms, 5s or 1h30m"
	case "bool":
		return "true or false"
	}
	return ""
}

// noArguments refuses words after a command that takes flags only.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usagef("%s takes flags only, not %q", cmd.CommandPath(), args[0])
}

// nearest is the word of several that a misspelt one was meant to be, empty if none is
// close.
func nearest(word string, words []string) string {
	best, least := "", max(len(word)/3, 1)+1
	for _, w := range words {
		if d := distance(word, w); d < least || len(word) > 2 && least > 1 && strings.HasPrefix(w, word) && best == "" {
			best, least = w, d
		}
	}
	return best
}

// distance is how many letters are to be put in, taken out, changed or swapped with their
// neighbour (optimal string alignment).
func distance(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}

// newHelp is cobra's help command, which knows when there is no such command.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:     "help [command]",
		Short:   "Help about any command",
		Long:    "Help about any command: orb8 help trace network is orb8 trace network --help.",
		GroupID: groupOther,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || found == nil || len(rest) > 0 {
				known := cmd.Root()
				if found != nil {
					known = found
				}
				word := strings.Join(args, " ")
				if len(rest) > 0 {
					word = rest[0]
				}
				return unknownCommand(word, known.CommandPath(), available(known))
			}
			return found.Help()
		},
	}
}

// available are the commands below another.
func available(cmd *cobra.Command) []string {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return names
}

func unknownCommand(word, path string, known []string) error {
	if near := nearest(word, known); near != "" {
		return usagef("unknown command %q for %q; did you mean %s? There are %s", word, path, near, strings.Join(slices.Sorted(slices.Values(known)), ", "))
	}
	return usagef("unknown command %q for %q: use %s", word, path, strings.Join(known, ", "))
}
