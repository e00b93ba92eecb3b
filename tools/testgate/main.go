// SPDX-License-Identifier: Apache-2.0

// Command testgate runs `go test`, gives what failed a second look, and says what
// came of it:
//
//	testgate [-skips FILE] [-summary FILE] [-again=false] [go test flag...] package...
//
// A test that fails is run again once, alone. If it passes then, it is flaky, which
// is printed as "flaky: PACKAGE TEST (what it said)" and is no failure. Data races,
// leaks, panics, hangs and packages that fail without a failed test are never tried
// again. A skip that the file of expected skips does not have is a failure.
//
// Flags of `go test` are written as -flag=value. The exit status is 1 if something
// failed, 2 for wrong usage.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// config is what the command line says.
type config struct {
	skips    string // file of expected skips; empty: any skip is expected
	summary  string // file that the summary is appended to as a line of JSON
	again    bool   // look a second time
	flags    []string
	packages []string
}

// summary is what came of one run.
type summary struct {
	Passed int      `json:"passed"`
	Failed int      `json:"failed"`
	Flaky  []string `json:"flaky"`
}

func main() {
	cfg, err := parse(os.Args[1:], os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testgate:", err)
		os.Exit(2)
	}
	s, err := run(context.Background(), cfg, goTest, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testgate:", err)
		os.Exit(1)
	}
	if s.Failed > 0 {
		os.Exit(1)
	}
}

func parse(args []string, w io.Writer) (*config, error) {
	cfg := &config{}
	fs := flag.NewFlagSet("testgate", flag.ContinueOnError)
	fs.SetOutput(w)
	fs.StringVar(&cfg.skips, "skips", "", "`file` with the expected skips")
	fs.StringVar(&cfg.summary, "summary", "", "append the summary to `file` as a line of JSON")
	fs.BoolVar(&cfg.again, "again", true, "run a failed test once more")
	// Its own flags come first; the flag package stops at the first other one.
	own := 0
	for own < len(args) && isOwn(fs, args[own]) {
		own++
	}
	if err := fs.Parse(args[:own]); err != nil {
		return nil, err
	}
	rest := args[own:]
	for i, a := range rest {
		if !strings.HasPrefix(a, "-") {
			cfg.flags, cfg.packages = rest[:i], rest[i:]
			break
		}
	}
	if len(cfg.packages) == 0 {
		return nil, errors.New("no package, want [flag=value...] [go test flag=value...] package")
	}
	for _, p := range cfg.packages {
		if strings.HasPrefix(p, "-") {
			return nil, fmt.Errorf("flag %s after package %s: flags go before packages, as -flag=value", p, cfg.packages[0])
		}
	}
	return cfg, nil
}

func isOwn(fs *flag.FlagSet, arg string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	return strings.HasPrefix(arg, "-") && fs.Lookup(name) != nil
}

// A tester runs `go test -json` with args and writes its events to w. The error says
// that it could not be run at all.
type tester func(ctx context.Context, w io.Writer, args ...string) error

func goTest(ctx context.Context, w io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stdout, cmd.Stderr = w, w
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil // which tests failed is in the events
	}
	return err
}

// run tests once, looks again, and reports to w.
func run(ctx context.Context, cfg *config, test tester, w io.Writer) (*summary, error) {
	expected, err := readSkips(cfg.skips)
	if err != nil {
		return nil, err
	}
	first := &results{progress: w}
	if err := test(ctx, first, append(cfg.flags, cfg.packages...)...); err != nil {
		return nil, err
	}
	first.flush()
	s := &summary{Passed: first.count("pass"), Flaky: []string{}}
	for _, f := range first.failures() {
		flaky, err := secondLook(ctx, cfg, test, f, w)
		if err != nil {
			return nil, err
		}
		if flaky == "" {
			s.Failed++
		} else {
			s.Passed++
			s.Flaky = append(s.Flaky, flaky)
		}
	}
	s.Failed += first.reportSkips(w, expected)
	if s.Passed+s.Failed == 0 {
		fmt.Fprintln(w, "no test was run")
		s.Failed++
	}
	for _, f := range s.Flaky {
		fmt.Fprintln(w, "flaky:", f)
	}
	return s, cfg.write(s)
}

func (cfg *config) write(s *summary) error {
	if cfg.summary == "" {
		return nil
	}
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(cfg.summary, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// secondLook prints what a failed test said and runs it again if it may be. It
// returns the test's name and what it said if it passes then, else nothing.
func secondLook(ctx context.Context, cfg *config, test tester, f failure, w io.Writer) (flaky string, err error) {
	io.WriteString(w, f.output) //nolint:errcheck // as Fprintln below
	switch {
	case !cfg.again:
		return "", nil
	case f.test == "":
		fmt.Fprintf(w, "%s failed without a failed test: not tried again\n", f.pkg)
		return "", nil
	case f.final != "":
		fmt.Fprintf(w, "%s %s: a %s is not tried again\n", f.pkg, f.test, f.final)
		return "", nil
	}
	fmt.Fprintf(w, "%s %s failed: once more, alone\n", f.pkg, f.test)
	again := &results{}
	if err := test(ctx, again, append(aloneFlags(cfg.flags, f.test), f.pkg)...); err != nil {
		return "", err
	}
	again.flush()
	if again.passed(f.test) {
		return fmt.Sprintf("%s %s (%s)", short(f.pkg), f.test, f.said), nil
	}
	for _, g := range again.failures() {
		io.WriteString(w, g.output) //nolint:errcheck // as above
	}
	fmt.Fprintf(w, "%s %s failed twice\n", f.pkg, f.test)
	return "", nil
}

// aloneFlags are the flags with which the one test runs, however it was chosen.
func aloneFlags(flags []string, test string) []string {
	var alone []string
	for _, f := range flags {
		name, _, _ := strings.Cut(strings.TrimLeft(f, "-"), "=")
		if name != "run" && name != "count" && name != "skip" {
			alone = append(alone, f)
		}
	}
	return append(alone, "-count=1", "-run=^"+regexp.QuoteMeta(test)+"$")
}
