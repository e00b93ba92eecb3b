// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// NodeStatus is what one of several agents says of itself.
type NodeStatus struct {
	// Status has at least a name; of an agent that did not answer, no more.
	Status *orb8v1.AgentStatus
	// Agent is the name of its pod, empty where there is none.
	Agent string
	// Away says why the agent did not answer; empty where it did.
	Away string
}

func (n NodeStatus) state() cell {
	switch {
	case n.Away != "":
		return cell{text: "unreachable", style: styleBad}
	case !n.Status.GetHealthy():
		return cell{text: "NOT HEALTHY", style: styleBad}
	case n.Status.GetHealthMessage() != "":
		return cell{text: "degraded", style: styleWarn}
	}
	return cell{text: "healthy", style: styleGood}
}

// Statuses writes a line for each node. A node that does not answer is there too,
// with the reason; to programs it is an AgentStatus that is not healthy.
func Statuses(w io.Writer, o Options, nodes []NodeStatus) error {
	switch o.Format {
	case JSON:
		for _, n := range nodes {
			if err := WriteJSON(w, n.Status); err != nil {
				return err
			}
		}
		return nil
	case Compact:
		var lines []string
		for _, n := range nodes {
			if n.Away != "" {
				lines = append(lines, fmt.Sprintf("%s unreachable reason=%s", word(n.Status.GetNodeName()), word(n.Away)))
				continue
			}
			lines = append(lines, compactStatus(n.Status))
		}
		return writeLines(w, lines)
	case Wide:
		o.Width = 0
	}
	lines := nodeTable(o.Format == Wide).lines(o, nodeRows(nodes))
	return writeLines(w, append(lines, nodeMessages(o, nodes)...))
}

// nodeMessages are below the table, where they have room.
func nodeMessages(o Options, nodes []NodeStatus) []string {
	var lines []string
	for _, n := range nodes {
		m, s := Clean(n.Status.GetHealthMessage()), n.state().style
		if m == "" {
			continue
		}
		for _, l := range wrap(orNone(n.Status.GetNodeName())+": "+m, o.Width) {
			lines = append(lines, o.paint(s, l))
		}
	}
	if len(lines) > 0 {
		lines = append([]string{""}, lines...)
	}
	return lines
}

// Columns of a node's status.
const (
	noNode = iota
	noState
	noVersion
	noUp
	noProbes
	noPods
	noFlows
	noLost
	noKernel
	noAgent
)

func nodeTable(wide bool) *table {
	return &table{
		columns: []column{
			noNode:    {title: "NODE", min: 8},
			noState:   {title: "STATE", min: 11},
			noVersion: {title: "VERSION", min: 7},
			noUp:      {title: "UP", min: 5, right: true},
			noProbes:  {title: "PROBES", min: 10},
			noPods:    {title: "PODS", min: 4, right: true},
			noFlows:   {title: "FLOWS", min: 5, right: true},
			noLost:    {title: "LOST", min: 4, right: true},
			noKernel:  {title: "KERNEL", min: 8},
			noAgent:   {title: "AGENT", min: 8, hidden: !wide},
		},
		drop: []int{noKernel, noUp, noPods, noVersion, noFlows, noProbes, noLost},
		grow: []step{{noNode, 24}, {noProbes, 24}, {noVersion, 16}, {noKernel, 24}, {noNode, 63},
			{noFlows, 10}, {noLost, 10}, {noProbes, 100}, {noVersion, 100}, {noKernel, 100}, {noAgent, 63}},
	}
}

func nodeRows(nodes []NodeStatus) [][]cell {
	var rows [][]cell
	for _, n := range nodes {
		s := n.Status
		row := []cell{
			noNode: nodeCell(orNone(s.GetNodeName())), noState: n.state(),
			noVersion: {text: none}, noUp: {text: none}, noProbes: {text: none}, noPods: {text: none},
			noFlows: {text: none}, noLost: {text: none}, noKernel: {text: none},
			noAgent: {text: orNone(n.Agent)},
		}
		if n.Away == "" {
			row[noVersion] = cell{text: orNone(s.GetVersion())}
			row[noUp] = cell{text: upTime(s.GetUptimeSeconds())}
			row[noProbes] = nodeProbes(s.GetProbes())
			row[noPods] = cell{text: Count(uint64(s.GetPodsTracked()))}
			row[noFlows] = cell{text: Count(uint64(s.GetActiveFlows()))}
			row[noLost] = cell{text: Count(s.GetEventsDropped())}
			if s.GetEventsDropped() > 0 {
				row[noLost].style = styleWarn
			}
			row[noKernel] = cell{text: orNone(s.GetKernelRelease())}
		}
		rows = append(rows, row)
	}
	return rows
}

func upTime(seconds int64) string {
	if seconds <= 0 {
		return none
	}
	return Span(time.Duration(seconds) * time.Second)
}

// nodeProbes names the probes; those that do not run, with their state.
func nodeProbes(probes []*orb8v1.ProbeStatus) cell {
	c := cell{text: none}
	var words []string
	for _, p := range probes {
		text := orNone(p.GetName())
		if p.GetState() != orb8v1.ProbeState_PROBE_STATE_RUNNING {
			text += ":" + probeState(p.GetState())
			if p.GetState() != orb8v1.ProbeState_PROBE_STATE_IDLE {
				c.style = styleWarn
			}
		}
		words = append(words, text)
	}
	if len(words) > 0 {
		c.text = strings.Join(words, ",")
	}
	return c
}

// Away writes a line for each of the events that says of a node that it is away; of many
// nodes, one for each reason.
func Away(o Options, events []*orb8v1.Event) []string {
	said := make([]Said, 0, len(events))
	for _, ev := range events {
		n := ev.GetNodeStatus()
		said = append(said, Said{n.GetNodeName(), Clean(n.GetMessage())})
	}
	var lines []string
	for _, text := range Together(said, "NODE %s is not included", "%d NODES are not included") {
		lines = append(lines, o.paint(styleWarn, cutEnd(text, limit(o.Width))))
	}
	return lines
}

// manyNodes is up to how many nodes are named one by one.
const manyNodes = 10

// Said is what there is to say of a node.
type Said struct{ Node, Text string }

// Together puts what is said of nodes into lines: up to ten, one for each node, more, one for
// each thing to say, with how many nodes it is of. one and several begin a line; one has room
// for the node's name, several for how many there are.
func Together(all []Said, one, several string) []string {
	lines := make([]string, 0, min(len(all), manyNodes))
	if len(all) <= manyNodes {
		for _, s := range all {
			lines = append(lines, because(fmt.Sprintf(one, orNone(s.Node)), s.Text))
		}
		return lines
	}
	var texts []string
	nodes := map[string][]string{}
	for _, s := range all {
		if nodes[s.Text] == nil {
			texts = append(texts, s.Text)
		}
		nodes[s.Text] = append(nodes[s.Text], orNone(s.Node))
	}
	for _, text := range texts {
		on := nodes[text]
		if len(on) == 1 {
			lines = append(lines, because(fmt.Sprintf(one, on[0]), text))
			continue
		}
		lines = append(lines, because(fmt.Sprintf(several, len(on)), text)+" ("+namesOf(on)+")")
	}
	return lines
}

func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

// namesOf names the first of many nodes.
func namesOf(nodes []string) string {
	const shown = 3
	if len(nodes) <= shown {
		return strings.Join(nodes, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(nodes[:shown], ", "), len(nodes)-shown)
}
