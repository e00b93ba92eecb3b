// SPDX-License-Identifier: Apache-2.0

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

const (
	// DrainEvery is how long a record waits in a ring at most, unless the probe
	// says otherwise.
	DrainEvery = 100 * time.Millisecond
	// flushLimit is how long a flush may take.
	flushLimit = time.Second
)

// ErrFlushTimeout says that records may be left in a ring, since what takes them does not
// get on. They are taken later.
var ErrFlushTimeout = errors.New("its records were not taken in time")

// atOnce is the deadline for what is in a ring, and no more.
func atOnce() time.Time { return time.Unix(0, 1) }

// RingConfig says what is done with the records of a ring. Name and Take are
// required.
type RingConfig struct {
	// Name stands for the ring in errors: "the tcp probe's ring buffer".
	Name string
	// Take is called with each record, one at a time, from Run or, when that does
	// not run, from Flush. It must not keep the bytes, nor flush this ring.
	Take func(raw []byte)
	// Ahead, if set, is called before records are handed over that have waited: what
	// happened before them may wait elsewhere.
	Ahead func()
	// Drained, if set, is called by Run each time it has emptied the ring, at least
	// once per Every. Its error ends Run.
	Drained func() error
	// Every is how long a record may wait if the program wakes nobody; DrainEvery if
	// 0.
	Every time.Duration
}

// Ring reads a BPF ring buffer.
type Ring struct {
	// Reader may be used while Run does not run.
	Reader *ringbuf.Reader

	cfg   RingConfig
	limit time.Duration

	reading sync.Mutex // held while the ring is emptied; guards rec
	rec     ringbuf.Record

	mu      sync.Mutex
	flushed chan struct{} // closed by Run when a requested flush is through
	running bool
}

// NewRing opens the ring buffer m, which stays the caller's.
func NewRing(m *ebpf.Map, cfg RingConfig) (*Ring, error) {
	r, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", cfg.Name, err)
	}
	if cfg.Every == 0 {
		cfg.Every = DrainEvery
	}
	return &Ring{Reader: r, cfg: cfg, limit: flushLimit}, nil
}

// Run moves records from the ring to Take until ctx is done, and once more after
// that. It is called once at a time.
func (r *Ring) Run(ctx context.Context) error {
	r.mu.Lock()
	r.running = true
	r.mu.Unlock()
	// The reader need not wait for its deadline when ctx ends.
	defer context.AfterFunc(ctx, func() { _ = r.Reader.Flush() })()
	var err error
	for err == nil && ctx.Err() == nil {
		err = r.turn(time.Now().Add(r.cfg.Every))
	}
	r.mu.Lock()
	r.running = false // from now on a flush empties the ring itself
	r.mu.Unlock()
	defer r.takeFlushed()()
	if err == nil {
		err = r.turn(atOnce())
	}
	return err
}

// turn empties the ring once, later than now only if nothing asks for it earlier.
func (r *Ring) turn(deadline time.Time) error {
	flushed, err := r.drain(deadline)
	for err == nil && flushed {
		// Who asks meanwhile may have records that the reader has not seen.
		signal := r.takeFlushed()
		flushed, err = r.drain(atOnce())
		signal()
	}
	if err == nil && r.cfg.Drained != nil {
		err = r.cfg.Drained()
	}
	return err
}

// drain hands records over until the deadline, or until those are through that were
// in the ring when the reader was flushed.
func (r *Ring) drain(deadline time.Time) (flushed bool, err error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	r.Reader.SetDeadline(deadline)
	ahead := r.cfg.Ahead
	for {
		err := r.Reader.ReadInto(&r.rec)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, nil
		case errors.Is(err, ringbuf.ErrFlushed):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("read %s: %w", r.cfg.Name, err)
		}
		if ahead != nil {
			ahead()
			ahead = nil
		}
		r.cfg.Take(r.rec.RawSample)
	}
}

// Flush returns when all records that are in the ring have been taken, but after a
// second at the latest if Run is stuck in Take, with ErrFlushTimeout. A ring that is
// closed has none.
func (r *Ring) Flush() error {
	done, running := r.askFlush()
	if !running {
		if _, err := r.drain(atOnce()); err != nil && !errors.Is(err, ringbuf.ErrClosed) {
			return err
		}
		return nil
	}
	if err := r.Reader.Flush(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("flush %s: %w", r.cfg.Name, err)
	}
	select {
	case <-done:
		return nil
	case <-time.After(r.limit):
		return fmt.Errorf("flush %s: %w", r.cfg.Name, ErrFlushTimeout)
	}
}

// askFlush returns what Run closes when all is through that is in the ring now.
func (r *Ring) askFlush() (done <-chan struct{}, running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running && r.flushed == nil {
		r.flushed = make(chan struct{})
	}
	return r.flushed, r.running
}

// takeFlushed returns what tells those who wait for a flush now, and no others.
func (r *Ring) takeFlushed() (signal func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := r.flushed
	r.flushed = nil
	return func() {
		if done != nil {
			close(done)
		}
	}
}

// Close closes the reader, which ends Run with an error.
func (r *Ring) Close() error {
	if err := r.Reader.Close(); err != nil {
		return fmt.Errorf("close %s: %w", r.cfg.Name, err)
	}
	return nil
}
