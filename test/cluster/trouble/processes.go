// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// somebody is a user that is not root.
const somebody = 1234

// processes are deeds with other processes, users and signals.
func processes() map[string]deed {
	return map[string]deed{
		"ptrace": func([]string) error {
			return withOther(func(pid int) error {
				runtime.LockOSThread()
				return named("ptrace", unix.PtraceAttach(pid))
			})
		},
		// ptrace-child traces a child of its own from its begin, as a debugger does.
		"ptrace-child": ptraceChild,
		"vmread": func([]string) error {
			return withOther(readMemory)
		},
		"vmread-self": func([]string) error { return readMemory(os.Getpid()) },
		// setuid becomes root.
		"setuid": func([]string) error { return named("setuid", unix.Setuid(0)) },
		// drop becomes another user.
		"drop": func([]string) error {
			return errors.Join(named("setgroups", unix.Setgroups(nil)),
				named("setgid", unix.Setgid(somebody)), named("setuid", unix.Setuid(somebody)))
		},
		// rest works as another user and takes its rights back, as servers do.
		"rest": func([]string) error {
			return errors.Join(named("setresuid", unix.Setresuid(-1, somebody, -1)), named("setresuid", unix.Setresuid(-1, 0, -1)))
		},
		"seccomp-kill": func([]string) error {
			if err := filter(unix.SECCOMP_RET_KILL_PROCESS); err != nil {
				return err
			}
			id, err := unix.Getsid(0)
			return fmt.Errorf("getsid: %d, %w", id, err)
		},
		// seccomp-deny has the same call refused, which harms nobody.
		"seccomp-deny": func([]string) error {
			if err := filter(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)); err != nil {
				return err
			}
			if id, err := unix.Getsid(0); !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("getsid was not refused: %d, %w", id, err)
			}
			return nil
		},
		"killed": func([]string) error { return unix.Kill(os.Getpid(), unix.SIGKILL) },
	}
}

// withOther does something to a child that belongs to another user.
func withOther(do func(pid int) error) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: somebody, Gid: somebody}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	// Until it says something it may still be on this process's memory.
	if _, err = out.Read(make([]byte, 1)); err == nil {
		err = do(cmd.Process.Pid)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return err
}

func ptraceChild([]string) error {
	runtime.LockOSThread()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "nothing")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(cmd.Process.Pid, &status, 0, nil); err != nil {
		return fmt.Errorf("wait4: %w", err)
	}
	if !status.Stopped() {
		return fmt.Errorf("the child has not stopped: status %#x", status)
	}
	if err := unix.PtraceDetach(cmd.Process.Pid); err != nil {
		return fmt.Errorf("ptrace: %w", err)
	}
	return cmd.Wait()
}

// readMemory reads a few bytes of a process that runs this program too: where it has
// this constant.
func readMemory(pid int) error {
	var b [16]byte
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	const text = "some bytes of this program"
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(unsafe.StringData(text))), Len: len(b)}}
	_, err := unix.ProcessVMReadv(pid, local, remote, 0)
	return named("process_vm_readv", err)
}

// filter has the kernel do something about each getsid of this process.
func filter(action uint32) error {
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETSID, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: action},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})))
	return refused("seccomp", errno)
}
