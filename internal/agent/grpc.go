// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

const (
	// maxRequest is ample for the filters of a request.
	maxRequest = 1 << 20
	// maxResponse is what gRPC clients take in one message unless told
	// otherwise; QueryFlows leaves out the rows beyond.
	maxResponse = 4 << 20
)

// newGRPCServer returns a server with the API, reflection and health. A call
// that panics ends with an error and is counted in panics.
func newGRPCServer(api orb8v1.OrbitAgentServiceServer, log *slog.Logger, panics *atomic.Uint64) (*grpc.Server, *health.Server) {
	guard := panicGuard{log: log, panics: panics}
	srv := grpc.NewServer(
		grpc.ChainUnaryInterceptor(guard.unary),
		grpc.ChainStreamInterceptor(endStalled, guard.stream),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxResponse),
		grpc.MaxConcurrentStreams(256),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.WaitForHandlers(true),
		// A client that is gone without a word frees its stream and queue.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	orb8v1.RegisterOrbitAgentServiceServer(srv, api)
	healthServer := health.NewServer()
	healthv1.RegisterHealthServer(srv, healthServer)
	reflection.Register(srv)
	return srv, healthServer
}

// setHealth says whether the agent and its service are serving.
func setHealth(h *health.Server, serving bool) {
	state := healthv1.HealthCheckResponse_NOT_SERVING
	if serving {
		state = healthv1.HealthCheckResponse_SERVING
	}
	h.SetServingStatus("", state)
	h.SetServingStatus(orb8v1.OrbitAgentService_ServiceDesc.ServiceName, state)
}

type panicGuard struct {
	log    *slog.Logger
	panics *atomic.Uint64
}

func (g panicGuard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer g.recover(info.FullMethod, &err)
	return handle(ctx, req)
}

func (g panicGuard) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer g.recover(info.FullMethod, &err)
	return handle(srv, s)
}

// recover is deferred; it makes a panic the call's error.
func (g panicGuard) recover(method string, err *error) {
	if p := recover(); p != nil {
		g.panics.Add(1)
		g.log.Error("call panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "a fault in the agent; its log says more")
	}
}
