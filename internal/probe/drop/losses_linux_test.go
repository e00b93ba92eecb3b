// SPDX-License-Identifier: Apache-2.0

//go:build linux

package drop

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// own is a loopback address that no other process uses.
func own(host byte) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(os.Getpid() >> 8), byte(os.Getpid()), host})
}

// drops sends datagrams over loopback that nobody takes, n to each of so many
// addresses.
func drops(t *testing.T, n, addresses int) {
	t.Helper()
	for i := range addresses {
		if _, err := send(n, 10, "127.0.0.1:0", netip.AddrPortFrom(own(byte(i)), 9).String()); err != nil {
			t.Fatal(err)
		}
	}
}

func ours(c *flow.DropCount) bool {
	dst := c.Dst.IP()
	return dst.Is4() && dst.As4()[0] == 127 && dst.As4()[1] == byte(os.Getpid()>>8) && dst.As4()[2] == byte(os.Getpid())
}

func TestMapFull(t *testing.T) {
	r := start(t, func(c *Config) { c.MapEntries = 16 })
	drops(t, 2, 100)
	time.Sleep(50 * time.Millisecond)
	r.collect(t)
	crowded := r.sum(func(c *flow.DropCount) bool { return *c == flow.DropCount{Reason: r.reason("NO_SOCKET")} })
	all := r.sum(func(c *flow.DropCount) bool { return *c == flow.DropCount{Reason: c.Reason} })
	mine := r.sum(ours)
	// Other programs of this host may lose packets, too.
	if got := mine + crowded; got < 200 || mine > 2*16 || crowded < 200-2*16 {
		t.Errorf("%d packets by address and %d without, want 200 together", mine, crowded)
	}
	if got := r.losses.Get(loss.DropMapFull); got != all {
		t.Errorf("%d without room, but %d counted so", got, all)
	}
	r.collect(t)
	if got := r.sum(ours); got != mine {
		t.Errorf("%d packets after another reading, want %d", got, mine)
	}
	// There is room again, in both maps.
	for range 3 {
		mine = r.sum(ours)
		drops(t, 5, 1)
		time.Sleep(50 * time.Millisecond)
		r.collect(t)
		if got := r.sum(ours); got != mine+5 {
			t.Errorf("%d packets, want 5 more than %d", got, mine)
		}
	}
	feature(t, "drops without room in the map are counted: works")
}

// balanced waits until every packet that was counted is accounted for: told of, or
// counted as one that was not.
func (r *rig) balanced(t *testing.T, told func() uint64) {
	t.Helper()
	var counted, events uint64
	for range 20 {
		r.collect(t)
		counted = r.sum(func(c *flow.DropCount) bool { return c.Reason != otherReason })
		events = told() + r.losses.Get(loss.DropRingFull) + r.losses.Get(loss.DropEventsLimited)
		if counted == events {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%d packets, but %d events with the lost ones", counted, events)
}

func TestRingFull(t *testing.T) {
	r := load(t, func(c *Config) { c.RingBytes = uint32(os.Getpagesize()) })
	drops(t, 200, 1)
	inRing := func() uint64 { return uint64(r.ring.Reader.AvailableBytes() / (eventSize + 8)) }
	r.balanced(t, inRing)
	if got, n := r.losses.Get(loss.DropRingFull), inRing(); got == 0 || n == 0 || got+n < 200 {
		t.Errorf("%d events in the ring, %d lost", n, got)
	}
	if got := r.losses.Dropped(); got != r.losses.Get(loss.DropRingFull) {
		t.Errorf("%d lost otherwise", got)
	}
	feature(t, "drops without room in the ring are counted: works")
}

func TestEventsLimited(t *testing.T) {
	r := start(t, func(c *Config) { c.Events = 5 })
	begin := time.Now()
	drops(t, 500, 1)
	r.balanced(t, r.Received)
	most := uint64(5 * runtime.NumCPU() * (int(time.Since(begin).Seconds()) + 2))
	if got := r.Received(); got < 5 || got > most {
		t.Errorf("%d events, want from 5 to %d", got, most)
	}
	if got := r.losses.Get(loss.DropEventsLimited); got < 500-most {
		t.Errorf("%d events left out", got)
	}
}

func TestNoEvents(t *testing.T) {
	r := start(t, func(c *Config) { c.Events = 0 })
	drops(t, 7, 1)
	time.Sleep(50 * time.Millisecond)
	r.collect(t)
	if got := r.sum(ours); got != 7 {
		t.Errorf("%d packets, want 7", got)
	}
	if got := r.Received() + r.losses.Get(loss.DropEventsLimited); got != 0 {
		t.Errorf("%d events, want none", got)
	}
}

// The ring is read in time even if it fills in less than a period.
func TestRingWakesTheReader(t *testing.T) {
	r := load(t, func(c *Config) { c.RingBytes = 64 << 10 })
	done := make(chan struct{})
	go func() {
		defer close(done)
		drops(t, 300, 1)
	}()
	r.ring.Reader.SetDeadline(time.Now().Add(10 * time.Second))
	begin := time.Now()
	rec, err := r.ring.Reader.Read()
	if took := time.Since(begin); err != nil || took > 5*time.Second || len(rec.RawSample) < eventSize {
		t.Errorf("the first event came after %v: %v", took, err)
	}
	<-done
}

// Packets are dropped all the time while the counts are read: none is lost, and none
// counted twice.
func TestNothingIsLostWhileReading(t *testing.T) {
	r := start(t, func(c *Config) { c.Events = 0 })
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range rounds {
			drops(t, 40, 10)
		}
	}()
	passes := 0
	for running := true; running; passes++ {
		select {
		case <-done:
			running = false
		default:
		}
		r.collect(t)
	}
	time.Sleep(50 * time.Millisecond)
	r.collect(t)
	if got, want := r.sum(ours), uint64(rounds*400); got != want {
		t.Errorf("%d packets, want %d", got, want)
	}
	t.Logf("%d passes", passes)
	feature(t, "counting drops while they are read: works")
}

// What the program costs per packet that is dropped, beside the kernel's own work.
func BenchmarkDrop(b *testing.B) {
	for name, events := range map[string]int{"counted": 0, "limited": 100, "told": 1_000_000_000} {
		b.Run(name, func(b *testing.B) {
			probetest.NeedRoot(b)
			p := New(Config{
				Note: func(*flow.Sample, flow.Detail) {}, Count: func([]flow.DropCount) {}, Losses: new(loss.Counters),
				Clock: probe.NewClock(), Events: events,
			})
			if err := p.Start(); err != nil {
				b.Skip(err)
			}
			defer p.Close()
			stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
			if err != nil {
				b.Skip(err)
			}
			defer stats.Close()
			before, err := p.prog.Stats()
			if err != nil {
				b.Fatal(err)
			}
			if _, err := send(b.N, 10, "127.0.0.1:0", netip.AddrPortFrom(own(1), 9).String()); err != nil {
				b.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
			after, err := p.prog.Stats()
			if err != nil {
				b.Fatal(err)
			}
			runs := after.RunCount - before.RunCount
			b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(max(runs, 1)), "ns/drop")
			b.ReportMetric(float64(runs)/float64(b.N), "drops/op")
		})
	}
}
