// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	// MaxSelected is how many cgroups may be selected at a time.
	MaxSelected = 8192
	// selectedMap is the name of the map in the programs, see bpf/select.h.
	selectedMap = "selected_cgroups"
)

// ErrSelectionFull says that MaxSelected cgroups are selected already.
var ErrSelectionFull = errors.New("no more cgroups can be selected")

// Selection says which cgroups somebody wants more of than all the others: full traces,
// for instance. Programs in the kernel consult it, whatever probe they belong to, so an
// unselected cgroup costs one look-up. Who wants a cgroup is a bit of 0 to 63, whose
// meaning is that of the programs that ask for it. Where the cgroup probe has the
// Selection, new cgroups below a selected one are selected before anything runs in
// them, and those that are removed are forgotten. All methods may be called from any
// goroutine.
type Selection struct {
	mu sync.Mutex // for changes, which are a look-up and an update
	m  *ebpf.Map
}

// NewSelection makes a Selection of no cgroup. The error is an *Unsupported where the
// kernel or the privileges lack something.
func NewSelection() (*Selection, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: selectedMap, Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: MaxSelected,
		Flags: unix.BPF_F_NO_PREALLOC,
	})
	if err != nil {
		return nil, Explain("the kernel does not take the map of selected cgroups", err)
	}
	return &Selection{m: m}, nil
}

// Maps has the map under the name that programs know it by: the MapReplacements of the
// collection that they are loaded with. A nil Selection has none, so that programs get
// an empty one of their own.
func (s *Selection) Maps() map[string]*ebpf.Map {
	if s == nil {
		return nil
	}
	return map[string]*ebpf.Map{selectedMap: s.m}
}

// Add selects a cgroup for one more. Cgroups that are below it already are not. The
// error is ErrSelectionFull if there are too many.
func (s *Selection) Add(cgroup uint64, bit uint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	who, err := s.Bits(cgroup)
	if err != nil {
		return err
	}
	return s.set(cgroup, who|1<<bit)
}

func (s *Selection) set(cgroup, who uint64) error {
	err := s.m.Update(cgroup, who, ebpf.UpdateAny)
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("select cgroup %d: %w (%d are)", cgroup, ErrSelectionFull, MaxSelected)
	}
	if err != nil {
		return fmt.Errorf("select cgroup %d: %w", cgroup, err)
	}
	return nil
}

// Remove forgets a cgroup, whoever wants it. One that is not selected is no error.
func (s *Selection) Remove(cgroup uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.m.Delete(cgroup); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget selected cgroup %d: %w", cgroup, err)
	}
	return nil
}

// Drop says that one does not want a cgroup any more.
func (s *Selection) Drop(cgroup uint64, bit uint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop(cgroup, 1<<bit)
}

func (s *Selection) drop(cgroup, bits uint64) error {
	var who uint64
	err := s.m.Lookup(cgroup, &who)
	if err == nil && who&bits != 0 {
		if who &^= bits; who != 0 {
			return s.set(cgroup, who)
		}
		err = s.m.Delete(cgroup)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget selected cgroup %d: %w", cgroup, err)
	}
	return nil
}

// Clear says that those with these bits do not want any cgroup any more, and returns
// which they had. It waits for programs that may just have given a new cgroup what its
// parent has.
func (s *Selection) Clear(bits ...uint) ([]uint64, error) {
	var mask uint64
	for _, bit := range bits {
		mask |= 1 << bit
	}
	settle, err := NewSettler()
	if err != nil {
		return nil, fmt.Errorf("forget selected cgroups: %w", err)
	}
	defer settle.Close()
	had, err := s.clear(mask)
	if err != nil {
		return had, err
	}
	if err := settle.Settle(); err != nil {
		return had, fmt.Errorf("forget selected cgroups: %w", err)
	}
	late, err := s.clear(mask)
	return append(had, late...), err
}

func (s *Selection) clear(bits uint64) (had []uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	selected, err := s.All()
	if err != nil {
		return nil, err
	}
	for c, who := range selected {
		if who&bits == 0 {
			continue
		}
		if err := s.drop(c, bits); err != nil {
			return had, err
		}
		had = append(had, c)
	}
	return had, nil
}

// Len is how many cgroups are selected, by whomever.
func (s *Selection) Len() (int, error) {
	selected, err := s.All()
	return len(selected), err
}

// Bits has a bit for each that wants a cgroup; it is 0 for one that is not selected.
func (s *Selection) Bits(cgroup uint64) (who uint64, err error) {
	if err := s.m.Lookup(cgroup, &who); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, fmt.Errorf("look up selected cgroup %d: %w", cgroup, err)
	}
	return who, nil
}

// All has the bits of all cgroups that are selected.
func (s *Selection) All() (map[uint64]uint64, error) {
	cgroups, who := make([]uint64, MaxSelected), make([]uint64, MaxSelected)
	have := 0
	var cursor ebpf.MapBatchCursor
	for {
		n, err := s.m.BatchLookup(&cursor, cgroups[have:], who[have:], nil)
		have += n
		if errors.Is(err, ebpf.ErrKeyNotExist) || have == MaxSelected {
			return pairs(cgroups[:have], who), nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the selected cgroups: %w", err)
		}
	}
}

func pairs(cgroups, who []uint64) map[uint64]uint64 {
	all := make(map[uint64]uint64, len(cgroups))
	for i, c := range cgroups {
		all[c] = who[i]
	}
	return all
}

// Close gives the map back. Programs that have it keep it.
func (s *Selection) Close() error { return s.m.Close() }
