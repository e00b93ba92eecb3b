// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command bench measures what orb8 costs: workloads with and without it, its
// BPF programs, its agent. See docs/benchmarks.md for the method. It needs root.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf/rlimit"
)

type options struct {
	quick  bool
	only   string
	binary string
	docs   string
}

func main() {
	if length := os.Getenv(callerEnv); length != "" {
		if err := call(length); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.BoolVar(&o.quick, "quick", false, "less than 20 s, for a first look: figures are rough")
	flag.StringVar(&o.only, "only", "", "only these parts, separated by commas: agent, dns, starts, calls, node, pass, compare, processes, cost")
	flag.StringVar(&o.binary, "orb8", "bin/orb8", "the `binary` whose agent is measured")
	flag.StringVar(&o.docs, "write-docs", "", "write the report to `file` too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("loading BPF programs needs root")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	if err := checkParts(o.only); err != nil {
		return err
	}
	r := newReport(o)
	for _, part := range []struct {
		name string
		run  func(context.Context, options, *report) error
	}{
		// The agent first, while this process may still use all cores: a child
		// inherits that.
		{"agent", measureAgent},
		{"dns", measureDNS},
		{"starts", measureStarts},
		{"calls", measureCalls},
		{"node", measureNode},
		{"pass,compare,processes,cost", measureProbes},
	} {
		if !wanted(o.only, part.name) {
			continue
		}
		if err := part.run(ctx, o, r); err != nil {
			return err
		}
	}
	text := r.markdown()
	fmt.Print(text)
	if o.docs != "" {
		return writeDocs(o.docs, text)
	}
	return nil
}

// byHand begins what no program writes of the documentation.
const byHand = "\n## Kubernetes\n"

// writeDocs replaces the report in a file, and leaves what follows it.
func writeDocs(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if i := bytes.Index(old, []byte(byHand)); i >= 0 {
		text += string(old[i:])
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func newReport(o options) *report {
	r := &report{
		command: "make bench", idleConnections: 1000,
		effort: effort{runs: 2, rounds: 40, blocks: 10},
	}
	if args := strings.TrimSpace(os.Getenv("BENCH_ARGS")); args != "" {
		r.command += " ARGS='" + args + "'"
	}
	if o.quick {
		r.effort = effort{runs: 1, rounds: 3, blocks: 4}
	}
	return r
}

const allParts = "agent,dns,starts,calls,node,pass,compare,processes,cost"

func checkParts(only string) error {
	for part := range strings.SplitSeq(only, ",") {
		if only != "" && !wanted(allParts, part) {
			return fmt.Errorf("--only: there is no part %q; there are %s", part, allParts)
		}
	}
	return nil
}

// wanted reports whether any of the parts is among those asked for.
func wanted(only, parts string) bool {
	if only == "" {
		return true
	}
	for part := range strings.SplitSeq(parts, ",") {
		if strings.Contains(","+only+",", ","+part+",") {
			return true
		}
	}
	return false
}

func measureAgent(ctx context.Context, o options, r *report) error {
	settle, length := 10*time.Second, 30*time.Second
	if o.quick {
		settle, length = 2*time.Second, 2*time.Second
	}
	for i := range r.effort.runs {
		if !o.quick { // the first pass comes after 5 s
			say("agent with %d idle connections, run %d", r.idleConnections, i+1)
			share, err := idleCPU(ctx, o.binary, r.idleConnections, settle, length)
			if err != nil {
				return err
			}
			r.idle = append(r.idle, share)
		}
		say("agent that is followed, run %d", i+1)
		share, err := idleCPU(ctx, o.binary, r.idleConnections, settle, length, "--interval", "1s")
		if err != nil {
			return err
		}
		r.followed = append(r.followed, share)
		say("agent with 10,000 flows, run %d", i+1)
		m, err := memoryAtFlows(ctx, o.binary, 10_000, length)
		if err != nil {
			return err
		}
		r.flows = append(r.flows, m)
	}
	return nil
}

func measureProbes(ctx context.Context, o options, r *report) error {
	b, err := newBench(r.effort)
	if err != nil {
		return err
	}
	defer b.close()
	for i := range r.effort.runs {
		if err := b.runOnce(ctx, o, r, i+1); err != nil {
			return err
		}
	}
	r.repeated = b.repeated
	return nil
}

func newBench(e effort) (*bench, error) {
	h, err := newHost()
	if err != nil {
		return nil, err
	}
	thread, err := newPinned()
	if err != nil {
		return nil, errors.Join(err, h.resolver.Close())
	}
	// Garbage is collected between visits.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(1 << 30)
	seed := uint64(time.Now().UnixNano())
	return &bench{host: h, thread: thread, effort: e, rng: rand.New(rand.NewPCG(seed, 0)), say: say}, nil
}

func (b *bench) close() {
	b.thread.close()
	_ = b.host.resolver.Close() // the process ends
}

func (b *bench) runOnce(ctx context.Context, o options, r *report, run int) error {
	if wanted(o.only, "pass") {
		say("passes over %d sockets, run %d", passSockets, run)
		t, err := b.measurePass(ctx, 5*b.effort.blocks)
		if err != nil {
			return err
		}
		r.passes = append(r.passes, t)
	}
	if wanted(o.only, "compare") {
		say("workloads with and without orb8, run %d", run)
		f, err := b.compareArms(ctx, newArms(), newTasks)
		if err != nil {
			return err
		}
		r.compared = append(r.compared, f)
	}
	if wanted(o.only, "processes") {
		say("system calls and programs with and without the exec probe, run %d", run)
		f, err := b.compareArms(ctx, processArms(), processTasks)
		if err != nil {
			return err
		}
		r.processes = append(r.processes, f)
	}
	if wanted(o.only, "cost") {
		say("BPF programs, run %d", run)
		c, over, err := b.measureCosts(ctx)
		if err != nil {
			return err
		}
		r.costs, r.overhead = append(r.costs, c), append(r.overhead, over)
	}
	return nil
}
