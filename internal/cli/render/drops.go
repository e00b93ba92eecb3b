// SPDX-License-Identifier: Apache-2.0

package render

import (
	"io"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of what was dropped.
const (
	dropTime = iota
	dropNode
	dropWho
	dropReason
	dropProto
	dropLocal
	dropDir
	dropRemote
	dropSize
	dropWhere
)

func dropTable(o Options) *table {
	return &table{
		columns: []column{
			dropTime:   {title: "TIME", min: clockWidth, max: millisWidth},
			dropNode:   {title: "NODE", min: 6, max: 20, hidden: !o.Nodes},
			dropWho:    {title: whoTitle(o), min: 10, max: 40},
			dropReason: {title: "REASON", min: 14, max: 30},
			dropProto:  {title: "PROTO", min: 8, max: 12},
			dropLocal:  {title: "LOCAL", min: 6, max: 47},
			dropDir:    {title: "", min: 1, max: 1},
			dropRemote: {title: "REMOTE", min: 12, max: 47},
			dropSize:   {title: "SIZE", min: 7, max: 7, right: true},
			dropWhere:  {title: "WHERE", min: 15, max: 30},
		},
		drop: []int{dropSize, dropWhere, dropTime, dropLocal, dropNode, dropProto},
		grow: []step{
			{dropReason, 17}, {dropRemote, 21}, {dropReason, 20}, {dropWho, 20}, {dropLocal, 21}, {dropWhere, 20}, {dropProto, 12}, {dropReason, 30},
			{dropTime, millisWidth}, {dropNode, 20}, {dropRemote, 47}, {dropWho, 40}, {dropWhere, 30}, {dropLocal, 47},
		},
	}
}

// Drops writes a live stream of dropped packets and full listen queues, one line
// each.
type Drops struct{ *live }

// NewDrops returns a renderer that writes to w.
func NewDrops(w io.Writer, o Options) *Drops {
	v := &Drops{newLive(w, o, dropTable(o))}
	v.live.row = v.row
	return v
}

// row is nil for what is neither a drop nor an overflow.
func (v *Drops) row(ev *orb8v1.Event) []cell {
	var flow *orb8v1.Flow
	var reason, proto, where string
	size := none
	switch x := ev.GetEvent().(type) {
	case *orb8v1.Event_Drop:
		flow, reason = dropFlow(x.Drop), orNone(x.Drop.GetReason())
		proto, size, where = protocol(flow), Bytes(uint64(x.Drop.GetBytes())), orNone(x.Drop.GetLocation())
		if flags := clean(x.Drop.GetTcpFlags()); flags != "" {
			proto += " " + flags
		}
	case *orb8v1.Event_ListenOverflow:
		flow, proto = overflowFlow(x.ListenOverflow), "TCP"
		reason, where = "listen queue full", overflowNote(x.ListenOverflow)
	default:
		return nil
	}
	mark := ""
	if flow.GetLoopback() {
		mark = " lo"
	}
	return []cell{
		dropTime:   v.timeCell(ev),
		dropNode:   nodeCell(orNone(ev.GetNodeName())),
		dropWho:    who(flow),
		dropReason: {text: reason, style: styleBad},
		dropProto:  {text: proto},
		dropLocal:  local(flow),
		dropDir:    {text: arrow(flow)},
		dropRemote: remote(flow, mark),
		dropSize:   {text: size},
		dropWhere:  {text: where},
	}
}
