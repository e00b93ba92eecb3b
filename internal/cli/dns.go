// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

const traceDNSLong = `Watch DNS: what is asked, what comes of it, and how long that takes.

A line is a query with its answer, told of when the answer is there; a query without
one is told of after 5 s (the agent's setting dns_timeout) as a timeout. The query is
seen at the end that asks. --server-side shows the other end instead: what the DNS
servers that run on these nodes are asked, and by whom.

Queries over UDP and TCP to or from port 53 are read (the agent's setting dns_ports; in
this process always 53), whoever the server is. DNS over TLS or HTTPS cannot be. Of a
message over TCP that is in several segments the first is read; a connection in which
messages cannot be told apart is said to be unread. So is a query of which it is not
known what came of it, since its answer may be in there, or among messages that were
lost. A query that still waits for its answer when the command ends is not told of.

LATENCY is from the query to its answer, as this node's kernel saw them; of a query that
was sent again, from the first time. ANSWERS begins with the addresses. NOTE, with -o
wide, tells of queries that failed before only because of search domains (ndots).

The source is found as by 'orb8 trace network'. With -o json every line is an
orb8.v1.Event with a dns in it, a change of the node's status, or lost events.`

const traceDNSExamples = `  sudo orb8 trace dns                               # this host, without an agent
  orb8 trace dns --all-namespaces                   # pods of a cluster, on all nodes
  orb8 trace dns -n default --failed                # whatever is not NOERROR, and timeouts
  orb8 trace dns --name '*.example.test' --rcode NXDOMAIN
  orb8 trace dns --slower 50ms                      # slow answers, and none at all
  orb8 trace dns --server-side -n kube-system       # as CoreDNS sees it
  orb8 trace dns --qtype SRV,HTTPS --since 5m
  orb8 trace dns --duration 1m -o json | jq -r '.dns | [.rcode, .name] | @tsv'`

func newTraceDNS(c *Config) *cobra.Command {
	var serverSide bool
	return c.newTrace(&cobra.Command{
		Use: "dns", Short: "Watch DNS queries and their answers", Long: traceDNSLong, Example: traceDNSExamples,
	}, traceKind{
		title: "DNS queries", probe: "dns",
		kinds:   []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_DNS},
		filters: []string{"name", "rcode", "qtype", "slower", "failed", "from", "to"},
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&serverSide, "server-side", false, "queries as their servers see them")
		},
		local: func(f *sourceFlags) { f.only = onlyDNS },
		request: func(r *orb8v1.ObserveRequest) {
			if serverSide {
				r.DnsView = orb8v1.DnsView_DNS_VIEW_SERVER
			}
		},
		lines: func(w io.Writer, o render.Options) render.Live {
			return render.NewDNS(w, o, render.DNSOptions{ServerSide: serverSide})
		},
		summary: render.NewQuerySummary,
		of: func(ev *orb8v1.Event) (loopback, ok bool) {
			x := ev.GetDns()
			return x.GetLoopback(), x != nil
		},
	})
}

// dnsSorts are the orders of what was asked of DNS, the largest or latest first.
func dnsSorts() map[string]func(*orb8v1.DnsName) uint64 {
	return map[string]func(*orb8v1.DnsName) uint64{
		"queries":  (*orb8v1.DnsName).GetQueries,
		"nxdomain": func(n *orb8v1.DnsName) uint64 { return n.GetRcodes()["NXDOMAIN"] },
		"failed": func(n *orb8v1.DnsName) uint64 {
			return n.GetQueries() - min(n.GetQueries(), n.GetRcodes()["NOERROR"]+n.GetUnread())
		},
		"search":  (*orb8v1.DnsName).GetSearchFailures,
		"latency": func(n *orb8v1.DnsName) uint64 { return uint64(max(n.GetLatencyMaxNs(), 0)) },
		"last":    func(n *orb8v1.DnsName) uint64 { return uint64(max(n.GetLastSeenNs(), 0)) },
	}
}

func dnsSortNames() []string { return slices.Sorted(maps.Keys(dnsSorts())) }

// dnsNames shows what workloads asked of DNS lately.
func (v *flowsView) dnsNames(ctx context.Context) error {
	rows, lost, err := v.askedNames(ctx)
	if err != nil {
		return err
	}
	total, limit := len(rows), int(v.f.limit)
	if err := render.DNSNames(v.c.Stdout, v.options, time.Now(), rows, limit); err != nil {
		return err
	}
	if err := render.DNSNamesLost(v.c.Stdout, v.options, lost); err != nil {
		return err
	}
	if err := v.missing(v.c.Stdout); err != nil {
		return err
	}
	switch {
	case v.f.output.headless(v.options):
	case total == 0:
		fmt.Fprintln(v.c.Stderr, "no DNS queries")
	case limit > 0 && limit < total:
		fmt.Fprintf(v.c.Stderr, "the first %s of %d; --limit 0 shows all\n", render.Plural(uint64(limit), "name", "names"), total)
	}
	return nil
}

// askedNames fetches the rows, sorted, and what tells of missing ones.
func (v *flowsView) askedNames(ctx context.Context) (rows, lost []*orb8v1.Event, err error) {
	v.away = nil
	stream, err := v.src.ask.Observe(ctx, &orb8v1.ObserveRequest{
		Filters: v.filters, Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_DNS_NAME},
		Snapshot: true, IncludeSelf: v.f.source.includeSelf,
	})
	if err != nil {
		return nil, nil, explain("read what was asked of DNS", v.src.name, err)
	}
	since := v.f.since.unixNanos(time.Now())
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, explain("read what was asked of DNS", v.src.name, err)
		}
		if v.src.many() && ev.GetNodeStatus().GetState() == orb8v1.NodeState_NODE_STATE_UNAVAILABLE {
			v.away = append(v.away, ev)
		}
		if ev.GetLostEvents() != nil {
			lost = append(lost, ev)
		}
		if n := ev.GetDnsName(); n != nil && n.GetLastSeenNs() >= since {
			rows = append(rows, ev)
		}
	}
	key := dnsSorts()[v.f.sort]
	slices.SortStableFunc(rows, func(a, b *orb8v1.Event) int {
		x, y := a.GetDnsName(), b.GetDnsName()
		return cmp.Or(cmp.Compare(key(y), key(x)), strings.Compare(x.GetName(), y.GetName()))
	})
	return rows, lost, nil
}
