// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/host"
	"github.com/Ignoramuss/orb8/internal/doctor"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/procnet"
)

// platform fills in what only Linux has.
func platform(c *Config) {
	c.MayProbe = mayProbe
	c.Local = startLocal
	c.Agent = runAgent
	c.DefaultSocket = config.DefaultSocket
	c.PeerUser = peerUser
	c.ListenerUser = func(port uint16) (uint32, bool) {
		l, listens, err := procnet.Loopback("/proc", port)
		return l.UID, listens && err == nil
	}
	c.Doctor = func(ctx context.Context) []doctor.Finding {
		return doctor.Run(ctx, doctor.Config{Probes: tryProbes, Accelerators: host.TryAccelerators})
	}
}

// peerUser is who began to listen at the other end.
func peerUser(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// pipeBytes is how much an in-memory connection holds on its way.
const pipeBytes = 1 << 20

// startLocal is Config.Local.
func startLocal(ctx context.Context, o LocalOptions) (*grpc.ClientConn, func() error, error) {
	cfg := config.Local()
	cfg.Interval = o.Interval
	cfg.Packet = config.Mode(o.Packet)
	cfg.Loopback = !o.NoLoopback
	cfg.GPU, cfg.DNS, cfg.Syscall = config.ModeOff, config.ModeOff, config.ModeOff
	// The exec probe says what processes run; their arguments are not shown.
	helpers := []string{"exec"}
	cfg.ProcessArgs = 0
	switch o.Only {
	case onlyDNS:
		cfg.DNS, cfg.TCP = config.ModeOn, config.ModeOff
	case onlyExec:
		cfg.Exec, cfg.TCP, cfg.Packet = config.ModeOn, config.ModeOff, config.ModeOff
		helpers, cfg.ProcessArgs = nil, config.Local().ProcessArgs
	case onlySyscall:
		helpers = nil
		cfg.TCP, cfg.Packet, cfg.Syscall = config.ModeOff, config.ModeOff, config.ModeAuto
	case onlyGPU:
		cfg.GPU, cfg.GPUInterval = config.ModeAuto, o.Interval
		cfg.TCP, cfg.Packet = config.ModeOff, config.ModeOff
	}
	return startHost(ctx, cfg, agent.Deps{Version: o.Version, RequireProbe: o.Only != onlyGPU && o.Only != onlySyscall, Helpers: helpers}, o.Logger)
}

// startHost runs an agent in this process that is reached over a connection in
// memory.
func startHost(ctx context.Context, cfg config.Config, deps agent.Deps, log *slog.Logger) (*grpc.ClientConn, func() error, error) {
	lis := bufconn.Listen(pipeBytes)
	deps.Listener = lis
	h, err := host.New(cfg, deps, log)
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient("passthrough:///local",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect to the agent in this process: %w", err), h.Close())
	}
	// The agent outlives ctx, so that the last events still come after Ctrl-C.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- errors.Join(h.Run(ctx), h.Close()) }()
	stop := func() error {
		cancel()
		return <-done
	}
	select {
	case <-h.Ready():
		return conn, stop, nil
	case err := <-done:
		cancel()
		return nil, nil, errors.Join(err, conn.Close())
	}
}

// tryProbes loads the probes for a moment and returns how they are.
func tryProbes(ctx context.Context) []probe.Status {
	broken := func(err error) []probe.Status {
		return []probe.Status{{Name: "start", State: probe.StateOff, Reason: err.Error()}}
	}
	conn, stop, err := startHost(ctx, config.Local(), agent.Deps{}, slog.New(slog.DiscardHandler))
	if err != nil {
		return broken(err)
	}
	s := newSource(conn, "", nil)
	err = s.greet(ctx, answerTimeout)
	if err := errors.Join(err, conn.Close(), stop()); err != nil {
		return broken(err)
	}
	var all []probe.Status
	for _, p := range s.status.GetProbes() {
		if p.GetState() == orb8v1.ProbeState_PROBE_STATE_IDLE {
			continue // it was not tried
		}
		all = append(all, probe.Status{
			Name: p.GetName(), State: probe.State(p.GetState()), Reason: p.GetReason(),
			Remedy: p.GetRemedy(), Hooks: p.GetHooks(), Degraded: p.GetDegraded(),
		})
	}
	return all
}

// runAgent is Config.Agent.
func runAgent(flagSet *pflag.FlagSet) func(ctx context.Context, version string, stderr io.Writer) error {
	flags := config.Default()
	config.BindFlags(flagSet, &flags)
	path := flagSet.String("config", "", "read settings from the YAML `FILE` too; SIGHUP reads it again")
	return func(ctx context.Context, version string, stderr io.Writer) error {
		resolve := func() (config.Config, error) { return config.Resolve(flagSet, flags, *path) }
		cfg, err := resolve()
		if errors.As(err, new(*fs.PathError)) {
			return err
		}
		if err != nil {
			return &usageError{err}
		}
		log, level := config.NewLogger(stderr, &cfg)
		saveMemory(log)
		h, err := host.New(cfg, agent.Deps{Version: version, LogLevel: level, Reload: resolve}, log)
		if err != nil {
			return err
		}
		return errors.Join(h.Run(ctx), h.Close())
	}
}

// heapShare of the memory that the cgroup allows is for the heap. The rest is for the
// kernel's maps, which count there as well, and for what is no heap.
const heapShare = 0.75

// saveMemory has the garbage collected twice as often as usual, and more often near the
// limit that the cgroup sets, unless GOGC and GOMEMLIMIT say otherwise: an agent allocates
// little, and its node has better uses for memory.
func saveMemory(log *slog.Logger) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	limit, err := memlimit.SetGoMemLimitWithOpts(memlimit.WithRatio(heapShare), memlimit.WithProvider(memlimit.FromCgroup))
	switch {
	case err != nil:
		log.Debug("no memory limit is taken from the cgroup", "err", err)
	case limit > 0 && limit < math.MaxInt64:
		log.Info("memory limit", "heap_bytes", limit)
	}
}
