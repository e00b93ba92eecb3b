// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stallLimit is how long a client may take nothing of a stream before that is ended:
// until then the agent keeps what it is to send.
const stallLimit = 30 * time.Second

// timedStream knows since when a message has been waiting to be taken.
type timedStream struct {
	grpc.ServerStream
	begun time.Time
	since atomic.Int64 // nanoseconds after begun, 0 while none waits
}

func (s *timedStream) SendMsg(m any) error {
	s.since.Store(max(int64(time.Since(s.begun)), 1))
	defer s.since.Store(0)
	return s.ServerStream.SendMsg(m)
}

func (s *timedStream) stalled() bool {
	since := s.since.Load()
	return since != 0 && time.Since(s.begun)-time.Duration(since) > stallLimit
}

// endStalled ends streams whose client takes nothing. It is to be outside of whatever
// catches panics, since handlers run in a goroutine of their own.
func endStalled(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	timed := &timedStream{ServerStream: s, begun: time.Now()}
	done := make(chan error, 1)
	go func() { done <- handle(srv, timed) }()
	look := time.NewTicker(stallLimit / 10)
	defer look.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-look.C:
			if timed.stalled() {
				// The call of SendMsg that waits returns when the stream ends.
				return status.Errorf(codes.ResourceExhausted, "the client has taken nothing for %v", stallLimit)
			}
		}
	}
}
