// SPDX-License-Identifier: Apache-2.0

package syscalls

// Privileged returns the names of the system calls during which it is of interest
// what capabilities the kernel checks, for all ABIs: those with 32 or 64 at the end
// are what 32-bit programs use in place of the one without.
func Privileged() []string {
	return []string{
		// File systems.
		"mount", "umount2", "umount", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig",
		"fsmount", "fspick", "mount_setattr", "pivot_root", "chroot", "swapon", "swapoff",
		"quotactl", "quotactl_fd", "mknod", "mknodat", "open_by_handle_at",
		"setxattr", "fsetxattr", "lsetxattr", "setxattrat",
		// Namespaces and processes.
		"unshare", "setns", "clone", "clone3", "ptrace", "process_vm_readv", "process_vm_writev",
		"pidfd_getfd", "keyctl",
		// Kernel.
		"bpf", "perf_event_open", "init_module", "finit_module", "delete_module", "kexec_load",
		"kexec_file_load", "reboot", "syslog", "acct", "iopl", "ioperm", "userfaultfd", "io_uring_setup",
		// Network.
		"socket", "socketcall", "sethostname", "setdomainname",
		// Clock.
		"settimeofday", "stime", "clock_settime", "clock_settime64", "adjtimex", "clock_adjtime",
		"clock_adjtime64",
		// Users and rights.
		"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups",
		"setuid32", "setgid32", "setreuid32", "setregid32", "setresuid32", "setresgid32", "setgroups32",
		"capset",
	}
}
