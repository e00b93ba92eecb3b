// SPDX-License-Identifier: Apache-2.0

//go:build linux

package agent

import (
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

func TestListenSocket(t *testing.T) {
	ctx := testwait.Context(t)
	path := filepath.Join(t.TempDir(), "orb8", "agent.sock")
	l, err := listenSocket(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	want := fs.FileMode(0o666)
	if _, err := user.LookupGroup(SocketGroup); err == nil {
		want = 0o660
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeSocket|want {
		t.Errorf("%v, %v, want mode %v", info.Mode(), err, want)
	}
	if _, err := listenSocket(ctx, path); err == nil || !strings.Contains(err.Error(), "another agent listens at "+path) {
		t.Errorf("a second agent: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
	// What an agent that was killed has left is no obstacle.
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	if l, err = listenSocket(ctx, path); err != nil {
		t.Fatal(err)
	}
	l.Close()
	// Anything else is.
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(ctx, path); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file: %v", err)
	}
}

// Where others may put files, theirs could be taken for the agent's.
func TestSocketInForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(testwait.Context(t), filepath.Join(dir, "agent.sock")); err == nil || !strings.Contains(err.Error(), "want a directory that only root may write into") {
		t.Errorf("for all: %v", err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to give a directory away")
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(testwait.Context(t), filepath.Join(dir, "agent.sock")); err == nil || !strings.Contains(err.Error(), "is of user 65534") {
		t.Errorf("of another user: %v", err)
	}
}

// The API answers at the socket.
func TestServesAtSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	startRig(t, func(c *config.Config, _ *Deps, _ *rig) { c.Socket = path })
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := orb8v1.NewOrbitAgentServiceClient(conn).GetStatus(testwait.Context(t), &orb8v1.GetStatusRequest{}, grpc.WaitForReady(true))
	if err != nil || s.GetNodeName() != "node-a" {
		t.Errorf("%v, %v", s, err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil || int(st.Uid) != os.Getuid() {
		t.Errorf("user %d, %v", st.Uid, err)
	}
}
