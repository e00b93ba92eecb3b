// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// Interrupts that bring packets while a program runs make the kernel leave out tracing
// programs; what tells of connections is never left out.
func TestNothingMissedWhenInterrupted(t *testing.T) {
	const loops = 4
	each := 3000
	if testing.Short() {
		each = 300
	}
	w := start(t, Config{})
	if len(w.Degraded()) > 0 {
		t.Logf("degraded: %q", w.Degraded())
	}
	a, b := probetest.Joined(t)
	a.Steer(t)
	b.Steer(t)
	l := listenIn(t, b, "10.231.0.2:0")
	var wg sync.WaitGroup
	wg.Go(func() { serveBytes(l, loops*each) })
	var made atomic.Int64
	for range loops {
		wg.Go(func() {
			a.Do(func() {
				for range each {
					if err := oneByteEachWay(l.Addr().String()); err != nil {
						t.Error(err)
						return
					}
					made.Add(1)
				}
			})
		})
	}
	testwait.Return(t, "the connections", wg.Wait)
	total, ends := w.settled(t, addrOf(l.Addr()).Port(), 2*loops*each)
	n := uint64(made.Load())
	want := flow.Counters{TxBytes: 2 * n, RxBytes: 2 * n, TxPackets: total.TxPackets, RxPackets: total.RxPackets}
	t.Logf("%d connections, %d ends", n, ends)
	if total != want || ends != int(2*n) || w.losses.Dropped() != 0 {
		t.Errorf("%d connections: %d ends, %+v, %d lost", n, ends, total, w.losses.Dropped())
	}
	feature(t, "no connection is missed when programs are interrupted")
}

// serveBytes takes n connections, at once, and answers each byte.
func serveBytes(l net.Listener, n int) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range n {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(testwait.Limit))
			b := make([]byte, 1)
			if _, err := c.Read(b); err == nil {
				_, _ = c.Write(b)
			}
		})
	}
}

func oneByteEachWay(addr string) error {
	c, err := net.DialTimeout("tcp", addr, testwait.Limit)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(testwait.Limit)); err != nil {
		return err
	}
	b := []byte{1}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err = c.Read(b)
	return err
}

// settled waits until connections with a server's port have had their ends, and
// returns their counters' sum and how many ends there were. It waits for as many as
// there should be, and takes what there is if they do not come.
func (w *watcher) settled(t *testing.T, port uint16, want int) (total flow.Counters, ends int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if err := w.Collect(); err != nil {
			t.Fatal(err)
		}
		total, ends = flow.Counters{}, 0
		w.mu.Lock()
		for _, f := range w.flows {
			if f.LocalPort == port || f.RemotePort == port {
				total = total.Add(f.deltas)
				ends += f.finals
			}
		}
		w.mu.Unlock()
		if ends >= want || time.Now().After(end) {
			return total, ends
		}
	}
}
