// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/metrics"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/kind/alerts"
	"github.com/Ignoramuss/orb8/internal/kind/processes"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/naming"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// heldEvery is how often the rules are asked for what they held back.
const heldEvery = time.Second

// keepProcesses makes what keeps processes and judges what they do.
func (a *Agent) keepProcesses(cfg *config.Config) error {
	redact, err := process.NewRedactor(cfg.ProcessRedact)
	if err != nil {
		return fmt.Errorf("configuration: process_redact: %w", err)
	}
	a.processes = process.NewTable(process.Config{Redact: redact.Redact, Alive: a.deps.Running, Losses: a.losses})
	a.steps = naming.NewLane(a.names, func(r *process.Record) *record.Header { return &r.Header }, a.recordStep, nil)
	a.commands = &workload.Identity{Kind: "Host", Name: "host"}
	a.fired = make(map[string]*atomic.Uint64)
	for _, r := range anomaly.Rules() {
		a.fired[r.Name] = new(atomic.Uint64)
	}
	a.rules, err = anomaly.New(anomaly.Config{
		Off: cfg.RulesOff, Exceptions: cfg.Exceptions, Container: a.container, Process: a.processes.Find,
		Images: a.images, Found: a.found, Losses: a.losses,
	})
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}

// reloadRules takes over which rules are off, and their exceptions; both are valid.
func (a *Agent) reloadRules(cfg *config.Config) {
	if err := a.rules.Reconfigure(cfg.RulesOff, cfg.Exceptions); err != nil {
		a.log.Error("take over rules", "err", err)
	}
}

// container returns the id of the container that a cgroup belongs to, empty if it belongs
// to none.
func (a *Agent) container(cgroup uint64) string {
	return a.deps.Resolver.Local(cgroup, 0, "", netip.Addr{}).ContainerID
}

// images are the references of each image that a workload's container may be made of.
func (a *Agent) images(w *workload.Identity) [][]string {
	if a.deps.Cluster == nil {
		return nil
	}
	var all [][]string
	for _, i := range a.deps.Cluster.Images(w.ContainerID, w.PodUID) {
		all = append(all, []string{i.Name, i.Digest})
	}
	return all
}

// process takes what happened to a process from a probe.
func (a *Agent) process(e *process.Event) {
	a.processed.Add(1)
	step := a.processes.Apply(e)
	if step == nil || !step.Told() && !anomaly.Judged(step) {
		return
	}
	r := process.NewRecord(step)
	if r.CgroupID = a.rules.Whose(step); a.deps.Resolver.Owns(r.CgroupID) { // else it is an ancestor at most
		a.steps.Submit(&r)
	}
}

// executable says what the process of a record ran.
func (a *Agent) executable(h *record.Header) (path string, soon bool) {
	return a.processes.Executable(process.Sighting{PID: h.PID, Comm: h.Comm.String(), First: h.First, Time: h.Time})
}

// recordStep takes what happened to processes, one at a time.
func (a *Agent) recordStep(r *process.Record) {
	if r.Step.Told() {
		if measured, _ := a.takes(&r.Header); measured {
			h := r.Header
			if h.Owner.Kind == workload.KindProcess {
				h.Owner = a.commands
			}
			metrics.Measure(a.metrics, &h, r, processes.Measure)
		}
		publish(a, a.lanes.Steps, &r.Header, r)
	}
	for _, alert := range a.rules.Check(r.Owner, r.Step) {
		a.alert(r, alert)
	}
}

// alert hands out what a rule found in the step that a record is of.
func (a *Agent) alert(r *process.Record, alert *anomaly.Alert) {
	out := anomaly.Record{Header: r.Header, Alert: alert}
	if to := alert.Remote; to.IsValid() && (out.Remote.IP() != to.Addr() || out.RemotePort != to.Port()) {
		out.Remote, out.RemotePort, out.Peer = record.AddrOf(to.Addr()), to.Port(), nil
	}
	publish(a, a.lanes.Alerts, &out.Header, &out)
	a.tellCluster(&out)
}

// tellCluster has Kubernetes keep an alert as an Event of its pod, if it is severe enough.
func (a *Agent) tellCluster(r *anomaly.Record) {
	least, w := a.Config().AlertSeverity(), r.Owner
	if least == 0 || r.Alert.Rule.Severity < least || a.deps.Cluster == nil || w.Pod == "" {
		return
	}
	a.deps.Cluster.Tell(&kube.PodEvent{
		Namespace: w.Namespace, Pod: w.Pod, UID: w.PodUID, Reason: camelCase(r.Alert.Rule.Name),
		Message: fmt.Sprintf("%s (%s, rule %s): %s", r.Alert.Summary, r.Alert.Rule.Severity, r.Alert.Rule.Name, r.Alert.LookCloser),
		Time:    time.Unix(0, r.Time).Add(a.deps.Clock.Correction()), Count: 1 + r.Alert.Repeated,
	})
}

// camelCase writes reverse_shell as ReverseShell.
func camelCase(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "_") {
		b.WriteString(strings.ToUpper(word[:min(len(word), 1)]))
		b.WriteString(word[min(len(word), 1):])
	}
	return b.String()
}

// countUntold counts the Events that could not be written.
func (a *Agent) countUntold() {
	if a.deps.Cluster == nil {
		return
	}
	now := a.deps.Cluster.Untold()
	a.losses.Add(loss.AlertEventsUntold, now-a.untold)
	a.untold = now
}

// found counts what a rule found, whether it is told of or held.
func (a *Agent) found(w *workload.Identity, r *anomaly.Rule, at int64) {
	a.fired[r.Name].Add(1)
	metrics.Measure(a.metrics, &record.Header{Owner: w, Time: at}, r, alerts.Found)
}

// tellHeld hands out the alerts that the rules held back, once they are due.
func (a *Agent) tellHeld(ctx context.Context) {
	ticker := time.NewTicker(heldEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.alertHeld(false)
		}
	}
}

// alertHeld hands out the alerts that are due, or all that are held back.
func (a *Agent) alertHeld(all bool) {
	for _, alert := range a.rules.Held(all) {
		r := process.NewRecord(alert.Step)
		r.Owner = alert.Workload
		a.alert(&r, alert)
	}
}

// ruleStatus says of each rule whether it is on, and how often it has found something.
func (a *Agent) ruleStatus() []*orb8v1.RuleStatus {
	off := make(map[string]bool)
	for _, name := range a.Config().RulesOff {
		off[name] = true
	}
	all := make([]*orb8v1.RuleStatus, 0, len(a.fired))
	for _, r := range anomaly.Rules() {
		all = append(all, &orb8v1.RuleStatus{Name: r.Name, Off: off[r.Name], Found: a.fired[r.Name].Load()})
	}
	return all
}
