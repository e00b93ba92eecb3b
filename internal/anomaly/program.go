// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"strconv"
	"strings"

	"github.com/Ignoramuss/orb8/internal/process"
)

// base is the last part of a path.
func base(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// unversioned is a program's name without its version: python for python3.12.
func unversioned(name string) string { return strings.TrimRight(name, "0123456789.-") }

func isShell(name string) bool {
	switch unversioned(name) {
	case "sh", "bash", "rbash", "dash", "ash", "hush", "zsh", "ksh", "mksh", "lksh", "oksh", "pdksh",
		"yash", "fish", "csh", "tcsh", "pwsh", "xonsh", "elvish":
		return true
	}
	return false
}

func isInterpreter(name string) bool {
	switch unversioned(name) {
	case "python", "pypy", "perl", "ruby", "irb", "lua", "luajit", "node", "nodejs", "php", "tclsh",
		"expect", "awk", "gawk", "mawk":
		return true
	}
	return false
}

// isLoader reports whether a file is the dynamic loader of glibc or musl, which only by
// itself is what a process runs: musl's is its C library.
func isLoader(name string) bool {
	base, _, ok := strings.Cut(name, ".so")
	return name == "libc.so" || ok && (strings.HasPrefix(base, "ld-") || base == "ld" || base == "ld64")
}

// isMultiCall reports whether the file is many programs in one, which go by what they
// were called.
func isMultiCall(name string) bool {
	switch name {
	case "busybox", "busybox.static", "toybox":
		return true
	}
	return false
}

// shell returns the name of the shell that the process is, empty if it is none.
func shell(p *process.Process) string {
	if name := p.Exe.Name(); !isMultiCall(name) {
		if isShell(name) {
			return name
		}
		return ""
	}
	if name := base(p.Exe.Called); isShell(name) {
		return name
	}
	for i, arg := range p.Args {
		name := base(strings.TrimPrefix(arg, "-"))
		if isShell(name) {
			return name
		}
		if i > 0 || !isMultiCall(name) {
			break
		}
	}
	return ""
}

// program is the name of what a process runs, for a sentence.
func program(p *process.Process) string {
	name := p.Exe.Name()
	switch {
	case p.Exe.Memfd:
		name = p.Exe.Path
	case isMultiCall(name):
		name = applet(p)
	}
	if name == "" {
		name = p.Comm
	}
	if name == "" {
		return "process " + strconv.FormatUint(uint64(p.PID), 10)
	}
	return shown(name)
}

// applet is which program a file of many is. One may go on as another without exec, or
// start itself anew as /proc/self/exe.
func applet(p *process.Process) string {
	if p.Comm != "" && p.Comm != "exe" {
		return p.Comm
	}
	if len(p.Args) > 0 {
		return base(strings.TrimPrefix(p.Args[0], "-"))
	}
	return base(p.Exe.Called)
}

// file is the path of what a process runs, for a sentence.
func file(p *process.Process) string {
	switch {
	case p.Exe.Path == "":
		return program(p)
	case p.Exe.PathTruncated:
		return shown("..." + p.Exe.Path)
	}
	return shown(p.Exe.Path)
}

// shown is a name that may hold anything, fit for a sentence on a terminal.
func shown(name string) string {
	for _, r := range name {
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			return strconv.Quote(name)
		}
	}
	return name
}
