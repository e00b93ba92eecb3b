// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"io"
	"slices"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

// sums are what a countsView shows.
type sums interface {
	// take takes an event, if it is one of those that are added up.
	take(*orb8v1.Event) bool
	write(io.Writer, render.Options) error
}

// countsView shows sums of what has come: in place every second, or at the end.
type countsView struct {
	*render.Events // for what is not added up
	w              io.Writer
	options        render.Options
	inPlace        bool
	begun, changed bool
	sums           sums
	// notes are other events, the last few, where they stand below the tables.
	notes []*orb8v1.Event
}

const maxNotes = 5

func newCountsView(w io.Writer, o render.Options, inPlace bool, of sums) *countsView {
	o.Height = 0
	v := &countsView{Events: render.NewEvents(w, o), w: w, options: o, sums: of}
	v.inPlace = inPlace && (o.Format == render.Table || o.Format == render.Wide)
	return v
}

// Titles writes nothing: each table has its own.
func (v *countsView) Titles() error { return nil }

// Resize follows the window.
func (v *countsView) Resize(width, height int) {
	v.options.Width, v.options.Height, v.changed = width, height, true
	v.Events.Resize(width, 0)
}

// Write takes an event.
func (v *countsView) Write(ev *orb8v1.Event) error {
	switch {
	case v.options.Format == render.JSON:
		return v.Events.Write(ev)
	case v.sums.take(ev):
		v.changed = true
		return nil
	case v.inPlace:
		v.notes = append(v.notes, ev)
		v.notes = v.notes[max(len(v.notes)-maxNotes, 0):]
		v.changed = true
		return nil
	}
	return v.Events.Write(ev)
}

// latestCounts are those of each container.
type latestCounts struct{ set render.CountSet }

func (c *latestCounts) take(ev *orb8v1.Event) bool {
	if ev.GetSyscallSummary() == nil {
		return false
	}
	c.set.Add(ev)
	return true
}

func (c *latestCounts) write(w io.Writer, o render.Options) error {
	return render.SyscallSummaries(w, o, c.all())
}

// all are the containers' latest, most time first.
func (c *latestCounts) all() []*orb8v1.Event {
	all := c.set.All()
	spent := func(ev *orb8v1.Event) (ns int64) {
		for _, c := range ev.GetSyscallSummary().GetCalls() {
			ns += c.GetTimeNs()
		}
		return ns
	}
	slices.SortFunc(all, func(a, b *orb8v1.Event) int {
		return cmp.Or(cmp.Compare(spent(b), spent(a)), cmp.Compare(idOf(a), idOf(b)))
	})
	return all
}

func idOf(ev *orb8v1.Event) uint64 { return ev.GetSyscallSummary().GetWorkload().GetCgroupId() }

// callTree are the calls by process.
type callTree struct{ tree render.CallTree }

func (c *callTree) take(ev *orb8v1.Event) bool {
	if ev.GetSyscall() == nil {
		return false
	}
	c.tree.Add(ev)
	return true
}

func (c *callTree) write(w io.Writer, o render.Options) error { return c.tree.Write(w, o) }

// Draw puts the tables over those before.
func (v *countsView) Draw() error {
	if !v.inPlace || !v.changed {
		return nil
	}
	var text strings.Builder
	if err := v.write(&text); err != nil {
		return err
	}
	v.changed = false
	frame := screen(text.String(), v.options.Height)
	if !v.begun { // what is on the screen moves up
		v.begun = true
		frame = strings.Repeat("\n", max(v.options.Height-1, 0)) + frame
	}
	_, err := io.WriteString(v.w, frame)
	return err
}

func (v *countsView) write(w io.Writer) error {
	if err := v.sums.write(w, v.options); err != nil {
		return err
	}
	o := v.options
	o.Height = 0
	notes := render.NewEvents(w, o)
	notes.Meanings = v.Meanings
	for _, ev := range v.notes {
		if err := notes.Write(ev); err != nil {
			return err
		}
	}
	return nil
}

// Finish writes the tables in full.
func (v *countsView) Finish() error {
	if v.options.Format == render.JSON {
		return nil
	}
	if v.begun {
		if _, err := io.WriteString(v.w, cursorHome+clearBelow); err != nil {
			return err
		}
	}
	return v.write(v.w)
}
