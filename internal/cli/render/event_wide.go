// SPDX-License-Identifier: Apache-2.0

package render

import (
	"strconv"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// wideField is a column that only the wide formats have, and how it is filled.
type wideField struct {
	column
	cell func(f *orb8v1.Flow) cell
}

// wideFields are the columns that wide events and wide flows share.
func wideFields() []wideField {
	text := func(get func(f *orb8v1.Flow) string) func(f *orb8v1.Flow) cell {
		return func(f *orb8v1.Flow) cell { return cell{text: get(f)} }
	}
	field := func(title string, width int, right bool, get func(f *orb8v1.Flow) cell) wideField {
		return wideField{column{title: title, min: 1, max: width, right: right}, get}
	}
	return []wideField{
		field("PROTO", 6, false, text(protocol)),
		field("WORKLOAD", 24, false, text(func(f *orb8v1.Flow) string {
			return orNone(workloadName(f.GetLocal().GetWorkload()))
		})),
		field("PROCESS", 15, false, text(func(f *orb8v1.Flow) string { return orNone(f.GetProcess().GetCommand()) })),
		field("PID", 7, true, text(func(f *orb8v1.Flow) string { return numberOr(uint64(f.GetProcess().GetPid())) })),
		field("CONTAINER", shortID, false, text(func(f *orb8v1.Flow) string {
			return orNone(containerID(f.GetLocal().GetWorkload()))
		})),
		field("LOCAL", 21, false, text(func(f *orb8v1.Flow) string { return address(f.GetLocal()) })),
		field("", 1, false, text(arrow)),
		field("REMOTE", 21, false, text(func(f *orb8v1.Flow) string { return address(f.GetRemote()) })),
		field("PEER", 16, false, text(func(f *orb8v1.Flow) string { return orNone(peer(f)) })),
		field("ZONES", 5, false, text(zones)),
		field("RTT", 6, true, text(func(f *orb8v1.Flow) string { return rtt(f.GetTcp().GetRttUs()) })),
		field("MINRTT", 6, true, text(func(f *orb8v1.Flow) string { return rtt(f.GetTcp().GetMinRttUs()) })),
		field("RETR", 4, true, retransmits),
		field("CWND", 5, true, text(func(f *orb8v1.Flow) string {
			return numberOr(uint64(f.GetTcp().GetCongestionWindow()))
		})),
		field("CONNECT", 7, true, text(func(f *orb8v1.Flow) string { return connectTime(f.GetTcp()) })),
		field("STATE", 11, false, text(func(f *orb8v1.Flow) string { return tcpState(f.GetTcp()) })),
		field("UNIT", 7, false, text(func(f *orb8v1.Flow) string { return byteUnit(f.GetByteUnit()) })),
		field("NETNS", 10, false, text(func(f *orb8v1.Flow) string { return numberOr(uint64(f.GetNetns())) })),
		field("NOTE", 13, false, text(func(f *orb8v1.Flow) string { return orNone(note(f, true)) })),
		field("CGROUP", 0, false, text(func(f *orb8v1.Flow) string {
			return orNone(f.GetLocal().GetWorkload().GetCgroupPath())
		})),
	}
}

// peer is all that is known of the far end beyond its address.
func peer(f *orb8v1.Flow) string {
	w := f.GetRemote().GetWorkload()
	name, service := workloadName(w), Clean(w.GetService())
	if name != "" && service != "" {
		return service + "=" + name
	}
	return name + service
}

// zones are those of the near and the far end, where they are known.
func zones(f *orb8v1.Flow) string {
	near, far := f.GetLocal().GetWorkload().GetZone(), f.GetRemote().GetWorkload().GetZone()
	if near == "" && far == "" {
		return none
	}
	return orNone(near) + arrow(f) + orNone(far)
}

func counterFields(prefix string, get func(f *orb8v1.Flow) *orb8v1.Counters) []wideField {
	field := func(title string, width int, value func(c *orb8v1.Counters) string) wideField {
		return wideField{column{title: prefix + title, min: 1, max: width, right: true},
			func(f *orb8v1.Flow) cell { return cell{text: value(get(f))} }}
	}
	packets := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return []wideField{
		field("TX", 8, func(c *orb8v1.Counters) string { return Bytes(c.GetTxBytes()) }),
		field("RX", 8, func(c *orb8v1.Counters) string { return Bytes(c.GetRxBytes()) }),
		field("TXPKT", 6, func(c *orb8v1.Counters) string { return packets(c.GetTxPackets()) }),
		field("RXPKT", 6, func(c *orb8v1.Counters) string { return packets(c.GetRxPackets()) }),
	}
}

// wideEventFields are all fields but time and event.
func wideEventFields() []wideField {
	fields := wideFields()
	const counters = 10 // before RTT
	all := append([]wideField(nil), fields[:counters]...)
	all = append(all, counterFields("", (*orb8v1.Flow).GetDelta)...)
	all = append(all, counterFields("Σ", (*orb8v1.Flow).GetTotal)...)
	return append(all, fields[counters:]...)
}

func wideEventTable(fields []wideField, nodes bool) *table {
	t := &table{columns: []column{
		{title: "TIME", min: millisWidth, max: millisWidth},
		{title: "EVENT", min: 7, max: 7},
	}}
	if nodes {
		t.columns = append(t.columns, column{title: "NODE", min: 1, max: 12})
	}
	for _, f := range fields {
		t.columns = append(t.columns, f.column)
	}
	return t
}

func wideEventRow(o Options, fields []wideField, h happening) []cell {
	row := []cell{
		{text: o.clock(h.time, "15:04:05.000"), style: styleDim},
		{text: h.word, style: h.style},
	}
	if o.Nodes {
		row = append(row, nodeCell(h.node))
	}
	for _, f := range fields {
		row = append(row, f.cell(h.flow))
	}
	return row
}

// compactEvent is one line of words: no alignment, no spaces within a value,
// what is not known left out.
func compactEvent(o Options, h happening) string {
	words := []string{o.stamp(h.time), o.paint(h.style, h.word) + o.nodeWord(h.node)}
	return strings.Join(append(words, compactFlow(h.flow, h.flow.GetDelta(), h.word == "open")...), " ")
}

func compactFlow(f *orb8v1.Flow, c *orb8v1.Counters, first bool) []string {
	arrows := map[orb8v1.Role]string{orb8v1.Role_ROLE_CLIENT: "->", orb8v1.Role_ROLE_SERVER: "<-"}
	dir, ok := arrows[f.GetRole()]
	if !ok {
		dir = "--"
	}
	words := []string{word(protocol(f)), address(f.GetLocal()), dir, address(f.GetRemote())}
	add := func(key, value string) {
		if value != "" && value != none {
			words = append(words, key+"="+word(value))
		}
	}
	add("workload", workloadName(f.GetLocal().GetWorkload()))
	add("process", f.GetProcess().GetCommand())
	add("pid", numberOr(uint64(f.GetProcess().GetPid())))
	add("executable", f.GetProcess().GetExecutable())
	add("peer", peer(f))
	add("tx", strings.ReplaceAll(Bytes(c.GetTxBytes()), " ", ""))
	add("rx", strings.ReplaceAll(Bytes(c.GetRxBytes()), " ", ""))
	if t := f.GetTcp(); t != nil {
		add("rtt", rtt(t.GetRttUs()))
		add("retr", strconv.FormatUint(t.GetRetransmits(), 10))
		add("connect", connectTime(t))
	}
	add("note", strings.ReplaceAll(note(f, first), ", ", ","))
	return words
}
