// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel are deeds with the kernel as a whole that change nothing where they are
// allowed.
func kernel() map[string]deed {
	return map[string]deed{
		"bpf": bpf,
		// perf measures a whole CPU, perf-self its own time in user space.
		"perf": func([]string) error {
			return perf(-1, 0, unix.PerfBitDisabled|perfNamespaces)
		},
		"perf-self": func([]string) error {
			return perf(0, -1, unix.PerfBitDisabled|unix.PerfBitExcludeKernel|unix.PerfBitExcludeHv)
		},
		"syslog": func([]string) error {
			_, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_UNREAD, nil)
			return named("syslog", err)
		},
		// clock sets no time, and a time zone that there is none.
		"clock": func([]string) error {
			zone := struct{ minutesWest, dst int32 }{minutesWest: 24 * 60}
			_, _, errno := unix.RawSyscall(unix.SYS_SETTIMEOFDAY, 0, uintptr(unsafe.Pointer(&zone)), 0)
			return refused("settimeofday", errno)
		},
		// clock-read asks how the clock is kept.
		"clock-read": func([]string) error {
			_, err := unix.Adjtimex(&unix.Timex{})
			return named("adjtimex", err)
		},
		"uring":  uring,
		"aio":    aio,
		"packet": func([]string) error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) },
		// packet-old is how programs of old open one.
		"packet-old": func([]string) error { return socket(unix.AF_INET, unix.SOCK_PACKET, 0) },
		// hostname gives the host the name that it has.
		"hostname": func([]string) error {
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			return named("sethostname", unix.Sethostname([]byte(name)))
		},
		// ping and netlink open sockets that take a right, or might.
		"ping":    func([]string) error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) },
		"netlink": func([]string) error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE) },
	}
}

// harmful are deeds with the kernel that are not even tried by a process that has the
// capability for them.
func harmful() map[string]deed {
	return map[string]deed{
		"module": func([]string) error {
			if err := lack(unix.CAP_SYS_MODULE); err != nil {
				return err
			}
			return named("init_module", unix.InitModule([]byte("no module"), ""))
		},
		// reboot passes numbers that no kernel takes for the wish to reboot.
		"reboot": func([]string) error {
			if err := lack(unix.CAP_SYS_BOOT); err != nil {
				return err
			}
			_, _, errno := unix.RawSyscall6(unix.SYS_REBOOT, 1, 1, 1, 0, 0, 0)
			return refused("reboot", errno)
		},
		// reboot-keys says what Ctrl+Alt+Del is to do, as init programs do.
		"reboot-keys": func([]string) error {
			if err := lack(unix.CAP_SYS_BOOT); err != nil {
				return err
			}
			return named("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF))
		},
		"kexec": func([]string) error {
			if err := lack(unix.CAP_SYS_BOOT); err != nil {
				return err
			}
			_, _, errno := unix.RawSyscall6(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0, 0, 0)
			return refused("kexec_load", errno)
		},
		"iopl": func([]string) error {
			if err := lack(unix.CAP_SYS_RAWIO); err != nil {
				return err
			}
			return iopl()
		},
	}
}

func refused(call string, errno unix.Errno) error {
	if errno != 0 {
		return fmt.Errorf("%s: %w", call, errno)
	}
	return nil
}

// lack returns an error if the process has a capability.
func lack(capability uint) error {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var has uint64
		if n, _ := fmt.Sscanf(line, "CapEff: %x", &has); n == 1 {
			if has>>capability&1 == 1 {
				return fmt.Errorf("not tried: this process has capability %d", capability)
			}
			return nil
		}
	}
	return fmt.Errorf("/proc/self/status does not tell the capabilities")
}

func bpf([]string) error {
	// type, size of the key and of the value, entries, flags.
	attr := [32]uint32{unix.BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0}
	fd, _, errno := unix.RawSyscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno == 0 {
		_ = unix.Close(int(fd))
	}
	return refused("bpf", errno)
}

// perfNamespaces is the bit that asks for records of other processes' namespaces,
// which takes a capability whatever the system's settings are.
const perfNamespaces = 1 << 28

func perf(pid, cpu int, bits uint64) error {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK,
		Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})), Bits: bits,
	}
	fd, err := unix.PerfEventOpen(&attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err == nil {
		_ = unix.Close(fd)
	}
	return named("perf_event_open", err)
}

// aio makes and ends a context for the older kind of asynchronous I/O.
func aio([]string) error {
	var context uintptr
	if _, _, errno := unix.RawSyscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&context)), 0); errno != 0 {
		return refused("io_setup", errno)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_IO_DESTROY, context, 0, 0)
	return refused("io_destroy", errno)
}

func socket(family, kind, protocol int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err == nil {
		_ = unix.Close(fd)
	}
	return named("socket", err)
}
