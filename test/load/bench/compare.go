// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"
)

// effort is how much is measured.
type effort struct {
	runs   int
	rounds int // in each of which every arm is visited once
	blocks int // that count, of each workload and visit
}

// disturbed says that a visit does not count and has to be made again.
var errDisturbed = errors.New("disturbed")

// settleTime lets what attaching has set off in the kernel come to its end.
const settleTime = 20 * time.Millisecond

// figures of one run, by workload and arm.
type figures map[string]map[string]ratio

// bench compares arms.
type bench struct {
	host   *host
	thread *pinned
	effort effort
	rng    *rand.Rand
	say    func(format string, args ...any)

	repeated int // visits that were disturbed
}

// compareArms makes one run of the tasks that open makes.
func (b *bench) compareArms(ctx context.Context, arms []*arm, open func() ([]*task, error)) (figures, error) {
	times := make(map[string]map[string]series)
	var loads []*task
	err := b.thread.do(func() (err error) { loads, err = open(); return err })
	if err != nil {
		return nil, err
	}
	for _, w := range loads {
		times[w.name] = make(map[string]series)
	}
	for range b.effort.rounds {
		b.rng.Shuffle(len(arms), func(i, j int) { arms[i], arms[j] = arms[j], arms[i] })
		for _, a := range arms {
			visit, err := b.visitUndisturbed(ctx, a, loads)
			if err != nil {
				return nil, fmt.Errorf("arm %s: %w", a.name, err)
			}
			for name, blocks := range visit {
				times[name][a.name] = append(times[name][a.name], blocks)
			}
		}
	}
	return b.ratios(times), nil
}

func (b *bench) ratios(times map[string]map[string]series) figures {
	all := make(figures)
	for load, byArm := range times {
		all[load] = make(map[string]ratio)
		for name, s := range byArm {
			if name != armNone {
				all[load][name] = compare(byArm[armNone], s, b.rng)
			}
		}
		base := byArm[armNone].typical(nil, nil)
		all[load][armNone] = ratio{Value: 1, Low: 1, High: 1, Added: base}
	}
	return all
}

// visitUndisturbed repeats a visit while something else loads orb8's programs.
func (b *bench) visitUndisturbed(ctx context.Context, a *arm, loads []*task) (map[string][]float64, error) {
	for {
		times, err := b.visit(ctx, a, loads)
		if !errors.Is(err, errDisturbed) {
			return times, err
		}
		b.repeated++
		if b.repeated%50 == 1 {
			b.say("another orb8 comes and goes, or BPF statistics are on: visits are repeated")
		}
	}
}

// visit attaches an arm, runs blocks of each workload and detaches it.
func (b *bench) visit(ctx context.Context, a *arm, loads []*task) (times map[string][]float64, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := waitUntilAlone(5 * time.Minute); err != nil {
		return nil, err
	}
	at, err := b.host.attach(ctx, a)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, at.detach()) }()
	runtime.GC()
	time.Sleep(settleTime)
	times = make(map[string][]float64, len(loads))
	err = b.thread.do(func() error {
		for _, i := range b.rng.Perm(len(loads)) {
			w := loads[i]
			blocks, err := w.visit(b.effort.blocks)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			times[w.name] = blocks
		}
		return nil
	})
	return times, errors.Join(err, checkAlone(a))
}

// checkAlone returns errDisturbed if other programs of orb8 than the arm's are
// loaded, or if the kernel keeps statistics, which cost time.
func checkAlone(a *arm) error {
	found, err := findPrograms()
	if err != nil {
		return err
	}
	stats, err := found.ran()
	if err := errors.Join(err, found.close()); err != nil {
		return err
	}
	attached := len(found) > 0
	if found.foreign() || stats || attached != a.attaches() {
		return errDisturbed
	}
	return nil
}

// visit runs one block that does not count and then n that do.
func (w *task) visit(n int) ([]float64, error) {
	if w.prepare != nil {
		w.prepare()
	}
	times := make([]float64, 0, n)
	for i := range n + 1 {
		ns, err := w.block()
		if err != nil {
			return nil, err
		}
		if i > 0 {
			times = append(times, ns)
		}
	}
	return times, nil
}
