// SPDX-License-Identifier: Apache-2.0

package render

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// GroupKeys are by what flows are added up, in order.
func GroupKeys() []string { return []string{"namespace", "port", "process", "remote", "workload"} }

// Group adds flows up that have something in common.
type Group struct {
	Key   string `json:"key"`
	Flows int    `json:"flows"`
	// Of the flows that there are now, each since its begin.
	TxBytes     uint64 `json:"txBytes"`
	RxBytes     uint64 `json:"rxBytes"`
	Retransmits uint64 `json:"retransmits"`
	// A second, since the reading before.
	TxRate float64 `json:"txBytesPerSecond"`
	RxRate float64 `json:"rxBytesPerSecond"`
}

// Groups adds readings of the flow table up.
type Groups struct {
	by func(*orb8v1.Flow) string
	// before are the totals of each flow in the reading before, at is when that was.
	before map[string]*orb8v1.Counters
	at     time.Time
}

// NewGroups adds up by one of GroupKeys.
func NewGroups(by string) *Groups {
	return &Groups{by: map[string]func(*orb8v1.Flow) string{
		"namespace": func(f *orb8v1.Flow) string { return orNone(f.GetLocal().GetWorkload().GetNamespace()) },
		"port":      serverPort,
		"process":   commandPID,
		"remote":    remoteHost,
		"workload":  func(f *orb8v1.Flow) string { return orNone(workloadName(f.GetLocal().GetWorkload())) },
	}[by]}
}

// commandPID is the command with its pid, or whose the flow is if that is not known.
func commandPID(f *orb8v1.Flow) string {
	if p := f.GetProcess(); p.GetPid() != 0 {
		return orNone(p.GetCommand()) + "/" + strconv.FormatUint(uint64(p.GetPid()), 10)
	}
	if name := Clean(f.GetProcess().GetCommand()); name != "" {
		return name
	}
	return orNone(workloadName(f.GetLocal().GetWorkload()))
}

// serverPort is the port of the end that was connected to.
func serverPort(f *orb8v1.Flow) string {
	port := f.GetRemote().GetPort()
	if f.GetRole() == orb8v1.Role_ROLE_SERVER {
		port = f.GetLocal().GetPort()
	}
	if port == 0 {
		return protocol(f)
	}
	return protocol(f) + "/" + strconv.FormatUint(uint64(port), 10)
}

// remoteHost is the far end, without its port, and of a Service without the pod behind it.
func remoteHost(f *orb8v1.Flow) string {
	r := f.GetRemote()
	if r.GetWorkload().GetService() != "" {
		return serviceName(r.GetWorkload())
	}
	return remote(&orb8v1.Flow{Protocol: f.GetProtocol(), Remote: &orb8v1.Endpoint{Ip: r.GetIp(), Workload: r.GetWorkload()}}, "").text
}

// FlowKey tells a flow from others, also from a later one of the same addresses.
func FlowKey(ev *orb8v1.Event) string {
	f := ev.GetFlow()
	return fmt.Sprint(ev.GetNodeName(), "|", f.GetProtocol(), "|", f.GetLocal().GetIp(), "|", f.GetLocal().GetPort(), "|",
		f.GetRemote().GetIp(), "|", f.GetRemote().GetPort(), "|", f.GetNetns(), "|", f.GetFirstSeenNs(), "|", f.GetLocal().GetWorkload().GetCgroupId())
}

// Read adds a reading of the flow table up: most bytes a second first, then most bytes.
// There are rates from the second reading on.
func (g *Groups) Read(now time.Time, rows []*orb8v1.Event) []Group {
	all := map[string]*Group{}
	totals := make(map[string]*orb8v1.Counters, len(rows))
	seconds := now.Sub(g.at).Seconds()
	for _, ev := range rows {
		f := ev.GetFlow()
		key := Clean(g.by(f))
		sum := all[key]
		if sum == nil {
			sum = &Group{Key: key}
			all[key] = sum
		}
		total := f.GetTotal()
		sum.Flows++
		sum.TxBytes, sum.RxBytes = sum.TxBytes+total.GetTxBytes(), sum.RxBytes+total.GetRxBytes()
		sum.Retransmits += f.GetTcp().GetRetransmits()
		id := FlowKey(ev)
		totals[id] = total
		if g.before == nil || seconds <= 0 {
			continue
		}
		was := g.before[id] // nil, which has zeros, for a flow that is new
		if total.GetTxBytes() >= was.GetTxBytes() && total.GetRxBytes() >= was.GetRxBytes() {
			sum.TxRate += float64(total.GetTxBytes()-was.GetTxBytes()) / seconds
			sum.RxRate += float64(total.GetRxBytes()-was.GetRxBytes()) / seconds
		}
	}
	g.before, g.at = totals, now
	return slices.SortedFunc(func(yield func(Group) bool) {
		for sum := range maps.Values(all) {
			if !yield(*sum) {
				return
			}
		}
	}, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.TxRate+b.RxRate, a.TxRate+a.RxRate), cmp.Compare(b.TxBytes+b.RxBytes, a.TxBytes+a.RxBytes),
			cmp.Compare(a.Key, b.Key))
	})
}

// Columns of sums of flows.
const (
	byKey = iota
	byFlows
	byTxRate
	byRxRate
	byTX
	byRX
	byRetr
)

// WriteGroups writes sums by something, in JSON a line each.
func WriteGroups(w io.Writer, o Options, by string, groups []Group) error {
	var lines []string
	switch o.Format {
	case JSON:
		for _, g := range groups {
			line, err := json.Marshal(struct {
				By string `json:"by"`
				Group
			}{by, g})
			if err != nil {
				return err
			}
			lines = append(lines, string(line))
		}
	case Compact:
		for _, g := range groups {
			lines = append(lines, fmt.Sprintf("%s=%s flows=%d tx/s=%s rx/s=%s tx=%s rx=%s retr=%d", by, word(g.Key), g.Flows,
				word(rate(g.TxRate)), word(rate(g.RxRate)), word(Bytes(g.TxBytes)), word(Bytes(g.RxBytes)), g.Retransmits))
		}
	default:
		lines = groupLines(o, by, groups)
	}
	return writeLines(w, lines)
}

func rate(perSecond float64) string { return Bytes(uint64(perSecond + 0.5)) }

func groupLines(o Options, by string, groups []Group) []string {
	if o.Format == Wide {
		o.Width = 0
	}
	t := &table{
		columns: []column{
			byKey:    {title: groupTitle(by), min: 12, max: 100},
			byFlows:  {title: "FLOWS", min: 5, max: 8, right: true},
			byTxRate: {title: "TX/s", min: 8, max: 8, right: true},
			byRxRate: {title: "RX/s", min: 8, max: 8, right: true},
			byTX:     {title: "TX", min: 8, max: 8, right: true},
			byRX:     {title: "RX", min: 8, max: 8, right: true},
			byRetr:   {title: "RETR", min: 4, max: 10, right: true},
		},
		drop: []int{byRetr, byFlows, byRX, byTX},
		grow: []step{{byKey, 40}, {byRetr, 10}, {byFlows, 8}, {byKey, 100}},
	}
	rows := make([][]cell, 0, len(groups))
	for _, g := range groups {
		resent := cell{text: strconv.FormatUint(g.Retransmits, 10), style: styleDim}
		if g.Retransmits > 0 {
			resent.style = styleWarn
		}
		rows = append(rows, []cell{
			byKey:    {text: g.Key, fit: func(n int) string { return cutMiddle(g.Key, n) }},
			byFlows:  {text: strconv.Itoa(g.Flows)},
			byTxRate: {text: rate(g.TxRate)}, byRxRate: {text: rate(g.RxRate)},
			byTX: {text: Bytes(g.TxBytes)}, byRX: {text: Bytes(g.RxBytes)},
			byRetr: resent,
		})
	}
	return t.lines(o, rows)
}

func groupTitle(by string) string {
	return map[string]string{
		"namespace": "NAMESPACE", "port": "PORT", "process": "PROCESS", "remote": "REMOTE", "workload": "WORKLOAD",
	}[by]
}
