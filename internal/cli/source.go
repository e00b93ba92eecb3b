// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
	"github.com/Ignoramuss/orb8/internal/cluster"
)

// LocalOptions configures the probes in this process.
type LocalOptions struct {
	// Interval between two samples.
	Interval time.Duration
	// Packet is auto, on or off.
	Packet     string
	NoLoopback bool
	// Only says what alone is read: dns, exec, or gpu, which needs no probe. Network flows
	// if empty.
	Only    string
	Version string
	Logger  *slog.Logger
}

// Local starts an agent in this process and returns a connection to it, which
// opens no port. The function it returns stops the agent and waits for it.
type Local func(ctx context.Context, o LocalOptions) (*grpc.ClientConn, func() error, error)

const (
	agentPort = "9090"
	// How long to wait for a connection to an agent that may not be there, and
	// to one that was asked for.
	lookTimeout = 300 * time.Millisecond
	dialTimeout = 5 * time.Second
	// How long an agent may take to answer once it is connected.
	answerTimeout = 3 * time.Second
)

// sourceFlags say where flows come from.
type sourceFlags struct {
	agent       string
	local       bool
	interval    time.Duration
	packet      string
	noLoopback  bool
	includeSelf bool
	only        string // see LocalOptions
	cluster     clusterFlags
}

// bindSource adds the flags that say whom to ask.
func (f *sourceFlags) bindSource(fs *pflag.FlagSet) {
	fs.StringVar(&f.agent, "agent", "", "ask the agent at `ADDR`: HOST, HOST:PORT or unix:/PATH")
	f.cluster.bind(fs)
	fs.BoolVar(&f.local, "local", false, "let this process look itself, even if an agent runs here")
}

func (f *sourceFlags) bind(fs *pflag.FlagSet) {
	f.bindSource(fs)
	fs.DurationVar(&f.interval, "interval", time.Second, "`TIME` between two samples of the probes in this process")
	fs.StringVar(&f.packet, "packet", "auto", "`MODE` of the probe for UDP, ICMP and the like in this process: auto, on or off")
}

func (f *sourceFlags) bindTraffic(fs *pflag.FlagSet) {
	fs.BoolVar(&f.noLoopback, "no-loopback", false, "leave out flows on the loopback interface")
	fs.BoolVar(&f.includeSelf, "include-self", false, "also orb8's own traffic")
}

// bindSelf is bindTraffic for what is no traffic.
func (f *sourceFlags) bindSelf(fs *pflag.FlagSet) {
	fs.BoolVar(&f.includeSelf, "include-self", false, "also orb8's own")
}

func (f *sourceFlags) check(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	switch {
	case changed("agent") && f.local:
		return usagef("--agent and --local exclude each other")
	case f.cluster.given() && (changed("agent") || f.local):
		return usagef("--agent and --local name another source than --context, --kubeconfig and --orb8-namespace")
	case f.cluster.given() && (changed("interval") || changed("packet")):
		return usagef("--interval and --packet set up the probes in this process: an agent has its own settings")
	case changed("agent") && (changed("interval") || changed("packet")):
		return usagef("--interval and --packet set up the probes in this process: an agent has its own settings")
	case f.packet != "auto" && f.packet != "on" && f.packet != "off":
		return usagef("--packet %q: use auto, on or off", f.packet)
	case f.interval < 100*time.Millisecond || f.interval > time.Hour:
		return usagef("--interval %s: use 100ms to 1h", f.interval)
	}
	if changed("agent") {
		addr, err := agentAddress(f.agent)
		if err != nil {
			return usagef("--agent %q: %w", f.agent, err)
		}
		f.agent = addr
	}
	return f.cluster.check()
}

// unixScheme begins the address of an agent's Unix socket.
const unixScheme = "unix:"

// agentAddress adds the agent's port where addr has none.
func agentAddress(addr string) (string, error) {
	if path, ok := strings.CutPrefix(addr, unixScheme); ok && strings.HasPrefix(path, "/") {
		return addr, nil
	}
	if addr == "" || strings.ContainsAny(addr, "/ ") {
		return "", errors.New("want HOST, HOST:PORT or unix:/PATH")
	}
	if ip, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), agentPort), nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		if strings.Contains(addr, ":") {
			return "", errors.New("want HOST or HOST:PORT, an IPv6 address in brackets")
		}
		host, port = addr, agentPort
	}
	if _, err := net.LookupPort("tcp", port); err != nil || host == "" || port == "" {
		return "", errors.New("want HOST or HOST:PORT")
	}
	return net.JoinHostPort(host, port), nil
}

// source is an agent that answers, or those of a cluster.
type source struct {
	ask asker
	// client and status are of the one agent; status is what it said of itself
	// when it was found.
	client orb8v1.OrbitAgentServiceClient
	status *orb8v1.AgentStatus
	// nodes are a cluster's agents, with what each said or why it did not.
	nodes []cluster.Answer[*orb8v1.AgentStatus]
	// name is how the user knows it.
	name  string
	local bool
	// only is what it was opened for, see LocalOptions.
	only     string
	warnings []string
	close    func() error
	// stop ends the agent in this process, once; nil if it is elsewhere.
	stop func() error
	// settle is how long events that were sent may be on their way.
	settle time.Duration
}

// many reports whether the source is a cluster.
func (s *source) many() bool { return s.nodes != nil }

// statuses are those of all agents that answered.
func (s *source) statuses() []*orb8v1.AgentStatus {
	if !s.many() {
		return []*orb8v1.AgentStatus{s.status}
	}
	var all []*orb8v1.AgentStatus
	for _, n := range s.nodes {
		if n.Err == nil {
			all = append(all, n.Value)
		}
	}
	return all
}

const (
	// endTimeout bounds how long the last events of a stream may take to come.
	endTimeout = 5 * time.Second
	// lastEvents is how long events that the agent has sent may be on their way.
	lastEvents = 100 * time.Millisecond
)

// end ends a stream after what has happened so far: the agent in this process
// reads the kernel once more when it stops, another one does so to answer a
// query. cancel ends the stream at the latest.
func (s *source) end(ctx context.Context, cancel context.CancelFunc) {
	defer time.AfterFunc(endTimeout, cancel)
	if s.stop != nil {
		_ = s.stop() // close returns the error
		return
	}
	ctx, done := context.WithTimeout(ctx, answerTimeout)
	defer done()
	s.ask.Look(ctx)
	time.AfterFunc(s.settle, cancel)
}

// open finds the source that the flags ask for.
func (c *Config) open(ctx context.Context, f *sourceFlags) (*source, error) {
	s, err := c.find(ctx, f)
	if s != nil {
		s.only = f.only
	}
	return s, err
}

func (c *Config) find(ctx context.Context, f *sourceFlags) (*source, error) {
	switch {
	case f.agent != "":
		s, err := dial(ctx, f.agent, dialTimeout)
		if err != nil {
			return nil, &failure{what: "no answer from the agent at " + f.agent, err: err,
				remedy: []string{"check the address, and that `sudo orb8 agent` runs there (outside Kubernetes it listens on its own host only)"}}
		}
		return s, nil
	case f.local:
		return c.openLocal(ctx, f)
	case f.cluster.only():
		s, err := c.openCluster(ctx, &f.cluster)
		if !errors.Is(err, errNoCluster) { // --node also names this host's own
			return s, err
		}
	}
	s, err := c.dialHost(ctx)
	if err == nil || ctx.Err() != nil {
		return s, err
	}
	s, clusterErr := c.openCluster(ctx, &f.cluster)
	stranger, strange := errors.AsType[*strangerError](err)
	if clusterErr == nil || ctx.Err() != nil {
		if clusterErr == nil && strange {
			s.warnings = append(s.warnings, stranger.Error())
		}
		return s, clusterErr
	}
	if c.Local == nil || !c.MayProbe() {
		return nil, c.nowhere(f.only, err, clusterErr)
	}
	s, localErr := c.openLocal(ctx, f)
	if localErr != nil {
		return nil, localErr
	}
	switch {
	case strange:
		s.warnings = append(s.warnings, stranger.Error())
	case errors.As(err, new(*notAgentError)):
		s.warnings = append(s.warnings, c.DefaultAgent+" "+err.Error())
	}
	if missing := c.missingKubeconfig(); missing != "" {
		s.warnings = append(s.warnings, "this host only: "+missing)
	} else if !errors.Is(clusterErr, errNoCluster) {
		s.warnings = append(s.warnings, "this host only: "+asFailure(clusterErr).summaryLine())
	}
	return s, nil
}

// nowhere says what was tried when no source was named and none was found.
func (c *Config) nowhere(only string, agentErr, clusterErr error) error {
	f := &failure{what: "no source of " + whatIs(only), tried: []string{fmt.Sprintf("agent on %s: %v", c.DefaultAgent, agentErr)}}
	if errors.Is(clusterErr, errNoCluster) {
		f.tried = append(f.tried, "cluster: "+clusterErr.Error())
	} else {
		why := asFailure(clusterErr)
		f.tried = append(append(f.tried, why.summaryLine()), why.tried...)
		f.remedy = why.remedy
	}
	if c.Local == nil {
		f.tried = append(f.tried, "probes in this process: "+noLocal)
		f.remedy = append(f.remedy, "name an agent on a Linux host: --agent HOST:PORT")
		return f
	}
	f.tried = append(f.tried, "probes in this process: needs root")
	if len(f.remedy) > 0 {
		return f
	}
	f.remedy = []string{
		"run this command with sudo: the probes then run in this process",
		"or start an agent: sudo orb8 agent",
		"or name one that runs elsewhere: --agent HOST:PORT",
	}
	return f
}

// whatIs names what is looked for, see LocalOptions.
func whatIs(only string) string {
	switch only {
	case onlyDNS:
		return "DNS queries"
	case onlyExec:
		return "processes"
	case onlySyscall:
		return "system calls"
	case onlyGPU:
		return "accelerators"
	}
	return "flows"
}

// noLocal is why there is no --local here.
const noLocal = "they need Linux"

func (c *Config) openLocal(ctx context.Context, f *sourceFlags) (*source, error) {
	if c.Local == nil {
		return nil, &failure{what: "no probes in this process: " + noLocal,
			remedy: []string{"name an agent on a Linux host: --agent HOST:PORT"}}
	}
	if !c.MayProbe() {
		return nil, &failure{what: "no probes in this process: they need root",
			remedy: []string{"run this command with sudo", "or ask an agent: --agent HOST:PORT"}}
	}
	conn, stop, err := c.Local(ctx, LocalOptions{
		Interval: f.interval, Packet: f.packet, NoLoopback: f.noLoopback, Only: f.only, Version: versionOf(c.Version),
		Logger: slog.New(slog.NewTextHandler(c.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, &failure{what: "start the probes in this process", err: err, remedy: []string{"see what this host lacks: orb8 doctor"}}
	}
	stop = sync.OnceValue(stop)
	s := newSource(conn, "probes in this process", func() error { return errors.Join(conn.Close(), stop()) })
	s.local = true
	s.stop = stop
	if err := s.greet(ctx, answerTimeout); err != nil {
		return nil, errors.Join(err, s.close())
	}
	noProbe := f.only == onlyGPU || f.only == onlySyscall // is needed from the beginning
	if !s.status.GetHealthy() && !noProbe {
		return nil, errors.Join(noProbes(s.status), s.close())
	}
	s.status.Probes = slices.DeleteFunc(s.status.GetProbes(), f.unneeded)
	if noProbe { // its health is that of the probes
		s.status.Healthy, s.status.HealthMessage = true, ""
	}
	return s, nil
}

// What alone may be read in this process.
const (
	onlyDNS  = "dns"
	onlyExec = "exec"
	onlyGPU  = "gpu"
	// onlySyscall: the probe is loaded once calls are traced.
	onlySyscall = "syscall"
)

// unneeded reports whether a probe is off in this process because what is asked for does
// not need it.
func (f *sourceFlags) unneeded(p *orb8v1.ProbeStatus) bool {
	return f.only == onlyGPU || p.GetState() == orb8v1.ProbeState_PROBE_STATE_OFF && !slices.Contains(probesOf(f.only), p.GetName())
}

// probesOf names the probes that matter for something alone, see LocalOptions: those that
// see it, and those that help to name whose it is.
func probesOf(only string) []string {
	switch only {
	case onlyDNS:
		return []string{"packet", "dns", "cgroup"}
	case onlyExec:
		return []string{"exec", "cgroup"}
	case onlySyscall:
		return []string{"syscall", "cgroup"}
	case onlyGPU:
		return []string{}
	}
	return []string{"tcp", "packet", "cgroup"}
}

func noProbes(s *orb8v1.AgentStatus) error {
	f := &failure{what: "no probe could be started"}
	if m := s.GetHealthMessage(); m != "" {
		f.err = errors.New(m)
	}
	for _, p := range s.GetProbes() {
		f.tried = append(f.tried, p.GetName()+": "+p.GetReason())
		if r := p.GetRemedy(); r != "" {
			f.remedy = append(f.remedy, r)
		}
	}
	f.remedy = append(f.remedy, "see what this host lacks: orb8 doctor")
	return f
}

func newSource(conn *grpc.ClientConn, name string, stop func() error) *source {
	client := orb8v1.NewOrbitAgentServiceClient(conn)
	return &source{ask: oneAgent{client}, client: client, name: name, close: stop, settle: lastEvents}
}

// greet asks for the status, which also shows that an agent is there.
func (s *source) greet(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var err error
	s.status, err = s.client.GetStatus(ctx, &orb8v1.GetStatusRequest{})
	if err == nil {
		cleanText(s.status.ProtoReflect())
	}
	return err
}

// notAgentError says that something answers, but no agent.
type notAgentError struct{ reason string }

func (e *notAgentError) Error() string { return "answers, but not as an orb8 agent: " + e.reason }

// dial connects to the agent at addr and asks for its status. The connection is
// made directly, whatever proxy the environment names.
//
// An address may be that of a Unix socket; check may refuse who is at the other end.
func dial(ctx context.Context, addr string, timeout time.Duration, check ...func(net.Conn) error) (*source, error) {
	var connected, refused = make(chan struct{}, 1), make(chan error, 1)
	dialer := func(ctx context.Context, addr string) (net.Conn, error) {
		network := "tcp"
		if path, ok := strings.CutPrefix(addr, unixScheme); ok {
			network, addr = "unix", path
		}
		conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, network, addr)
		for _, c := range check {
			if err == nil {
				if err = c(conn); err != nil {
					conn.Close()
				}
			}
		}
		if err != nil {
			offer(refused, err)
		} else {
			offer(connected, struct{}{})
		}
		return conn, err
	}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dialer), grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, err
	}
	s := newSource(conn, "agent "+addr, conn.Close)
	if err := s.greet(ctx, timeout+answerTimeout); err != nil {
		conn.Close()
		select {
		case <-connected:
			return nil, &notAgentError{reasonOf(err)}
		case err := <-refused:
			return nil, shortDialError(err)
		default:
			return nil, err
		}
	}
	return s, nil
}

func offer[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}

// reasonOf is why something that accepts connections is not an agent.
func reasonOf(err error) string {
	switch s := status.Convert(err); s.Code() {
	case codes.DeadlineExceeded:
		return "it says nothing"
	case codes.Unimplemented:
		return "it does not know orb8's calls"
	case codes.Unavailable:
		return "it does not speak gRPC"
	default:
		return render.Clean(s.Message())
	}
}

// shortDialError leaves out the address, which the caller names.
func shortDialError(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	if op.Timeout() {
		return errors.New("connection timed out")
	}
	return &dialError{op.Err}
}

// dialError says why there is no connection, and not to what.
type dialError struct{ err error }

func (e *dialError) Error() string { return strings.TrimPrefix(e.err.Error(), "connect: ") }
func (e *dialError) Unwrap() error { return e.err }

// closing closes c at the end of a command whose error is *err.
func closing(c func() error, err *error) {
	if cerr := c(); cerr != nil && *err == nil {
		*err = fmt.Errorf("stop: %w", cerr)
	}
}
