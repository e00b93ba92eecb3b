// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"strings"
	"testing"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

func TestAccelerators(t *testing.T) {
	for _, tt := range formats {
		name := nameOf("accelerators", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			r := NewAccelerators(&b, Options{Format: tt.format, Width: tt.width, Nodes: true, Location: time.UTC})
			if err := r.Titles(); err != nil {
				t.Fatal(err)
			}
			for _, ev := range eventsOf(t, "gpus") {
				if err := r.Write(ev); err != nil {
					t.Fatal(err)
				}
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
			if strings.Contains(b.String(), "\x1b") {
				t.Error("an escape sequence got through")
			}
		})
	}
}

func TestGPUs(t *testing.T) {
	samples := eventsOf(t, "gpus")
	samples = samples[:len(samples)-1] // the last is none
	now := time.Unix(1795426870, 0)
	for _, tt := range formats {
		name := nameOf("gpus", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := GPUs(&b, Options{Format: tt.format, Width: tt.width, Location: time.UTC}, now, samples); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
		})
	}
}

func TestStatusOfAccelerators(t *testing.T) {
	all := []*orb8v1.AcceleratorStatus{
		{Name: "nvml", State: "running", Devices: 8},
		{Name: "dcgm", State: "off", Reason: "no exporter"},
		{Name: "stuck", State: "stuck", Reason: "the driver has not answered for 7s", Remedy: "look at dmesg"},
	}
	got := strings.Join(statusAccelerators(Options{}, all), "\n")
	want := "ACCELERATORS STATE   DETAIL\n" +
		"nvml         running 8 devices\n" +
		"stuck        stuck   the driver has not answered for 7s → look at dmesg"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if wide := statusAccelerators(Options{Format: Wide}, all); len(wide) != 4 {
		t.Errorf("wide: %q", wide)
	}
	if none := statusAccelerators(Options{}, all[1:2]); none != nil {
		t.Errorf("nothing there: %q", none)
	}
}
