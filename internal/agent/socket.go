// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// SocketGroup is the group that may ask the agent, where there is one; else everybody
	// may, as at the loopback address.
	SocketGroup = "orb8"
)

// listenSocket opens the Unix socket at path, for SocketGroup alone if there is one. Its
// directory is made; it must be of a user whom clients believe, so that nobody else can
// put a socket there.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("listen for --socket: %w", err)
	}
	if err := checkDirectory(dir); err != nil {
		return nil, fmt.Errorf("listen for --socket: %w", err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("listen for --socket: %w", err)
	}
	// Nobody may connect before it has its group and mode.
	old := syscall.Umask(0o177)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen for --socket: %w", err)
	}
	if err := share(path); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for --socket: %w", err), l.Close())
	}
	return l, nil
}

// checkDirectory refuses one in which others may put files.
func checkDirectory(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if own := uint32(os.Geteuid()); owner != 0 && owner != own || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is of user %d, mode %v: want a directory that only root may write into", dir, owner, info.Mode().Perm())
	}
	return nil
}

// removeStale removes what an agent that was killed has left.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another agent listens at %s: stop that one, or choose another path with --socket", path)
	}
	return os.Remove(path)
}

func share(path string) error {
	g, err := user.LookupGroup(SocketGroup)
	if err != nil { // there is none
		return os.Chmod(path, 0o666)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s: %w", SocketGroup, err)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return err
	}
	return os.Chmod(path, 0o660)
}
