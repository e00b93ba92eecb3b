// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// cost is what the kernel's statistics say of one program under one workload.
type cost struct {
	program, load, arm string
	perOp              float64 // runs
	perRun             float64 // nanoseconds
}

// overhead is what keeping statistics costs.
type overhead struct {
	// within is the time that the statistics show for a program that does
	// nothing, added what they add to a run, both in nanoseconds.
	within, added float64
}

// costs collects blocks with and without statistics.
type costs struct {
	perOp, perRun map[[3]string][]float64 // by program, workload and arm
	off, on       map[[2]string][]float64 // nanoseconds per operation, by workload and arm
}

// measureCosts makes one run with the kernel's statistics.
func (b *bench) measureCosts(ctx context.Context) ([]cost, overhead, error) {
	c := &costs{
		perOp: make(map[[3]string][]float64), perRun: make(map[[3]string][]float64),
		off: make(map[[2]string][]float64), on: make(map[[2]string][]float64),
	}
	var loads []*task
	if err := b.thread.do(func() (err error) { loads, err = newTasks(); return err }); err != nil {
		return nil, overhead{}, err
	}
	for range max(b.effort.rounds/4, 1) {
		for _, a := range newArms() {
			if !a.attaches() {
				continue
			}
			if err := c.visit(ctx, b, a, loads); err != nil {
				return nil, overhead{}, fmt.Errorf("arm %s: %w", a.name, err)
			}
		}
	}
	return c.summary(), c.overhead(), nil
}

func (c *costs) visit(ctx context.Context, b *bench, a *arm, loads []*task) (err error) {
	if err := errors.Join(ctx.Err(), waitUntilAlone()); err != nil {
		return err
	}
	at, err := b.host.attach(ctx, a)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, at.detach()) }()
	runtime.GC()
	time.Sleep(settleTime)
	ps, err := findPrograms()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ps.close()) }()
	for _, w := range loads {
		times, err := b.timed(w)
		if err != nil {
			return err
		}
		key := [2]string{w.name, a.name}
		c.off[key] = append(c.off[key], times...)
		if times, err = c.counted(b, w, a.name, ps); err != nil {
			return err
		}
		c.on[key] = append(c.on[key], times...)
	}
	return nil
}

func (b *bench) timed(w *task) (times []float64, err error) {
	err = b.thread.do(func() (err error) { times, err = w.visit(b.effort.blocks); return err })
	return times, err
}

// counted runs blocks with statistics and takes down each block's.
func (c *costs) counted(b *bench, w *task, arm string, ps programs) (times []float64, err error) {
	stats, err := enableStats()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stats.Close()) }()
	time.Sleep(settleTime)
	if err := b.thread.do(func() error { _, err := w.block(); return err }); err != nil {
		return nil, err
	}
	for range b.effort.blocks {
		before, err := ps.runs()
		if err != nil {
			return nil, err
		}
		var ns float64
		if err := b.thread.do(func() (err error) { ns, err = w.block(); return err }); err != nil {
			return nil, err
		}
		after, err := ps.runs()
		if err != nil {
			return nil, err
		}
		times = append(times, ns)
		c.add(w, arm, before, after)
	}
	return times, nil
}

func (c *costs) add(w *task, arm string, before, after map[string]runs) {
	for name, end := range after {
		n := end.count - before[name].count
		key := [3]string{name, w.name, arm}
		c.perOp[key] = append(c.perOp[key], float64(n)/float64(w.ops))
		if n > 0 {
			c.perRun[key] = append(c.perRun[key], float64(end.time-before[name].time)/float64(n))
		}
	}
}

// summary leaves out programs that a workload hardly runs.
func (c *costs) summary() []cost {
	var all []cost
	for key, perOp := range c.perOp {
		if key[2] == armEmpty {
			continue
		}
		if n := quantile(perOp, 0.5); n > 0.5 {
			all = append(all, cost{
				program: key[0], load: key[1], arm: key[2],
				perOp: n, perRun: quantile(c.perRun[key], quartile),
			})
		}
	}
	return all
}

// overhead compares UDP ping-pong, whose time varies least, with and without
// statistics: of the runs of both programs and, for what a reading shows of
// itself, of the empty one.
func (c *costs) overhead() overhead {
	key := [2]string{udpPingPong, armAll}
	var perOp float64
	for _, name := range []string{progIngress, progEgress} {
		perOp += quantile(c.perOp[[3]string{name, udpPingPong, armAll}], 0.5)
	}
	return overhead{
		within: quantile(c.perRun[[3]string{progEmptyIn, udpPingPong, armEmpty}], quartile),
		added:  (quantile(c.on[key], quartile) - quantile(c.off[key], quartile)) / max(perOp, 1),
	}
}
