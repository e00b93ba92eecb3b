// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// seeds are the processes that were there when the programs had been attached.
//
// A process that is made meanwhile may be both among these and in the ring. If it
// began after the programs were attached, it is surely in the ring, and left out
// here. If before, it may be in the ring as well, which is then ignored. This holds
// as the kernel sets the time of a process's begin before the process can be seen, and
// shows the process before it calls the program.
//
// While they are told of, what is in the ring waits in memory: their arguments have to be
// read first, and the ring has little room.
type seeds struct {
	once    sync.Once
	records []byte                  // as the iterator wrote them
	since   uint64                  // boot time, in nanoseconds, at which the programs had been attached
	late    map[process.ID]struct{} // those that began shortly before since

	mu      sync.Mutex
	told    bool     // all of them, and what has waited
	waiting [][]byte // records of the ring
	bytes   int      // in waiting
}

// maxWaiting bounds how many bytes of the ring wait for the seeds.
const maxWaiting = 64 << 20

// held and the others are what becomes of a record of the ring.
const (
	passed = iota
	held
	dropped
)

// hold keeps a copy of a record of the ring, unless the seeds have been told of.
func (s *seeds) hold(raw []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told {
		return passed
	}
	if s.bytes+len(raw) > maxWaiting {
		return dropped
	}
	s.waiting, s.bytes = append(s.waiting, bytes.Clone(raw)), s.bytes+len(raw)
	return held
}

// toldAll reports whether the seeds have been told of, and what has waited for that.
func (s *seeds) toldAll() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

// release returns the records that wait. If there are none, none will from now on.
func (s *seeds) release() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.waiting
	s.waiting, s.bytes, s.told = nil, 0, len(all) == 0
	return all
}

// shortly before the programs are attached is when a process may begin that is told
// of by them: between its begin and the call of the program the kernel may be held up.
const shortly = 10 * 1000 * 1000 * 1000

func (s *seeds) has(id process.ID) bool {
	_, ok := s.late[id]
	return ok
}

// seed reads which processes there are, with an iterator; err says why it is not loaded.
func (p *Probe) seed(prog *ebpf.Program, err error) {
	const unseen = "processes that are older than orb8 show only when they do something"
	if err == nil {
		err = p.readSeeds(prog)
	}
	if err == nil && !workload.SeesPIDs() {
		err = errors.New("orb8 sees the processes of its own pid namespace only: run it in the host's (hostPID)")
	}
	p.Lacks(unseen, "iter/task", err)
}

func (p *Probe) readSeeds(prog *ebpf.Program) (err error) {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	p.seeds.since = uint64(boot.Nano())
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return probe.Explain("attach", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if p.seeds.records, err = io.ReadAll(r); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

// tellSeeds hands over, once, the processes that were there before, parents before their
// children, and what has been read from the ring meanwhile.
func (p *Probe) tellSeeds() {
	p.seeds.once.Do(func() {
		s := &p.seeds
		s.late = make(map[process.ID]struct{})
		for _, raw := range p.inOrder(s.records) {
			p.tellSeed(raw)
		}
		s.records = nil
		for all := s.release(); len(all) > 0; all = s.release() {
			for _, raw := range all {
				p.apply(raw)
			}
		}
	})
}

// inOrder splits the iterator's records, which are in the order of pids, and sorts them
// by when their processes began: pids begin anew.
func (p *Probe) inOrder(rest []byte) (all [][]byte) {
	for len(rest) > 0 {
		n, err := startSize(rest)
		if err != nil {
			p.cfg.Losses.Add(loss.DecodeFailed, 1)
			break
		}
		all, rest = append(all, rest[:n]), rest[n:]
	}
	began := func(raw []byte) uint64 {
		h, _ := read[bpfExecHead](raw) // it is long enough for a start
		return h.Task.StartNs
	}
	slices.SortStableFunc(all, func(a, b []byte) int { return cmp.Compare(began(a), began(b)) })
	return all
}

func (p *Probe) tellSeed(raw []byte) {
	var e process.Event
	if err := decode(raw, &e, p.cfg.Clock); err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	s := &p.seeds
	if e.Process.Start >= s.since {
		return
	}
	if e.Process.Start+shortly > s.since {
		s.late[e.Process.ID] = struct{}{}
	}
	p.received.Add(1)
	if p.cfg.ArgBytes > 0 {
		e.Process.Args, e.Process.ArgsTruncated = readArgs(p.cfg.Proc, e.Process.ID, p.cfg.ArgBytes)
	}
	p.cfg.Apply(&e)
}

// readArgs reads a process's arguments, at most so many bytes, if it is still the
// same process.
func readArgs(proc string, id process.ID, most int) (args []string, truncated bool) {
	dir := filepath.Join(proc, strconv.FormatUint(uint64(id.PID), 10))
	f, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	raw := make([]byte, most+1)
	n, err := io.ReadFull(f, raw)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || !began(dir, id.Start) {
		return nil, false
	}
	return splitArgs(raw[:min(n, most)]), n > most
}

// Running reports whether a process has not ended, by the procfs that is mounted at proc:
// that of the first pid namespace.
func Running(proc string, id process.ID) bool {
	s, ok := readStat(filepath.Join(proc, strconv.FormatUint(uint64(id.PID), 10)))
	// The first thread may have ended while others have not.
	return ok && s.is(id.Start) && (s.state != 'Z' && s.state != 'X' || s.threads > 1)
}

// ticks per second in files of procfs (USER_HZ), on all architectures that orb8 runs on.
const ticks = 100

// stat is what procfs says of a process.
type stat struct {
	state   byte
	threads int
	start   uint64 // in ticks since boot
}

// is reports whether it is of a process that began then.
func (s *stat) is(start uint64) bool { return s.start == start/(1e9/ticks) }

// readStat reads it in the process's folder.
func readStat(dir string) (s stat, ok bool) {
	raw, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return s, false
	}
	// The command, in parentheses, may have any character.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	const third, threads, starttime = 3, 20, 22 // the first after the command is the third
	if len(fields) <= starttime-third {
		return s, false
	}
	s.state = fields[0][0]
	n, err := strconv.Atoi(string(fields[threads-third]))
	if err == nil {
		s.threads = n
		s.start, err = strconv.ParseUint(string(fields[starttime-third]), 10, 64)
	}
	return s, err == nil
}

// began reports whether the process of this folder began then.
func began(dir string, start uint64) bool {
	s, ok := readStat(dir)
	return ok && s.is(start)
}
