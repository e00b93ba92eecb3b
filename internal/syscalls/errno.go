// SPDX-License-Identifier: Apache-2.0

package syscalls

import "strconv"

// maxErrno is the largest error number that a system call returns.
const maxErrno = 4095

// internal are errors that only the kernel itself and those who watch it see: 512 to
// 516 say that a signal came and what becomes of the call after it.
var internal = map[int64]string{
	512: "ERESTARTSYS",
	513: "ERESTARTNOINTR",
	514: "ERESTARTNOHAND",
	515: "ENOIOCTLCMD",
	516: "ERESTART_RESTARTBLOCK",
	517: "EPROBE_DEFER",
	524: "ENOTSUPP",
}

// Errno returns the name of the error that a system call returned, such as EACCES for
// -13; errno_N for one without a name, empty if it is no error.
func Errno(ret int64) string {
	if ret >= 0 || ret < -maxErrno {
		return ""
	}
	n := -ret
	if n < int64(len(errnos)) && errnos[n] != "" {
		return errnos[n]
	}
	if name := internal[n]; name != "" {
		return name
	}
	return "errno_" + strconv.FormatInt(n, 10)
}

// Return returns how what a call returned reads: -EACCES, an address in hexadecimal,
// else a decimal number. It is ? for a call that has not returned.
func Return(c *Call) string {
	if !c.Returned {
		return "?"
	}
	if name := Errno(c.Return); name != "" {
		return "-" + name
	}
	if c.compat() && c.Return < 0 {
		return Result(known(c.ABI, c.Number), int64(uint32(c.Return)))
	}
	return Result(known(c.ABI, c.Number), c.Return)
}

// Result returns how the result of the system call with a name reads, if it is no error:
// an address in hexadecimal, else a decimal number.
func Result(name string, ret int64) string {
	switch name {
	case "mmap", "mmap2", "brk", "mremap", "shmat":
		return "0x" + strconv.FormatUint(uint64(ret), 16)
	}
	return strconv.FormatInt(ret, 10)
}
