// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// newCgroup makes a cgroup and returns its directory and id.
func newCgroup(t *testing.T) (dir string, id uint64) {
	t.Helper()
	m, err := workload.FindCgroupMount("/proc", "")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	dir = filepath.Join(m.Path, fmt.Sprintf("orb8-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return dir, st.Ino
}

// childIn is this test binary as a process in a namespace and a cgroup.
func childIn(t *testing.T, n *netns, cgroup, addr string) *exec.Cmd {
	t.Helper()
	fd, err := unix.Open(cgroup, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	args := n.cmd(os.Args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "ORB8_TEST_DIAL="+addr)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	return cmd
}
