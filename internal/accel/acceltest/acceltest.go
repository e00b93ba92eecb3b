// SPDX-License-Identifier: Apache-2.0

// Package acceltest has what the tests of several backends need.
package acceltest

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/Ignoramuss/orb8/internal/accel"
)

// Values writes those that are known, by the metric's name, with their methods.
func Values(v *accel.Values) map[string]string {
	all := make(map[string]string)
	for m := range accel.NumMetrics {
		if v[m].Known() {
			all[m.String()] = v[m].String()
		}
	}
	return all
}

// Sound fails for values that cannot be: less than 0, no number, a ratio above 1.
func Sound(t *testing.T, samples []accel.Sample) {
	t.Helper()
	for _, s := range samples {
		for m := range accel.NumMetrics {
			v := s.Values[m]
			if v.Known() && (math.IsNaN(v.V) || v.V < 0 || m.About().Unit == accel.Ratio && v.V > 1) {
				t.Errorf("%s of %s: %v", m, s.Device.ID, v)
			}
		}
	}
}

// Tree makes files, by their paths below root.
func Tree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
