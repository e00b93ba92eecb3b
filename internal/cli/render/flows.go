// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of a row of the flow table.
const (
	flNode = iota
	flProto
	flWho
	flLocal
	flDir
	flRemote
	flTX
	flRX
	flRTT
	flRetr
	flPackets
	flAge
	flIdle
	flState
)

func flowTable(nodes bool) *table {
	return &table{
		columns: []column{
			flNode:    {title: "NODE", min: 6, hidden: !nodes},
			flProto:   {title: "PROTO", min: 6, max: 6},
			flWho:     {title: "WORKLOAD", min: 10},
			flLocal:   {title: "LOCAL", min: 6},
			flDir:     {title: "", min: 1, max: 1},
			flRemote:  {title: "REMOTE", min: 19},
			flTX:      {title: "TX", min: 7, max: 7, right: true},
			flRX:      {title: "RX", min: 7, max: 7, right: true},
			flRTT:     {title: "RTT", min: 6, max: 6, right: true},
			flRetr:    {title: "RETR", min: 4, right: true},
			flPackets: {title: "PACKETS", min: 7, max: 12, right: true, hidden: true}, // where asked for
			flAge:     {title: "AGE", min: 4, right: true},
			flIdle:    {title: "IDLE", min: 4, right: true},
			flState:   {title: "STATE", min: 8},
		},
		drop: []int{flAge, flRetr, flIdle, flState, flRTT, flLocal, flNode, flProto, flRX, flTX},
		grow: []step{
			{flRemote, 21}, {flLocal, 15}, {flWho, 16}, {flState, 15}, {flNode, 20}, {flLocal, 21}, {flWho, 24},
			{flRemote, 47}, {flWho, 48}, {flLocal, 47}, {flState, 32}, {flAge, 8}, {flIdle, 8}, {flRetr, 8},
		},
	}
}

// Flows writes rows of the flow table, as the agent sorted them, one event a
// row. now is the moment from which age and idleness count.
func Flows(w io.Writer, o Options, now time.Time, rows []*orb8v1.Event) error {
	var lines []string
	switch o.Format {
	case JSON:
		for _, ev := range rows {
			if err := WriteJSON(w, ev); err != nil {
				return err
			}
		}
		return nil
	case Compact:
		for _, ev := range rows {
			f := ev.GetFlow()
			words := compactFlow(f, f.GetTotal(), true)
			if o.Nodes {
				words = append([]string{word(ev.GetNodeName())}, words...)
			}
			if t := f.GetTcp(); t != nil {
				words = append(words, "state="+tcpState(t))
			}
			lines = append(lines, strings.Join(words, " "))
		}
	case Wide:
		lines = wideFlows(o, now, rows)
	default:
		lines = plainFlows(o, now, rows)
	}
	return writeLines(w, lines)
}

func writeLines(w io.Writer, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func plainFlows(o Options, now time.Time, events []*orb8v1.Event) []string {
	t := flowTable(o.Nodes).keeping(o.Keep)
	rows := flowRows(now, events, false)
	if o.Width > 0 && t.fitted(rows).layout(o.Width)[flState] < lowestNote {
		rows = flowRows(now, events, true)
	}
	return t.lines(o, rows)
}

// flowRows fills the columns; marked puts the mark of the loopback interface
// beside the address, for want of room elsewhere.
func flowRows(now time.Time, events []*orb8v1.Event, marked bool) [][]cell {
	var rows [][]cell
	for _, ev := range events {
		f := ev.GetFlow()
		mark := ""
		if marked && f.GetLoopback() {
			mark = " lo"
		}
		rows = append(rows, []cell{
			flNode:    nodeCell(orNone(ev.GetNodeName())),
			flProto:   {text: protocol(f)},
			flWho:     who(f),
			flLocal:   local(f),
			flDir:     {text: arrow(f)},
			flRemote:  remote(f, mark),
			flTX:      {text: Bytes(f.GetTotal().GetTxBytes())},
			flRX:      {text: Bytes(f.GetTotal().GetRxBytes())},
			flRTT:     {text: rtt(f.GetTcp().GetRttUs())},
			flRetr:    retransmits(f),
			flPackets: {text: Count(f.GetTotal().GetTxPackets() + f.GetTotal().GetRxPackets())},
			flAge:     {text: ago(now, f.GetFirstSeenNs())},
			flIdle:    {text: ago(now, f.GetLastSeenNs())},
			flState:   stateCell(f, marked),
		})
	}
	return rows
}

// stateCell is how the flow is, or how it ended, and what else is worth saying.
func stateCell(f *orb8v1.Flow, marked bool) cell {
	t := f.GetTcp()
	switch {
	case t == nil:
		return noteCell(f, false, marked, styleNone)
	case t.GetEnd() == orb8v1.TcpEnd_TCP_END_UNSPECIFIED:
		return noteCell(f, false, marked, styleNone, tcpState(t))
	case ending(t) == "":
		return noteCell(f, false, marked, styleDim, "closed")
	}
	return noteCell(f, false, marked, styleWarn)
}

func wideFlows(o Options, now time.Time, events []*orb8v1.Event) []string {
	o.Width = 0
	fields := wideFields()
	const counters = 10 // before RTT
	all := append([]wideField(nil), fields[:counters]...)
	all = append(all, counterFields("", (*orb8v1.Flow).GetTotal)...)
	all = append(all, fields[counters:len(fields)-1]...)
	all = append(all, []wideField{
		{column{title: "AGE", min: 1, right: true}, func(f *orb8v1.Flow) cell { return cell{text: ago(now, f.GetFirstSeenNs())} }},
		{column{title: "IDLE", min: 1, right: true}, func(f *orb8v1.Flow) cell { return cell{text: ago(now, f.GetLastSeenNs())} }},
	}...)
	all = append(all, fields[len(fields)-1])
	t := &table{}
	if o.Nodes {
		t.columns = append(t.columns, column{title: "NODE", min: 1})
	}
	for _, f := range all {
		t.columns = append(t.columns, f.column)
	}
	var rows [][]cell
	for _, ev := range events {
		var row []cell
		if o.Nodes {
			row = append(row, nodeCell(orNone(ev.GetNodeName())))
		}
		for _, f := range all {
			row = append(row, f.cell(ev.GetFlow()))
		}
		rows = append(rows, row)
	}
	return t.lines(o, rows)
}

// ago is how long before now something was, in at most four cells.
func ago(now time.Time, ns int64) string {
	if ns == 0 {
		return none
	}
	const day = 24 * time.Hour
	switch d := max(now.Sub(time.Unix(0, ns)), 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/day)
	}
}
