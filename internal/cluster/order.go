// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Ordered is the stream of one agent whose events come exactly in the order of time, as those
// of several do: an agent tells of a connection when it ends, and of the datagrams of the
// second before with its next sample.
type Ordered struct {
	merge *merge
	ended chan struct{}
	err   error // of the stream, once ended is closed
}

// Order puts what recv returns in order, until it returns an error. ctx is that of the stream.
// Progress of the agent is consumed.
func Order(ctx context.Context, recv func() (*orb8v1.Event, error)) *Ordered {
	o := &Ordered{merge: newMerge(liveWindow), ended: make(chan struct{})}
	lane := o.merge.lane("")
	go func() {
		defer token(o.merge.changed)
		defer close(o.ended)
		for o.err == nil {
			var ev *orb8v1.Event
			if ev, o.err = recv(); o.err != nil {
				return
			}
			switch ev.GetEvent().(type) {
			case nil: // an older agent's progress
			case *orb8v1.Event_Progress:
				lane.advance(ev.GetProgress().GetLowWatermarkNs())
			default:
				o.err = lane.push(ctx, ev.GetTimeNs(), ev)
			}
		}
	}()
	return o
}

// Recv returns the next event. When the stream has ended, it returns what has come already and
// then the stream's error.
func (o *Ordered) Recv() (*orb8v1.Event, error) {
	for {
		ended := isClosed(o.ended)
		ev, wait := o.merge.next(time.Now(), ended)
		switch {
		case ev != nil:
			return ev, nil
		case ended:
			return nil, o.err
		}
		o.merge.wait(wait, o.ended)
	}
}
