// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"time"
)

// sinceValue is a point in time, given as such, as a time of the last 24 hours, or as how
// long ago it is.
type sinceValue struct {
	ago time.Duration
	at  time.Time
	// now is time.Now where it is nil.
	now func() time.Time
}

func (v *sinceValue) String() string { return "" }
func (v *sinceValue) Type() string   { return "TIME" }
func (v *sinceValue) set() bool      { return v.ago > 0 || !v.at.IsZero() }

// clockLayouts are times of a day, as tables have them.
var clockLayouts = []string{"15:04", time.TimeOnly} // a fraction may follow the second

// Set reads a duration, a time of RFC 3339 or one of the last 24 hours, by the local clock.
func (v *sinceValue) Set(s string) error {
	if d, err := time.ParseDuration(s); err == nil {
		if d <= 0 {
			return errors.New("want a time in the past, as in 5m")
		}
		v.ago, v.at = d, time.Time{}
		return nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		v.ago, v.at = 0, t
		return nil
	}
	for _, layout := range clockLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			v.ago, v.at = 0, v.latest(t)
			return nil
		}
	}
	return errors.New("want how long ago, as in 5m or 1h30m, or a time, as in 09:30, 09:30:05 or 2026-11-23T09:00:00Z")
}

// latest is when it was last that time of the day.
func (v *sinceValue) latest(clock time.Time) time.Time {
	now := time.Now()
	if v.now != nil {
		now = v.now()
	}
	y, m, d := now.Date()
	t := time.Date(y, m, d, clock.Hour(), clock.Minute(), clock.Second(), clock.Nanosecond(), now.Location())
	if t.After(now) {
		t = time.Date(y, m, d-1, clock.Hour(), clock.Minute(), clock.Second(), clock.Nanosecond(), now.Location())
	}
	return t
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
