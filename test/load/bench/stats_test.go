// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, tc := range []struct {
		name   string
		values []float64
		q      float64
		want   float64
	}{
		{"empty", nil, 0.25, 0},
		{"one", []float64{7}, 0.25, 7},
		{"on a value", []float64{5, 1, 4, 2, 3}, 0.25, 2},
		{"between values", []float64{4, 2}, 0.25, 2.5},
		{"least", []float64{3, 1, 2}, 0, 1},
		{"greatest", []float64{3, 1, 2}, 1, 3},
		{"median", []float64{4, 1, 3, 2}, 0.5, 2.5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := quantile(tc.values, tc.q); got != tc.want {
				t.Errorf("quantile(%v, %v) = %v, want %v", tc.values, tc.q, got, tc.want)
			}
		})
	}
}

// noisy makes visits around a time, with a share of blocks that something else
// has slowed down a lot.
func noisy(rng *rand.Rand, visits, blocks int, ns, disturbed float64) series {
	s := make(series, visits)
	for i := range s {
		for range blocks {
			v := ns * (1 + 0.01*rng.NormFloat64())
			if rng.Float64() < disturbed {
				v *= 1 + 5*rng.Float64()
			}
			s[i] = append(s[i], v)
		}
	}
	return s
}

func TestCompareOfEqualArmsIsOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	none := noisy(rng, 40, 10, 5000, 0.3)
	control := noisy(rng, 40, 10, 5000, 0.3)
	r := compare(none, control, rng)
	if math.Abs(r.Value-1) > 0.005 {
		t.Errorf("ratio of equal arms = %v, want 1 within 0.005", r.Value)
	}
	if r.Low > 1 || r.High < 1 {
		t.Errorf("interval [%v, %v] leaves 1 out", r.Low, r.High)
	}
	if r.spread() > 0.01 {
		t.Errorf("spread = %v, want at most 0.01", r.spread())
	}
}

func TestCompareFindsWhatAnArmAdds(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	none := noisy(rng, 40, 10, 5000, 0.3)
	arm := noisy(rng, 40, 10, 5250, 0.3)
	r := compare(none, arm, rng)
	if want := 5000.0 / 5250; math.Abs(r.Value-want) > 0.005 {
		t.Errorf("ratio = %v, want %v within 0.005", r.Value, want)
	}
	if math.Abs(r.Added-250) > 25 {
		t.Errorf("added = %v ns, want 250 within 25", r.Added)
	}
	if r.High >= 1 {
		t.Errorf("interval [%v, %v] reaches 1", r.Low, r.High)
	}
}

func TestSpread(t *testing.T) {
	for _, tc := range []struct {
		r    ratio
		want float64
	}{
		{ratio{Low: 0.75, High: 1.125}, 0.25},
		{ratio{Low: 0.875, High: 1.25}, 0.25},
		{ratio{Low: 1, High: 1}, 0},
	} {
		if got := tc.r.spread(); got != tc.want {
			t.Errorf("spread of %+v = %v, want %v", tc.r, got, tc.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, tc := range []struct {
		name   string
		target target
		values []float64
		want   string
	}{
		{"at least, both", target{limit: 0.95, atLeast: true}, []float64{0.95, 0.97}, "met"},
		{"at least, one", target{limit: 0.95, atLeast: true}, []float64{0.94, 0.97}, "missed in one run, by 0.010"},
		{"at least, none", target{limit: 0.95, atLeast: true}, []float64{0.94, 0.93}, "missed by 0.010 and 0.020"},
		{"at most, met", target{limit: 400, format: "%.0f ns"}, []float64{350, 400}, "met"},
		{"at most, missed", target{limit: 400, format: "%.0f ns"}, []float64{450}, "missed by 50 ns"},
		{"not measured", target{limit: 400}, nil, "not measured"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.target.verdict(tc.values); got != tc.want {
				t.Errorf("verdict = %q, want %q", got, tc.want)
			}
		})
	}
}
