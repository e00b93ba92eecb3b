// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// eventQueue is how many Events may wait to be written.
	eventQueue = 64
	// eventTime bounds how long one takes, eventPause how many there are: so long lies
	// between two.
	eventTime, eventPause = 10 * time.Second, 200 * time.Millisecond
	// maxMessage is how long the API server lets a message be.
	maxMessage = 1024
)

// PodEvent is what is to be told of a pod of the own node as an Event of Kubernetes.
type PodEvent struct {
	Namespace, Pod, UID string
	// Reason is a word in capitals and lower case, as in ReverseShell.
	Reason, Message string
	Time            time.Time
	// Count is how often it was.
	Count uint64
}

// Tell has an Event written, if there is room for it; it does not wait. What could not be
// written counts in Untold.
func (c *Cluster) Tell(e *PodEvent) {
	select {
	case c.events <- *e:
	default:
		c.untold.Add(1)
	}
}

// Untold is how many Events could not be written.
func (c *Cluster) Untold() uint64 { return c.untold.Load() }

// writeEvents writes Events until ctx ends.
func (c *Cluster) writeEvents(ctx context.Context) {
	failing := false
	for {
		var e PodEvent
		select {
		case <-ctx.Done():
			return
		case e = <-c.events:
		}
		err := c.writeEvent(ctx, &e)
		if err != nil {
			c.untold.Add(1)
		}
		if err != nil && !failing && ctx.Err() == nil {
			c.cfg.Log.Warn("write an Event of an alert: the agent needs the right to create events (alert_events in the chart's config)", "err", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(eventPause):
		}
	}
}

func (c *Cluster) writeEvent(ctx context.Context, e *PodEvent) error {
	ctx, cancel := context.WithTimeout(ctx, eventTime)
	defer cancel()
	at := metav1.NewTime(e.Time)
	return c.cfg.Clients.Core.Post().Namespace(e.Namespace).Resource("events").Body(&corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "orb8-", Namespace: e.Namespace},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: e.Namespace, Name: e.Pod, UID: types.UID(e.UID),
		},
		Type: corev1.EventTypeWarning, Reason: e.Reason, Message: shortened(e.Message),
		Source:         corev1.EventSource{Component: "orb8", Host: c.cfg.Node},
		FirstTimestamp: at, LastTimestamp: at, Count: int32(min(e.Count, 1<<30)),
	}).Do(ctx).Error()
}

// shortened is a message as long as the API server takes it, in one line of what can be
// printed.
func shortened(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
	if len(s) <= maxMessage {
		return s
	}
	const more = "…"
	cut := maxMessage - len(more)
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more
}
