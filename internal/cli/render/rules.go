// SPDX-License-Identifier: Apache-2.0

package render

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
)

// RuleRow is a rule with what agents say of it.
type RuleRow struct {
	Name      string   `json:"name"`
	Severity  string   `json:"severity"`
	Technique string   `json:"technique"`
	Tactic    string   `json:"tactic"`
	Title     string   `json:"title"`
	Reason    string   `json:"reason"`
	Triggers  []string `json:"triggers"`
	Silent    []string `json:"silent"`
	Needs     []string `json:"needs"`
	// On and Off are the nodes where it is so.
	On  []string `json:"on"`
	Off []string `json:"off"`
	// Found is how often it found something, on all of them.
	Found uint64 `json:"found"`

	severity anomaly.Severity
}

// RuleRows are rules of which nobody has said anything yet.
func RuleRows(rules []*anomaly.Rule) []RuleRow {
	rows := make([]RuleRow, 0, len(rules))
	for _, r := range rules {
		rows = append(rows, RuleRow{
			Name: r.Name, Severity: r.Severity.String(), Technique: r.Technique, Tactic: r.Tactic, Title: r.Title, Reason: r.Reason,
			Triggers: r.Triggers, Silent: r.Silent, Needs: r.Needs, On: []string{}, Off: []string{}, severity: r.Severity,
		})
	}
	return rows
}

// Add takes in what the agent of a node says.
func (r *RuleRow) Add(node string, off bool, found uint64) {
	if off {
		r.Off = append(r.Off, node)
	} else {
		r.On = append(r.On, node)
	}
	r.Found += found
}

// state is on, off, or on how many of how many nodes it is on.
func (r *RuleRow) state() string {
	switch on, off := len(r.On), len(r.Off); {
	case on+off == 0:
		return none
	case off == 0:
		return "on"
	case on == 0:
		return "off"
	default:
		return fmt.Sprintf("on %d of %d", on, on+off)
	}
}

func (r *RuleRow) found() string {
	if len(r.On)+len(r.Off) == 0 {
		return none
	}
	return Count(r.Found)
}

// Columns of a rule.
const (
	ruleName = iota
	ruleSeverity
	ruleTechnique
	ruleState
	ruleFound
	ruleTitle
)

func ruleTable() *table {
	return &table{
		columns: []column{
			ruleName:      {title: "RULE", min: 12, max: 24},
			ruleSeverity:  {title: "SEVERITY", min: 8, max: 8},
			ruleTechnique: {title: "ATT&CK", min: 9, max: 9},
			ruleState:     {title: "STATE", min: 9, max: 12},
			ruleFound:     {title: "FOUND", min: 6, max: 11, right: true},
			ruleTitle:     {title: "FINDS", min: 20, max: 90},
		},
		drop: []int{ruleTechnique, ruleTitle, ruleState},
		grow: []step{{ruleName, 18}, {ruleTitle, 60}, {ruleName, 24}, {ruleState, 12}, {ruleTitle, 90}},
	}
}

// Rules writes all rules: a line each, or in the wide format in full.
func Rules(w io.Writer, o Options, rows []RuleRow) error {
	switch o.Format {
	case JSON:
		for i := range rows {
			if err := ruleJSON(w, &rows[i]); err != nil {
				return err
			}
		}
		return nil
	case Wide:
		for i := range rows {
			if i > 0 {
				fmt.Fprintln(w)
			}
			if err := Rule(w, o, &rows[i]); err != nil {
				return err
			}
		}
		return nil
	case Compact:
		lines := make([]string, 0, len(rows))
		for i := range rows {
			r := &rows[i]
			lines = append(lines, fmt.Sprintf("%s severity=%s technique=%s state=%s found=%s", r.Name, r.Severity, r.Technique, word(r.state()), r.found()))
		}
		return writeLines(w, lines)
	}
	cells := make([][]cell, 0, len(rows))
	for i := range rows {
		cells = append(cells, rows[i].cells())
	}
	return writeLines(w, ruleTable().lines(o, cells))
}

func (r *RuleRow) cells() []cell {
	_, style := severity(orb8v1.Severity(r.severity))
	state := cell{text: r.state()}
	if len(r.Off) > 0 {
		state.style = styleDim
	}
	return []cell{
		ruleName: {text: r.Name}, ruleSeverity: {text: r.Severity, style: style}, ruleTechnique: {text: r.Technique},
		ruleState: state, ruleFound: {text: r.found()}, ruleTitle: {text: r.Title},
	}
}

func ruleJSON(w io.Writer, r *RuleRow) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// Rule writes one rule in full.
func Rule(w io.Writer, o Options, r *RuleRow) error {
	if o.Format == JSON {
		return ruleJSON(w, r)
	}
	_, style := severity(orb8v1.Severity(r.severity))
	lines := []string{o.paint(style, r.Name+" ("+r.Severity+"): "+r.Title)}
	add := func(label, text string) { lines = append(lines, paragraph(o, label, text)...) }
	add("why", r.Reason+" (ATT&CK "+r.Technique+", "+r.Tactic+")")
	for i, text := range r.Triggers {
		add(map[bool]string{true: "finds"}[i == 0], "- "+text)
	}
	for i, text := range r.Silent {
		add(map[bool]string{true: "silent"}[i == 0], "- "+text)
	}
	add("needs", strings.Join(r.Needs, ", "))
	if state := r.state(); state != none {
		if len(r.On) > 0 && len(r.Off) > 0 {
			state += ": off on " + Clean(strings.Join(r.Off, ", "))
		}
		add("state", state+", found "+Plural(r.Found, "time", "times"))
	}
	add("silence", "in the agent's configuration: rules_off: ["+r.Name+"], or below exceptions, with what each alert says:")
	lines = append(lines, label("")+"- {rule: "+r.Name+", namespace: NAMESPACE, workload: KIND/NAME}")
	return writeLines(w, lines)
}
