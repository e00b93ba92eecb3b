// SPDX-License-Identifier: Apache-2.0

package drop

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"time"
)

const (
	// maxFunction is longer than the kernel's functions are: what is further from
	// the nearest symbol is of something that came later.
	maxFunction = 64 << 10
	// rereadEvery is how long a place without a name is not looked for again: its
	// module may come.
	rereadEvery = time.Minute
)

// symbols names the kernel's functions by their addresses. It goes through the table
// for each new address, which takes some ten milliseconds: there are few places that
// drop, and the table itself would be more than all else that the probe keeps.
type symbols struct {
	path   string
	places map[uint64]place
}

type place struct {
	name  string // empty: none was found
	asked time.Time
}

// maxPlaces bounds the places, should addresses ever be something else.
const maxPlaces = 4096

// name returns the function that addr is in, or "".
func (s *symbols) name(addr uint64) string {
	p, known := s.places[addr]
	if known && (p.name != "" || time.Since(p.asked) < rereadEvery) {
		return p.name
	}
	if !known && len(s.places) >= maxPlaces {
		return ""
	}
	if s.places == nil {
		s.places = make(map[uint64]place)
	}
	p = place{s.find(addr), time.Now()}
	s.places[addr] = p
	return p.name
}

// find returns the function that begins nearest before addr; none if the table cannot
// be read.
func (s *symbols) find(addr uint64) string {
	f, err := os.Open(s.path)
	if err != nil {
		return ""
	}
	defer f.Close()
	var best uint64
	var name []byte
	// What could be read is as good as it gets.
	_ = functions(f, func(at uint64, n []byte) bool {
		if at > best && at <= addr {
			best, name = at, append(name[:0], n...)
		}
		return true
	})
	if best == 0 || addr-best > maxFunction {
		return ""
	}
	return string(name)
}

// readable reports whether the kernel shows addresses to this process.
func (s *symbols) readable() error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = errors.New("no functions in it")
	if readErr := functions(f, func(addr uint64, _ []byte) bool {
		err = nil
		if addr == 0 {
			err = errors.New("the kernel hides addresses from who lacks CAP_SYSLOG, or with kernel.kptr_restrict=2 from all")
		}
		return false
	}); readErr != nil {
		return readErr
	}
	return err
}

// functions calls use with each function of a table like /proc/kallsyms until it
// returns false. name is without the suffixes that compilers add, and only valid
// during the call. Compiled BPF programs are left out: they come and go.
func functions(r io.Reader, use func(addr uint64, name []byte) bool) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// "ffffffff81e0a3c0 t tcp_v4_rcv", and for a module "\t[name]".
		hex, rest, _ := bytes.Cut(lines.Bytes(), []byte{' '})
		kind, name, _ := bytes.Cut(rest, []byte{' '})
		if string(kind) != "t" && string(kind) != "T" {
			continue
		}
		name, module, _ := bytes.Cut(name, []byte{'\t'})
		addr, err := strconv.ParseUint(string(hex), 16, 64)
		if err != nil || len(name) == 0 || string(module) == "[bpf]" {
			continue
		}
		name, _, _ = bytes.Cut(name, []byte{'.'})
		if !use(addr, name) {
			return nil
		}
	}
	return lines.Err()
}
