// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
)

// bench is a ring that the test writes records to, each a number, and what was taken
// of it.
type bench struct {
	*Ring
	t    *testing.T
	prog *ebpf.Program

	mu    sync.Mutex
	taken []uint64
	next  uint64 // number to be written
}

// newBench makes a ring that wakes no reader, as those of the probes mostly do.
func newBench(t *testing.T, change func(*bench, *RingConfig)) *bench {
	t.Helper()
	needRoot(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: uint32(os.Getpagesize())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	b := &bench{t: t, prog: writer(t, m)}
	cfg := RingConfig{Name: "the test's ring", Take: b.take, Every: time.Hour}
	if change != nil {
		change(b, &cfg)
	}
	if b.Ring, err = NewRing(m, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// needRoot is probetest's, which uses this package.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to load BPF programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Logf("raise the memlock limit: %v", err)
	}
}

// writer is a program that copies the first eight bytes of its packet to the ring.
func writer(t *testing.T, ring *ebpf.Map) *ebpf.Program {
	t.Helper()
	const noWakeup = 1
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "write_record", Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, 0), // offset
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 8),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "exit"),
			asm.LoadMapPtr(asm.R1, ring.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -8),
			asm.Mov.Imm(asm.R3, 8),
			asm.Mov.Imm(asm.R4, noWakeup),
			asm.FnRingbufOutput.Call(),
			asm.Return().WithSymbol("exit"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	return prog
}

// write adds n records.
func (b *bench) write(n int) {
	b.t.Helper()
	packet := make([]byte, 64)
	for range n {
		binary.NativeEndian.PutUint64(packet, b.next)
		b.next++
		if ret, _, err := b.prog.Test(packet); ret != 0 || err != nil {
			b.t.Fatalf("the program that writes a record returns %d: %v", ret, err)
		}
	}
}

func (b *bench) take(raw []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken = append(b.taken, binary.NativeEndian.Uint64(raw))
}

// has fails the test unless all n records were taken, in their order.
func (b *bench) has(n uint64) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	want := make([]uint64, 0, n)
	for i := range n {
		want = append(want, i)
	}
	if !slices.Equal(b.taken, want) {
		b.t.Errorf("records %v were taken, want the first %d", b.taken, n)
	}
}

// run starts Run, and returns when it has begun, with what ends it and returns its
// error.
func (b *bench) run() (stop func() error) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	b.t.Cleanup(func() { _ = stop() })
	eventually(b.t, "Run has begun", func() bool {
		b.Ring.mu.Lock()
		defer b.Ring.mu.Unlock()
		return b.running
	})
	return stop
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after 10 s: %s", what)
		}
	}
}

func TestRingFlush(t *testing.T) {
	b := newBench(t, nil)
	b.write(3)
	if err := b.Flush(); err != nil { // nobody else reads
		t.Error(err)
	}
	b.has(3)
	stop := b.run()
	for range 20 {
		b.write(2)
		if err := b.Flush(); err != nil { // Run reads
			t.Error(err)
		}
		b.has(b.next)
	}
	b.write(1)
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	b.has(b.next)
	b.write(1)
	if err := b.Flush(); err != nil { // nobody else reads any more
		t.Error(err)
	}
	b.has(b.next)
}

// Each of many flushes at a time has all that was there when it was asked for.
func TestRingFlushedByMany(t *testing.T) {
	b := newBench(t, nil)
	b.run()
	var writing sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				writing.Lock()
				b.write(1)
				have := int(b.next)
				writing.Unlock()
				if err := b.Flush(); err != nil {
					t.Error(err)
				}
				b.mu.Lock()
				if len(b.taken) < have {
					t.Errorf("%d records taken of %d", len(b.taken), have)
				}
				b.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestRingReadsByItself(t *testing.T) {
	b := newBench(t, func(_ *bench, c *RingConfig) { c.Every = time.Millisecond })
	b.run()
	b.write(2)
	eventually(t, "both records are taken", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.taken) == 2
	})
	b.has(2)
}

// A flush does not wait without an end for a Run that does not go on.
func TestRingStuck(t *testing.T) {
	stuck, entered := make(chan struct{}), make(chan struct{}, 10)
	b := newBench(t, func(b *bench, c *RingConfig) {
		c.Take = func(raw []byte) {
			entered <- struct{}{}
			<-stuck
			b.take(raw)
		}
	})
	b.limit = 10 * time.Millisecond
	stop := b.run()
	b.write(2)
	if err := b.Reader.Flush(); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := b.Flush(); !errors.Is(err, ErrFlushTimeout) {
		t.Errorf("a flush that was not waited for: %v", err)
	}
	b.has(0)
	b.limit = time.Hour
	close(stuck)
	if err := b.Flush(); err != nil {
		t.Error(err)
	}
	b.has(2)
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// Ahead comes once before records that have waited, and Drained after them; neither
// hands records over.
func TestRingAheadAndDrained(t *testing.T) {
	var calls []string
	b := newBench(t, func(b *bench, c *RingConfig) {
		c.Ahead = func() { calls = append(calls, "ahead") }
		c.Take = func([]byte) { calls = append(calls, "take") }
		c.Drained = func() error {
			calls = append(calls, "drained")
			return nil
		}
	})
	b.write(2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if want := []string{"ahead", "take", "take", "drained"}; !slices.Equal(calls, want) {
		t.Errorf("calls %v, want %v", calls, want)
	}
	calls = nil
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if want := []string{"drained"}; !slices.Equal(calls, want) {
		t.Errorf("calls of an empty ring %v, want %v", calls, want)
	}
}

func TestRingDrainedFails(t *testing.T) {
	broken := errors.New("broken")
	b := newBench(t, func(_ *bench, c *RingConfig) {
		c.Every, c.Drained = time.Millisecond, func() error { return broken }
	})
	if err := b.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Run: %v", err)
	}
	b.write(1)
	if err := b.Flush(); err != nil {
		t.Error(err)
	}
	b.has(1)
}

func TestRingClosed(t *testing.T) {
	b := newBench(t, nil)
	stop := b.run()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err == nil {
		t.Error("Run of a closed ring returns nil")
	}
	if err := b.Flush(); err != nil {
		t.Errorf("Flush of a closed ring: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func TestRingOfAnotherKind(t *testing.T) {
	needRoot(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := NewRing(m, RingConfig{Name: "an array", Take: func([]byte) {}}); err == nil {
		t.Error("an array is opened as a ring")
	}
}
