// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bytes writes n in at most seven cells: 1023 B would need a place more than
// 999 KiB, so the next unit starts at 1000.
func Bytes(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	v := float64(n)
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for i, unit := range units {
		v /= 1024
		switch {
		case v < 9.95:
			return fmt.Sprintf("%.1f %s", v, unit)
		case v < 999.5 || i == len(units)-1:
			return fmt.Sprintf("%.0f %s", v, unit)
		}
	}
	return "" // the loop returns at its last unit
}

// Micros writes a duration of us microseconds with three digits, in at most six
// cells up to 100 seconds.
func Micros(us uint64) string {
	switch v := float64(us); {
	case us < 1000:
		return strconv.FormatUint(us, 10) + "µs"
	case v < 999.5e3:
		return threeDigits(v/1e3) + "ms"
	case v < 99.95e6:
		return threeDigits(v/1e6) + "s"
	}
	return Span(time.Duration(min(us, 1<<53)) * time.Microsecond)
}

func threeDigits(v float64) string {
	switch {
	case v < 9.995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 99.95:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// Span writes how long something took or is ago, in its two largest units.
func Span(d time.Duration) string {
	type unit struct {
		size time.Duration
		name string
	}
	if d < 0 {
		d = 0
	}
	switch {
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Truncate(100*time.Millisecond).Seconds(), 'f', -1, 64) + "s"
	}
	units := []unit{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}}
	for i, u := range units {
		if d < u.size {
			continue
		}
		s := fmt.Sprintf("%d%s", d/u.size, u.name)
		if i+1 < len(units) {
			if rest := d % u.size / units[i+1].size; rest > 0 {
				s += fmt.Sprintf("%d%s", rest, units[i+1].name)
			}
		}
		return s
	}
	return "0s"
}

// Count writes n with a comma between thousands.
func Count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	var b strings.Builder
	for i, r := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Plural writes "1 flow" or "12 flows".
func Plural(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return Count(n) + " " + many
}
