// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// maxConnections bounds the clients of one listener of the API.
const maxConnections = 256

// listeners are what the agent accepts connections on.
type listeners struct {
	grpc, http []net.Listener
}

func (l *listeners) close() {
	for _, l := range append(l.grpc, l.http...) {
		_ = l.Close() // most are closed by their server already
	}
}

func (a *Agent) listen(ctx context.Context) (*listeners, error) {
	var ls listeners
	if a.deps.Listener != nil {
		ls.grpc = append(ls.grpc, a.deps.Listener)
	}
	for _, want := range []struct {
		addr, flag string
		to         *[]net.Listener
	}{
		{a.Config().Listen, "listen", &ls.grpc},
		{a.Config().MetricsListen, "metrics-listen", &ls.http},
	} {
		if want.addr == "" {
			continue
		}
		opened, err := listen(ctx, want.addr, want.flag)
		if err != nil {
			ls.close()
			return nil, err
		}
		*want.to = append(*want.to, opened...)
		for _, l := range opened {
			a.log.Info("listening", "for", want.flag, "address", l.Addr().String())
		}
	}
	if path := a.Config().Socket; path != "" {
		l, err := listenSocket(ctx, path)
		switch {
		case err == nil:
			a.log.Info("listening", "for", "socket", "address", path)
			ls.grpc = append(ls.grpc, l)
		case path == config.DefaultSocket:
			// As in a container whose file system is read-only.
			a.log.Warn("no Unix socket for the commands on this host", "err", err)
		default:
			ls.close()
			return nil, err
		}
	}
	return &ls, nil
}

// serve runs everything until ctx is done or something fails.
func (a *Agent) serve(ctx context.Context, ls *listeners) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range ls.http {
		g.Go(func() error { return a.serveHTTP(l) })
	}
	g.Go(func() error {
		defer a.stopServers(ls) //nolint:contextcheck // stopping begins when ctx is done
		hangup, usr1 := make(chan os.Signal, 1), make(chan os.Signal, 1)
		if a.deps.Reload != nil { // before the probes start, which takes a while
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			signal.Notify(usr1, syscall.SIGUSR1)
			defer signal.Stop(usr1)
		}
		if a.deps.Cluster != nil { // before the probes, so that they find names
			g.Go(func() error { return a.watchCluster(ctx) })
		}
		if err := a.start(); err != nil {
			return err
		}
		for _, l := range ls.grpc {
			g.Go(func() error { return a.serveGRPC(l) })
		}
		a.work(ctx, hangup, usr1)
		return nil
	})
	return g.Wait()
}

// watchCluster keeps the names of pods up to date. The agent goes on without.
func (a *Agent) watchCluster(ctx context.Context) error {
	if err := a.deps.Cluster.Run(ctx); err != nil && ctx.Err() == nil {
		a.log.Error("watch the cluster; pods keep the names known so far", "err", err)
	}
	return nil
}

func (a *Agent) serveHTTP(l net.Listener) error {
	serve := a.http.Serve
	if a.http.TLSConfig != nil {
		serve = func(l net.Listener) error { return a.http.ServeTLS(l, "", "") }
	}
	if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %v: %w", l.Addr(), err)
	}
	return nil
}

func (a *Agent) serveGRPC(l net.Listener) error {
	if err := a.grpc.Serve(netutil.LimitListener(l, maxConnections)); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve the API on %v: %w", l.Addr(), err)
	}
	return nil
}

// start starts the probes.
func (a *Agent) start() error {
	if err := a.manager.Start(); err != nil {
		if a.deps.RequireProbe {
			return err
		}
		if slices.ContainsFunc(a.manager.Status(), func(s probe.Status) bool { return !s.Disabled }) {
			a.log.Error("start probes", "err", err)
		}
	}
	if err := a.checkRequired(); err != nil {
		return err
	}
	close(a.ready)
	a.watch.look()
	return nil
}

// checkRequired returns an error if a probe does not run that must (mode on).
func (a *Agent) checkRequired() error {
	var errs []error
	for _, s := range a.manager.Status() {
		if a.Config().Mode(s.Name) != config.ModeOn || s.State == probe.StateRunning {
			continue
		}
		err := fmt.Errorf("probe %s is set to on and does not run: %s", s.Name, s.Reason)
		if s.Remedy != "" {
			err = fmt.Errorf("%w: %s", err, s.Remedy)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// work runs the probes and the sampler until ctx is done, then reads the kernel
// once more for those who follow and ends their streams.
func (a *Agent) work(ctx context.Context, hangup, usr1 <-chan os.Signal) {
	var g errgroup.Group
	g.Go(func() error { return a.manager.Run(ctx) })
	g.Go(func() error { a.sample(ctx); return nil })
	g.Go(func() error { a.tellHeld(ctx); return nil })
	g.Go(func() error { a.flush(ctx); return nil })
	g.Go(func() error { a.traces.Run(ctx); return nil })
	if a.accel != nil {
		g.Go(func() error { a.accel.collector.Run(ctx); return nil })
	}
	if a.accel != nil && a.deps.Kubelet != nil {
		g.Go(func() error { a.deps.Kubelet.Run(ctx); return nil })
	}
	if a.deps.Reload != nil {
		g.Go(func() error { a.obey(ctx, hangup, usr1); return nil })
	}
	_ = g.Wait() // all of them return nil
	a.tick(context.WithoutCancel(ctx), time.Now())
	a.names.FlushAll()
	a.alertHeld(true)
	a.hub.Close()
}

// flush hands out the records that waited for a name, as names become known.
func (a *Agent) flush(ctx context.Context) {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	var changed <-chan struct{}
	if a.deps.Cluster != nil {
		changed = a.deps.Cluster.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-ticker.C:
		}
		a.names.Flush(time.Now())
	}
}

// stopServers lets calls end by themselves for a while, then ends them.
func (a *Agent) stopServers(ls *listeners) {
	a.hub.Close()
	setHealth(a.health, false)
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error { a.stopGRPC(ctx); return nil })
	g.Go(func() error {
		if err := a.http.Shutdown(ctx); err != nil {
			return a.http.Close()
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		a.log.Warn("stop serving", "err", err)
	}
	ls.close()
}

func (a *Agent) stopGRPC(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		a.log.Warn("calls did not end in time", "after", drainTime)
		a.grpc.Stop()
		<-done
	}
}

// interval is the time between two samples as things are.
func (a *Agent) interval() time.Duration {
	if a.hub.Subscribers() > 0 {
		return min(a.Config().Interval, followInterval)
	}
	return a.Config().Interval
}

// sample makes a tick every interval until ctx is done.
func (a *Agent) sample(ctx context.Context) {
	last := time.Now()
	timer := time.NewTimer(a.interval())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.hub.Changed():
		case <-a.reloaded:
		case <-timer.C:
			last = time.Now()
			a.tick(ctx, last)
		}
		timer.Reset(time.Until(last.Add(a.interval())))
	}
}

// tick reads the kernel, lets idle flows go, and tells what has changed.
func (a *Agent) tick(ctx context.Context, now time.Time) {
	if a.collector.fresh(ctx) != nil {
		return
	}
	a.table.Expire(a.deps.Clock.Now())
	a.countUntold()
	a.watch.look()
	a.watch.sweep(now)
	a.lastPass.Store(int64(time.Since(a.started)))
}

// obey reads the configuration again on every SIGHUP, and gives the handles of drivers
// back on every SIGUSR1.
func (a *Agent) obey(ctx context.Context, hangup, usr1 <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			a.reload()
		case <-usr1:
			a.release()
		}
	}
}

// release gives back the handles of accelerators' drivers, so that these can be unloaded.
func (a *Agent) release() {
	if a.accel == nil {
		a.log.Warn("no accelerators are read: there is nothing to give back")
		return
	}
	a.log.Info("giving back the handles of accelerators' drivers")
	a.accel.collector.Release()
}

// reload takes over what a running agent can of the configuration read anew. If
// that cannot be read or is not valid, everything stays as it is.
func (a *Agent) reload() {
	to, err := a.deps.Reload()
	if err == nil {
		err = to.Validate()
	}
	if err != nil {
		a.failedReloads.Add(1)
		a.log.Error("reload configuration; the old one stays in force", "err", err)
		return
	}
	next, taken, restart := a.Config().Reload(to)
	a.cfg.Store(&next)
	a.metrics.SetMax(next.MetricsMaxSeries)
	a.table.SetIdleTimeout(next.IdleTimeout)
	a.reloadRules(&next)
	if a.deps.LogLevel != nil {
		config.SetLevel(a.deps.LogLevel, next.LogLevel)
	}
	select {
	case a.reloaded <- struct{}{}:
	default:
	}
	a.reloads.Add(1)
	a.log.Info("configuration reloaded", "changed", taken)
	if len(restart) > 0 {
		a.log.Warn("some changes need a restart", "keys", restart)
	}
}
