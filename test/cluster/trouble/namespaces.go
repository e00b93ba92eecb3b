// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces are deeds that leave or make namespaces and cgroups.
func namespaces() map[string]deed {
	return map[string]deed{
		"unshare": func([]string) error {
			runtime.LockOSThread()
			return named("unshare", unix.Unshare(unix.CLONE_NEWNS))
		},
		// userns DEED ARGUMENT... does it as root of a new user namespace.
		"userns": func(args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			cmd := exec.Command(self, args...)
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
			}
			return attached(cmd)
		},
		// setns FILE enters the namespace that a file stands for.
		"setns": func(args []string) error {
			if err := want(args, "FILE"); err != nil {
				return err
			}
			return enter(args[0])
		},
		// nsenter PID PROGRAM ARGUMENT... starts a program in the mount namespace of a
		// process.
		"nsenter": func(args []string) error {
			if len(args) < 2 {
				return errors.New("want a PID, a PROGRAM and its arguments")
			}
			if err := enter("/proc/" + args[0] + "/ns/mnt"); err != nil {
				return err
			}
			return attached(exec.Command(args[1], args[2:]...))
		},
		"cgroup-move":  cgroupMove,
		"cgroup-fork":  cgroupFork,
		"cgroup-below": cgroupBelow,
		// unshare-files takes no right.
		"unshare-files": func([]string) error {
			runtime.LockOSThread()
			return named("unshare", unix.Unshare(unix.CLONE_FILES))
		},
	}
}

func named(call string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	return nil
}

// enter moves the calling thread into a namespace, for good.
func enter(path string) error {
	runtime.LockOSThread()
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	// A thread that shares its root with others cannot go to other mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root: %w", err)
	}
	return named("setns", unix.Setns(int(file.Fd()), 0))
}

// hierarchies are where cgroup2 is mounted.
func hierarchies() ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var roots []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			roots = append(roots, f[1])
		}
	}
	if len(roots) == 0 {
		return nil, errors.New("no cgroup2 hierarchy is mounted")
	}
	return roots, nil
}

// cgroupMove NAME goes to the cgroup whose folder's name contains NAME.
func cgroupMove(args []string) error { return withCgroup(args, join) }

// cgroupFork NAME makes a process there from its beginning.
func cgroupFork(args []string) error { return withCgroup(args, spawnIn) }

// withCgroup does something with the cgroup whose folder's name contains the argument,
// of the first hierarchy that allows it.
func withCgroup(args []string, do func(dir string) error) error {
	if err := want(args, "NAME"); err != nil {
		return err
	}
	roots, err := hierarchies()
	for _, root := range roots {
		var dir string
		if dir, err = find(root, args[0]); err == nil {
			if err = do(dir); err == nil {
				return nil
			}
		}
	}
	return err
}

func spawnIn(dir string) error {
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	cmd := exec.Command("/proc/self/exe", "nothing")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	return attached(cmd)
}

// find returns the folder below root whose name contains name.
func find(root, name string) (string, error) {
	found := ""
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // it went while we looked
			return nil
		case err != nil:
			return err
		case d.IsDir() && strings.Contains(d.Name(), name):
			found = path
			return fs.SkipAll
		}
		return nil
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no cgroup below %s has %s in its name", root, name)
	}
	return found, err
}

// join moves this process into a cgroup.
func join(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
}

// cgroupBelow NAME makes a cgroup below the one whose folder's name contains NAME, goes
// there and back.
func cgroupBelow(args []string) error {
	if err := want(args, "NAME"); err != nil {
		return err
	}
	roots, err := hierarchies()
	for _, root := range roots {
		var dir string
		if dir, err = find(root, args[0]); err != nil {
			continue
		}
		below := filepath.Join(dir, "below")
		if err = os.Mkdir(below, 0o755); err == nil {
			return errors.Join(join(below), join(dir), os.Remove(below))
		}
	}
	return err
}
