// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"time"
)

// sinceValue is a point in time, given as such or as how long ago it is.
type sinceValue struct {
	ago time.Duration
	at  time.Time
}

func (v *sinceValue) String() string { return "" }
func (v *sinceValue) Type() string   { return "TIME" }
func (v *sinceValue) set() bool      { return v.ago > 0 || !v.at.IsZero() }

// Set reads a duration or a time of RFC 3339.
func (v *sinceValue) Set(s string) error {
	if d, err := time.ParseDuration(s); err == nil {
		if d <= 0 {
			return errors.New("want a time in the past, as in 5m")
		}
		*v = sinceValue{ago: d}
		return nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return errors.New("want how long ago, as in 5m or 1h30m, or a time, as in 2026-11-23T09:00:00Z")
	}
	if t.After(time.Now()) {
		return errors.New("want a time in the past: that is still to come")
	}
	*v = sinceValue{at: t}
	return nil
}

// unixNanos is the point in time as the API has it, 0 if none was given.
func (v *sinceValue) unixNanos(now time.Time) int64 {
	switch {
	case v.ago > 0:
		return now.Add(-v.ago).UnixNano()
	case !v.at.IsZero():
		return v.at.UnixNano()
	}
	return 0
}
