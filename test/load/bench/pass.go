// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// connections are TCP connections within this process, both ends of each.
type connections struct {
	pairs [][2]int
	buf   [1]byte
}

func openConnections(n int) (*connections, error) {
	l, port, err := bound(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer unix.Close(l)
	c := new(connections)
	for range n {
		a, b, err := tcpPair(l, port)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("open connection %d of %d (each takes two descriptors, see ulimit -n): %w", len(c.pairs)+1, n, err)
		}
		c.pairs = append(c.pairs, [2]int{a, b})
	}
	return c, nil
}

// touch sends a byte over every connection, so that both its sockets change.
func (c *connections) touch() error {
	for _, p := range c.pairs {
		if err := send(p[0], c.buf[:]); err != nil {
			return err
		}
		if err := receive(p[1], c.buf[:]); err != nil {
			return err
		}
	}
	return nil
}

func (c *connections) close() {
	for _, p := range c.pairs {
		abort(p[0])
		_ = unix.Close(p[1])
	}
}

// passTimes are milliseconds of one pass over all sockets.
type passTimes struct {
	sockets            int
	changed, unchanged []float64
}

const passSockets = 10_000

// measurePass reads sockets as an agent does, flow table included.
func (b *bench) measurePass(ctx context.Context, repeats int) (t passTimes, err error) {
	if err := waitUntilAlone(); err != nil {
		return t, err
	}
	// Its time has come only after the test, so that the passes here are the
	// only ones.
	a := &arm{name: armTCP, tcp: true, probed: -time.Hour}
	at, err := b.host.attach(ctx, a)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, at.detach()) }()
	var conns *connections
	err = b.thread.do(func() (err error) { conns, err = openConnections(passSockets / 2); return err })
	if err != nil {
		return t, err
	}
	defer conns.close()
	t.sockets = 2 * len(conns.pairs)
	collect := func() (float64, error) {
		var took time.Duration
		err := b.thread.do(func() error {
			begin := time.Now()
			defer func() { took = time.Since(begin) }()
			return at.probes[0].Collect()
		})
		return float64(took) / 1e6, err
	}
	if _, err := collect(); err != nil {
		return t, err
	}
	if n := at.table.Len(); n < t.sockets {
		return t, fmt.Errorf("the probe has seen %d of %d sockets", n, t.sockets)
	}
	for range repeats {
		if err := errors.Join(ctx.Err(), b.thread.do(conns.touch)); err != nil {
			return t, err
		}
		for _, to := range []*[]float64{&t.changed, &t.unchanged} {
			ms, err := collect()
			if err != nil {
				return t, err
			}
			*to = append(*to, ms)
		}
	}
	return t, nil
}
