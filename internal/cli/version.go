// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/Ignoramuss/orb8/internal/cli/render"
)

// versionOf is the version that the linker set, else what the Go tool knows.
func versionOf(linked string) string {
	if linked != "" {
		return linked
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}

// build describes how the binary came to be.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildOf(linked string) build {
	b := build{Version: versionOf(linked), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.Commit = s.Value + b.Commit
		case s.Key == "vcs.modified" && s.Value == "true":
			b.Commit += "+changes"
		}
	}
	return b
}

func newVersion(c *Config) *cobra.Command {
	var output outputFlags
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this program",
		Long:    "Show the version of this program. That of an agent is in 'orb8 status'.",
		Example: "  orb8 version\n  orb8 version -o json | jq -r .version",
		GroupID: groupOther,
		Args:    noArguments,
	}
	cmd.RunE = running(func(*cobra.Command) error {
		options, err := output.options(c, c.Stdout)
		if err != nil {
			return err
		}
		b := buildOf(c.Version)
		if options.Format == render.JSON {
			return json.NewEncoder(c.Stdout).Encode(b)
		}
		line := fmt.Sprintf("orb8 %s %s %s", b.Version, b.Platform, b.Go)
		if b.Commit != "" {
			line += " commit " + b.Commit
		}
		_, err = fmt.Fprintln(c.Stdout, line)
		return err
	})
	fs := newFlagSet()
	output.bind(fs)
	groupFlags(cmd, flagGroup{"Flags", fs})
	completeValues(cmd)
	return cmd
}
