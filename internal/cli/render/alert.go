// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of an alert.
const (
	alertTime = iota
	alertNode
	alertSeverity
	alertRule
	alertWho
	alertSummary
)

// besideFrom is the width of a line from which on the summary stands in a column of
// its own; on a narrower one it stands below.
const besideFrom = 120

const dateLayout = "01-02 15:04:05"

func alertTable(o Options, beside bool) *table {
	clock := len(dateLayout) // alerts may be of other days
	return &table{
		columns: []column{
			alertTime:     {title: "TIME", min: clock, max: clock},
			alertNode:     {title: "NODE", min: 6, max: 20, hidden: !o.Nodes},
			alertSeverity: {title: "SEVERITY", min: 8, max: 8},
			alertRule:     {title: "RULE", min: 10, max: 24},
			alertWho:      {title: whoTitle(o), min: 10, max: 40},
			alertSummary:  {title: "SUMMARY", min: 40, max: 100, hidden: !beside},
		},
		drop: []int{alertNode, alertTime},
		grow: []step{{alertRule, 18}, {alertWho, 24}, {alertNode, 12}, {alertRule, 24}, {alertSummary, 60}, {alertWho, 40}, {alertNode, 20}, {alertSummary, 100}},
	}
}

// Alerts writes alerts: a headline each with what happened, or in the wide format all that is
// known.
type Alerts struct {
	*Events
	beside bool
	table  *table
	widths []int
	shown  bool // at least one in full
}

// NewAlerts returns a renderer that writes to w.
func NewAlerts(w io.Writer, o Options) *Alerts {
	v := &Alerts{Events: NewEvents(w, o)}
	v.above = v.Titles
	v.Resize(o.Width, o.Height)
	return v
}

// Resize lays the columns out anew.
func (v *Alerts) Resize(width, height int) {
	v.Events.Resize(width, height)
	v.o.Width = width // details are wrapped also where nothing is left out
	v.beside = v.o.Format == Table && (width == 0 || width >= besideFrom)
	v.table = alertTable(v.o, v.beside)
	v.widths = v.table.layout(v.o.tableWidth())
}

// Titles writes the line above the columns, in the table.
func (v *Alerts) Titles() error {
	if v.o.Format == Wide {
		return nil
	}
	return v.titles(v.table, v.widths)
}

// Write writes one event.
func (v *Alerts) Write(ev *orb8v1.Event) error {
	a := ev.GetAlert()
	switch {
	case a == nil || v.o.Format == JSON:
		return v.Events.Write(ev)
	case v.o.Format == Compact:
		return writeLines(v.w, []string{compactAlert(v.o, ev, a)})
	case v.o.Format == Wide:
		lines := append(v.headline(ev, a), alertDetails(v.o, a)...)
		if v.shown {
			lines = append([]string{""}, lines...)
		}
		v.shown = true
		return writeLines(v.w, lines)
	}
	if err := v.repeatTitles(); err != nil {
		return err
	}
	lines := v.brief(ev, a)
	v.since += len(lines) - 1
	return writeLines(v.w, lines)
}

func severity(s orb8v1.Severity) (string, style) {
	switch s {
	case orb8v1.Severity_SEVERITY_NOTICE:
		return "notice", styleNone
	case orb8v1.Severity_SEVERITY_WARNING:
		return "warning", styleWarn
	case orb8v1.Severity_SEVERITY_CRITICAL:
		return "critical", styleBad
	}
	return none, styleNone
}

// row is an alert's headline.
func (v *Alerts) row(ev *orb8v1.Event, a *orb8v1.Alert) []cell {
	name, style := severity(a.GetSeverity())
	return []cell{
		alertTime:     {text: v.o.clock(ev.GetTimeNs(), dateLayout), style: styleDim},
		alertNode:     nodeCell(orNone(ev.GetNodeName())),
		alertSeverity: {text: name, style: style},
		alertRule:     nameCell(a.GetRule()),
		alertWho:      workloadCell(a.GetWorkload()),
		alertSummary:  {},
	}
}

// brief is a headline and what happened, beside or below it.
func (v *Alerts) brief(ev *orb8v1.Event, a *orb8v1.Alert) []string {
	summary, row := alertText(a), v.row(ev, a)
	if !v.beside {
		return append([]string{v.table.line(v.o, v.widths, row)}, indented(v.o, "  ", summary)...)
	}
	at := 0
	for i := range alertSummary {
		if v.widths[i] > 0 {
			at += v.widths[i] + gap
		}
	}
	parts := []string{summary}
	if v.o.Width > 0 {
		parts = wrap(summary, v.o.Width-at)
	}
	row[alertSummary] = cell{text: parts[0], fit: func(int) string { return cutEnd(parts[0], v.o.Width-at) }}
	lines := []string{v.table.line(v.o, v.widths, row)}
	for _, p := range parts[1:] {
		lines = append(lines, cutEnd(strings.Repeat(" ", at)+p, v.o.Width))
	}
	return lines
}

// headline is a line for an alert that is shown in full.
func (v *Alerts) headline(ev *orb8v1.Event, a *orb8v1.Alert) []string {
	name, style := severity(a.GetSeverity())
	words := []string{v.o.clock(ev.GetTimeNs(), "2006-01-02 15:04:05"), name, orNone(a.GetRule())}
	if who := workloadName(a.GetWorkload()); who != "" {
		words = append(words, "in "+who)
	}
	if v.o.Nodes {
		words = append(words, "on "+orNone(ev.GetNodeName()))
	}
	var lines []string
	for _, l := range wrap(strings.Join(words, " "), v.o.Width) {
		lines = append(lines, v.o.paint(style, l))
	}
	return lines
}

// alertText is what happened, and how often.
func alertText(a *orb8v1.Alert) string {
	text := orNone(a.GetSummary())
	if n := a.GetRepeated(); n > 0 {
		text += fmt.Sprintf(" (and %s more like it since the last alert)", Count(n))
	}
	return text
}

// alertDetails are all that is known, a labelled paragraph each.
func alertDetails(o Options, a *orb8v1.Alert) []string {
	var lines []string
	add := func(label, text string) {
		if text != "" && text != none {
			lines = append(lines, paragraph(o, label, text)...)
		}
	}
	add("what", alertText(a))
	add("who", alertProcess(a.GetProcess()))
	if len(a.GetAncestors()) > 0 {
		add("parents", parentsCell(a.GetAncestors(), true).text)
	}
	add("file", alertFile(o, a.GetProcess().GetExecutable()))
	add("call", alertCall(a))
	if a.GetRemote() != nil {
		add("remote", remote(&orb8v1.Flow{Remote: a.GetRemote()}, "").text)
	}
	why := Clean(a.GetReason())
	if t := Clean(a.GetTechnique()); t != "" {
		why = strings.TrimSpace(why + " (ATT&CK " + t + ")")
	}
	add("why", why)
	if cmd := Clean(a.GetLookCloser()); cmd != "" { // in one piece, to be copied
		lines = append(lines, label("look")+cmd)
	}
	if exception := strings.TrimSpace(a.GetException()); exception != "" {
		lines = append(lines, paragraph(o, "silence", "in the agent's configuration, below exceptions:")...)
		for line := range strings.Lines(exception) { // to be copied as well
			for _, part := range wrapFlow(Clean(strings.TrimRight(line, "\r\n")), o.Width-cells(label(""))) {
				lines = append(lines, label("")+part)
			}
		}
	}
	return lines
}

// label begins a paragraph.
func label(s string) string { return pad("  "+s, len("  parents  "), false) }

func paragraph(o Options, title, text string) []string {
	var lines []string
	for _, part := range wrap(text, max(o.Width-cells(label("")), 0)) {
		line := label(title) + part
		if o.Width > 0 {
			line = cutEnd(line, o.Width)
		}
		lines = append(lines, line)
		title = ""
	}
	return lines
}

// wrapFlow breaks YAML in flow style into lines of at most n cells, if that can be
// done between its keys; 0 or less means one line.
func wrapFlow(yaml string, n int) []string {
	var lines []string
	line := ""
	for _, part := range strings.SplitAfter(yaml, ", ") {
		if n > 0 && line != "" && cells(line)+cells(strings.TrimSpace(part)) > n {
			lines = append(lines, strings.TrimRight(line, " "))
			line = "   "
		}
		line += part
	}
	return append(lines, line)
}

func indented(o Options, by, text string) []string {
	var lines []string
	for _, part := range wrap(text, max(o.Width-len(by), 0)) {
		line := by + part
		if o.Width > 0 {
			line = cutEnd(line, o.Width)
		}
		lines = append(lines, line)
	}
	return lines
}

func alertProcess(p *orb8v1.ProcessInfo) string {
	if p == nil {
		return ""
	}
	text := fmt.Sprintf("%s (pid %s", commandLine(p), numberOr(uint64(p.GetPid())))
	if n := p.GetPidInNamespace(); n != 0 && n != p.GetPid() {
		text += fmt.Sprintf(", %d in its own namespace", n)
	}
	text += ", user " + user(p)
	if p.GetTerminal() {
		text += ", on a terminal"
	}
	return text + ")"
}

func alertFile(o Options, e *orb8v1.Executable) string {
	text := orNone(e.GetPath())
	if text == none {
		return ""
	}
	if called := Clean(e.GetCalled()); called != "" && called != text {
		text += ", started as " + called
	}
	words := map[string]string{"memfd": "in memory only", "deleted": "deleted", "changed": "made or changed after the container was created"}
	for _, flag := range executableFlags(e) {
		text += ", " + words[flag]
	}
	if e.GetChangedNs() != 0 {
		text += ", last changed " + o.clock(e.GetChangedNs(), "2006-01-02 15:04:05")
	}
	return text
}

func alertCall(a *orb8v1.Alert) string {
	if a.GetSyscall() == "" {
		return ""
	}
	text := callText(a.GetSyscall(), a.GetArguments(), true)
	if a.GetDenied() {
		text += ", refused"
	}
	return text
}

// compactAlert is an alert as words.
func compactAlert(o Options, ev *orb8v1.Event, a *orb8v1.Alert) string {
	name, style := severity(a.GetSeverity())
	words := []string{o.stamp(ev.GetTimeNs()), "alert" + o.nodeWord(ev.GetNodeName()), "severity=" + o.paint(style, name), "rule=" + word(a.GetRule())}
	add := func(key, value string) {
		if value != "" && value != none {
			words = append(words, key+"="+word(value))
		}
	}
	add("technique", a.GetTechnique())
	add("workload", workloadName(a.GetWorkload()))
	if a.GetProcess() != nil {
		words = append(words, processWords(a.GetProcess())...)
	}
	add("parents", chain(a.GetAncestors()))
	add("call", a.GetSyscall())
	if a.GetDenied() {
		add("denied", "yes")
	}
	if a.GetRemote() != nil {
		add("remote", address(a.GetRemote()))
	}
	add("repeated", numberOr(a.GetRepeated()))
	add("summary", a.GetSummary())
	return strings.Join(words, " ")
}
