// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"strings"
	"testing"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// view is a renderer of a live stream.
type view interface {
	Titles() error
	Write(*orb8v1.Event) error
}

func show(t *testing.T, v view, all []*orb8v1.Event) {
	t.Helper()
	if err := v.Titles(); err != nil {
		t.Fatal(err)
	}
	for _, ev := range all {
		if err := v.Write(ev); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDNS(t *testing.T) {
	for _, tt := range formats {
		name := nameOf("dns", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			show(t, NewDNS(&b, Options{Format: tt.format, Width: tt.width, Location: time.UTC}, DNSOptions{}), eventsOf(t, "dns"))
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
			if strings.Contains(b.String(), "\x1b") {
				t.Error("an escape sequence got through")
			}
		})
	}
}

func TestDNSOfACluster(t *testing.T) {
	var b bytes.Buffer
	o := Options{Format: Table, Width: 160, Nodes: true, Location: time.UTC}
	show(t, NewDNS(&b, o, DNSOptions{ServerSide: true}), eventsOf(t, "dns"))
	golden(t, "dns_nodes_server_160", b.String())
}

func TestDNSRepeatsTitles(t *testing.T) {
	var b bytes.Buffer
	v := NewDNS(&b, Options{Format: Table, Width: 80, Height: 5, Location: time.UTC}, DNSOptions{})
	for range 10 {
		if err := v.Write(eventsOf(t, "dns")[0]); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Count(b.String(), "QUERY"); got != 3 {
		t.Errorf("%d titles in 10 lines of a window of 5", got)
	}
}

func TestDNSNames(t *testing.T) {
	now := time.Unix(1795426870, 0)
	for _, tt := range formats {
		name := nameOf("names", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := DNSNames(&b, Options{Format: tt.format, Width: tt.width}, now, eventsOf(t, "names"), 0); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
		})
	}
}

func TestSummaryOfQueries(t *testing.T) {
	s := NewQuerySummary()
	for _, ev := range eventsOf(t, "dns") {
		s.Add(ev)
	}
	var b bytes.Buffer
	if err := s.Write(&b, Options{}, 7*time.Second); err != nil {
		t.Fatal(err)
	}
	golden(t, "summary_dns", b.String())
}
