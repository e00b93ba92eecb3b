// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// programs are deeds that start programs from unusual places.
func programs() map[string]deed {
	return map[string]deed{
		// spawn PATH ARGUMENT... runs it as a child.
		"spawn": func(args []string) error {
			if len(args) == 0 {
				return errors.New("want a PATH and arguments")
			}
			return attached(exec.Command(args[0], args[1:]...))
		},
		// copy PATH makes a copy of itself there.
		"copy": func(args []string) error {
			if err := want(args, "PATH"); err != nil {
				return err
			}
			return copySelf(args[0])
		},
		// drift PATH runs a copy of itself that it makes there.
		"drift": func(args []string) error {
			if err := want(args, "PATH"); err != nil {
				return err
			}
			if err := copySelf(args[0]); err != nil {
				return err
			}
			return attached(exec.Command(args[0], "nothing"))
		},
		// script PATH runs a script that it writes there.
		"script": func(args []string) error {
			if err := want(args, "PATH"); err != nil {
				return err
			}
			if err := os.WriteFile(args[0], []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
				return err
			}
			return attached(exec.Command(args[0]))
		},
		// pty PATH ARGUMENT... runs it on a terminal of its own.
		"pty":       onTerminal,
		"memfd":     memfd,
		"memfd-map": mapMemfd,
		"deleted":   deleted,
		"execveat":  execveat,
		// remove PATH removes the file of a program while that runs.
		"remove": func(args []string) error {
			if err := want(args, "PATH"); err != nil {
				return err
			}
			return remove(args[0])
		},
	}
}

func remove(path string) error {
	cmd := exec.Command(path, "wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	// Until it says something its start may not have come to an end.
	_, err = out.Read(make([]byte, 1))
	err = errors.Join(err, os.Remove(path))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return err
}

// attached runs a command on this process's own standard files.
func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func onTerminal(args []string) error {
	if len(args) == 0 {
		return errors.New("want a PATH and arguments")
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return named("unlock the terminal", err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		return named("open the terminal", errno)
	}
	terminal := os.NewFile(fd, "terminal")
	defer terminal.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return cmd.Run()
}

// copySelf writes this program to a new file.
func copySelf(path string) error {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// memfd runs a copy of itself that has no file.
func memfd([]string) error {
	fd, err := unix.MemfdCreate("copy", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	if _, err := io.Copy(os.NewFile(uintptr(fd), "copy"), from); err != nil {
		return err
	}
	return execFD(fd, []string{os.Args[0], "nothing"})
}

// mapMemfd shares memory as programs do that start nothing from it.
func mapMemfd([]string) error {
	fd, err := unix.MemfdCreate("shared", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	if err := unix.Ftruncate(fd, 4096); err != nil {
		return err
	}
	b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	b[0] = 1
	return errors.Join(unix.Munmap(b), unix.Close(fd))
}

// deleted PATH runs a copy of itself whose file it has removed.
func deleted(args []string) error {
	if err := want(args, "PATH"); err != nil {
		return err
	}
	if err := copySelf(args[0]); err != nil {
		return err
	}
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := os.Remove(args[0]); err != nil {
		return err
	}
	return execFD(fd, []string{os.Args[0], "nothing"})
}

// execFD is fexecve, with a child of this process that is a copy of it. The name that
// it is called by has /proc in it, as of every program that is started like this.
func execFD(fd int, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"execveat"}, args...)...)
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "program")}
	return attached(cmd)
}

// execveat ARGUMENT... becomes the program that file 3 is.
func execveat(args []string) error {
	empty, err := unix.BytePtrFromString("")
	if err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return err
	}
	envv, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return err
	}
	unix.CloseOnExec(3)
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, 3, uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envv)
	return fmt.Errorf("execveat: %w", errno)
}

// calls N makes each of three calls N times. The Go runtime makes neither the first nor
// the last.
func calls(args []string) error {
	if err := want(args, "N"); err != nil {
		return err
	}
	var n int
	if _, err := fmt.Sscan(args[0], &n); err != nil {
		return err
	}
	zero, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var b [16]byte
	for range n {
		unix.Getppid()
		if _, err := unix.Open("/no/such/file", unix.O_RDONLY|unix.O_CLOEXEC, 0); !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("open a file that is not there: %w", err)
		}
		if _, err := unix.Readv(zero, [][]byte{b[:]}); err != nil {
			return err
		}
	}
	return unix.Close(zero)
}
