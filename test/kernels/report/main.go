// SPDX-License-Identifier: Apache-2.0

// Command report sums up what test/kernels/run.sh found: it prints what failed
// and what was left out, and compares the result with docs/kernels.md or writes
// that file. It knows nothing of QEMU and nothing of the probes but what their
// tests print.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	docs := flag.String("docs", "", "compare the result with this `file`")
	write := flag.Bool("write", false, "write the file instead of comparing")
	retry := flag.Bool("retry", false, "only list the failed tests that may be tried again: RELEASE PACKAGE TEST")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: report [-docs FILE [-write] | -retry] RESULT...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 || *write && *docs == "" {
		flag.Usage()
		os.Exit(2)
	}
	if *retry {
		if err := listRetries(os.Stdout, flag.Args()); err != nil {
			fmt.Fprintln(os.Stderr, "report:", err)
			os.Exit(1)
		}
		return
	}
	ok, err := run(os.Stdout, *docs, *write, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// run reports whether all tests passed and the result is the documented one.
func run(w io.Writer, docs string, write bool, dirs []string) (bool, error) {
	kernels, err := readKernels(dirs)
	if err != nil {
		return false, err
	}
	ok := true
	for _, k := range kernels {
		k.printProblems(w)
	}
	if docs != "" {
		same, err := checkDocs(w, docs, write, kernels)
		if err != nil {
			return false, err
		}
		ok = same
	}
	for _, k := range kernels {
		n := k.count()
		fmt.Fprintf(w, "kernel %s: %d passed, %d failed, %d skipped\n", k.version, n[pass], n[fail], n[skip])
		ok = ok && n[fail] == 0
	}
	for _, k := range kernels {
		for _, t := range k.flaky {
			fmt.Fprintf(w, "%s %s on %s, before it passed alone:\n%s\n", t.pkg, t.name, k.version, strings.Join(t.output, "\n"))
			fmt.Fprintf(w, "flaky: Linux %s %s %s (%s)\n", k.series, t.pkg, t.name, t.said())
		}
	}
	return ok, nil
}

func listRetries(w io.Writer, dirs []string) error {
	kernels, err := readKernels(dirs)
	if err != nil {
		return err
	}
	for _, k := range kernels {
		for _, t := range k.retries() {
			fmt.Fprintln(w, k.series, t.pkg, t.name)
		}
	}
	return nil
}

func readKernels(dirs []string) ([]*kernel, error) {
	var kernels []*kernel
	for _, dir := range dirs {
		k, err := readKernel(dir)
		if err != nil {
			return nil, err
		}
		kernels = append(kernels, k)
	}
	return kernels, nil
}

func checkDocs(w io.Writer, path string, write bool, kernels []*kernel) (same bool, err error) {
	now := render(kernels)
	if write {
		return true, os.WriteFile(path, []byte(now), 0o644)
	}
	committed, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	diffs := compare(string(committed), now)
	for _, d := range diffs {
		fmt.Fprintf(w, "%s: %s\n", filepath.Base(path), d)
	}
	if len(diffs) > 0 {
		fmt.Fprintf(w, "%s does not show this result: run test/kernels/run.sh --write-docs and look at the difference\n", path)
	}
	return len(diffs) == 0, nil
}

// readKernel reads one result folder of run.sh.
func readKernel(dir string) (*kernel, error) {
	text := map[string]string{}
	for _, name := range []string{"version", "outcome", "packages", "tests"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read result: %w", err)
		}
		text[name] = string(b)
	}
	k := &kernel{series: filepath.Base(dir), version: strings.TrimSpace(text["version"])}
	k.parse(text["tests"])
	k.complete(strings.Fields(text["packages"]), strings.TrimSpace(text["outcome"]))
	// There only if failed tests were run again.
	b, err := os.ReadFile(filepath.Join(dir, "again"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read result: %w", err)
	}
	k.lookAgain(string(b))
	return k, nil
}

func (k *kernel) printProblems(w io.Writer) {
	for _, t := range k.tests {
		switch {
		case t.status == skip:
			fmt.Fprintf(w, "%s: skipped %s %s: %s\n", k.series, t.pkg, t.name, t.detail)
		case t.status == fail:
			fmt.Fprintf(w, "%s: FAILED %s %s: %s\n", k.series, t.pkg, t.name, t.detail)
			for _, line := range t.output[max(0, len(t.output)-40):] {
				fmt.Fprintf(w, "    %s\n", line)
			}
		}
	}
}

// count counts the tests by status, parts of a test as part of it.
func (k *kernel) count() map[status]int {
	n := map[status]int{}
	for _, t := range k.tests {
		if !strings.Contains(t.name, "/") {
			n[t.status]++
		}
	}
	return n
}
