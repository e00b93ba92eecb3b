// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// mounts are deeds with file systems. Those that succeed are in the container's own
// mount namespace, or in one below it.
func mounts() map[string]deed {
	return map[string]deed{
		"mount": func([]string) error {
			dir, err := os.MkdirTemp("", "mount-")
			if err != nil {
				return err
			}
			return named("mount", unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"))
		},
		// umount DIR unmounts what is mounted there.
		"umount": func(args []string) error {
			if err := want(args, "DIR"); err != nil {
				return err
			}
			return named("umount2", unix.Unmount(args[0], 0))
		},
		"move-mount": moveMount,
		"pivot":      func([]string) error { return named("pivot_root", unix.PivotRoot("/", "/")) },
		"own-root":   ownRoot,
		"chroot": func([]string) error {
			dir, err := os.MkdirTemp("", "root-")
			if err != nil {
				return err
			}
			return named("chroot", unix.Chroot(dir))
		},
		"chroot-nowhere": func([]string) error { return named("chroot", unix.Chroot("/nowhere")) },
		"mknod": func([]string) error {
			return node("mknod", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250)))
		},
		"mkfifo": func([]string) error { return node("mkfifo", unix.S_IFIFO|0o600, 0) },
		"handle": openByHandle,
		"handle-of": func([]string) error {
			_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/proc", 0)
			if errors.Is(err, unix.EOPNOTSUPP) {
				err = nil
			}
			return named("name_to_handle_at", err)
		},
	}
}

// node makes a file of a kind and removes it.
func node(call string, mode uint32, device int) error {
	dir, err := os.MkdirTemp("", call+"-")
	if err != nil {
		return err
	}
	return errors.Join(named(call, unix.Mknodat(unix.AT_FDCWD, filepath.Join(dir, "node"), mode, device)), os.RemoveAll(dir))
}

// moveMount mounts by the calls that newer programs use.
func moveMount([]string) error {
	dir, err := os.MkdirTemp("", "mount-")
	if err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/tmp", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	return named("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// ownRoot takes another root by pivot_root, in a mount namespace of its own.
func ownRoot([]string) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	dir, err := os.MkdirTemp("", "root-")
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "old"), 0o755); err != nil {
		return err
	}
	return named("pivot_root", unix.PivotRoot(dir, filepath.Join(dir, "old")))
}

// openByHandle opens a file by a handle that stands for none.
func openByHandle([]string) error {
	fd, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 8)), unix.O_RDONLY)
	if err == nil {
		_ = unix.Close(fd)
	}
	return named("open_by_handle_at", err)
}
