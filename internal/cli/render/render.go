// SPDX-License-Identifier: Apache-2.0

// Package render turns the agent's messages into text: one file per kind of
// message. It knows nothing of where messages come from or of command-line
// flags, and every renderer copes with messages whose parts are missing.
package render

import (
	"fmt"
	"strings"
	"time"
)

// Format is the shape of the output.
type Format string

// The formats. Wide has every column and is never shortened; Compact is one
// line of key=value words per item; JSON is one object per line.
const (
	Table   Format = "table"
	Wide    Format = "wide"
	Compact Format = "compact"
	JSON    Format = "json"
)

// Formats lists the formats in the order in which help names them.
func Formats() []string {
	return []string{string(Table), string(Wide), string(Compact), string(JSON)}
}

// ParseFormat reads a format's name.
func ParseFormat(s string) (Format, error) {
	for _, f := range Formats() {
		if s == f {
			return Format(s), nil
		}
	}
	return "", fmt.Errorf("unknown format %q: use %s", s, oneOf(Formats()))
}

func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// Options says what the output may look like.
type Options struct {
	Format Format
	// Width that lines must keep to; 0 means that nothing is dropped or
	// shortened.
	Width int
	// Height after which a stream repeats its titles; 0 means never.
	Height int
	Color  bool
	// Keep are the titles of columns that are not left out however narrow the window is:
	// those that rows are sorted or chosen by.
	Keep []string
	// Nodes adds the node to what comes from several.
	Nodes bool
	// Location of the times of day shown; nil means local time.
	Location *time.Location
}

func (o Options) clock(ns int64, layout string) string {
	if ns == 0 {
		return "-"
	}
	loc := o.Location
	if loc == nil {
		loc = time.Local
	}
	return time.Unix(0, ns).In(loc).Format(layout)
}
