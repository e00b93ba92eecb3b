// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/metrics"
	"github.com/Ignoramuss/orb8/internal/agent/stream"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// healthOf sums the probes up: whether any runs, and what is wrong with those
// that do not although they should.
func healthOf(all []probe.Status, cfg *config.Config) (state orb8v1.NodeState, message string) {
	running := false
	var wrong []string
	for _, s := range all {
		switch {
		case s.Unreadable():
			// It may see all and nobody hears of it.
			wrong = append(wrong, fmt.Sprintf("%s cannot be read: %s", s.Name, strings.Join(s.Degraded, "; ")))
			running = running || !s.Helper
		case s.State == probe.StateRunning:
			running = running || !s.Helper
		case s.Disabled:
		case cfg.Mode(s.Name) != config.ModeOff:
			wrong = append(wrong, describe(s))
		}
	}
	message = strings.Join(wrong, "; ")
	switch {
	case !running && message == "":
		return orb8v1.NodeState_NODE_STATE_UNAVAILABLE, "no probe runs: all are turned off"
	case !running:
		return orb8v1.NodeState_NODE_STATE_UNAVAILABLE, "no probe runs: " + message
	case message != "":
		return orb8v1.NodeState_NODE_STATE_DEGRADED, message
	}
	return orb8v1.NodeState_NODE_STATE_CONNECTED, ""
}

func describe(s probe.Status) string {
	d := fmt.Sprintf("%s is in state %s: %s", s.Name, s.State, s.Reason)
	if s.Remedy != "" {
		d += " (" + s.Remedy + ")"
	}
	return d
}

// status is the answer to GetStatus.
func (a *Agent) status() *orb8v1.AgentStatus {
	cfg, probes := a.Config(), a.manager.Status()
	state, message := a.nodeHealth(probes)
	return &orb8v1.AgentStatus{
		NodeName: a.node, Version: a.deps.Version,
		Healthy: state != orb8v1.NodeState_NODE_STATE_UNAVAILABLE, HealthMessage: message,
		EventsProcessed: a.processed.Load(), EventsDropped: a.losses.Dropped(),
		ActiveFlows:   uint32(a.table.Len()),
		UptimeSeconds: int64(time.Since(a.started).Seconds()),
		Probes:        append(probesPB(probes), a.traces.Status()), Losses: lossesPB(a.losses),
		KernelRelease: a.deps.KernelRelease, CgroupRoot: a.deps.CgroupRoot,
		MaxFlows: uint32(cfg.MaxFlows), IntervalNs: int64(a.interval()),
		Subscribers: uint32(a.hub.Subscribers()),
		StartedNs:   a.started.UnixNano(),
		PodsTracked: uint32(a.pods()), Kubernetes: a.kubernetes(),
		Accelerators: a.acceleratorStatus(), Rules: a.ruleStatus(),
		Cost: a.costs.status(time.Now()),
	}
}

// pods is how many pods of this node are known.
func (a *Agent) pods() int {
	if a.deps.Cluster == nil {
		return 0
	}
	return a.deps.Cluster.Status().Pods
}

func (a *Agent) kubernetes() *orb8v1.KubernetesStatus {
	if a.deps.Cluster == nil {
		return nil
	}
	s := a.deps.Cluster.Status()
	return &orb8v1.KubernetesStatus{
		Enabled: true, Synced: s.Synced, Degraded: s.Degraded,
		PeerPods: uint32(s.Peers), Services: uint32(s.Services), Nodes: uint32(s.Nodes),
		WaitingRecords: uint32(a.names.Waiting()),
	}
}

// nodeHealth is that of the probes, and of what is known of the cluster.
func (a *Agent) nodeHealth(probes []probe.Status) (state orb8v1.NodeState, message string) {
	state, message = healthOf(probes, a.Config())
	all := []string{message, a.deps.Resolver.Degraded(), a.lacksAccelerators()}
	if a.deps.Cluster != nil {
		all = append(all, a.deps.Cluster.Status().Degraded)
	}
	for _, s := range a.nameless() {
		all = append(all, s.GetReason()+remedyOf(s))
	}
	all = slices.DeleteFunc(all, func(s string) bool { return s == "" })
	if len(all) > 0 && state == orb8v1.NodeState_NODE_STATE_CONNECTED {
		state = orb8v1.NodeState_NODE_STATE_DEGRADED
	}
	return state, strings.Join(all, "; ")
}

func remedyOf(s *orb8v1.AcceleratorStatus) string {
	if s.GetRemedy() == "" {
		return ""
	}
	return " (" + s.GetRemedy() + ")"
}

// stalledAfter is how long after a pass was due the sampler counts as stuck: then the
// process is better started anew.
const stalledAfter = time.Minute

// liveness is nil while passes over the probes come to their end, and at first. Steps of
// the wall clock do not matter to it.
func (a *Agent) liveness() error {
	since := time.Since(a.started) - time.Duration(a.lastPass.Load())
	if since > a.Config().Interval+stalledAfter {
		return fmt.Errorf("the last pass over the probes ended %v ago", since.Round(time.Second))
	}
	return nil
}

// readiness is nil once the probes have been started and while one of them runs.
func (a *Agent) readiness() error {
	if !a.isReady() {
		return errors.New("starting")
	}
	if state, message := healthOf(a.manager.Status(), a.Config()); state == orb8v1.NodeState_NODE_STATE_UNAVAILABLE {
		return errors.New(message)
	}
	return nil
}

// facts is what the metrics say of the agent.
func (a *Agent) facts() metrics.Facts {
	cfg := a.Config()
	var cluster *kube.Status
	if a.deps.Cluster != nil {
		s := a.deps.Cluster.Status()
		cluster = &s
	}
	var messages dns.Counts
	if a.messages != nil {
		messages = a.messages()
	}
	return metrics.Facts{
		Messages: messages,
		Version:  a.deps.Version, Node: a.node, Kernel: a.deps.KernelRelease,
		Interval: a.interval(),
		Events:   a.processed.Load(), Panics: a.panics.Load(),
		Reloads: a.reloads.Load(), ReloadsFailed: a.failedReloads.Load(),
		Subscribers: a.hub.Subscribers(), Traces: a.traces.Running(),
		Flows: a.table.Len(), MaxFlows: cfg.MaxFlows,
		History: a.lanes.Flows.Kept(), MaxHistory: cfg.History,
		Probes:      a.manager.Status(),
		IncludeSelf: cfg.IncludeSelf,
		Waiting:     a.names.Waiting(), Cluster: cluster,
		GPUs: a.gpuFacts(time.Now()),
	}
}

// nodeStatus is the state of this node for streams.
func (a *Agent) nodeStatus() *orb8v1.NodeStatus {
	probes := a.manager.Status()
	state, message := a.nodeHealth(probes)
	return &orb8v1.NodeStatus{
		NodeName: a.node, State: state, Message: message, Version: a.deps.Version,
		Probes: probesPB(probes), StartedNs: a.started.UnixNano(),
	}
}

func (a *Agent) nodeEvent() *orb8v1.Event {
	return a.event(&orb8v1.Event{Event: &orb8v1.Event_NodeStatus{NodeStatus: a.nodeStatus()}})
}

func (a *Agent) lostEvent(s loss.Stage, n uint64) *orb8v1.Event {
	lost := &orb8v1.LostEvents{Stage: s.String(), Count: n}
	return a.event(&orb8v1.Event{Event: &orb8v1.Event_LostEvents{LostEvents: lost}})
}

// event dates an event of this node.
func (a *Agent) event(e *orb8v1.Event) *orb8v1.Event {
	e.TimeNs, e.NodeName = time.Now().UnixNano(), a.node
	return e
}

// watch tells streams and the health service when the node's state changes, and
// streams when something was lost that concerns all of them.
type watch struct {
	agent *Agent

	mu     sync.Mutex
	status *orb8v1.NodeStatus
	lost   map[loss.Stage]uint64
	swept  time.Time
	// most is how many flows there were since memory was given back.
	most int
}

func newWatch(a *Agent) *watch {
	return &watch{agent: a, lost: make(map[loss.Stage]uint64)}
}

// look compares with the last look.
func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.agent.nodeStatus()
	if !proto.Equal(now, w.status) {
		w.status = now
		setHealth(w.agent.health, now.State != orb8v1.NodeState_NODE_STATE_UNAVAILABLE)
		w.agent.hub.Notify(w.agent.nodeEvent(), func(s *hub.Subscription) bool { return stream.InterestOf(s).Status() })
	}
	for _, s := range loss.Stages() {
		n := w.agent.losses.Get(s) - w.lost[s]
		if n == 0 || !concernsAll(s) {
			continue
		}
		w.lost[s] += n
		w.agent.hub.Notify(w.agent.lostEvent(s, n), func(s *hub.Subscription) bool { return stream.InterestOf(s).Losses() })
	}
}

// ofOneStream are the stages at which only one stream loses, which is told to that stream.
var ofOneStream = []loss.Stage{
	loss.SubscriberSlow, loss.ResumeGap, loss.SyscallRingFull, loss.SyscallLimited, loss.SyscallPendingFull, loss.SyscallUncounted,
}

// concernsAll is false for what loses no events and for what only one stream has lost.
func concernsAll(s loss.Stage) bool { return !s.Harmless() && !slices.Contains(ofOneStream, s) }

// manyFlows is from how many flows on their memory is worth an extra collection.
const manyFlows = 10_000

// giveBack returns memory to the system after a burst of flows has gone: the collector
// would take minutes to notice, as little is allocated then.
func (w *watch) giveBack(flows int) {
	w.most = max(w.most, flows)
	if w.most >= manyFlows && flows < w.most/4 {
		w.most = flows
		if flows > manyFlows/10 { // and once more when these have gone
			w.most = manyFlows
		}
		debug.FreeOSMemory()
	}
}

// sweep forgets, every few seconds, what is long gone.
func (w *watch) sweep(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.swept) < sweepEvery {
		return
	}
	w.swept = now
	w.giveBack(w.agent.table.Len())
	w.agent.costs.look(now)
	keep := w.agent.Config().MetricsKeep
	w.agent.deps.Resolver.Sweep(now)
	w.agent.names.Sweep(now)
	w.agent.processes.Sweep(now)
	w.agent.dnsNames.Sweep(w.agent.deps.Clock.Now())
	if w.agent.accel != nil {
		w.agent.accel.ledger.Sweep(now, keep)
	}
	w.agent.metrics.Sweep(w.agent.deps.Clock.Now(), keep, w.agent.deps.Resolver.Alive)
}
