// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// TestOrder: what one agent tells comes in the order of time, up to its low watermark; without
// one as it comes, after a stall by itself, and all of it at the end.
func TestOrder(t *testing.T) {
	at := func(ns int64) *orb8v1.Event {
		return &orb8v1.Event{TimeNs: ns, Event: &orb8v1.Event_Flow{Flow: new(orb8v1.Flow)}}
	}
	low := func(ns int64) *orb8v1.Event {
		return &orb8v1.Event{Event: &orb8v1.Event_Progress{Progress: &orb8v1.Progress{LowWatermarkNs: ns}}}
	}
	for name, tt := range map[string]struct {
		told    []*orb8v1.Event
		want    []int64
		waiting []int64 // what comes only at the end
		after   time.Duration
	}{
		"before the first low watermark": {[]*orb8v1.Event{at(5), at(3)}, []int64{5, 3}, nil, 0},
		"up to it":                       {[]*orb8v1.Event{low(1), at(5), at(3), at(8), low(6)}, []int64{3, 5}, []int64{8}, 0},
		"below it":                       {[]*orb8v1.Event{low(9), at(5), at(3)}, []int64{5, 3}, nil, 0}, // late: told at once
		"none comes":                     {[]*orb8v1.Event{low(1), at(5), at(3)}, []int64{3, 5}, nil, stallTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				told := make(chan *orb8v1.Event)
				o := Order(ctx, func() (*orb8v1.Event, error) {
					ev, ok := <-told
					if !ok {
						return nil, io.EOF
					}
					return ev, nil
				})
				var got []int64
				ended := make(chan error, 1)
				go func() {
					for {
						ev, err := o.Recv()
						if err != nil {
							ended <- err
							return
						}
						got = append(got, ev.GetTimeNs())
					}
				}()
				for _, ev := range tt.told {
					told <- ev
					synctest.Wait()
				}
				time.Sleep(tt.after)
				synctest.Wait()
				if !slices.Equal(got, tt.want) {
					t.Errorf("%v, want %v", got, tt.want)
				}
				close(told)
				if err := <-ended; !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				if !slices.Equal(got, append(slices.Clone(tt.want), tt.waiting...)) {
					t.Errorf("at the end %v", got)
				}
			})
		})
	}
}
