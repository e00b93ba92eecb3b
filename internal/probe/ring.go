// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// flushTime is how long Flush waits for whoever takes the records.
const flushTime = time.Second

// Ring takes the records of a ring buffer, one at a time.
type Ring struct {
	*ringbuf.Reader

	// Drained, if set, is called whenever the ring has been found empty.
	Drained func() error

	// Every is how long a record may wait.
	Every time.Duration

	probe string
	take  func([]byte)

	mu      sync.Mutex
	flushed chan struct{} // closed by Run when a requested flush is through
	running bool
}

// Ring opens a ring buffer of the probe. take is called for each record, and must not keep
// it; every is how long one may wait where the program does not wake the reader.
func (o *Object) Ring(m *ebpf.Map, every time.Duration, take func([]byte)) (*Ring, error) {
	reader, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, fmt.Errorf("open the %s probe's ring buffer: %w", o.probe, err)
	}
	o.Keep(reader)
	return &Ring{Reader: reader, Every: every, probe: o.probe, take: take}, nil
}

// Run takes records until ctx is done, and once more after that.
func (r *Ring) Run(ctx context.Context) error {
	r.setRunning(true)
	defer r.setRunning(false)
	for {
		r.SetDeadline(time.Now().Add(r.Every))
		err := r.drain()
		flushed := errors.Is(err, ringbuf.ErrFlushed)
		if !flushed && !errors.Is(err, os.ErrDeadlineExceeded) {
			return r.failed(err)
		}
		if err := r.drained(); err != nil {
			return err
		}
		if flushed {
			r.signalFlushed()
		}
		if ctx.Err() != nil {
			return r.Drain()
		}
	}
}

// Drain takes what is in the ring and does not wait for more. Run must not be running.
func (r *Ring) Drain() error {
	r.SetDeadline(time.Unix(0, 1))
	if err := r.drain(); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, ringbuf.ErrFlushed) {
		return r.failed(err)
	}
	return r.drained()
}

func (r *Ring) drained() error {
	if r.Drained == nil {
		return nil
	}
	return r.Drained()
}

func (r *Ring) failed(err error) error {
	return fmt.Errorf("read the %s probe's ring buffer: %w", r.probe, err)
}

// drain takes records until the reader returns an error, which it returns.
func (r *Ring) drain() error {
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			return err
		}
		r.take(rec.RawSample)
	}
}

// Settle returns once the records have been taken that are in the ring, whether Run is
// running or not. It gives up after a second: who takes them is stuck.
func (r *Ring) Settle() error {
	r.mu.Lock()
	if !r.running {
		// Run waits until this is done: records are taken one at a time.
		defer r.mu.Unlock()
		return r.Drain()
	}
	if r.flushed == nil {
		r.flushed = make(chan struct{})
	}
	done := r.flushed
	r.mu.Unlock()
	if err := r.Flush(); err != nil {
		return fmt.Errorf("flush the %s probe's ring buffer: %w", r.probe, err)
	}
	select {
	case <-done:
	case <-time.After(flushTime):
	}
	return nil
}

func (r *Ring) setRunning(on bool) {
	r.mu.Lock()
	r.running = on
	r.mu.Unlock()
	if !on {
		r.signalFlushed()
	}
}

func (r *Ring) signalFlushed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flushed != nil {
		close(r.flushed)
		r.flushed = nil
	}
}
