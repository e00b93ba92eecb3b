// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of a sample of an accelerator.
const (
	gpuTime = iota
	gpuNode
	gpuIndex
	gpuModel
	gpuWho
	gpuUtil
	gpuSM
	gpuTensor
	gpuDRAM
	gpuMemory
	gpuPower
	gpuTemp
	gpuNote
)

func gpuTable(o Options, live bool) *table {
	who := "WORKLOAD"
	if o.Nodes { // of a cluster
		who = "POD"
	}
	return &table{
		columns: []column{
			gpuTime:   {title: "TIME", min: clockWidth, max: clockWidth, hidden: !live},
			gpuNode:   {title: "NODE", min: 6, max: 20, hidden: !o.Nodes},
			gpuIndex:  {title: "GPU", min: 3, max: 5},
			gpuModel:  {title: "MODEL", min: 6, max: 24},
			gpuWho:    {title: who, min: 12, max: 40},
			gpuUtil:   {title: "UTIL", min: 5, max: 5, right: true},
			gpuSM:     {title: "SM", min: 5, max: 5, right: true},
			gpuTensor: {title: "TENSOR", min: 6, max: 6, right: true},
			gpuDRAM:   {title: "DRAM", min: 5, max: 5, right: true},
			gpuMemory: {title: "MEM USED/TOTAL", min: 15, max: 17, right: true},
			gpuPower:  {title: "POWER", min: 6, max: 6, right: true},
			gpuTemp:   {title: "TEMP", min: 5, max: 5, right: true},
			gpuNote:   {title: "NOTE", min: 8, max: 40},
		},
		drop: []int{gpuTemp, gpuDRAM, gpuModel, gpuTensor, gpuSM, gpuNote, gpuTime, gpuPower, gpuNode},
		grow: []step{{gpuWho, 24}, {gpuNote, 16}, {gpuModel, 16}, {gpuNode, 20}, {gpuWho, 40}, {gpuNote, 40}, {gpuModel, 24}, {gpuMemory, 17}},
	}
}

// Accelerators writes samples of accelerators, a line for each owner of a device.
type Accelerators struct {
	w      io.Writer
	o      Options
	table  *table
	widths []int
	events *Events // for what is not a sample
}

// NewAccelerators returns a renderer that writes a live stream to w.
func NewAccelerators(w io.Writer, o Options) *Accelerators {
	a := &Accelerators{w: w, o: o, table: gpuTable(o, true), events: NewEvents(w, o)}
	a.Resize(o.Width, o.Height)
	return a
}

// Resize lays the columns out anew.
func (a *Accelerators) Resize(width, height int) {
	a.o.Width, a.o.Height = width, height
	a.events.Resize(width, height)
	if a.o.Format == Wide {
		a.o.Width = 0
	}
	if width = a.o.Width; width == 0 {
		width = commonWidth
	}
	a.widths = a.table.layout(width)
}

// Explain says what the stages of lost events mean.
func (a *Accelerators) Explain(meanings map[string]string) { a.events.Explain(meanings) }

// Titles writes the line above the columns, in the formats that have one.
func (a *Accelerators) Titles() error {
	if a.o.Format != Table && a.o.Format != Wide {
		return nil
	}
	_, err := fmt.Fprintln(a.w, a.table.titles(a.o, a.widths))
	return err
}

// Write writes one event.
func (a *Accelerators) Write(ev *orb8v1.Event) error {
	s := ev.GetAccelerator()
	if s == nil || a.o.Format == JSON {
		return a.events.Write(ev)
	}
	var lines []string
	for _, sh := range sharesOf(s) {
		if a.o.Format == Compact {
			lines = append(lines, compactShare(a.o, ev, s, sh))
			continue
		}
		lines = append(lines, a.table.line(a.o, a.widths, shareRow(a.o, ev, s, sh, time.Unix(0, ev.GetTimeNs()))))
	}
	return writeLines(a.w, lines)
}

// GPUs writes the latest samples, as they come, as one table.
func GPUs(w io.Writer, o Options, now time.Time, samples []*orb8v1.Event) error {
	var lines []string
	var rows [][]cell
	for _, ev := range samples {
		if o.Format == JSON {
			if err := WriteJSON(w, ev); err != nil {
				return err
			}
			continue
		}
		for _, sh := range sharesOf(ev.GetAccelerator()) {
			if o.Format == Compact {
				lines = append(lines, compactShare(o, ev, ev.GetAccelerator(), sh))
				continue
			}
			rows = append(rows, shareRow(o, ev, ev.GetAccelerator(), sh, now))
		}
	}
	if len(rows) > 0 {
		lines = sick(o, now, samples)
		if o.Format == Wide {
			o.Width = 0
		}
		lines = append(lines, gpuTable(o, false).lines(o, rows)...)
	}
	return writeLines(w, lines)
}

// sick says of devices that are not well what it is and what to do, before all else.
func sick(o Options, now time.Time, samples []*orb8v1.Event) []string {
	var lines []string
	for _, ev := range samples {
		s := ev.GetAccelerator()
		if healthNote(s) == "" {
			continue
		}
		h := s.GetHealth()
		text := fmt.Sprintf("GPU %s: %s", orNone(Clean(s.GetDevice().GetIndex())), healthNote(s))
		if o.Nodes {
			text = orNone(Clean(ev.GetNodeName())) + " " + text
		}
		causes := slices.Clone(h.GetCauses())
		if x := xidNote(s, sharesOf(s)[0], now); x != "" {
			causes = append(causes, x)
		}
		if len(causes) > 0 {
			text += ": " + Clean(strings.Join(causes, "; "))
		}
		if h.GetRemedy() != "" {
			text += ". To do: " + Clean(h.GetRemedy())
		}
		for _, l := range indented(o, "", text) {
			lines = append(lines, o.paint(styleBad, l))
		}
	}
	return lines
}

// sharesOf are the shares that get a line: all with an owner, and nobody's if there
// is no other or it does something.
func sharesOf(s *orb8v1.AcceleratorSample) []*orb8v1.AcceleratorShare {
	var all []*orb8v1.AcceleratorShare
	for _, sh := range s.GetShares() {
		busy := len(sh.GetProcesses()) > 0 || sh.GetValues()["utilization_ratio"].GetValue() >= 0.01
		if sh.GetWorkload() != nil || busy && len(s.GetShares()) > 1 {
			all = append(all, sh)
		}
	}
	if len(all) > 0 {
		return all
	}
	device := &orb8v1.AcceleratorShare{Values: s.GetValues()}
	for _, sh := range s.GetShares() {
		device.Processes = append(device.Processes, sh.GetProcesses()...)
	}
	return []*orb8v1.AcceleratorShare{device}
}

func shareRow(o Options, ev *orb8v1.Event, s *orb8v1.AcceleratorSample, sh *orb8v1.AcceleratorShare, now time.Time) []cell {
	d, v := s.GetDevice(), sh.GetValues()
	return []cell{
		gpuTime:   {text: o.clock(ev.GetTimeNs(), "15:04:05"), style: styleDim},
		gpuNode:   nodeCell(orNone(ev.GetNodeName())),
		gpuIndex:  plain(d.GetIndex()),
		gpuModel:  modelCell(d),
		gpuWho:    shareWho(sh),
		gpuUtil:   {text: percent(v["utilization_ratio"])},
		gpuSM:     {text: percent(v["sm_active_ratio"])},
		gpuTensor: {text: percent(v["tensor_active_ratio"])},
		gpuDRAM:   {text: percent(v["dram_active_ratio"])},
		gpuMemory: {text: amount(v["memory_used_bytes"]) + "/" + amount(s.GetValues()["memory_total_bytes"])},
		gpuPower:  {text: number(v["power_watts"], "W")},
		gpuTemp:   {text: number(s.GetValues()["temperature_celsius"], "°C")},
		gpuNote:   shareNote(s, sh, now),
	}
}

// modelCell loses the vendor's name first where room is short.
func modelCell(d *orb8v1.Accelerator) cell {
	name := Clean(d.GetModel())
	if p := Clean(d.GetProfile()); p != "" {
		name = "MIG " + p
	}
	return cell{text: orNone(name), fit: func(n int) string {
		return cutEnd(strings.TrimPrefix(name, "NVIDIA "), n)
	}}
}

func shareWho(sh *orb8v1.AcceleratorShare) cell {
	name := workloadName(sh.GetWorkload())
	if name == "" && len(sh.GetProcesses()) > 0 {
		p := sh.GetProcesses()[0].GetProcess()
		name = fmt.Sprintf("pid %d", p.GetPid())
		if c := Clean(p.GetCommand()); c != "" {
			name = c
		}
		if more := len(sh.GetProcesses()) - 1; more > 0 {
			name += fmt.Sprintf(" +%d", more)
		}
	}
	if name == "" {
		return cell{text: none, style: styleDim}
	}
	return cell{text: name, fit: func(n int) string { return cutMiddle(name, n) }}
}

// shareNote is what is worth knowing beside the numbers.
func shareNote(s *orb8v1.AcceleratorSample, sh *orb8v1.AcceleratorShare, now time.Time) cell {
	var notes []string
	style := styleNone
	if h := healthNote(s); h != "" {
		notes, style = append(notes, h), styleBad
	}
	x := xidNote(s, sh, now)
	if x != "" {
		notes, style = append(notes, x), styleBad
	}
	if w := sh.GetWorkload(); w != nil && s.GetHoldersKnown() && !sh.GetHeld() {
		note := "not held"
		if w.GetPodName() == "" {
			note = "outside Kubernetes"
		}
		notes, style = append(notes, note), max(style, styleWarn)
	}
	if idle := sh.GetIdle(); idle != "" {
		note := "idle: " + strings.ReplaceAll(Clean(idle), "_", " ")
		if sh.GetIdleSinceNs() != 0 {
			note += " for " + ago(now, sh.GetIdleSinceNs())
		}
		notes, style = append(notes, note), max(style, styleWarn)
	}
	if sh.GetShared() {
		notes = append(notes, "shared")
	}
	// One that has failed is not there for the taking, whatever the kubelet thinks.
	if s.GetAllocatable() && healthNote(s) == "" && x == "" && !slices.ContainsFunc(s.GetShares(), (*orb8v1.AcceleratorShare).GetHeld) {
		notes = append(notes, "free")
	}
	if s.GetDevice().GetDivided() {
		notes = append(notes, "MIG")
	}
	for _, c := range s.GetClockEvents() {
		notes = append(notes, strings.ReplaceAll(Clean(c), "_", " "))
	}
	text := strings.Join(notes, ", ")
	return cell{text: text, style: style}
}

// healthNote says that a device is not well, and what it is.
func healthNote(s *orb8v1.AcceleratorSample) string {
	switch verdict := s.GetHealth().GetVerdict(); {
	case s.GetLost():
		return "lost"
	case verdict == "" || verdict == "ok":
		return ""
	default:
		return strings.ReplaceAll(Clean(verdict), "_", " ")
	}
}

// xidNote has the errors of a share: those of now, or the past ones of a snapshot.
// What nobody can be blamed for stands with the first share.
func xidNote(s *orb8v1.AcceleratorSample, sh *orb8v1.AcceleratorShare, now time.Time) string {
	onFirst := sh == sharesOf(s)[0] || !slices.Contains(s.GetShares(), sh)
	mine := func(e *orb8v1.AcceleratorError) bool {
		blamed := func(sh *orb8v1.AcceleratorShare) bool {
			return sh.GetWorkload() != nil && proto.Equal(e.GetWorkload(), sh.GetWorkload())
		}
		return blamed(sh) || onFirst && !slices.ContainsFunc(s.GetShares(), blamed)
	}
	var codes []uint64
	times, last := make(map[uint64]int), make(map[uint64]int64)
	count := func(all []*orb8v1.AcceleratorError) {
		for _, e := range all {
			if !mine(e) {
				continue
			}
			if times[e.GetCode()]++; times[e.GetCode()] == 1 {
				codes = append(codes, e.GetCode())
			}
			last[e.GetCode()] = e.GetTimeNs()
		}
	}
	if count(s.GetPastErrors()); len(s.GetPastErrors()) == 0 {
		count(s.GetErrors())
	}
	var notes []string
	for _, c := range codes {
		note := fmt.Sprintf("XID %d", c)
		if times[c] > 1 {
			note += fmt.Sprintf(" ×%d", times[c])
		}
		if len(s.GetPastErrors()) > 0 && last[c] != 0 {
			note += " " + ago(now, last[c]) + " ago"
		}
		notes = append(notes, note)
	}
	return strings.Join(notes, ", ")
}

func percent(m *orb8v1.Measurement) string {
	if m == nil {
		return none
	}
	return fmt.Sprintf("%.0f %%", 100*m.GetValue())
}

func number(m *orb8v1.Measurement, unit string) string {
	if m == nil {
		return none
	}
	return fmt.Sprintf("%.0f %s", m.GetValue(), unit)
}

func amount(m *orb8v1.Measurement) string {
	if m == nil {
		return none
	}
	return Bytes(uint64(max(m.GetValue(), 0)))
}

// compactShare is a share as words.
func compactShare(o Options, ev *orb8v1.Event, s *orb8v1.AcceleratorSample, sh *orb8v1.AcceleratorShare) string {
	d, v := s.GetDevice(), sh.GetValues()
	words := []string{o.stamp(ev.GetTimeNs()), "gpu"}
	if o.Nodes {
		words = append(words, "node="+word(ev.GetNodeName()))
	}
	words = append(words, "index="+word(d.GetIndex()), "id="+word(d.GetId()), "workload="+word(workloadName(sh.GetWorkload())))
	for _, name := range []string{
		"utilization_ratio", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio", "memory_used_bytes", "power_watts",
	} {
		if m := v[name]; m != nil {
			words = append(words, fmt.Sprintf("%s=%g", name, m.GetValue()))
		}
	}
	if s.GetLost() {
		words = append(words, "lost=true")
	}
	if v := s.GetHealth().GetVerdict(); v != "" && v != "ok" {
		words = append(words, "health="+word(v))
	}
	if sh.GetIdle() != "" {
		words = append(words, "idle="+word(sh.GetIdle()))
	}
	for _, e := range s.GetErrors() {
		words = append(words, fmt.Sprintf("xid=%d", e.GetCode()))
	}
	return strings.Join(words, " ")
}
