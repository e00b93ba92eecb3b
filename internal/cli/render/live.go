// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Live is a renderer of a live stream: one line for each event. What is about the whole
// node, such as losses, looks alike in all of them.
type Live interface {
	// Titles writes the line above the columns, in the formats that have one.
	Titles() error
	// Resize lays the columns out anew.
	Resize(width, height int)
	// Write writes an event.
	Write(*orb8v1.Event) error
	// Explain says what the stages of lost events mean.
	Explain(meanings map[string]string)
}

// Explain says what the stages of lost events mean.
func (e *Events) Explain(meanings map[string]string) { e.Meanings = meanings }

// live writes one kind of events as a table of its own, and leaves all else to Events.
type live struct {
	*Events
	table  *table
	widths []int
	// row has the cells of an event, nil if it is of another kind; compact is the same
	// as one line of words.
	row     func(*orb8v1.Event) []cell
	compact func(*orb8v1.Event) string
}

// newLive returns one without row and compact.
func newLive(w io.Writer, o Options, t *table) *live {
	v := &live{Events: NewEvents(w, o), table: t}
	v.above = v.Titles
	v.Resize(o.Width, o.Height)
	return v
}

// Resize lays the columns out anew.
func (v *live) Resize(width, height int) {
	v.Events.Resize(width, height)
	v.widths = v.table.layout(v.o.tableWidth())
}

// Titles writes the line above the columns, in the formats that have one.
func (v *live) Titles() error { return v.titles(v.table, v.widths) }

// Write writes one event.
func (v *live) Write(ev *orb8v1.Event) error {
	row := v.row(ev)
	if row == nil || v.o.Format == JSON {
		return v.Events.Write(ev)
	}
	if err := v.repeatTitles(); err != nil {
		return err
	}
	text := v.compact
	if v.o.Format != Compact {
		text = func(*orb8v1.Event) string { return v.table.line(v.o, v.widths, row) }
	}
	_, err := fmt.Fprintln(v.w, text(ev))
	return err
}

// timeCell is an event's time of day, for the first column, as exact as that has room
// for.
func (v *live) timeCell(ev *orb8v1.Event) cell {
	layout := "15:04:05"
	if v.widths[0] >= millisWidth {
		layout = "15:04:05.000"
	}
	return cell{text: v.o.clock(ev.GetTimeNs(), layout), style: styleDim}
}

// tableWidth is that of a live table; 0 for no limit.
func (o Options) tableWidth() int {
	switch {
	case o.Format == Wide:
		return 0
	case o.Width == 0:
		return commonWidth
	}
	return o.Width
}
