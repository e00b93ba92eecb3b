// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package nvmltest stands in for NVIDIA's driver in tests: a library in C, built
// with the C compiler and loaded for real, that says what a file tells it to.
package nvmltest

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

//go:embed testdata/fake.c
var fake []byte

// Driver is such a library and its file.
type Driver struct {
	// Library is the path of libnvidia-ml.so.1.
	Library string
	state   string
	t       testing.TB
}

// New builds the library, with more flags for the compiler; it skips the test
// where there is no compiler.
func New(t testing.TB, flags ...string) *Driver {
	t.Helper()
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skipf("SKIP: the stand-in for NVIDIA's library needs a C compiler: %v", err)
	}
	headers, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
	if err != nil {
		t.Fatalf("find nvml.h: %v", err)
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "fake.c")
	if err := os.WriteFile(source, fake, 0o600); err != nil {
		t.Fatal(err)
	}
	d := &Driver{Library: filepath.Join(dir, "libnvidia-ml.so.1"), state: filepath.Join(dir, "state"), t: t}
	args := append([]string{
		"-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-deprecated-declarations", "-o", d.Library,
		"-I", filepath.Join(strings.TrimSpace(string(headers)), "pkg/nvml"),
	}, flags...)
	out, err := exec.CommandContext(t.Context(), cc, append(args, source)...).CombinedOutput()
	if err != nil {
		t.Fatalf("build the stand-in for NVIDIA's library: %v\n%s", err, out)
	}
	t.Setenv("ORB8_FAKE_NVML", d.state)
	d.Set("")
	return d
}

// Set replaces what the library says; see testdata/fake.c.
func (d *Driver) Set(state string) {
	d.t.Helper()
	if err := os.WriteFile(d.state+".new", []byte(state), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(d.state+".new", d.state); err != nil {
		d.t.Fatal(err)
	}
}

// Open is what has been opened and not given back: 10,000 for each time that the
// library was begun with, 100 for each GPM sample, 1 for each set of events.
func (d *Driver) Open() int {
	d.t.Helper()
	text, err := os.ReadFile(d.state + ".open")
	if os.IsNotExist(err) {
		return 0
	}
	n, err := strconv.Atoi(string(text))
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

// Inits is how often the library has been begun with.
func (d *Driver) Inits() int {
	d.t.Helper()
	text, err := os.ReadFile(d.state + ".inits")
	if err != nil {
		d.t.Fatal(err)
	}
	return len(text)
}
