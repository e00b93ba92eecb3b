// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

const traceGPULong = `Watch accelerators: what each device does, and for whom, once a second.

The source is found as by 'orb8 trace network'; as root on Linux without an agent or
a cluster, this process reads the devices itself.

A line is one workload on one device. Where it has the device to itself the values
are the device's; where several share it, memory and UTIL are the driver's samples of
their processes, POWER is divided by those, and what cannot be divided is a dash. A
dash is never 0. UTIL is the part of the time in which anything ran, SM the mean part
of the multiprocessors that had work, TENSOR that of the time in which tensor cores
did, DRAM that of the memory's bandwidth. NOTE has errors (XID), idleness, who uses a
device that it does not hold, what is free, and why clocks are held back. docs/gpu.md
tells what is measured how.

With -o json every line is an orb8.v1.Event with an accelerator in it.`

const traceGPUExamples = `  sudo orb8 trace gpu                               # this host, without an agent
  orb8 trace gpu --namespace ml-training            # pods of a cluster, on all nodes
  orb8 trace gpu --process python --duration 1m
  orb8 trace gpu -o json | jq '.accelerator.values.power_watts.value'`

const gpusLong = `Show the accelerators: who uses each, how much, and since when it is idle.

The source and the columns are those of 'orb8 trace gpu'. Without an agent the devices
are read twice, a second apart.`

const gpusExamples = `  sudo orb8 gpus                    # this host, without an agent
  orb8 gpus -A                      # of a cluster, on all nodes
  orb8 gpus -o json | jq -r '.accelerator.device.model'`

// gpuFlags are those of orb8 gpus.
type gpuFlags struct {
	filters filterFlags
	source  sourceFlags
	output  outputFlags
}

func newTraceGPU(c *Config) *cobra.Command {
	return c.newTrace(&cobra.Command{
		Use: "gpu", Short: "Watch GPUs and other accelerators", Long: traceGPULong, Example: traceGPUExamples,
	}, traceKind{
		title:    "accelerators",
		kinds:    []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_ACCELERATOR},
		subjects: acceleratorFilters(),
		devices:  true, noTraffic: true,
		local: func(f *sourceFlags) { f.only = onlyGPU },
		request: func(r *orb8v1.ObserveRequest) {
			r.Snapshot = r.GetFollow() && r.GetSinceNs() == 0 && r.GetLast() == 0
		},
		about:   aboutAccelerators,
		lines:   func(w io.Writer, o render.Options) render.Live { return render.NewAccelerators(w, o) },
		summary: render.NewSampleSummary,
		of:      func(ev *orb8v1.Event) (loopback, ok bool) { return false, ev.GetAccelerator() != nil },
	})
}

// acceleratorFilters are the filters that make sense of devices.
func acceleratorFilters() []string {
	return []string{"namespace", "pod", "selector", "workload", "container", "process", "executable", "node"}
}

// aboutAccelerators says why some, or all, accelerators are not read. A process that reads
// them itself needs a moment to know.
func aboutAccelerators(ctx context.Context, src *source, all bool) ([]string, error) {
	if src.local {
		sleep(ctx, twoReadings)
		if err := src.greet(ctx, answerTimeout); err != nil {
			return nil, err
		}
	}
	return accelerators(src, all), nil
}

func newGPUs(c *Config) *cobra.Command {
	f := &gpuFlags{}
	cmd := &cobra.Command{
		Use: "gpus", Short: "Show the accelerators and who uses them", Long: gpusLong, Example: gpusExamples, GroupID: groupSee,
		Args: noArguments,
	}
	cmd.RunE = running(func(cmd *cobra.Command) error { return c.gpus(cmd, f) })
	filters, source, output := newFlagSet(), newFlagSet(), newFlagSet()
	f.filters.bind(filters, acceleratorFilters()...)
	f.source.bindSource(source)
	f.output.bind(output)
	f.output.bindQuiet(output)
	groupFlags(cmd, flagGroup{filtersTitle, filters}, flagGroup{"Source", source}, flagGroup{"Output", output})
	completeValues(cmd)
	return cmd
}

// gpus shows accelerators once.
func (c *Config) gpus(cmd *cobra.Command, f *gpuFlags) (err error) {
	options, err := f.output.options(c, c.Stdout)
	if err != nil {
		return err
	}
	f.source.interval, f.source.packet, f.source.only = time.Second, "off", onlyGPU
	if err := f.source.check(cmd); err != nil {
		return err
	}
	filters, err := f.filters.filters()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	f.source.cluster.nodes = f.filters.positive.GetNodes()
	src, err := c.open(ctx, &f.source)
	if err != nil {
		return unlessDone(ctx, err)
	}
	defer closing(src.close, &err)
	options.Nodes = src.many()
	lines, err := aboutAccelerators(ctx, src, !f.output.headless(options))
	if err != nil {
		return unlessDone(ctx, err)
	}
	for _, line := range lines {
		fmt.Fprintln(c.Stderr, line)
	}
	req := &orb8v1.ObserveRequest{
		Filters: filters, Snapshot: true,
		Kinds: []orb8v1.EventKind{
			orb8v1.EventKind_EVENT_KIND_ACCELERATOR, orb8v1.EventKind_EVENT_KIND_NODE_STATUS, orb8v1.EventKind_EVENT_KIND_LOST_EVENTS,
		},
	}
	stream, err := src.ask.Observe(ctx, req)
	if err != nil {
		return unlessDone(ctx, explain("read the accelerators", src.name, err))
	}
	return unlessDone(ctx, c.showGPUs(src, stream, options))
}

// twoReadings is how long a process that reads the devices itself needs until it
// knows what happens between two readings.
const twoReadings = 1500 * time.Millisecond

// accelerators says why some, or all, accelerators are not read. Without always it
// keeps to what can be mended.
func accelerators(src *source, always bool) []string {
	var said []render.Said
	for _, s := range src.statuses() {
		say := func(text string) { said = append(said, render.Said{Node: s.GetNodeName(), Text: text}) }
		devices := uint32(0)
		var absent []string
		for _, b := range s.GetAccelerators() {
			devices += b.GetDevices()
			text := fmt.Sprintf("%s is %s: %s", b.GetName(), b.GetState(), b.GetReason())
			switch {
			case b.GetState() == "running":
			case b.GetState() == "off" && b.GetRemedy() == "":
				absent = append(absent, b.GetReason())
			case b.GetRemedy() != "":
				say(text + " (" + b.GetRemedy() + ")")
			default:
				say(text)
			}
		}
		switch {
		case !always || devices > 0:
		case len(absent) > 0:
			say(strings.Join(absent, "; "))
		case len(s.GetAccelerators()) == 0:
			say("reads no accelerators: its agent is told not to (gpu: off), or is older")
		}
	}
	return render.Together(said, "node %s", "%d nodes")
}

// isWell reports whether an event only says that a node is there.
func isWell(ev *orb8v1.Event) bool {
	n := ev.GetNodeStatus()
	return n != nil && n.GetState() != orb8v1.NodeState_NODE_STATE_UNAVAILABLE
}

func (c *Config) showGPUs(src *source, stream events, options render.Options) error {
	var samples, away []*orb8v1.Event
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return explain("read the accelerators", src.name, err)
		}
		switch {
		case ev.GetAccelerator() != nil:
			samples = append(samples, ev)
		case ev.GetNodeStatus() != nil && !isWell(ev):
			away = append(away, ev)
		}
	}
	if err := render.GPUs(c.Stdout, options, time.Now(), samples); err != nil {
		return err
	}
	for _, line := range render.Away(options, away) {
		fmt.Fprintln(c.Stderr, line)
	}
	if len(samples) == 0 && options.Format != render.JSON {
		fmt.Fprintln(c.Stderr, "no accelerators")
	}
	return nil
}
