// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of a name that was asked for.
const (
	askedNode = iota
	askedWho
	askedName
	askedQueries
	askedNX
	askedFailed
	askedTimeout
	askedSearch
	askedMean
	askedMax
	askedLast
)

func askedTable(o Options) *table {
	return &table{
		columns: []column{
			askedNode:    {title: "NODE", min: 6, max: 20, hidden: !o.Nodes},
			askedWho:     {title: "WORKLOAD", min: 10, max: 40},
			askedName:    {title: "NAME", min: 16, max: 60},
			askedQueries: {title: "QUERIES", min: 7, max: 13, right: true},
			askedNX:      {title: "NXDOMAIN", min: 8, max: 8, right: true},
			askedFailed:  {title: "FAILED", min: 6, max: 6, right: true},
			askedTimeout: {title: "TIMEOUT", min: 7, max: 7, right: true},
			askedSearch:  {title: "SEARCH", min: 6, max: 6, right: true},
			askedMean:    {title: "MEAN", min: 6, max: 6, right: true},
			askedMax:     {title: "MAX", min: 6, max: 6, right: true},
			askedLast:    {title: "LAST", min: 4, max: 6, right: true},
		},
		drop: []int{askedMax, askedLast, askedSearch, askedFailed, askedNode, askedTimeout, askedMean, askedNX},
		grow: []step{{askedName, 40}, {askedWho, 24}, {askedNode, 20}, {askedName, 60}, {askedWho, 40}},
	}
}

// DNSNames writes the first limit rows of what was asked of DNS as one table, 0 for
// all, and below it what all of them add up to.
func DNSNames(w io.Writer, o Options, now time.Time, events []*orb8v1.Event, limit int) error {
	var lines []string
	var rows [][]cell
	var sum askedSum
	for i, ev := range events {
		n := ev.GetDnsName()
		sum.add(n)
		if limit > 0 && i >= limit {
			continue
		}
		switch o.Format {
		case JSON:
			if err := WriteJSON(w, ev); err != nil {
				return err
			}
		case Compact:
			lines = append(lines, compactName(o, ev, n))
		default:
			rows = append(rows, askedRow(ev, n, now))
		}
	}
	if len(rows) > 0 {
		if o.Format == Wide {
			o.Width = 0
		}
		lines = append(askedTable(o).keeping(o.Keep).lines(o, rows), wrap(sum.String(), o.Width)...)
	}
	return writeLines(w, lines)
}

// DNSNamesLost says below the table how many names are missing from it; to programs the
// events do.
func DNSNamesLost(w io.Writer, o Options, lost []*orb8v1.Event) error {
	var names uint64
	for _, ev := range lost {
		names += ev.GetLostEvents().GetCount()
		if o.Format == JSON {
			if err := WriteJSON(w, ev); err != nil {
				return err
			}
		}
	}
	if o.Format == JSON || names == 0 {
		return nil
	}
	text := fmt.Sprintf("INCOMPLETE: no room was left for %s of the workloads that ask for most (dns_names_full)", Plural(names, "name", "names"))
	lines := wrap(text, o.Width)
	for i := range lines {
		lines[i] = o.paint(styleWarn, lines[i])
	}
	return writeLines(w, lines)
}

// failures are the queries that were answered neither NOERROR nor NXDOMAIN.
func failures(n *orb8v1.DnsName) uint64 {
	var failed uint64
	for code, count := range n.GetRcodes() {
		if code != "NOERROR" && code != "NXDOMAIN" {
			failed += count
		}
	}
	return failed
}

func answered(n *orb8v1.DnsName) uint64 {
	return n.GetQueries() - min(n.GetTimeouts()+n.GetUnread(), n.GetQueries())
}

func askedRow(ev *orb8v1.Event, n *orb8v1.DnsName, now time.Time) []cell {
	count := func(v uint64, s style) cell {
		if v == 0 {
			return cell{text: "0", style: styleDim}
		}
		return cell{text: Count(v), style: s}
	}
	mean := none
	if a := answered(n); a > 0 {
		mean = Micros(uint64(n.GetLatencySumNs()) / a / 1000)
	}
	longest := none
	if answered(n) > 0 {
		longest = Micros(uint64(n.GetLatencyMaxNs()) / 1000)
	}
	name := n.GetWorkload().GetName()
	if ns := n.GetWorkload().GetNamespace(); ns != "" {
		name = ns + "/" + name
	}
	name = orNone(name)
	return []cell{
		askedNode:    nodeCell(orNone(ev.GetNodeName())),
		askedWho:     {text: name, fit: func(n int) string { return cutMiddle(name, n) }},
		askedName:    nameCell(n.GetName()),
		askedQueries: {text: Count(n.GetQueries())},
		askedNX:      count(n.GetRcodes()["NXDOMAIN"], styleWarn),
		askedFailed:  count(failures(n), styleBad),
		askedTimeout: count(n.GetTimeouts(), styleBad),
		askedSearch:  count(n.GetSearchFailures(), styleWarn),
		askedMean:    {text: mean},
		askedMax:     {text: longest},
		askedLast:    {text: ago(now, n.GetLastSeenNs())},
	}
}

// askedSum adds names up.
type askedSum struct{ queries, nx, failed, timeouts, unread, searches uint64 }

func (s *askedSum) add(n *orb8v1.DnsName) {
	s.queries += n.GetQueries()
	s.nx += n.GetRcodes()["NXDOMAIN"]
	s.failed += failures(n)
	s.timeouts += n.GetTimeouts()
	s.unread += n.GetUnread()
	s.searches += n.GetSearchFailures()
}

func (s *askedSum) String() string {
	share := func(n uint64) string {
		percent := 100 * float64(n) / float64(max(s.queries, 1))
		if n > 0 && percent < 0.01 {
			return "<0.01 %"
		}
		return fmt.Sprintf("%.3g %%", percent)
	}
	text := fmt.Sprintf("%s: %s NXDOMAIN, %s failed, %s timed out", Plural(s.queries, "query", "queries"), share(s.nx), share(s.failed), share(s.timeouts))
	if s.unread > 0 {
		text += ", " + share(s.unread) + " unread"
	}
	if s.searches > 0 {
		text += "; " + Count(s.searches) + " failed only because of search domains (ndots)"
	}
	return text
}

func compactName(o Options, ev *orb8v1.Event, n *orb8v1.DnsName) string {
	words := []string{"name" + o.nodeWord(ev.GetNodeName()), word(orNone(n.GetName()))}
	if ns := n.GetWorkload().GetNamespace(); ns != "" {
		words = append(words, "namespace="+word(ns))
	}
	words = append(words, "workload="+word(orNone(n.GetWorkload().GetName())), fmt.Sprintf("queries=%d", n.GetQueries()))
	codes := make([]string, 0, len(n.GetRcodes()))
	for code, count := range n.GetRcodes() {
		codes = append(codes, fmt.Sprintf("%s=%d", word(code), count))
	}
	slices.Sort(codes)
	words = append(words, codes...)
	return strings.Join(append(words, fmt.Sprintf("timeout=%d", n.GetTimeouts()), fmt.Sprintf("unread=%d", n.GetUnread()), fmt.Sprintf("search=%d", n.GetSearchFailures())), " ")
}
