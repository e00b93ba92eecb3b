// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Agent is the pod that is a node's agent.
type Agent struct {
	Node string
	// Pod is empty for a node that was asked for and has no agent.
	Pod, UID string
	// Ready is what the pod's readiness probe says.
	Ready bool
	// Reason says why it is not ready; empty where it is.
	Reason string

	running bool
	created metav1.Time
}

// Agents lists the agents by node. Where a node has several, as while one
// replaces another, it is the one to ask. Errors: *UnreachableError,
// *CredentialsError, *ForbiddenError; none is found: *NoAgentsError.
func (c *Cluster) Agents(ctx context.Context) ([]Agent, error) {
	var list v1.PodList
	err := c.core.Get().Namespace(c.Namespace).Resource("pods").Param("labelSelector", Selector).
		Param("resourceVersion", "0").Do(ctx).Into(&list)
	if err != nil {
		return nil, c.explain(err, "list", "pods")
	}
	byNode := make(map[string]Agent, len(list.Items))
	for i := range list.Items {
		a := agentOf(&list.Items[i])
		if old, ok := byNode[a.Node]; !ok || better(a, old) {
			byNode[a.Node] = a
		}
	}
	if len(byNode) == 0 {
		return nil, &NoAgentsError{c.Namespace}
	}
	agents := make([]Agent, 0, len(byNode))
	for _, a := range byNode {
		agents = append(agents, a)
	}
	slices.SortFunc(agents, func(a, b Agent) int { return cmp.Compare(a.Node, b.Node) })
	return agents, nil
}

// better reports whether a is to be asked rather than b, of the same node.
func better(a, b Agent) bool {
	switch {
	case a.running != b.running:
		return a.running
	case a.Ready != b.Ready:
		return a.Ready
	}
	return b.created.Before(&a.created)
}

func agentOf(p *v1.Pod) Agent {
	a := Agent{Node: nodeOf(p), Pod: p.Name, UID: string(p.UID), created: p.CreationTimestamp}
	a.running = p.Status.Phase == v1.PodRunning
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady {
			a.Ready = c.Status == v1.ConditionTrue
		}
	}
	switch {
	case p.DeletionTimestamp != nil:
		a.Ready, a.Reason = false, "pod "+p.Name+" is being deleted"
	case !a.Ready:
		a.Reason = "pod " + p.Name + " " + whyNotReady(p)
	}
	return a
}

// nodeOf is the node that the pod runs on, or the one that its DaemonSet made it
// for.
func nodeOf(p *v1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	if p.Spec.Affinity != nil && p.Spec.Affinity.NodeAffinity != nil {
		required := p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		if required != nil {
			for _, term := range required.NodeSelectorTerms {
				for _, f := range term.MatchFields {
					if f.Key == metav1.ObjectNameField && len(f.Values) == 1 {
						return f.Values[0]
					}
				}
			}
		}
	}
	return "(no node, pod " + p.Name + ")"
}

func whyNotReady(p *v1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse {
			return "is not scheduled: " + oneLine(c.Message)
		}
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch w, t := s.State.Waiting, s.State.Terminated; {
		case w != nil && w.Message != "":
			return fmt.Sprintf("waits: %s: %s", w.Reason, oneLine(w.Message))
		case w != nil:
			return "waits: " + w.Reason
		case t != nil && t.ExitCode != 0:
			return fmt.Sprintf("has ended: %s, exit code %d", t.Reason, t.ExitCode)
		}
	}
	if p.Status.Phase == v1.PodRunning {
		return "is not ready"
	}
	if p.Status.Message != "" {
		return fmt.Sprintf("is in phase %s: %s", p.Status.Phase, oneLine(p.Status.Message))
	}
	return fmt.Sprintf("is in phase %s", p.Status.Phase)
}
