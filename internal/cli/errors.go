// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/Ignoramuss/orb8/internal/cli/render"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError says that the command line is wrong.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// runError marks what went wrong while a command ran; every other error is
// cobra's and means wrong usage.
type runError struct{ err error }

func (e *runError) Error() string { return e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

// running is a command's RunE, its errors marked.
func running(f func(cmd *cobra.Command) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := f(cmd); err != nil {
			return &runError{err}
		}
		return nil
	}
}

// errSilent ends a command with exit code 1 when its output says why already.
var errSilent = errors.New("see output")

// failure is an error that tells the user what was tried and what to do.
type failure struct {
	what   string
	tried  []string
	remedy []string
	err    error
}

func (e *failure) Error() string {
	var b strings.Builder
	b.WriteString(e.what)
	if e.err != nil {
		fmt.Fprintf(&b, ": %v", e.err)
	}
	for i, t := range e.tried {
		fmt.Fprintf(&b, "\n  %-6s %s", label("tried", i), t)
	}
	for i, r := range e.remedy {
		fmt.Fprintf(&b, "\n  %-6s %s", label("do", i), r)
	}
	return b.String()
}

func (e *failure) Unwrap() error { return e.err }

func label(s string, i int) string {
	if i > 0 {
		return ""
	}
	return s
}

// report tells the user of err and returns the exit code.
func report(w io.Writer, cmd *cobra.Command, err error) int {
	var usage *usageError
	var run *runError
	switch {
	case err == nil || errors.Is(err, syscall.EPIPE):
		return exitDone
	case errors.As(err, &usage) || !errors.As(err, &run):
		fmt.Fprintf(w, "orb8: %s\nsee '%s --help'\n", err, cmd.CommandPath())
		return exitUsage
	case errors.Is(err, errSilent):
	default:
		fmt.Fprintf(w, "orb8: %s\n", err)
	}
	return exitFailed
}

// explain turns what a call to an agent returned into an error for the user.
func explain(doing, source string, err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	message := render.Clean(s.Message())
	switch s.Code() {
	case codes.InvalidArgument:
		return usagef("%s refuses the request: %s", source, message)
	case codes.Unavailable:
		return &failure{what: "lost the connection to " + source, err: errors.New(message),
			remedy: []string{"see whether it still runs: orb8 status"}}
	case codes.Unimplemented:
		return &failure{what: source + " does not know this call", err: errors.New(message),
			remedy: []string{"use the same version of orb8 on both sides (see orb8 status)"}}
	}
	return fmt.Errorf("%s: %s (%s)", doing, message, s.Code())
}
