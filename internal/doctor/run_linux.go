// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const sudo = "Run it as root: sudo orb8 doctor."

// host is the machine under examination. Tests replace the directories and the
// functions.
type host struct {
	Config
	caps caps
	// uname returns the kernel's release and the machine's name.
	uname func() (release, machine string, err error)
	// memlock returns how many bytes the maps of BPF may take, all bits set for
	// no limit, after it has lifted the limit where it may.
	memlock func() (uint64, error)
	// inode returns a file's inode number.
	inode func(path string) (uint64, error)
	// findMount returns the cgroup2 mount.
	findMount func(proc, path string) (workload.CgroupMount, error)
	// needs lists what the probes need of the kernel.
	needs []need
}

type check struct {
	name string
	run  func(*host) Finding
}

// checks lists all checks but those of single BPF features, in the order of
// their output.
func checks() []check {
	return []check{
		{"kernel", (*host).kernel},
		{"btf", (*host).btf},
		{"privileges", (*host).privileges},
		{"user-namespace", (*host).userNamespace},
		{"pid-namespace", (*host).pidNamespace},
		{"lockdown", (*host).lockdown},
		{"memlock", (*host).memoryLimit},
		{"jit", (*host).jit},
		{"bpf-statistics", (*host).statistics},
		{"option-memory", (*host).optionMemory},
		{"cgroup", (*host).cgroup},
	}
}

// surroundings lists the checks of what is around orb8.
func surroundings() []check {
	return []check{
		{"agent-port", func(h *host) Finding { return h.port(h.AgentPort, "--listen") }},
		{"metrics-port", func(h *host) Finding { return h.port(h.MetricsPort, "--metrics-listen") }},
		{"systemd", (*host).systemd},
		{"kubernetes", (*host).kubernetes},
	}
}

// Run makes every check, one after the other, and returns a finding for each. It
// stops early when ctx is done. It takes a fraction of a second.
func Run(ctx context.Context, cfg Config) []Finding {
	return newHost(cfg).examine(ctx)
}

func newHost(cfg Config) *host {
	setDefault(&cfg.Proc, "/proc")
	setDefault(&cfg.Sys, "/sys")
	setDefault(&cfg.Root, "/")
	if cfg.AgentPort == 0 {
		cfg.AgentPort = 9090
	}
	if cfg.MetricsPort == 0 {
		cfg.MetricsPort = 9091
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	return &host{
		Config: cfg, uname: uname, memlock: memlock, inode: inode,
		findMount: workload.FindCgroupMount, needs: needs(),
	}
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

func (h *host) examine(ctx context.Context) []Finding {
	h.caps = h.readCaps()
	todo := checks()
	for _, n := range h.needs {
		todo = append(todo, check{n.name, func(h *host) Finding { return h.feature(n) }})
	}
	todo = append(todo, surroundings()...)
	var found []Finding
	for _, c := range todo {
		if ctx.Err() != nil {
			return found
		}
		f := c.run(h)
		f.Name = c.name
		found = append(found, f)
	}
	return append(append(found, h.probes(ctx)...), h.accelerators(ctx)...)
}

// accelerators turns the outcome of one reading of every kind into findings. That a
// host has none of a kind is nothing to mend.
func (h *host) accelerators(ctx context.Context) []Finding {
	if h.Accelerators == nil {
		return nil
	}
	var found []Finding
	var none []string
	for _, s := range h.Accelerators(ctx) {
		f := Finding{Name: "accelerators-" + s.Name}
		switch {
		case s.State == accel.StateRunning:
			f.Status, f.Detail = OK, strings.TrimSuffix(fmt.Sprintf("%d devices", s.Devices), plural(s.Devices))
		case s.State == accel.StateOff && s.Remedy == "":
			none = append(none, s.Reason)
			continue
		case s.State == accel.StateOff:
			f.Status, f.Detail, f.Remedy = Warn, s.Reason, s.Remedy
		default:
			f.Status, f.Detail, f.Remedy = Warn, s.State.String()+": "+s.Reason, cmp.Or(s.Remedy, "See the driver's own tools, and dmesg.")
		}
		found = append(found, f)
	}
	if len(found) == 0 && len(none) > 0 {
		f := info(strings.Join(none, "; "), "")
		f.Name = "accelerators"
		found = append(found, f)
	}
	return found
}

// probes turns the state of the real probes into findings.
func (h *host) probes(ctx context.Context) []Finding {
	if h.Probes == nil || !h.mayLoad() {
		return nil
	}
	var found []Finding
	for _, s := range h.Probes(ctx) {
		f := ok("runs")
		switch s.State {
		case probe.StateRunning:
		case probe.StateFallback:
			f = warn("does less: "+s.Reason, s.Remedy)
		default:
			f = fail("does not run: "+s.Reason, s.Remedy)
		}
		if f.Status == OK && len(s.Degraded) > 0 {
			f = warn("runs without: "+strings.Join(s.Degraded, "; "), s.Remedy)
		}
		if f.Status != OK && f.Remedy == "" {
			f.Remedy = "See the findings above; a later kernel may have what is missing."
		}
		f.Name = "probe-" + s.Name
		found = append(found, f)
	}
	return found
}

// plural is what has to go from a plural if there is one of something.
func plural(n int) string {
	if n == 1 {
		return "s"
	}
	return ""
}

// under returns a path below the system's root.
func (h *host) under(path string) string { return filepath.Join(h.Root, path) }

// there reports whether a file exists below the system's root.
func (h *host) there(path string) bool {
	_, err := os.Stat(h.under(path))
	return err == nil
}

// readText returns a small file without the white space around its text.
func readText(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(bytes.TrimSpace(b)), err
}

// unreadable is the finding of a check that could not be made because of err,
// absent the one where the file does not exist.
func unreadable(err error, absent Finding) Finding {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent
	case errors.Is(err, fs.ErrPermission):
		return info("not checked: "+err.Error(), sudo)
	}
	return info("not checked: "+err.Error(), "")
}

func uname() (release, machine string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", "", err
	}
	return unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), nil
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

func ok(detail string) Finding { return Finding{Status: OK, Detail: detail} }
func info(detail, remedy string) Finding {
	return Finding{Status: Info, Detail: detail, Remedy: remedy}
}
func warn(detail, remedy string) Finding {
	return Finding{Status: Warn, Detail: detail, Remedy: remedy}
}
func fail(detail, remedy string) Finding {
	return Finding{Status: Fail, Detail: detail, Remedy: remedy}
}
