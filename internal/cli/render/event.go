// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of a live event.
const (
	evTime = iota
	evNode
	evEvent
	evProto
	evWho
	evLocal
	evDir
	evRemote
	evTX
	evRX
	evRTT
	evRetr
	evNote
)

// Widths of the time of day without and with milliseconds.
const (
	clockWidth  = len("15:04:05")
	millisWidth = len("15:04:05.000")
)

func eventTable(nodes bool) *table {
	return &table{
		columns: []column{
			evTime:   {title: "TIME", min: clockWidth, max: millisWidth},
			evNode:   {title: "NODE", min: 6, max: 20, hidden: !nodes},
			evEvent:  {title: "EVENT", min: 7, max: 7},
			evProto:  {title: "PROTO", min: 6, max: 6},
			evWho:    {title: "WORKLOAD", min: 10, max: 40},
			evLocal:  {title: "LOCAL", min: 6, max: 47},
			evDir:    {title: "", min: 1, max: 1},
			evRemote: {title: "REMOTE", min: 15, max: 47},
			evTX:     {title: "TX", min: 7, max: 7, right: true},
			evRX:     {title: "RX", min: 7, max: 7, right: true},
			evRTT:    {title: "RTT", min: 6, max: 6, right: true},
			evRetr:   {title: "RETR", min: 4, max: 4, right: true},
			evNote:   {title: "NOTE", min: 7, max: 24},
		},
		drop: []int{evRetr, evRTT, evNote, evLocal, evTime, evNode, evProto, evRX, evTX},
		grow: []step{
			{evRemote, 21}, {evLocal, 15}, {evWho, 14}, {evNote, 13}, {evLocal, 21}, {evWho, 20},
			{evTime, millisWidth}, {evNote, 17}, {evNode, 20}, {evRemote, 47}, {evWho, 40}, {evLocal, 47}, {evNote, 24},
		},
	}
}

// Events writes a live stream of events, one line each.
type Events struct {
	w      io.Writer
	o      Options
	table  *table
	widths []int
	wide   []wideField
	since  int
	// above writes the titles, of whichever table it is.
	above func() error
	// Meanings explains the stages of lost events, as far as it knows them.
	Meanings map[string]string
}

// NewEvents returns a renderer that writes to w.
func NewEvents(w io.Writer, o Options) *Events {
	e := &Events{w: w, o: o, table: eventTable(o.Nodes).keeping(o.Keep)}
	e.above = e.Titles
	if o.Format == Wide {
		e.wide = wideEventFields()
		e.table = wideEventTable(e.wide, o.Nodes)
	}
	e.Resize(o.Width, o.Height)
	return e
}

// commonWidth is what a table is laid out for that has no limit: longer cells
// push the rest of their line to the right.
const commonWidth = 140

// nodeWidth is what the node's column adds to it.
const nodeWidth = 15

// Resize lays the columns out anew.
func (e *Events) Resize(width, height int) {
	e.o.Width, e.o.Height = width, height
	switch {
	case e.o.Format == Wide:
		e.o.Width = 0
		e.widths = e.table.layout(0)
	case width == 0 && e.o.Nodes:
		e.widths = e.table.layout(commonWidth + nodeWidth)
	case width == 0:
		e.widths = e.table.layout(commonWidth)
	default:
		e.widths = e.table.layout(width)
	}
}

// Titles writes the line above the columns, in the formats that have one.
func (e *Events) Titles() error { return e.titles(e.table, e.widths) }

func (e *Events) titles(t *table, widths []int) error {
	if e.o.Format != Table && e.o.Format != Wide {
		return nil
	}
	_, err := fmt.Fprintln(e.w, t.titles(e.o, widths))
	return err
}

// repeatTitles writes the titles again when they have left the window.
func (e *Events) repeatTitles() error {
	if e.o.Height <= 0 {
		return nil
	}
	if e.since++; e.since < e.o.Height-1 {
		return nil
	}
	e.since = 1
	return e.above()
}

// Write writes one event. Events that have no place in the format, such as the
// greeting of a node that is well, are left out.
func (e *Events) Write(ev *orb8v1.Event) error {
	if e.o.Format == JSON {
		return WriteJSON(e.w, ev)
	}
	text := e.text(ev)
	if text == "" {
		return nil
	}
	if err := e.repeatTitles(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(e.w, text)
	return err
}

func (e *Events) text(ev *orb8v1.Event) string {
	switch ev.GetEvent().(type) {
	case *orb8v1.Event_LostEvents:
		return e.lost(ev)
	case *orb8v1.Event_NodeStatus:
		return e.node(ev)
	case *orb8v1.Event_SyscallTargets:
		return e.targets(ev)
	case *orb8v1.Event_HistoryReach:
		return e.reach(ev)
	}
	h, ok := happeningOf(ev)
	if !ok {
		return ""
	}
	switch e.o.Format {
	case Compact:
		return compactEvent(e.o, h)
	case Wide:
		return e.table.line(e.o, e.widths, wideEventRow(e.o, e.wide, h))
	}
	return e.table.line(e.o, e.widths, e.row(h))
}

// happening is what flow and connection events have in common.
type happening struct {
	time  int64
	node  string
	word  string
	style style
	flow  *orb8v1.Flow
}

func happeningOf(ev *orb8v1.Event) (happening, bool) {
	h := happening{time: ev.GetTimeNs(), node: orNone(ev.GetNodeName())}
	switch x := ev.GetEvent().(type) {
	case *orb8v1.Event_Flow:
		h.flow = x.Flow
		h.word, h.style = flowWord(x.Flow.GetEvent())
	case *orb8v1.Event_Connection:
		h.flow = x.Connection.GetFlow()
		h.word, h.style = connectionWord(x.Connection.GetEvent())
	default:
		return h, false
	}
	if h.style == styleDim && ending(h.flow.GetTcp()) != "" {
		h.style = styleWarn
	}
	return h, true
}

func flowWord(e orb8v1.FlowEvent) (string, style) {
	switch e {
	case orb8v1.FlowEvent_FLOW_EVENT_OPEN:
		return "open", styleGood
	case orb8v1.FlowEvent_FLOW_EVENT_UPDATE:
		return "update", styleNone
	case orb8v1.FlowEvent_FLOW_EVENT_CLOSE:
		return "close", styleDim
	case orb8v1.FlowEvent_FLOW_EVENT_EXPIRE:
		return "idle", styleDim
	case orb8v1.FlowEvent_FLOW_EVENT_EVICT:
		return "evicted", styleWarn
	}
	return none, styleNone
}

func connectionWord(e orb8v1.ConnectionEvent) (string, style) {
	switch e {
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_OPENED:
		return "open", styleGood
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_CLOSED:
		return "close", styleDim
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_FAILED:
		return "failed", styleBad
	}
	return none, styleNone
}

// lowestNote is the width of notes from which on they have room for lo.
const lowestNote = len("refused, lo")

// row fills the columns. Where there is no room for notes, the event tells how
// a connection ended and the address bears the mark of the loopback interface.
func (e *Events) row(h happening) []cell {
	f, room := h.flow, e.widths[evNote]
	event, mark := cell{text: h.word, style: h.style}, ""
	if how := endingWord(f.GetTcp()); how != "" && room == 0 {
		event.text = how
	}
	if f.GetLoopback() && room < lowestNote {
		mark = " lo"
	}
	return []cell{
		evTime:   {text: e.clock(h.time), style: styleDim},
		evNode:   nodeCell(h.node),
		evEvent:  event,
		evProto:  {text: protocol(f)},
		evWho:    who(f),
		evLocal:  local(f),
		evDir:    {text: arrow(f)},
		evRemote: remote(f, mark),
		evTX:     {text: Bytes(f.GetDelta().GetTxBytes())},
		evRX:     {text: Bytes(f.GetDelta().GetRxBytes())},
		evRTT:    {text: rtt(f.GetTcp().GetRttUs())},
		evRetr:   retransmits(f),
		evNote:   noteCell(f, h.word == "open", mark != "", h.style),
	}
}

// clock is the time of day as the column for it has room.
func (e *Events) clock(ns int64) string {
	if e.widths[evTime] >= millisWidth {
		return e.o.clock(ns, "15:04:05.000")
	}
	return e.o.clock(ns, "15:04:05")
}

// reach says how far back the past goes.
func (e *Events) reach(ev *orb8v1.Event) string {
	if e.o.Format == Compact {
		return compactReach(e.o, ev)
	}
	return e.o.paint(styleWarn, e.cut(reachText(e.o, ev)))
}

func compactReach(o Options, ev *orb8v1.Event) string {
	from := none
	if since := ev.GetHistoryReach().GetSinceNs(); since > 0 {
		from = o.stamp(since)
	}
	return fmt.Sprintf("%s history%s since=%s", o.stamp(ev.GetTimeNs()), o.nodeWord(ev.GetNodeName()), from)
}

func reachText(o Options, ev *orb8v1.Event) string {
	on := ""
	if o.Nodes {
		on = " of " + orNone(ev.GetNodeName())
	}
	since := ev.GetHistoryReach().GetSinceNs()
	if since == 0 {
		return "HISTORY" + on + " is not kept (the agent's setting history)"
	}
	if ev.GetHistoryReach().GetAgentStarted() {
		return "HISTORY" + on + " reaches back to " + o.clock(since, "15:04:05") + " only: the agent was started then"
	}
	return "HISTORY" + on + " reaches back to " + o.clock(since, "15:04:05") + " only: older events are not kept any more (the agent's setting history)"
}

// Reaches says how far back the nodes' pasts go, a line or more for each.
func Reaches(o Options, events []*orb8v1.Event) []string {
	var lines []string
	for _, ev := range events {
		if o.Format == Compact {
			lines = append(lines, compactReach(o, ev))
			continue
		}
		for _, l := range indented(o, "", reachText(o, ev)) {
			lines = append(lines, o.paint(styleWarn, l))
		}
	}
	return lines
}

func (e *Events) lost(ev *orb8v1.Event) string {
	l := ev.GetLostEvents()
	if e.o.Format == Compact {
		return fmt.Sprintf("%s lost%s stage=%s count=%d", e.o.stamp(ev.GetTimeNs()), e.o.nodeWord(ev.GetNodeName()),
			word(l.GetStage()), l.GetCount())
	}
	on := ""
	if e.o.Nodes {
		on = " on " + orNone(ev.GetNodeName())
	}
	text := fmt.Sprintf("%s LOST %s%s at %s", e.clock(ev.GetTimeNs()),
		Plural(l.GetCount(), "record", "records"), on, Clean(l.GetStage()))
	if m := e.Meanings[l.GetStage()]; m != "" {
		text += ": " + m
	}
	return e.o.paint(styleBad, e.cut(text))
}

func (e *Events) node(ev *orb8v1.Event) string {
	n := ev.GetNodeStatus()
	state := strings.ToLower(strings.TrimPrefix(n.GetState().String(), "NODE_STATE_"))
	if e.o.Format == Compact {
		return fmt.Sprintf("%s node name=%s state=%s message=%s", e.o.stamp(ev.GetTimeNs()),
			word(n.GetNodeName()), state, word(n.GetMessage()))
	}
	text := fmt.Sprintf("%s NODE %s is %s", e.clock(ev.GetTimeNs()), orNone(n.GetNodeName()), state)
	if m := Clean(n.GetMessage()); m != "" {
		text += ": " + m
	}
	s := styleWarn
	if n.GetState() == orb8v1.NodeState_NODE_STATE_CONNECTED {
		s = styleGood
	}
	return e.o.paint(s, e.cut(text))
}

func (e *Events) cut(s string) string {
	if e.o.Width <= 0 {
		return s
	}
	return cutEnd(s, e.o.Width)
}

// stamp is the time as compact lines have it: complete, sortable, no spaces.
func (o Options) stamp(ns int64) string {
	return o.clock(ns, time.RFC3339[:len("2006-01-02T15:04:05")]+".000Z07:00")
}
