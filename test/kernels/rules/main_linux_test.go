// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// runtimeEnv says that this binary is the container runtime.
const runtimeEnv = "ORB8_RULES_TEST_RUNTIME"

// A runtime's main goroutine stays on the process's first thread, which gets the
// namespaces.
func init() { //nolint:gochecknoinits // it is too late for that in TestMain
	if os.Getenv(runtimeEnv) != "" {
		runtime.LockOSThread()
	}
}

// asRuntimeEnv has the folder from which this binary runs under a runtime's name: the
// processes that it makes in a container's cgroup are a runtime's from their beginning.
const asRuntimeEnv = "ORB8_RULES_TEST_AS_RUNTIME"

func TestMain(m *testing.M) {
	if os.Getenv(runtimeEnv) != "" {
		fmt.Fprintln(os.Stderr, "runc:", becomeContainer(os.Args[1]))
		os.Exit(1)
	}
	dir := os.Getenv(asRuntimeEnv)
	if dir == "" {
		fmt.Fprintln(os.Stderr, "start the tests again as runc:", becomeRuntime())
		os.Exit(1)
	}
	goleak.VerifyTestMain(tests{m, dir})
}

// becomeRuntime returns only if it fails.
func becomeRuntime() error {
	dir, err := os.MkdirTemp("", "orb8-rules-")
	if err != nil {
		return err
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	runc := filepath.Join(dir, "runc")
	if err := os.WriteFile(runc, program, 0o700); err != nil {
		return err
	}
	return syscall.Exec(runc, os.Args, append(os.Environ(), asRuntimeEnv+"="+dir))
}

type tests struct {
	*testing.M
	dir string
}

// Run runs the tests and removes the folder.
func (m tests) Run() int {
	defer os.RemoveAll(m.dir)
	return m.M.Run()
}
