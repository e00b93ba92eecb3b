// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// fakeAgent answers with what a script has prepared.
type fakeAgent struct {
	orb8v1.UnimplementedOrbitAgentServiceServer
	status *orb8v1.AgentStatus
	events []*orb8v1.Event
	// repeat sends the last event again and again.
	repeat time.Duration
	// end is the error after the events; without it a following stream stays.
	end      error
	requests string // file that tells the script what it was asked
}

func (a *fakeAgent) GetStatus(context.Context, *orb8v1.GetStatusRequest) (*orb8v1.AgentStatus, error) {
	return a.status, nil
}

func (a *fakeAgent) Observe(r *orb8v1.ObserveRequest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	if err := writeFile(a.requests, r); err != nil {
		return err
	}
	events := a.events
	if r.GetSnapshot() && r.GetLimit() > 0 {
		events = events[:min(len(events), int(r.GetLimit()))]
	}
	for _, ev := range events {
		if err := stream.Send(ev); err != nil {
			return err
		}
	}
	for a.repeat > 0 {
		if err := stream.Send(events[len(events)-1]); err != nil {
			return err
		}
		time.Sleep(a.repeat)
	}
	if a.end != nil || !r.GetFollow() {
		return a.end
	}
	ctx := stream.Context()
	if d := r.GetSyscalls().GetDurationNs(); d > 0 { // a trace of system calls ends by itself
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(d))
		defer cancel()
	}
	<-ctx.Done()
	return nil
}

// writeFile puts m where a script can look at it.
func writeFile(path string, m proto.Message) error {
	if path == "" {
		return nil
	}
	text, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.ReplaceAll(string(text), " ", "")+"\n"), 0o644)
}

// readEvents reads one event a line.
func readEvents(path string) ([]*orb8v1.Event, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var events []*orb8v1.Event
	for lines := bufio.NewScanner(f); lines.Scan(); {
		ev := &orb8v1.Event{}
		if err := protojson.Unmarshal(lines.Bytes(), ev); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		events = append(events, ev)
	}
	return events, nil
}

func healthyStatus() *orb8v1.AgentStatus {
	return &orb8v1.AgentStatus{
		NodeName: "web-1", Version: "0.1.0", Healthy: true, KernelRelease: "6.1.0", UptimeSeconds: 90,
		ActiveFlows: 3, MaxFlows: 100000, IntervalNs: int64(5 * time.Second), CgroupRoot: "/sys/fs/cgroup",
		Probes: []*orb8v1.ProbeStatus{
			{Name: "tcp", State: orb8v1.ProbeState_PROBE_STATE_RUNNING, Hooks: []string{"tp_btf/inet_sock_set_state"}},
			{Name: "packet", State: orb8v1.ProbeState_PROBE_STATE_OFF, Reason: "switched off"},
		},
		Losses: []*orb8v1.LossCount{{Stage: "subscriber_slow", Meaning: "events that a client did not take in time"}},
	}
}

// runFakeAgent is the script command fakeagent: it serves on a random port,
// whose address it writes to a file, until it is interrupted.
func runFakeAgent() {
	fs := flag.NewFlagSet("fakeagent", flag.ExitOnError)
	addr := fs.String("addr", "addr", "file for the address")
	eventFile := fs.String("events", "", "file of events, one a line")
	requests := fs.String("requests", "", "file for the latest request")
	repeat := fs.Duration("repeat", 0, "send the last event again and again")
	end := fs.String("end", "", "code:message of the error that ends the stream")
	sick := fs.String("sick", "", "not healthy, for this reason")
	pods := fs.Uint("pods", 0, "pods tracked")
	probes := fs.String("probes", "", "other probes that run")
	rules := fs.String("rules", "", "what is said of rules: NAME=N or NAME=off, with commas")
	fs.Parse(os.Args[1:])
	a := &fakeAgent{status: healthyStatus(), repeat: *repeat, requests: *requests}
	a.status.PodsTracked = uint32(*pods)
	for rule := range strings.SplitSeq(*rules, ",") {
		if name, said, ok := strings.Cut(rule, "="); ok {
			n, _ := strconv.ParseUint(said, 10, 64) // 0 for off
			a.status.Rules = append(a.status.Rules, &orb8v1.RuleStatus{Name: name, Off: said == "off", Found: n})
		}
	}
	if *probes != "" {
		for name := range strings.SplitSeq(*probes, ",") {
			a.status.Probes = append(a.status.Probes, &orb8v1.ProbeStatus{Name: name, State: orb8v1.ProbeState_PROBE_STATE_RUNNING})
		}
	}
	if *sick != "" {
		a.status.Healthy, a.status.HealthMessage = false, *sick
	}
	if code, message, ok := strings.Cut(*end, ":"); ok {
		var c codes.Code
		if err := c.UnmarshalJSON([]byte(`"` + code + `"`)); err != nil {
			fatal(err)
		}
		a.end = status.Error(c, message)
	}
	if *eventFile != "" {
		var err error
		if a.events, err = readEvents(*eventFile); err != nil {
			fatal(err)
		}
	}
	fatal(serveFake(a, *addr))
}

func serveFake(a *fakeAgent, addrFile string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := os.WriteFile(addrFile+".tmp", []byte(l.Addr().String()), 0o644); err != nil {
		return err
	}
	if err := os.Rename(addrFile+".tmp", addrFile); err != nil {
		return err
	}
	s := grpc.NewServer()
	orb8v1.RegisterOrbitAgentServiceServer(s, a)
	context.AfterFunc(ctx, s.Stop)
	return s.Serve(l)
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// fakeLocal is an agent in this process with prepared events.
func fakeLocal(a *fakeAgent) Local {
	return func(_ context.Context, o LocalOptions) (*grpc.ClientConn, func() error, error) {
		if o.Packet == "on" {
			return nil, nil, errors.New("packet probe: no cgroup2 hierarchy is mounted")
		}
		l := bufconn.Listen(1 << 16)
		s := grpc.NewServer()
		orb8v1.RegisterOrbitAgentServiceServer(s, a)
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		conn, err := grpc.NewClient("passthrough:///local", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		stop := func() error {
			s.Stop()
			return <-done
		}
		return conn, stop, err
	}
}
