// SPDX-License-Identifier: Apache-2.0

package render

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/Ignoramuss/orb8/internal/doctor"
)

// Findings writes what was checked and what to do about it.
func Findings(w io.Writer, o Options, findings []doctor.Finding) error {
	var lines []string
	switch o.Format {
	case JSON:
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, f := range findings {
			if err := enc.Encode(f); err != nil {
				return err
			}
		}
		return nil
	case Compact:
		for _, f := range findings {
			line := fmt.Sprintf("%s %s: %s", Clean(string(f.Status)), Clean(f.Name), Clean(f.Detail))
			if f.Remedy != "" {
				line += "; " + Clean(f.Remedy)
			}
			lines = append(lines, line)
		}
		return writeLines(w, lines)
	case Wide:
		o.Width = 0
	}
	return writeLines(w, append(findingLines(o, findings), "", verdict(o, findings)))
}

func findingLines(o Options, findings []doctor.Finding) []string {
	name := 0
	for _, f := range findings {
		name = max(name, min(cells(Clean(f.Name)), 24))
	}
	indent := 6 + name + 2
	var lines []string
	for i, f := range findings {
		prefix := o.paint(findingStyle(f.Status), pad(Clean(string(f.Status)), 4, false)) + "  " +
			pad(cutEnd(Clean(f.Name), name), name, false) + "  "
		details := wrap(orNone(f.Detail), max(o.Width-indent, 0))
		// What helps several in a row is said once, below the last.
		if f.Remedy != "" && (i+1 == len(findings) || findings[i+1].Remedy != f.Remedy) {
			details = append(details, wrap("→ "+Clean(f.Remedy), max(o.Width-indent, 0))...)
		}
		for _, d := range details {
			lines = append(lines, prefix+d)
			prefix = pad("", indent, false)
		}
	}
	return lines
}

func findingStyle(status doctor.Status) style {
	switch status {
	case doctor.OK:
		return styleGood
	case doctor.Warn:
		return styleWarn
	case doctor.Fail:
		return styleBad
	}
	return styleDim
}

// verdict is the closing line: what the findings mean taken together.
func verdict(o Options, findings []doctor.Finding) string {
	var failed, warned []string
	for _, f := range findings {
		switch f.Status {
		case doctor.Fail:
			failed = append(failed, Clean(f.Name))
		case doctor.Warn:
			warned = append(warned, Clean(f.Name))
		}
	}
	switch {
	case slices.Equal(failed, []string{"agent"}):
		return o.paint(styleBad, "this host has what orb8 needs; what is wrong is the agent that was asked")
	case len(failed) > 0:
		return o.paint(styleBad, "orb8 cannot run here until this is put right: "+strings.Join(failed, ", "))
	case len(warned) > 0:
		return o.paint(styleWarn, "orb8 runs here, with less than it could do: "+strings.Join(warned, ", "))
	}
	return o.paint(styleGood, "orb8 runs here.")
}
