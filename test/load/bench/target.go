// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"strings"
)

// target is what a figure has to be.
type target struct {
	limit   float64
	atLeast bool   // else at most
	format  string // of the figure, "%.3f" if empty
}

func (t target) print(v float64) string {
	if t.format == "" {
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf(t.format, v)
}

func (t target) String() string {
	if t.atLeast {
		return "≥ " + t.print(t.limit)
	}
	return "≤ " + t.print(t.limit)
}

// missedBy is positive for a figure on the wrong side of the limit.
func (t target) missedBy(v float64) float64 {
	if t.atLeast {
		return t.limit - v
	}
	return v - t.limit
}

// verdict says of the figures of all runs whether they meet the target.
func (t target) verdict(values []float64) string {
	if len(values) == 0 {
		return "not measured"
	}
	var missed []string
	for _, v := range values {
		if by := t.missedBy(v); by > 0 {
			missed = append(missed, t.print(by))
		}
	}
	switch {
	case len(missed) == 0:
		return "met"
	case len(missed) < len(values):
		return "missed in one run, by " + strings.Join(missed, " and ")
	}
	return "missed by " + strings.Join(missed, " and ")
}

// result is one row of the table of targets.
type result struct {
	what   string
	target target
	note   string // after the target, for instance how it comes about
	values []float64
}

func (r result) row() string {
	measured := make([]string, len(r.values))
	for i, v := range r.values {
		measured[i] = r.target.print(v)
	}
	goal := r.target.String()
	if r.note != "" {
		goal += " (" + r.note + ")"
	}
	return fmt.Sprintf("| %s | %s | %s | %s |\n", r.what, goal, strings.Join(measured, ", "), r.target.verdict(r.values))
}
