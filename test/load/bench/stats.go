// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"math/rand/v2"
	"slices"
)

// quantile of each arm that is compared: low enough to leave out what else ran
// on the machine, high enough not to rest on a lucky block.
const quartile = 0.25

// quantile returns the value below which the share q of values lies, by linear
// interpolation. values is sorted in place; 0 if it is empty.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	at := q * float64(len(values)-1)
	i := int(at)
	if i+1 == len(values) {
		return values[i]
	}
	return values[i] + (at-float64(i))*(values[i+1]-values[i])
}

// series holds one arm's times per operation in nanoseconds: a slice of blocks
// for each visit. Visit i of all arms belongs to the same round.
type series [][]float64

// typical is the 25th percentile over the blocks of the visits whose indices
// are given; over all blocks for nil.
func (s series) typical(visits []int, scratch []float64) float64 {
	all := scratch[:0]
	if visits == nil {
		for _, v := range s {
			all = append(all, v...)
		}
	}
	for _, i := range visits {
		all = append(all, s[i]...)
	}
	return quantile(all, quartile)
}

func (s series) blocks() int {
	n := 0
	for _, v := range s {
		n += len(v)
	}
	return n
}

// ratio compares an arm with the arm without anything.
type ratio struct {
	// Value is the throughput relative to none: time of none over time of arm.
	Value float64
	// Low and High bound 95 % of the values that the same rounds give when
	// they are drawn anew.
	Low, High float64
	// Added is the time that the arm adds to each operation, in nanoseconds.
	Added float64
}

// spread is how far from 1 the interval of the ratio reaches.
func (r ratio) spread() float64 { return max(1-r.Low, r.High-1, 0) }

const resamples = 400

// compare returns arm's ratio to none. Both have the same number of visits. The
// interval draws whole rounds, since blocks of one visit are not independent.
func compare(none, arm series, rng *rand.Rand) ratio {
	scratch := make([]float64, 0, max(none.blocks(), arm.blocks())*2)
	base, with := none.typical(nil, scratch), arm.typical(nil, scratch)
	r := ratio{Value: base / with, Added: with - base}
	drawn := make([]float64, resamples)
	visits := make([]int, len(none))
	for i := range drawn {
		for j := range visits {
			visits[j] = rng.IntN(len(none))
		}
		drawn[i] = none.typical(visits, scratch) / arm.typical(visits, scratch)
	}
	r.Low, r.High = quantile(drawn, 0.025), quantile(drawn, 0.975)
	return r
}
