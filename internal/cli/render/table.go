// SPDX-License-Identifier: Apache-2.0

package render

import (
	"slices"
	"strings"
)

// column is one column of a table. It is at least min cells wide unless it is
// left out; without a limit on the line it is max wide, and longer cells push
// the rest of their line to the right.
type column struct {
	title    string
	min, max int
	right    bool
	// hidden columns are never shown.
	hidden bool
}

// step lets a column grow to a width while there is room.
type step struct{ col, to int }

// table is how a kind of row is laid out. Columns are named by their index.
type table struct {
	columns []column
	// drop lists the columns that may be left out, the first to go first.
	drop []int
	// grow spends the room that is left, the first step first.
	grow []step
}

// keeping returns the table with columns, named by their titles, that are never left out.
func (t *table) keeping(titles []string) *table {
	if len(titles) == 0 {
		return t
	}
	kept := func(i int) bool { return slices.Contains(titles, t.columns[i].title) }
	k := &table{columns: slices.Clone(t.columns), grow: t.grow}
	for i := range k.columns {
		if kept(i) {
			k.columns[i].hidden = false
		}
	}
	k.drop = slices.DeleteFunc(slices.Clone(t.drop), kept)
	return k
}

const gap = 1

// layout returns each column's width within a line of the given width, 0 for
// columns left out. A width of 0 puts no limit.
func (t *table) layout(width int) []int {
	widths := make([]int, len(t.columns))
	if width <= 0 {
		for i, c := range t.columns {
			if !c.hidden {
				widths[i] = max(c.max, c.min, cells(c.title))
			}
		}
		return widths
	}
	room := width + gap
	for i, c := range t.columns {
		if c.hidden {
			continue
		}
		widths[i] = max(c.min, min(cells(c.title), c.max))
		room -= widths[i] + gap
	}
	for _, i := range t.drop {
		if room >= 0 {
			break
		}
		if widths[i] == 0 {
			continue
		}
		room += widths[i] + gap
		widths[i] = 0
	}
	for _, s := range t.grow {
		if more := min(s.to, t.columns[s.col].max) - widths[s.col]; widths[s.col] > 0 && more > 0 && room > 0 {
			widths[s.col] += min(more, room)
			room -= min(more, room)
		}
	}
	return widths
}

// fitted returns the table with its columns no wider than their content.
func (t *table) fitted(rows [][]cell) *table {
	f := &table{columns: append([]column(nil), t.columns...), drop: t.drop, grow: t.grow}
	for i := range f.columns {
		c := &f.columns[i]
		widest := cells(c.title)
		for _, r := range rows {
			widest = max(widest, cells(r[i].text))
		}
		c.max = widest
		c.min = min(c.min, widest)
	}
	return f
}

// cell is one field of a row.
type cell struct {
	text string
	// fit, if set, returns a form of at most n cells; else the end is cut.
	fit   func(n int) string
	style style
}

func plain(s string) cell { return cell{text: Clean(s)} }

func (c cell) within(n int) string {
	if cells(c.text) <= n {
		return c.text
	}
	if c.fit != nil {
		return cutEnd(c.fit(n), n)
	}
	return cutEnd(c.text, n)
}

// line writes a row in the given layout.
func (t *table) line(o Options, widths []int, row []cell) string {
	var b strings.Builder
	blank := 0
	for i, c := range row {
		if widths[i] == 0 {
			continue
		}
		text := c.text
		if o.Width > 0 {
			text = c.within(widths[i])
		}
		text = pad(text, widths[i], t.columns[i].right)
		body := strings.TrimRight(text, " ")
		if body != "" {
			b.WriteString(strings.Repeat(" ", blank))
			b.WriteString(o.paint(c.style, body))
			blank = 0
		}
		blank += len(text) - len(body) + gap
	}
	return b.String()
}

func (t *table) titles(o Options, widths []int) string {
	row := make([]cell, len(t.columns))
	for i, c := range t.columns {
		row[i] = cell{text: c.title, style: styleTitle}
	}
	return t.line(o, widths, row)
}

// lines lays out all rows at once, under their titles.
func (t *table) lines(o Options, rows [][]cell) []string {
	f := t.fitted(rows)
	widths := f.layout(o.Width)
	out := []string{f.titles(o, widths)}
	for _, r := range rows {
		out = append(out, f.line(o, widths, r))
	}
	return out
}
