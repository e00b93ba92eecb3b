// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/testwait"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// fakeProbe delivers at each Collect what feed was called with before.
type fakeProbe struct {
	name     string
	startErr error
	// runErr makes Run fail when something is sent on it.
	runErr chan error

	apply    func(*flow.Sample)
	losses   *loss.Counters
	collects atomic.Int64
	closed   atomic.Bool

	mu      sync.Mutex
	pending []flow.Sample
	onRead  func()
	readErr error
}

func newFakeProbe(name string) *fakeProbe {
	return &fakeProbe{name: name, runErr: make(chan error, 1)}
}

func (p *fakeProbe) Name() string       { return p.name }
func (p *fakeProbe) Start() error       { return p.startErr }
func (p *fakeProbe) Hooks() []string    { return []string{"fake/" + p.name} }
func (p *fakeProbe) Degraded() []string { return nil }

func (p *fakeProbe) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-p.runErr:
		return err
	}
}

func (p *fakeProbe) Collect() error {
	p.collects.Add(1)
	p.mu.Lock()
	batch, onRead, err := p.pending, p.onRead, p.readErr
	p.pending = nil
	p.mu.Unlock()
	if onRead != nil {
		onRead()
	}
	for i := range batch {
		p.apply(&batch[i])
	}
	return err
}

func (p *fakeProbe) failToRead(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readErr = err
}

func (p *fakeProbe) Close() error { p.closed.Store(true); return nil }

func (p *fakeProbe) feed(s ...flow.Sample) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending = append(p.pending, s...)
}

// fakeResolver names cgroup 1..n as it is told, everything else by its command.
type fakeResolver struct {
	awaits   bool
	degraded string
	mu       sync.Mutex
	local    map[uint64]*workload.Identity
	remote   map[netip.Addr]*workload.Identity
	asked    func(workload.Peer)
	swept    int
	walks    int
}

func (f *fakeResolver) Local(cgroup uint64, _ uint32, comm string, _ netip.Addr) *workload.Identity {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.local[cgroup]
	if id == nil {
		if f.local == nil {
			f.local = make(map[uint64]*workload.Identity)
		}
		id = &workload.Identity{Kind: workload.KindProcess, Name: comm, CgroupID: cgroup}
		f.local[cgroup] = id
	}
	return id
}

// elsewhere is a cgroup of another node.
const elsewhere = 1 << 21

func (f *fakeResolver) Owns(cgroup uint64) bool { return cgroup != elsewhere }

func (f *fakeResolver) Degraded() string { return f.degraded }

func (f *fakeResolver) Awaits(id *workload.Identity) bool { return f.awaits && id.Pod == "" }

func (f *fakeResolver) Backs(_, _ *workload.Identity, _ netip.Addr, _ uint16, _ uint8) (backs, known bool) {
	return false, false
}

func (f *fakeResolver) Remote(p workload.Peer) *workload.Identity {
	if f.asked != nil {
		f.asked(p)
	}
	return f.remote[p.Addr]
}

func (f *fakeResolver) Cgroups() map[uint64]*workload.Identity {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.walks++
	return maps.Clone(f.local)
}

func (f *fakeResolver) put(cgroup uint64, who *workload.Identity) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.local[cgroup] = who
	if who == nil {
		delete(f.local, cgroup)
	}
}

func (f *fakeResolver) walked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.walks
}

func (f *fakeResolver) Alive(cgroup uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.local[cgroup] != nil
}

func (f *fakeResolver) Sweep(time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swept++
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// rig is an agent with fake probes and a client.
type rig struct {
	*Agent
	probe    *fakeProbe
	packet   *fakeProbe
	options  map[string][]probe.Option // of the probes, by name
	resolver *fakeResolver
	listener *bufconn.Listener
	client   orb8v1.OrbitAgentServiceClient
	conn     *grpc.ClientConn

	cancel context.CancelFunc
	done   chan error
}

type rigOption func(*config.Config, *Deps, *rig)

// newRig makes an agent that is not running yet.
func newRig(t testing.TB, opts ...rigOption) *rig {
	t.Helper()
	cfg := config.Local()
	cfg.NodeName = "node-a"
	cfg.Interval = time.Hour
	cfg.IdleTimeout = time.Hour // a slow machine's flows do not expire by themselves
	r := &rig{
		probe: newFakeProbe("tcp"), packet: newFakeProbe("packet"),
		resolver: new(fakeResolver), listener: bufconn.Listen(1 << 16),
		done: make(chan error, 1),
	}
	deps := Deps{
		Version: "1.2.3", KernelRelease: "6.18.0", CgroupRoot: "/sys/fs/cgroup",
		Resolver: r.resolver, Listener: r.listener,
		IsSelf: func(h *record.Header) bool { return h.PID == selfPID },
	}
	for _, o := range opts {
		o(&cfg, &deps, r)
	}
	deps.Probes = func(s Sink) *probe.Manager {
		m := probe.NewManager(quiet())
		for _, p := range []*fakeProbe{r.probe, r.packet} {
			p.apply, p.losses = s.Apply, s.Losses
			m.Add(p, r.options[p.name]...)
		}
		return m
	}
	var err error
	if r.Agent, err = New(cfg, deps, quiet()); err != nil {
		t.Fatal(err)
	}
	return r
}

const selfPID = 99

// startRig runs an agent until the test ends, or stop is called.
func startRig(t testing.TB, opts ...rigOption) *rig {
	t.Helper()
	r := newRig(t, opts...)
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.done <- r.Run(ctx) }()
	t.Cleanup(func() { r.stop(t) })
	conn, err := grpc.NewClient("passthrough:///agent",
		grpc.WithChainUnaryInterceptor(boundedCall), grpc.WithChainStreamInterceptor(boundedStream(t)),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.conn, r.client = conn, orb8v1.NewOrbitAgentServiceClient(conn)
	if _, err := r.client.GetStatus(ctx, &orb8v1.GetStatusRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	return r
}

// boundedCall gives a call a deadline.
func boundedCall(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, testwait.Limit)
	defer cancel()
	return call(ctx, method, req, reply, conn, opts...)
}

// boundedStream gives a stream a deadline, so that no test waits for ever for
// what does not come.
func boundedStream(t testing.TB) grpc.StreamClientInterceptor {
	return func(ctx context.Context, d *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		ctx, cancel := context.WithTimeout(ctx, testwait.Limit)
		t.Cleanup(cancel)
		return open(ctx, d, conn, method, opts...)
	}
}

// stop ends the agent and returns how long that took.
func (r *rig) stop(t testing.TB) time.Duration {
	t.Helper()
	if r.cancel == nil {
		return 0
	}
	begin := time.Now()
	r.cancel()
	r.cancel = nil
	if err := testwait.Receive(t, "the agent's end", r.done); err != nil {
		t.Errorf("Run: %v", err)
	}
	return time.Since(begin)
}
