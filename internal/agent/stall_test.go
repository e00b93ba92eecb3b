// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
)

// A client that asks for everything and takes nothing is let go, and what it held is
// free for others.
func TestStalledClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t)
		for n := range 3000 { // far beyond HTTP/2's window of 64 KiB
			r.probe.feed(flowtest.UDP(uint16(n), 1, 1))
		}
		r.query(t, &orb8v1.QueryFlowsRequest{})
		// Without the deadlines of this package's clients.
		conn, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithInitialWindowSize(1<<16), grpc.WithInitialConnWindowSize(1<<16), // which else grow
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.listener.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := orb8v1.NewOrbitAgentServiceClient(conn)
		type stream interface{ Recv() (*orb8v1.Event, error) }
		var stalled []stream
		for range maxQueries {
			s, err := client.Observe(t.Context(), &orb8v1.ObserveRequest{Snapshot: true})
			if err != nil {
				t.Fatal(err)
			}
			stalled = append(stalled, s)
		}
		time.Sleep(time.Second) // until they have been admitted
		began := time.Now()
		_, err = r.client.QueryFlows(t.Context(), &orb8v1.QueryFlowsRequest{})
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "try again") || time.Since(began) < queryWait {
			t.Errorf("one query too many: %v after %v", err, time.Since(began))
		}
		time.Sleep(stallLimit + stallLimit/5)
		if _, total := r.query(t, &orb8v1.QueryFlowsRequest{}); total != 2*3000 { // both directions
			t.Errorf("afterwards: %d rows", total)
		}
		for _, s := range stalled {
			for err = nil; err == nil; {
				_, err = s.Recv()
			}
			if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "taken nothing") {
				t.Errorf("the stalled stream ends with %v", err)
			}
		}
	})
}
