// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

func TestSyscalls(t *testing.T) {
	rendered(t, "syscalls", "syscalls", Options{}, func(w io.Writer, o Options) view {
		return NewSyscalls(w, o, SyscallOptions{})
	})
}

func TestSyscallsOfOnePod(t *testing.T) {
	rendered(t, "syscalls_one", "syscalls", Options{}, func(w io.Writer, o Options) view {
		return NewSyscalls(w, o, SyscallOptions{One: true})
	})
}

func TestSyscallSummaries(t *testing.T) {
	for _, tt := range formats {
		if tt.format == JSON {
			continue
		}
		name := nameOf("counts", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			o := Options{Format: tt.format, Width: tt.width, Nodes: tt.width == 100, Location: time.UTC}
			if err := SyscallSummaries(&b, o, eventsOf(t, "counts")); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
			safe(t, b.String())
		})
	}
}

func TestSyscallColours(t *testing.T) {
	for _, width := range []int{80, 160} {
		var b bytes.Buffer
		show(t, NewSyscalls(&b, Options{Format: Table, Width: width, Color: true, Location: time.UTC}, SyscallOptions{}), eventsOf(t, "syscalls"))
		golden(t, nameOf("syscalls_colour", Table, width), strings.ReplaceAll(b.String(), "\x1b", "^"))
	}
	var b bytes.Buffer
	if err := SyscallSummaries(&b, Options{Format: Table, Width: 80, Color: true}, eventsOf(t, "counts")[:2]); err != nil {
		t.Fatal(err)
	}
	golden(t, "counts_colour", strings.ReplaceAll(b.String(), "\x1b", "^"))
}

func TestSummaryOfSyscalls(t *testing.T) {
	var b bytes.Buffer
	for data, counted := range map[string]bool{"syscalls": false, "counts": true} {
		for _, events := range [][]*orb8v1.Event{nil, eventsOf(t, data)} {
			s := NewSyscallSummary(counted)
			for _, ev := range events {
				s.Add(ev)
			}
			if err := s.Write(&b, Options{}, 7*time.Second); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, want := range []string{
		"0 system calls in 7s: 0 errors, 0 flagged; nothing lost\n", "0 system calls of 0 containers in 7s: 0 errors; nothing lost\n",
		"1,240,665 system calls of 4 containers in 7s: 21 errors; 5 not counted\n",
		"15 system calls in 7s: 4 errors, 2 flagged\nLOST: 1,234 at syscall_limited\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// TestLaterCount: a container's next summary takes the place of the one before.
func TestLaterCount(t *testing.T) {
	s := NewSyscallSummary(true)
	for range 3 {
		s.Add(eventsOf(t, "counts")[0])
	}
	var b bytes.Buffer
	if err := s.Write(&b, Options{}, time.Second); err != nil {
		t.Fatal(err)
	}
	if want := "1,240,652 system calls of 1 container in 1s: 20 errors; nothing lost\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

// TestCountsAfterRestart: an agent that is started again counts anew.
func TestCountsAfterRestart(t *testing.T) {
	first := eventsOf(t, "counts")[0]
	first.GetSyscallSummary().BeginNs = 1
	later := proto.CloneOf(first)
	sum := later.GetSyscallSummary()
	sum.BeginNs = 2
	sum.Calls = append(sum.Calls[:1:1], &orb8v1.SyscallCount{Name: "getpid", Abi: "amd64", Calls: 5, TimeNs: 1, MaxNs: 1})
	sum.Calls[0].Calls, sum.Calls[0].MaxNs = 7, 0
	var s CountSet
	for _, ev := range []*orb8v1.Event{first, first, later, later} {
		s.Add(ev)
	}
	all := s.All()
	if len(all) != 1 {
		t.Fatalf("%d containers", len(all))
	}
	got := all[0].GetSyscallSummary()
	before, after := sumOf(first.GetSyscallSummary()), sumOf(got)
	if got.GetBeginNs() != 1 || after.calls != before.calls+12 || after.longest != 0 {
		t.Errorf("%d calls since %d, longest %d; want %d since 1", after.calls, got.GetBeginNs(), after.longest, before.calls+12)
	}
}
