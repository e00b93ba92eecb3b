// SPDX-License-Identifier: Apache-2.0

// Package sysfs reads the small files of the kernel's device tree. It only reads:
// some drivers take a write for a reset of their counters.
package sysfs

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/Ignoramuss/orb8/internal/accel"
)

// maxFile is a page, which no attribute exceeds.
const maxFile = 4096

// Text is the content of the file below dir, without white space around it; empty
// if it cannot be read.
func Text(dir string, path ...string) string {
	f, err := os.Open(filepath.Join(append([]string{dir}, path...)...))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return "" // some sensors fail while the device sleeps
	}
	return strings.TrimSpace(string(text))
}

// Number is the whole number in a file times factor; absent if there is none, or
// one below 0.
func Number(factor float64, dir string, path ...string) accel.Value {
	n, err := strconv.ParseUint(Text(dir, path...), 0, 64)
	if err != nil {
		return accel.Value{}
	}
	return accel.Of(float64(n)*factor, accel.Driver)
}

// Percent is Number for a percentage, as a ratio; absent above 100.
func Percent(dir string, path ...string) accel.Value {
	v := Number(1, dir, path...)
	if v.V > 100 {
		return accel.Value{}
	}
	v.V /= 100
	return v
}

// Field is the value of KEY=VALUE or KEY VALUE in a file of such lines.
func Field(key, dir string, path ...string) string {
	for line := range strings.Lines(Text(dir, path...)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && name == key {
			return value
		}
		if parts := strings.Fields(line); len(parts) == 2 && strings.TrimSuffix(parts[0], ":") == key {
			return parts[1]
		}
	}
	return ""
}
