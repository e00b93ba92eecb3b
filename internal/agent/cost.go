// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// recently is of how long the agent tells what it cost lately.
const recently = time.Minute

// costs keeps what the agent's process has cost.
type costs struct {
	// proc is where the kernel tells of processes.
	proc string

	mu sync.Mutex
	// past are readings of the last minute, one of before it first.
	past []cpuReading
}

// cpuReading is the processor time that the process, and its programs, had used at a moment.
type cpuReading struct {
	at             time.Time
	used, programs time.Duration
}

func newCosts(now time.Time) *costs {
	return &costs{proc: "/proc", past: []cpuReading{{at: now, used: cpuTime()}}}
}

// cpuTime is what the process has used, 0 if that cannot be read.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// look notes what was used by now.
func (c *costs) look(now time.Time) {
	r := cpuReading{at: now, used: cpuTime()}
	if c.measured() {
		r.programs, _ = c.programs()
	}
	c.note(r)
}

func (c *costs) note(r cpuReading) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = append(c.past, r)
	for len(c.past) > 2 && r.at.Sub(c.past[1].at) >= recently {
		c.past = c.past[1:]
	}
}

// since is a reading of a minute ago.
func (c *costs) since() cpuReading {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.past[0]
}

// measured reports whether the kernel measures programs.
func (c *costs) measured() bool {
	text, err := os.ReadFile(filepath.Join(c.proc, "sys/kernel/bpf_stats_enabled"))
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

// status is what the process has cost by now. What cannot be read is 0.
func (c *costs) status(now time.Time) *orb8v1.AgentCost {
	used, from := cpuTime(), c.since()
	programs, runs := c.programs()
	s := &orb8v1.AgentCost{
		CpuNs: int64(used), RecentCpuNs: int64(used - from.used), RecentNs: int64(now.Sub(from.at)),
		ProgramsNs: int64(programs), ProgramsRuns: runs, ProgramsMeasured: c.measured(),
		RecentProgramsNs: int64(max(programs-from.programs, 0)),
	}
	memory := c.fields("self/status")
	s.ResidentBytes, s.AnonymousBytes = kilobytes(memory["VmRSS"]), kilobytes(memory["RssAnon"])
	return s
}

// programs adds up how long and how often the programs ran that this process holds.
func (c *costs) programs() (took time.Duration, runs uint64) {
	entries, err := os.ReadDir(filepath.Join(c.proc, "self/fdinfo"))
	if err != nil {
		return 0, 0
	}
	seen := map[string]bool{}
	for _, e := range entries {
		f := c.fields("self/fdinfo/" + e.Name())
		id, ok := f["prog_id"]
		if _, program := f["run_time_ns"]; !ok || !program || seen[id] { // a link has an id, too
			continue
		}
		seen[id] = true
		one, _ := strconv.ParseInt(f["run_time_ns"], 10, 64)
		times, _ := strconv.ParseUint(f["run_cnt"], 10, 64)
		took, runs = took+time.Duration(one), runs+times
	}
	return took, runs
}

// fields reads a file of lines of a name, a colon and a value; nothing if it is not there.
func (c *costs) fields(name string) map[string]string {
	text, err := os.ReadFile(filepath.Join(c.proc, name))
	if err != nil {
		return nil
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			fields[k] = strings.TrimSpace(v)
		}
	}
	return fields
}

// kilobytes reads a size such as "41236 kB".
func kilobytes(s string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimSuffix(s, " kB"), 10, 64)
	return n << 10
}
