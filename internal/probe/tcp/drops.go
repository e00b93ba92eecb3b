// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
)

// listenDrops tells what listeners dropped from what else their sockets count as
// drops: a SYN that came again and was answered again, the bare ACK that a listener
// with TCP_DEFER_ACCEPT lets go, and a second time each handshake that found the queue
// full at its end. Only the kernel's count for the whole network namespace
// (ListenDrops) has none of these, so that it bounds what its listeners have dropped.
type listenDrops struct {
	proc string

	mu sync.Mutex
	// told is, by network namespace, how much of ListenDrops has been told, or was
	// there before.
	told map[uint32]uint64
}

// newListenDrops takes what every network namespace with a process counts now as its
// beginning.
func newListenDrops(proc string) *listenDrops {
	d := &listenDrops{proc: proc, told: make(map[uint32]uint64)}
	dirs, _ := filepath.Glob(proc + "/[0-9]*") // the pattern is well-formed
	for _, dir := range dirs {
		netns, err := netnsOf(dir)
		if _, known := d.told[netns]; err != nil || known {
			continue // a process that has ended
		}
		if n, err := readListenDrops(dir); err == nil {
			d.told[netns] = n
		}
	}
	return d
}

// bound lowers what a listener is said to have dropped to what can be. Where the
// kernel's count cannot be read, a listener is believed if its queue is full.
func (d *listenDrops) bound(s *flow.Sample, o *flow.ListenOverflow) {
	// Held also while the kernel's count is read: of two who read it, the later one
	// must not come first here.
	d.mu.Lock()
	defer d.mu.Unlock()
	dir := filepath.Join(d.proc, strconv.Itoa(int(s.PID)))
	netns, err := netnsOf(dir)
	if err == nil && netns != s.NetNS {
		err = errors.New("the process is in another network namespace")
	}
	var counted uint64
	if err == nil {
		counted, err = readListenDrops(dir)
	}
	if err != nil {
		if o.Backlog <= o.Max {
			o.Drops = 0
		}
		return
	}
	if d.told[netns] > counted { // another namespace with the same number
		d.told[netns] = 0
	}
	o.Drops = min(o.Drops, counted-d.told[netns])
	d.told[netns] += o.Drops
}

// netnsOf returns the inode of a process's network namespace.
func netnsOf(dir string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir+"/ns/net", &st); err != nil {
		return 0, fmt.Errorf("find the network namespace of %s: %w", dir, err)
	}
	return uint32(st.Ino), nil
}

// readListenDrops reads ListenDrops of a process's network namespace.
func readListenDrops(dir string) (uint64, error) {
	b, err := os.ReadFile(dir + "/net/netstat")
	if err != nil {
		return 0, err
	}
	return parseListenDrops(b)
}

// parseListenDrops reads a line of names and a line of their values.
func parseListenDrops(b []byte) (uint64, error) {
	names, rest, _ := bytes.Cut(b, []byte("\n"))
	values, _, _ := bytes.Cut(rest, []byte("\n"))
	i := slices.IndexFunc(bytes.Fields(names), func(name []byte) bool { return string(name) == "ListenDrops" })
	all := bytes.Fields(values)
	if i < 0 || i >= len(all) {
		return 0, errors.New("no ListenDrops in netstat")
	}
	return strconv.ParseUint(string(all[i]), 10, 64)
}
