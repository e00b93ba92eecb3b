// SPDX-License-Identifier: Apache-2.0

//go:build linux

package dashboards

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// contained runs a program again and again, in the cgroup of a container, that changes
// its root directory: which is a program that starts, and an alert.
func contained(ctx context.Context, t *testing.T) {
	t.Helper()
	resolver, err := workload.NewResolver(workload.Config{})
	if err != nil {
		t.Fatal(err)
	}
	cgroup := filepath.Join(resolver.Mount().Path, "docker-"+strings.Repeat("da5b", 16)+".scope")
	if err := errors.Join(resolver.Close(), os.Mkdir(cgroup, 0o755)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		<-ended
		if err := errors.Join(dir.Close(), os.Remove(cgroup)); err != nil {
			t.Error(err)
		}
	})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			cmd := exec.Command("chroot", "/", "true")
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
			_ = cmd.Run() // seen or not, the panels tell
			time.Sleep(200 * time.Millisecond)
		}
	}()
}
