// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of a DNS query.
const (
	dnsTime = iota
	dnsNode
	dnsWho
	dnsQuery
	dnsType
	dnsRCode
	dnsLatency
	dnsAnswers
	dnsPeer
	dnsNote
)

// DNSOptions says how queries are shown.
type DNSOptions struct {
	// ServerSide: they were seen at the server's end, and the peer is who asked.
	ServerSide bool
}

func dnsTable(o Options, d DNSOptions) *table {
	who, peer := whoTitle(o), "SERVER"
	if d.ServerSide {
		peer = "CLIENT"
	}
	wide := o.Format == Wide
	return &table{
		columns: []column{
			dnsTime:    {title: "TIME", min: clockWidth, max: millisWidth},
			dnsNode:    {title: "NODE", min: 6, max: 20, hidden: !o.Nodes},
			dnsWho:     {title: who, min: 10, max: 40},
			dnsQuery:   {title: "QUERY", min: 16, max: 60},
			dnsType:    {title: "TYPE", min: 5, max: 8},
			dnsRCode:   {title: "RCODE", min: 8, max: 8},
			dnsLatency: {title: "LATENCY", min: 7, max: 7, right: true},
			dnsAnswers: {title: "ANSWERS", min: 8, max: 40},
			dnsPeer:    {title: peer, min: 10, max: 40},
			dnsNote:    {title: "NOTE", min: 4, max: 30, hidden: !wide},
		},
		drop: []int{dnsPeer, dnsAnswers, dnsTime, dnsNode, dnsType, dnsLatency},
		grow: []step{
			{dnsQuery, 28}, {dnsWho, 20}, {dnsAnswers, 15}, {dnsPeer, 18}, {dnsQuery, 40}, {dnsAnswers, 24}, {dnsTime, millisWidth},
			{dnsNode, 20}, {dnsPeer, 40}, {dnsQuery, 60}, {dnsWho, 40}, {dnsAnswers, 40},
		},
	}
}

// whoTitle names the column of whose the line is: in a cluster mostly pods.
func whoTitle(o Options) string {
	if o.Nodes {
		return "POD"
	}
	return "WORKLOAD"
}

// DNS writes a live stream of queries, one line each.
type DNS struct{ *live }

// NewDNS returns a renderer that writes to w.
func NewDNS(w io.Writer, o Options, d DNSOptions) *DNS {
	v := &DNS{newLive(w, o, dnsTable(o, d))}
	v.live.row = v.row
	v.compact = func(ev *orb8v1.Event) string { return compactDNS(v.o, ev, ev.GetDns()) }
	return v
}

func (v *DNS) row(ev *orb8v1.Event) []cell {
	x := ev.GetDns()
	if x == nil {
		return nil
	}
	flow := dnsFlow(x)
	code, style := rcode(x)
	return []cell{
		dnsTime:    v.timeCell(ev),
		dnsNode:    nodeCell(orNone(ev.GetNodeName())),
		dnsWho:     who(flow),
		dnsQuery:   nameCell(x.GetName()),
		dnsType:    {text: orNone(x.GetType())},
		dnsRCode:   {text: code, style: style},
		dnsLatency: {text: dnsTook(x)},
		dnsAnswers: answersCell(x),
		dnsPeer:    remote(flow, ""),
		dnsNote:    {text: orNone(strings.Join(dnsNotes(x), ", "))},
	}
}

// dnsFlow has a query's ends as those of a flow.
func dnsFlow(x *orb8v1.DnsExchange) *orb8v1.Flow {
	f := &orb8v1.Flow{
		Protocol: x.GetProtocol(), Local: x.GetLocal(), Remote: x.GetRemote(), Process: x.GetProcess(),
		Loopback: x.GetLoopback(), Self: x.GetSelf(), Netns: x.GetNetns(), Role: orb8v1.Role_ROLE_CLIENT,
	}
	if x.GetView() == orb8v1.DnsView_DNS_VIEW_SERVER {
		f.Role = orb8v1.Role_ROLE_SERVER
	}
	return f
}

// nameCell keeps the beginning and the end of a name where room is short.
func nameCell(name string) cell {
	name = orNone(name)
	return cell{text: name, fit: func(n int) string { return cutMiddle(name, n) }}
}

// unread stands for what could not be read.
const unread = "unread"

func rcode(x *orb8v1.DnsExchange) (string, style) {
	switch x.GetOutcome() {
	case orb8v1.DnsOutcome_DNS_OUTCOME_TIMEOUT:
		return "timeout", styleBad
	case orb8v1.DnsOutcome_DNS_OUTCOME_UNREAD:
		return unread, styleDim
	}
	switch code := orNone(x.GetRcode()); code {
	case "NOERROR":
		return code, styleGood
	case "NXDOMAIN":
		return code, styleWarn
	default:
		return code, styleBad
	}
}

func dnsTook(x *orb8v1.DnsExchange) string {
	if x.GetOutcome() != orb8v1.DnsOutcome_DNS_OUTCOME_ANSWERED {
		return none
	}
	return Micros(uint64(max(x.GetLatencyNs(), 0)) / uint64(time.Microsecond))
}

// answersCell has what was found: addresses and the like, or the types of what has
// no short form. Where room is short the rest becomes a number.
func answersCell(x *orb8v1.DnsExchange) cell {
	words := dnsAnswerWords(x)
	if len(words) == 0 {
		return cell{text: none}
	}
	text := strings.Join(words, ",")
	return cell{text: text, fit: func(n int) string {
		for keep := len(words) - 1; keep > 0; keep-- {
			short := strings.Join(words[:keep], ",") + fmt.Sprintf(" +%d", len(words)-keep)
			if cells(short) <= n {
				return short
			}
		}
		return cutMiddle(words[0], n)
	}}
}

// dnsAnswerWords begins with the addresses, if there are any: these are what most
// people look for behind a chain of aliases.
func dnsAnswerWords(x *orb8v1.DnsExchange) []string {
	var addresses, others []string
	for _, a := range x.GetAnswers() {
		switch data := Clean(a.GetData()); {
		case data == "":
			others = append(others, Clean(a.GetType()))
		case a.GetType() == "A" || a.GetType() == "AAAA":
			addresses = append(addresses, data)
		default:
			others = append(others, data)
		}
	}
	words := slices.Concat(addresses, others)
	if more := x.GetMoreAnswers(); more > 0 {
		words = append(words, fmt.Sprintf("+%d", more))
	}
	return words
}

// dnsNotes are what is worth saying of a query beyond its columns.
func dnsNotes(x *orb8v1.DnsExchange) []string {
	var words []string
	if x.GetProtocol() == "TCP" {
		words = append(words, "tcp")
	}
	if x.GetTruncated() {
		words = append(words, "truncated")
	}
	if n := x.GetRepeats(); n > 0 {
		words = append(words, "sent again "+strconv.FormatUint(uint64(n), 10)+"×")
	}
	if n := x.GetSearchFailures(); n > 0 {
		words = append(words, "after "+Plural(uint64(n), "search failure", "search failures"))
	}
	if x.GetLoopback() {
		words = append(words, "lo")
	}
	if x.GetSelf() {
		words = append(words, "orb8")
	}
	return words
}

// compactDNS is a query as words.
func compactDNS(o Options, ev *orb8v1.Event, x *orb8v1.DnsExchange) string {
	code, style := rcode(x)
	words := []string{o.stamp(ev.GetTimeNs()), "dns" + o.nodeWord(ev.GetNodeName()), word(orNone(x.GetName())), word(orNone(x.GetType())), o.paint(style, word(code))}
	add := func(key, value string) {
		if value != "" && value != none {
			words = append(words, key+"="+word(value))
		}
	}
	f := dnsFlow(x)
	add("latency", strings.ReplaceAll(dnsTook(x), " ", ""))
	add("answers", strings.Join(dnsAnswerWords(x), ","))
	add("workload", workloadName(x.GetLocal().GetWorkload()))
	add("process", x.GetProcess().GetCommand())
	add("pid", numberOr(uint64(x.GetProcess().GetPid())))
	add("executable", x.GetProcess().GetExecutable())
	key := "server"
	if f.GetRole() == orb8v1.Role_ROLE_SERVER {
		key = "client"
	}
	add(key, address(x.GetRemote()))
	add("peer", peer(f))
	add("note", strings.Join(dnsNotes(x), ","))
	return strings.Join(words, " ")
}
