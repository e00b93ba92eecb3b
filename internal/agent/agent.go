// SPDX-License-Identifier: Apache-2.0

// Package agent is the node agent: it runs the probes, keeps the flow table and
// serves what is in it and what happens to it over gRPC and as metrics. It knows
// the probes only by their interface; the list of them is in package host.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/Ignoramuss/orb8/internal/accel/holders"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/metrics"
	"github.com/Ignoramuss/orb8/internal/agent/stream"
	"github.com/Ignoramuss/orb8/internal/agent/tracing"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/kind/queries"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/naming"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// collectGap is the least time between the beginnings of two passes.
	collectGap = config.MinInterval
	// followInterval is the longest interval while somebody follows.
	followInterval = time.Second
	// flushEvery is how often records that wait for a name are looked at.
	flushEvery = 100 * time.Millisecond
	// sweepEvery is how often what is gone is looked for.
	sweepEvery = 5 * time.Second
	// drainTime is how long calls may take to end when the agent stops. With
	// the probes' last pass, stopping takes less than 5 s.
	drainTime = 4 * time.Second
)

// Resolver names workloads, see workload.Resolver. The agent does not close it.
type Resolver interface {
	naming.Resolver
	// Sweep forgets cgroups that are long gone.
	Sweep(now time.Time)
	// Alive reports whether a cgroup exists.
	Alive(cgroupID uint64) bool
	// Owns reports whether a cgroup is one of this node: other nodes may share the kernel.
	Owns(cgroupID uint64) bool
	// Degraded says in a sentence why names are worse than they could be; empty
	// if they are not.
	Degraded() string
	// Cgroups returns all cgroups of this node that are there now.
	Cgroups() map[uint64]*workload.Identity
	// Awaits reports whether id may soon have a pod's name.
	Awaits(id *workload.Identity) bool
}

// Cluster is what the agent knows of Kubernetes, see kube.Cluster.
type Cluster interface {
	// Run watches the API server until ctx is done.
	Run(ctx context.Context) error
	Status() kube.Status
	// Changed receives after pods became known.
	Changed() <-chan struct{}
	// Images returns what a container of this node may be made of.
	Images(containerID, podUID string) []kube.Image
	// Tell has an Event of a pod written, Untold is how many could not be.
	Tell(*kube.PodEvent)
	Untold() uint64
}

// Clock is that by which flows are ordered and grow old, see probe.Clock: it never
// jumps. Correction is what to add to its times for those of the wall clock, which
// everybody outside the agent has.
type Clock interface {
	Now() time.Time
	Correction() time.Duration
}

type wallClock struct{}

func (wallClock) Now() time.Time            { return time.Now() }
func (wallClock) Correction() time.Duration { return 0 }

// Sink is where probes deliver, and what they may need of the agent.
type Sink struct {
	// Apply takes a reading. It does not keep the sample.
	Apply func(*flow.Sample)
	// Query takes what came of a DNS query. It does not keep the record.
	Query func(*dns.Record)
	// Process takes what happened to a process, in the order in which it happened. It does
	// not keep the event.
	Process func(*process.Event)
	// Made is told of a new cgroup. It does not wait.
	Made func(cgroup uint64)
	// ProcessesRead is told up to when all that happened to processes has been delivered,
	// in Unix nanoseconds; 0 if nobody tells any more.
	ProcessesRead func(until int64)
	// Messages is told how to count DNS messages.
	Messages func(func() dns.Counts)
	Losses   *loss.Counters
	Config   config.Config
	Log      *slog.Logger
}

// Deps is what an agent is made of and does not make itself.
type Deps struct {
	// Version of this build.
	Version string
	// KernelRelease and CgroupRoot are shown in the status.
	KernelRelease, CgroupRoot string
	Resolver                  Resolver
	// Cluster is nil outside Kubernetes.
	Cluster Cluster
	// Allow says whether the holder of a token may get a path of the metrics, see
	// kube.Reviews; nil outside Kubernetes.
	Allow func(ctx context.Context, token, path string) error
	// Accelerators makes what reads them; nil to read none.
	Accelerators Accelerators
	// Kubelet tells which pods hold accelerators; nil outside Kubernetes.
	Kubelet *holders.Kubelet
	// HiddenPIDs: the processes on accelerators cannot be named, since this process
	// does not see those of the host.
	HiddenPIDs bool
	// Tracer makes what traces system calls, which hands each to a function that keeps
	// it; nil if none can.
	Tracer func(*loss.Counters, func(*calls.Record)) tracing.Tracer
	// Clock is that of the probes' times; nil for the wall clock.
	Clock Clock
	// Running reports whether a process has not ended; nil if that cannot be told.
	Running func(process.ID) bool
	// IsSelf recognises orb8's own traffic; nil if there is none.
	IsSelf func(*record.Header) bool
	// Probes returns a manager with every probe added, none started.
	Probes func(Sink) *probe.Manager
	// Listener, if set, serves gRPC beside Config.Listen: the in-memory listener
	// of a command that runs the agent within its own process.
	Listener net.Listener
	// RequireProbe makes Run fail, with each probe's reason, if no probe runs.
	// Without it the agent stays up and says so.
	RequireProbe bool
	// Helpers are probes that serve others here, and alone are no probe that runs.
	Helpers []string
	// LogLevel is that of the logger, which a reload changes; may be nil.
	LogLevel *slog.LevelVar
	// Reload reads the configuration again on SIGHUP; nil to leave SIGHUP alone.
	Reload func() (config.Config, error)
}

// Agent is one node agent. Use New.
type Agent struct {
	deps Deps
	log  *slog.Logger
	node string
	cfg  atomic.Pointer[config.Config]

	losses    *loss.Counters
	table     *flow.Table
	names     *naming.Stage
	flows     *naming.Lane[flow.Record]
	asked     *naming.Lane[dns.Record]
	processes *process.Table
	steps     *naming.Lane[process.Record]
	rules     *anomaly.Engine
	fired     map[string]*atomic.Uint64 // by the rule's name; not changed after New
	untold    uint64                    // Events of alerts, as last counted; of the sampler
	// commands stands for all that is in no container and no unit, in metrics of
	// processes: there may be any number of names.
	commands  *workload.Identity
	dnsNames  *queries.Names
	messages  func() dns.Counts // nil while nobody counts those of DNS
	manager   *probe.Manager
	hub       *hub.Hub
	streams   *stream.Kinds
	lanes     *stream.Lanes // of streams
	traces    *tracing.Traces
	metrics   *metrics.Workloads
	collector *collector
	accel     *accelState
	watch     *watch

	grpc   *grpc.Server
	health *health.Server
	http   *http.Server

	started                time.Time
	costs                  *costs
	ready                  chan struct{} // closed once the probes have been started
	processed, panics      atomic.Uint64
	lastPass               atomic.Int64 // when it ended: nanoseconds since started
	reloads, failedReloads atomic.Uint64
	reloaded               chan struct{}

	// queries has a place for each answer of all flows that is kept at a time.
	queries *semaphore.Weighted
}

// New returns an agent that has not started anything yet.
func New(cfg config.Config, deps Deps, log *slog.Logger) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	node, err := NodeName(cfg.NodeName)
	if err != nil {
		return nil, err
	}
	if deps.Clock == nil {
		deps.Clock = wallClock{}
	}
	a := &Agent{
		deps: deps, log: log, node: node, started: time.Now(), costs: newCosts(time.Now()),
		losses:   new(loss.Counters),
		queries:  semaphore.NewWeighted(maxQueries),
		ready:    make(chan struct{}),
		reloaded: make(chan struct{}, 1),
	}
	a.cfg.Store(&cfg)
	a.hub = hub.New(a.losses)
	a.streams = stream.New(a.hub, cfg.History, node, a.acceleratorEvent)
	a.lanes = &a.streams.Lanes
	a.metrics = metrics.NewWorkloads(cfg.MetricsPod, cfg.MetricsMaxSeries, a.losses)
	a.table = flow.NewTable(flow.Config{
		MaxFlows: cfg.MaxFlows, IdleTimeout: cfg.IdleTimeout, Losses: a.losses,
		RTTEvery: func() time.Duration { return a.Config().Interval },
	}, func(r *flow.Record) { a.flows.Submit(r) })
	a.names = naming.New(naming.Config{
		Resolver: deps.Resolver, IsSelf: deps.IsSelf, Awaits: awaits(deps), Executable: a.executable, Losses: a.losses,
		Correction: deps.Clock.Correction,
	})
	a.flows = naming.NewLane(a.names, func(r *flow.Record) *record.Header { return &r.Header }, a.record, a.table.Named)
	a.dnsNames = queries.NewNames(a.losses)
	a.asked = naming.NewLane(a.names, func(r *dns.Record) *record.Header { return &r.Header }, a.recordQuery, nil)
	if err := a.keepProcesses(&cfg); err != nil {
		return nil, err
	}
	a.traces = a.newTraces()
	a.manager = deps.Probes(Sink{
		Apply: a.apply, Query: a.query, Process: a.process, Made: a.traces.Learn, ProcessesRead: a.processes.Advance,
		Messages: func(f func() dns.Counts) { a.messages = f }, Losses: a.losses, Config: cfg, Log: log,
	})
	a.collector = newCollector(a.collect)
	a.accel = a.newAccelerators(deps.Accelerators)
	a.watch = newWatch(a)
	a.grpc, a.health = newGRPCServer(&server{agent: a}, log, &a.panics)
	var dcgm prometheus.Collector
	if cfg.MetricsDCGM {
		dcgm = metrics.NewDCGM(node, func() *metrics.GPUFacts { return a.gpuFacts(time.Now()) })
	}
	guard, err := a.newGuard()
	if err != nil {
		return nil, err
	}
	a.http = metrics.NewServer(metrics.NewExporter(a.metrics, a.losses, a.facts, a.eachRow), dcgm, guard, a.liveness, a.readiness, log)
	if cfg.TLS() {
		if a.http.TLSConfig, err = newTLS(cfg.MetricsTLSCert, cfg.MetricsTLSKey, log); err != nil {
			return nil, err
		}
	}
	setHealth(a.health, false)
	return a, nil
}

// awaits is nil where no names are to come.
func awaits(deps Deps) func(*workload.Identity) bool {
	if deps.Cluster == nil {
		return nil
	}
	return deps.Resolver.Awaits
}

// NodeName is the name of this node: as configured, or else the name of the host.
func NodeName(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the node's name (or say --node-name): %w", err)
	}
	return name, nil
}

// Ready is closed when the probes have been started and the API is served.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

func (a *Agent) isReady() bool {
	select {
	case <-a.ready:
		return true
	default:
		return false
	}
}

// Config returns the configuration in force, which is never changed.
func (a *Agent) Config() *config.Config { return a.cfg.Load() }

// apply takes a reading from a probe.
func (a *Agent) apply(s *flow.Sample) {
	a.processed.Add(1)
	if s.Loopback && !a.Config().Loopback {
		return
	}
	a.table.Apply(s)
}

// record takes what has happened to flows, one record at a time.
func (a *Agent) record(r *flow.Record) {
	if measured, shown := a.takes(&r.Header); measured {
		a.metrics.Observe(r)
	} else if !shown {
		return
	}
	publish(a, a.lanes.Flows, &r.Header, r)
}

// query takes what came of a DNS query from a probe.
func (a *Agent) query(r *dns.Record) {
	a.processed.Add(1)
	a.asked.Submit(r)
}

// recordQuery takes DNS queries, one at a time.
func (a *Agent) recordQuery(r *dns.Record) {
	if measured, shown := a.takes(&r.Header); measured {
		metrics.Measure(a.metrics, &r.Header, r, queries.Measure)
		a.dnsNames.Add(r)
	} else if !shown {
		return
	}
	publish(a, a.lanes.Queries, &r.Header, r)
}

// takes reports whether a record counts in metrics, and whether it is shown to those who
// ask for it.
func (a *Agent) takes(h *record.Header) (measured, shown bool) {
	cfg := a.Config()
	shown = !h.Loopback || cfg.Loopback
	measured = shown && (!h.Self || cfg.IncludeSelf)
	// The past is kept for others' records.
	shown = measured || shown && a.hub.Any(func(s *hub.Subscription) bool { return stream.InterestOf(s).Self })
	return measured, shown
}

// publish hands a record to its kind's lane, its times by the wall clock. h is its header,
// which is as before in the end.
func publish[T any](a *Agent, l *hub.Lane[T], h *record.Header, r *T) {
	d := a.deps.Clock.Correction()
	h.Shift(d)
	l.Publish(r)
	h.Shift(-d)
}

func (a *Agent) collect() {
	begin, before := time.Now(), a.deps.Clock.Now()
	a.manager.Collect()
	a.metrics.ObservePass(time.Since(begin))
	a.advance(before)
}

// clockGrain is how far the kernel's clocks may be behind that by which a reading began:
// some of them move with its tick.
const clockGrain = 20 * time.Millisecond

// advance tells that the kernel has been read to a point in time: nothing that is older is
// on its way, but for what waits for a name.
func (a *Agent) advance(read time.Time) {
	low := read.Add(-clockGrain).UnixNano()
	if oldest, ok := a.names.Oldest(); ok {
		low = min(low, oldest)
	}
	a.hub.Advance(low + int64(a.deps.Clock.Correction()))
}

// rowsAtOnce is for how many rows the table is locked at a time.
const rowsAtOnce = 256

// eachRow calls f with a copy of each row of the table, most recently active first, its
// times by the wall clock. f must not keep it. Other things happen to the table meanwhile.
func (a *Agent) eachRow(f func(*flow.Record)) {
	a.eachOf(a.table.Keys(nil), f)
}

// eachOf is eachRow for some rows, in the order of their keys; of those that are still
// there.
func (a *Agent) eachOf(keys []flow.Key, f func(*flow.Record)) {
	correction, loopback := a.deps.Clock.Correction(), a.Config().Loopback
	rows := make([]flow.Record, 0, min(len(keys), rowsAtOnce))
	for some := range slices.Chunk(keys, rowsAtOnce) {
		rows = a.table.Rows(some, rows[:0])
		for i := range rows {
			r := &rows[i]
			if a.names.Refresh(&r.Header) {
				a.table.Named(r)
			}
			// Loopback flows are there only for a while after a reload has
			// turned them off.
			if r.Loopback && !loopback {
				continue
			}
			if correction != 0 {
				r.Shift(correction)
			}
			f(r)
		}
	}
}

// Run listens, starts the probes and serves until ctx is done; then it reads the
// kernel once more, ends all streams and detaches everything, within 5 s. It
// returns nil after an orderly stop. An Agent runs once.
func (a *Agent) Run(ctx context.Context) error {
	ls, err := a.listen(ctx)
	if err != nil {
		return err
	}
	err = a.serve(ctx, ls)
	return errors.Join(err, a.manager.Close())
}
