// SPDX-License-Identifier: Apache-2.0

package render

import (
	"io"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// live writes a live stream of one kind of events as a table, one line each, and leaves
// what is of another kind to Events.
type live struct {
	*Events
	w      io.Writer
	table  *table
	widths []int
	// row has the cells of an event, nil if it is of another kind.
	row func(*orb8v1.Event) []cell
	// compact writes an event that has a row in the format of that name; if nil, Events
	// does.
	compact func(*orb8v1.Event) string
}

// newLive returns one without row and compact.
func newLive(w io.Writer, o Options, t *table) *live {
	v := &live{Events: NewEvents(w, o), w: w, table: t}
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
func (v *live) Titles() error { return v.titles(v.w, v.table, v.widths) }

// Write writes one event.
func (v *live) Write(ev *orb8v1.Event) error {
	row := v.row(ev)
	if row == nil || v.o.Format == JSON || v.o.Format == Compact && v.compact == nil {
		return v.Events.Write(ev)
	}
	if err := v.repeatTitles(); err != nil {
		return err
	}
	if v.o.Format == Compact {
		return writeLines(v.w, []string{v.compact(ev)})
	}
	return writeLines(v.w, []string{v.table.line(v.o, v.widths, row)})
}

// timeCell is an event's time of day, for the first column, as exact as that has room
// for.
func (v *live) timeCell(ev *orb8v1.Event) cell {
	layout := "15:04:05"
	switch n := v.widths[0]; {
	case n >= microsWidth:
		layout = "15:04:05.000000"
	case n >= millisWidth:
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
