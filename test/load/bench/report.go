// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"time"
)

//go:embed method.md
var method string

//go:embed remarks.md
var remarks string

// report is all that was measured. What was not is empty.
type report struct {
	command  string
	effort   effort
	compared []figures // one of each run
	repeated int
	costs    [][]cost
	overhead []overhead

	idleConnections int
	idle, followed  []float64 // percent of a core
	flows           []flowMemory
	passes          []passTimes
	dns             []dnsLoad
	processes       []figures
	starts          []startLoad
	calls           []callLoad
	nodes           []nodeLoad
}

func (r *report) markdown() string {
	var b strings.Builder
	b.WriteString("<!-- Made by \"make bench ARGS=--write-docs\"; do not edit. -->\n# Benchmarks\n\n")
	b.WriteString("What orb8 costs, measured on the machine below. Your machine's figures are other ones; the ratios should be near.\n\n")
	b.WriteString("## Targets\n\n")
	b.WriteString("| what | target | measured, each run | result |\n|---|---|---|---|\n")
	for _, res := range r.results() {
		b.WriteString(res.row())
	}
	r.writeCompared(&b)
	r.writeCosts(&b)
	r.writeAgent(&b)
	r.writeDNS(&b)
	r.writeStarts(&b)
	r.writeCalls(&b)
	r.writeNode(&b)
	b.WriteString("\n" + method)
	r.writeMachine(&b)
	if strings.TrimSpace(remarks) != "" {
		b.WriteString("\n" + remarks)
	}
	return b.String()
}

func (r *report) ratios(load, arm string) []float64 { return valuesOf(r.compared, load, arm) }

func valuesOf(runs []figures, load, arm string) []float64 {
	var all []float64
	for _, f := range runs {
		all = append(all, f[load][arm].Value)
	}
	return all
}

// controlSpread is how far from 1 comparing nothing with nothing can end up.
func (r *report) controlSpread(load string) float64 {
	var s float64
	for _, f := range r.compared {
		s = max(s, f[load][armControl].spread())
	}
	return s
}

func (r *report) results() []result {
	atLeast := func(limit float64) target { return target{limit: limit, atLeast: true} }
	all := []result{
		{
			what: tcpPingPong + ", `--packet=off`", note: "1 less the control's spread",
			target: atLeast(1 - r.controlSpread(tcpPingPong)), values: r.ratios(tcpPingPong, armTCP),
		},
		{what: tcpPingPong + ", everything on", target: atLeast(0.96), values: r.ratios(tcpPingPong, armAll)},
		{what: connectClose + ", everything on", target: atLeast(0.95), values: r.ratios(connectClose, armAll)},
		{what: tcpBulk + ", everything on", target: atLeast(0.98), values: r.ratios(tcpBulk, armAll)},
		{what: udpPingPong + ", everything on", target: atLeast(0.95), values: r.ratios(udpPingPong, armAll)},
		{what: dnsQueries + ", added beside the packet probe", target: target{limit: 500, format: "%.0f ns"}, values: r.dnsAdded()},
		{what: startProg + ", exec probe alone", target: atLeast(0.97), values: valuesOf(r.processes, startProg, armExec)},
		{what: callGetpid + ", added by the exec probe alone", target: target{limit: 3, format: "%+.1f ns"}, values: r.callAdded()},
		{what: "sock_ops program, per run", target: target{limit: 400, format: "%.0f ns"}, values: r.opsProgram()},
		{
			what:   fmt.Sprintf("agent, share of a core with %d idle connections", r.idleConnections),
			target: target{limit: 0.5, format: "%.2f %%"}, values: r.idle,
		},
		{
			what:   fmt.Sprintf("agent and programs under a mixed load, share of a node of %d cores", nodeCores),
			target: target{limit: 1, format: "%.2f %%"}, values: r.nodeShare(),
		},
		{what: "agent, resident at 10,000 flows", target: target{limit: 64, format: "%.1f MiB"}, values: r.resident()},
		{what: "one pass over 10,000 sockets, all changed", target: target{limit: 10, format: "%.2f ms"}, values: r.pass(func(t passTimes) []float64 { return t.changed })},
		{what: "one pass over 10,000 sockets, none changed", target: target{limit: 10, format: "%.2f ms"}, values: r.pass(func(t passTimes) []float64 { return t.unchanged })},
	}
	return all
}

func (r *report) opsProgram() []float64 {
	var all []float64
	for _, run := range r.costs {
		for _, c := range run {
			if c.program == progOps && c.load == connectClose && c.arm == armAll {
				all = append(all, c.perRun)
			}
		}
	}
	return all
}

func (r *report) resident() []float64 {
	var all []float64
	for _, f := range r.flows {
		all = append(all, f.rss)
	}
	return all
}

func (r *report) pass(of func(passTimes) []float64) []float64 {
	var all []float64
	for _, t := range r.passes {
		all = append(all, quantile(of(t), 0.5))
	}
	return all
}

func (r *report) writeCompared(b *strings.Builder) {
	if len(r.compared) == 0 {
		return
	}
	b.WriteString("\n## With and without orb8\n\n")
	b.WriteString("Throughput relative to a host without orb8, of each run, with the interval that 95 % of redrawn rounds lie in, and the time that orb8 adds to one operation. `--packet=off` is the tcp probe alone, `tracing` the same where no cgroup2 is mounted, so that tracing programs tell of connections. `fallback` is the packet probe counting TCP too, where sockets cannot be read. A DNS query is one from a fresh port, with its answer; `--dns=off` has the packet probe count it and not read it. `empty programs` has programs that do nothing at the packet probe's two hooks: the kernel's own price of hooks that see each packet.\n\n")
	b.WriteString("| workload | arm | ratio to none | added per operation |\n|---|---|---|---|\n")
	for _, load := range []string{tcpPingPong, connectClose, tcpBulk, udpPingPong, dnsQueries} {
		for _, arm := range []string{armNone, armControl, armTCP, armTracing, armAll, armNoDNS, armEmpty, armFallback} {
			writeArm(b, r.compared, load, arm)
		}
	}
	for _, load := range []string{tcpPingPong, connectClose, tcpBulk, udpPingPong, dnsQueries} {
		fmt.Fprintf(b, "\nThe control's spread, %s: ± %.3f.", load, r.controlSpread(load))
	}
	fmt.Fprintf(b, "\n\nVisits made again because another orb8 was loaded meanwhile: %d.\n", r.repeated)
}

func writeArm(b *strings.Builder, runs []figures, load, arm string) {
	var ratios, added []string
	for _, f := range runs {
		v := f[load][arm]
		if arm == armNone {
			ratios = append(ratios, "1")
			added = append(added, fmt.Sprintf("%.0f ns in all", v.Added))
			continue
		}
		ratios = append(ratios, fmt.Sprintf("%.3f (%.3f to %.3f)", v.Value, v.Low, v.High))
		added = append(added, fmt.Sprintf("%+.0f ns", v.Added))
	}
	fmt.Fprintf(b, "| %s | %s | %s | %s |\n", load, arm, strings.Join(ratios, ", "), strings.Join(added, ", "))
}

func (r *report) writeCosts(b *strings.Builder) {
	if len(r.costs) == 0 {
		return
	}
	b.WriteString("\n## BPF programs\n\n")
	b.WriteString("By the kernel's own statistics, which were off in all other measurements.")
	var within, added []string
	for _, o := range r.overhead {
		within = append(within, fmt.Sprintf("%.0f", o.within))
		added = append(added, fmt.Sprintf("%.0f", o.added))
	}
	fmt.Fprintf(b, " They show %s ns for a program that does nothing, and make each run %s ns longer, measured as UDP ping-pong with and without them.\n\n", strings.Join(within, " and "), strings.Join(added, " and "))
	b.WriteString("| program | workload | arm | runs per operation | per run |\n|---|---|---|---|---|\n")
	first := slices.Clone(r.costs[0])
	slices.SortFunc(first, func(x, y cost) int {
		return cmp.Or(cmp.Compare(x.program, y.program), cmp.Compare(x.load, y.load), cmp.Compare(x.arm, y.arm))
	})
	for _, c := range first {
		var ns []string
		for _, run := range r.costs {
			if i := slices.IndexFunc(run, c.sameAs); i >= 0 {
				ns = append(ns, fmt.Sprintf("%.0f ns", run[i].perRun))
			}
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %.3g | %s |\n", c.program, c.load, c.arm, c.perOp, strings.Join(ns, ", "))
	}
}

func (c cost) sameAs(o cost) bool {
	return c.program == o.program && c.load == o.load && c.arm == o.arm
}

func (r *report) writeAgent(b *strings.Builder) {
	if len(r.followed) == 0 && len(r.passes) == 0 {
		return
	}
	b.WriteString("\n## Agent\n\n| what | each run |\n|---|---|\n")
	line := func(what, format string, values []float64) {
		if len(values) == 0 {
			return
		}
		printed := make([]string, len(values))
		for i, v := range values {
			printed[i] = fmt.Sprintf(format, v)
		}
		fmt.Fprintf(b, "| %s | %s |\n", what, strings.Join(printed, ", "))
	}
	line(fmt.Sprintf("CPU with %d idle connections, a pass every 5 s", r.idleConnections), "%.2f %% of a core", r.idle)
	line(fmt.Sprintf("CPU with %d idle connections, a pass every second, as while somebody follows", r.idleConnections), "%.2f %% of a core", r.followed)
	var anon, peak, flows []float64
	for _, f := range r.flows {
		anon, peak, flows = append(anon, f.anon), append(peak, f.peak), append(flows, float64(f.flows))
	}
	line("flows in the table", "%.0f", flows)
	line("resident, at the most", "%.1f MiB", r.resident())
	line("of that not backed by the program's file", "%.1f MiB", anon)
	line("resident, peak (VmHWM)", "%.1f MiB", peak)
	for _, q := range []struct {
		name string
		q    float64
	}{{"median", 0.5}, {"longest", 1}} {
		var changed, unchanged []float64
		for _, t := range r.passes {
			changed, unchanged = append(changed, quantile(t.changed, q.q)), append(unchanged, quantile(t.unchanged, q.q))
		}
		line("pass over 10,000 sockets, all changed, "+q.name, "%.2f ms", changed)
		line("pass over 10,000 sockets, none changed, "+q.name, "%.2f ms", unchanged)
	}
}

func (r *report) writeMachine(b *strings.Builder) {
	fmt.Fprintf(b, "\n## Machine\n\n")
	for _, fact := range describeMachine() {
		fmt.Fprintf(b, "- %s\n", fact)
	}
	fmt.Fprintf(b, "- date: %s\n- command: `%s`\n", time.Now().Format(time.DateOnly), r.command)
	if len(r.compared) > 0 {
		fmt.Fprintf(b, "- %d runs of %d rounds with %d blocks of each workload and arm\n", len(r.compared), r.effort.rounds, r.effort.blocks)
	}
}
