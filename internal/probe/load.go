// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Only returns spec with all its maps and no programs but those named, so that
// a probe can load its optional programs one at a time.
func Only(spec *ebpf.CollectionSpec, names ...string) *ebpf.CollectionSpec {
	sub := spec.Copy()
	clear(sub.Programs)
	for _, n := range names {
		sub.Programs[n] = spec.Programs[n].Copy()
	}
	return sub
}

// CloseFunc makes an io.Closer of a Close without result.
type CloseFunc func()

// Close calls f.
func (f CloseFunc) Close() error { f(); return nil }

// RunIter attaches an iterator program, runs it once for its effects and
// detaches it.
func RunIter(prog *ebpf.Program) (err error) {
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return Explain("attach", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_, err = io.Copy(io.Discard, r)
	return err
}
