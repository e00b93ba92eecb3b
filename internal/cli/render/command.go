// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strconv"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// executableFlags say what is unusual about where a program comes from.
func executableFlags(e *orb8v1.Executable) []string {
	var flags []string
	switch {
	case e.GetMemfd():
		flags = append(flags, "memfd")
	case e.GetDeleted():
		flags = append(flags, "deleted")
	}
	if e.GetUpperLayer() {
		flags = append(flags, "changed")
	}
	return flags
}

// commandLine is what a process was started with as one would type it; the kernel's
// name of it in brackets where the arguments are not known.
func commandLine(p *orb8v1.ProcessInfo) string {
	args := p.GetArguments()
	if len(args) == 0 {
		switch path := executablePath(p.GetExecutable()); {
		case path != "":
			return quoteArg(path)
		case p.GetCommand() != "":
			return "[" + Clean(p.GetCommand()) + "]"
		}
		return none
	}
	words := make([]string, 0, len(args)+1)
	for _, a := range args {
		words = append(words, quoteArg(a))
	}
	if p.GetArgumentsTruncated() {
		words = append(words, ellipsis)
	}
	return strings.Join(words, " ")
}

// executablePath is the path that was started: of a script the script's.
func executablePath(e *orb8v1.Executable) string {
	if e.GetCalled() != "" && !e.GetMemfd() {
		return e.GetCalled()
	}
	return e.GetPath()
}

// quoteArg writes an argument so that it can be told from the next one and is safe
// for a terminal: control characters, invisible ones and broken UTF-8 as escapes.
func quoteArg(s string) string {
	switch {
	case s == "":
		return "''"
	case Clean(s) != s || strings.ContainsRune(s, '\uFFFD'):
		return strconv.Quote(s)
	case !strings.ContainsAny(s, " '\"\\$`&|;<>()*?#~!{}[]"):
		return s
	case !strings.Contains(s, "'"):
		return "'" + s + "'"
	}
	return strconv.Quote(s)
}

// signalName names a Linux signal; the host that shows it may not be Linux.
func signalName(n uint32) string {
	names := [...]string{
		1: "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1",
		"SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP",
		"SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
	}
	if n > 0 && int(n) < len(names) {
		return names[n]
	}
	return "signal " + strconv.FormatUint(uint64(n), 10)
}
