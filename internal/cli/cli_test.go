// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"

	"github.com/Ignoramuss/orb8/internal/cluster"
	"github.com/Ignoramuss/orb8/internal/doctor"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"orb8":        func() { os.Exit(scripted()) },
		"fakeagent":   runFakeAgent,
		"fakecluster": runFakeCluster,
		"onpty":       runOnPty,
	})
}

// scripted is the orb8 command with fakes for what needs a kernel.
func scripted() int {
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := Config{
		Version: "1.2.3", Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
		DefaultAgent: os.Getenv("DEFAULT_AGENT"),
		MayProbe:     func() bool { return os.Getenv("ROOT") != "" },
		Doctor: func(context.Context) []doctor.Finding {
			return []doctor.Finding{{Name: "kernel", Status: doctor.Status(os.Getenv("DOCTOR")), Detail: "it is what it is", Remedy: os.Getenv("REMEDY")}}
		},
		Agent:   fakeRun,
		Connect: cluster.Connect,
	}
	if os.Getenv("NOLINUX") == "" {
		c.Local = fakeLocal(scriptedLocal())
	}
	return Run(ctx, c, os.Args[1:])
}

func scriptedLocal() *fakeAgent {
	a := &fakeAgent{status: healthyStatus(), requests: os.Getenv("LOCAL_REQUESTS")}
	if why := os.Getenv("LOCAL_SICK"); why != "" {
		a.status.Healthy, a.status.HealthMessage = false, why
		a.status.Probes[0].Remedy = "use a kernel with BTF"
	}
	if path := os.Getenv("LOCAL_EVENTS"); path != "" {
		events, err := readEvents(path)
		if err != nil {
			fatal(err)
		}
		a.events = events
	}
	return a
}

// fakeRun stands for the agent's own flags and work.
func fakeRun(fs *pflag.FlagSet) func(ctx context.Context, version string, stderr io.Writer) error {
	listen := fs.String("listen", "localhost:9090", "address of the gRPC API")
	return func(ctx context.Context, version string, stderr io.Writer) error {
		if *listen == "taken" {
			return errors.New("port 9090 is taken")
		}
		slog.New(slog.NewTextHandler(stderr, nil)).Info("running", "version", version)
		<-ctx.Done()
		return nil
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		// Of all scripts together: one whose command hangs says which, and soon.
		Deadline: time.Now().Add(2 * time.Minute),
		Setup: func(e *testscript.Env) error {
			e.Setenv("TZ", "UTC")
			e.Setenv("GORACE", "atexit_sleep_ms=0") // a second for each command
			e.Setenv("TERM", "xterm")
			e.Setenv("DEFAULT_AGENT", "127.0.0.1:1") // nobody listens there
			e.Setenv("DOCTOR", "ok")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"await": await,
			"code":  code,
			"says":  says,
		},
	})
}

// await waits for a file; with a name it puts its content into that variable.
//
//	await FILE [VARIABLE]
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: await file [variable]")
	}
	for end := time.Now().Add(testwait.Limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil {
			if len(args) == 2 {
				ts.Setenv(args[1], string(text))
			}
			return
		}
	}
	ts.Fatalf("no %s after %v", args[0], testwait.Limit)
}

// says waits until a file has what matches a regular expression: what a command in the
// background has written by then.
//
//	says FILE PATTERN
func says(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: says file pattern")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var text []byte
	for end := time.Now().Add(testwait.Limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		text, err = os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && pattern.Match(text) {
			return
		}
	}
	ts.Fatalf("%s does not say %q after %v: %s (%v)", args[0], args[1], testwait.Limit, text, err)
}

// code runs a command that must end with the given exit code.
//
//	code N COMMAND...
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code n command...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if want := args[0]; strconv.Itoa(got) != want {
		ts.Fatalf("exit code %d, want %s", got, want)
	}
}
