// SPDX-License-Identifier: Apache-2.0

// Package cli is orb8's command line: it turns flags into a request, finds the
// agent that answers it and hands what comes back to a renderer. It knows
// nothing of BPF and of how flows are made; what it needs of them comes in
// through Config.
package cli

import (
	"context"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/Ignoramuss/orb8/internal/cluster"
)

// Config is what the commands need of the world around them.
type Config struct {
	Version string
	Stdout  io.Writer
	Stderr  io.Writer
	Getenv  func(string) string
	// DefaultAgent is where an agent is looked for when none is named.
	DefaultAgent string
	// DefaultSocket is the Unix socket that is tried before that.
	DefaultSocket string
	// PeerUser is who listens at a Unix socket, ListenerUser who listens at a port of the
	// loopback addresses, if that can be told. nil where they cannot be asked.
	PeerUser     func(*net.UnixConn) (uid uint32, err error)
	ListenerUser func(port uint16) (uid uint32, listens bool)
	// Connect finds the cluster of a kubeconfig; nil where none is looked for.
	Connect Connect
	// Local starts probes in this process; nil where there can be none.
	Local Local
	// MayProbe reports whether this process may load probes.
	MayProbe func() bool
	// Agent runs the node agent; nil where there can be none.
	Agent Agent
	// Doctor checks the host.
	Doctor Doctor
}

// Main is the orb8 command. It returns the exit code.
func Main(version string) int {
	// A closed pipe, as in `orb8 flows | head`, becomes an error of the write.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for anything
	c := Config{
		Version: version, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
		DefaultAgent: "localhost:" + agentPort, Connect: cluster.Connect,
	}
	platform(&c)
	return Run(ctx, c, os.Args[1:])
}

// Run runs one command and returns its exit code: 0 done, 1 failed, 2 wrong
// usage. It ends early, and well, when ctx is done.
func Run(ctx context.Context, c Config, args []string) int {
	stdout, stderr := newPrintable(c.Stdout), newPrintable(c.Stderr)
	c.Stdout, c.Stderr = stdout, stderr
	root := newRoot(&c)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if closed := stdout.Close(); err == nil && closed != nil {
		err = &runError{closed}
	}
	code := report(c.Stderr, cmd, err)
	_ = stderr.Close() // where would one say so?
	return code
}

const rootLong = `orb8 shows what the workloads of a host or of a Kubernetes cluster do on its
network: who talks to whom, how much, how well, and how it ends; and on the host's
NVIDIA GPUs. It reads the kernel's and the driver's own counters; nothing is changed
about the workloads.

  sudo orb8 trace network --local   watch flows: no agent, no cluster, no configuration
  orb8 trace network          watch all nodes of the current kubeconfig's cluster
  sudo orb8 trace exec        watch programs being started
  sudo orb8 trace gpu         watch this host's GPUs
  sudo orb8 agent             keep an agent running, which trace and flows then ask
  orb8 alerts                 what rules found in what containers do
  orb8 doctor                 check whether this host has what orb8 needs`

func newRoot(c *Config) *cobra.Command {
	root := &cobra.Command{
		Use:           "orb8",
		Short:         "What workloads do on the network and on GPUs",
		Long:          rootLong,
		Version:       versionOf(c.Version),
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(c.Stdout)
	root.SetErr(c.Stderr)
	root.SetVersionTemplate("orb8 {{.Version}}\n")
	root.AddGroup(
		&cobra.Group{ID: groupSee, Title: "See:"},
		&cobra.Group{ID: groupRun, Title: "Run and check:"},
		&cobra.Group{ID: groupOther, Title: "Other:"},
	)
	root.AddCommand(
		newTrace(c), newFlows(c), newGPUs(c), newAlerts(c), newRules(c),
		newAgent(c), newStatus(c), newDoctor(c), newVersion(c),
	)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(newHelp())
	root.SetCompletionCommandGroupID(groupOther)
	return root
}

// Groups of commands in help.
const (
	groupSee   = "see"
	groupRun   = "run"
	groupOther = "other"
)

// noCommand rejects words after a command that has only subcommands.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return unknownCommand(args[0], cmd.CommandPath(), available(cmd))
}
