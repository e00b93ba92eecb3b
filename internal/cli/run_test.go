// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// watched is a writer that can be waited for.
type watched struct {
	mu    sync.Mutex
	text  bytes.Buffer
	wrote chan struct{}
}

func newWatched() *watched { return &watched{wrote: make(chan struct{}, 1)} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	offer(w.wrote, struct{}{})
	return w.text.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// await returns once s was written.
func (w *watched) await(t *testing.T, s string) {
	t.Helper()
	late := time.After(testwait.Limit)
	for !strings.Contains(w.String(), s) {
		select {
		case <-w.wrote:
		case <-late:
			t.Fatalf("no %q in %q", s, w.String())
		}
	}
}

func oneEvent(n uint32) *orb8v1.Event {
	return &orb8v1.Event{TimeNs: 1, NodeName: "n", Event: &orb8v1.Event_Flow{Flow: &orb8v1.Flow{
		Event: orb8v1.FlowEvent_FLOW_EVENT_OPEN, Protocol: "UDP",
		Local: &orb8v1.Endpoint{Ip: "10.0.0.1", Port: n}, Remote: &orb8v1.Endpoint{Ip: "10.0.0.2", Port: 53},
		Delta: &orb8v1.Counters{TxBytes: 10},
	}}}
}

func localConfig(a *fakeAgent, out, errs io.Writer) Config {
	return Config{
		Version: "1.2.3", Stdout: out, Stderr: errs, Getenv: func(string) string { return "" },
		DefaultAgent: "127.0.0.1:1", MayProbe: func() bool { return true }, Local: fakeLocal(a),
	}
}

// run is Run, and fails the test if it does not end by itself.
func run(t *testing.T, c Config, args []string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testwait.Limit)
	defer cancel()
	code := make(chan int, 1)
	go func() { code <- Run(ctx, c, args) }()
	got := testwait.Receive(t, strings.Join(args, " "), code)
	if ctx.Err() != nil {
		t.Fatalf("%v: did not end by itself in %v", args, testwait.Limit)
	}
	return got
}

// TestInterrupt: what was begun is brought to its end, in order.
func TestInterrupt(t *testing.T) {
	defer goleak.VerifyNone(t)
	out, errs := newWatched(), newWatched()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	code := make(chan int, 1)
	go func() {
		a := &fakeAgent{status: healthyStatus(), events: []*orb8v1.Event{oneEvent(1), oneEvent(2)}}
		code <- Run(ctx, localConfig(a, out, errs), []string{"trace", "network"})
	}()
	out.await(t, ":2 ")
	cancel()
	if got := testwait.Receive(t, "the command's end", code); got != exitDone {
		t.Errorf("exit code %d, want 0; %s", got, errs)
	}
	if !strings.Contains(errs.String(), "\n2 flows in ") || !strings.Contains(errs.String(), "nothing lost") {
		t.Errorf("no summary in %q", errs)
	}
}

func TestInterruptWatch(t *testing.T) {
	defer goleak.VerifyNone(t)
	out, errs := newWatched(), newWatched()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	code := make(chan int, 1)
	go func() {
		a := &fakeAgent{status: healthyStatus(), events: []*orb8v1.Event{oneEvent(1)}}
		code <- Run(ctx, localConfig(a, out, errs), []string{"flows", "--watch", "--every", "1h"})
	}()
	out.await(t, ":1 ")
	cancel()
	if got := testwait.Receive(t, "the command's end", code); got != exitDone {
		t.Errorf("exit code %d, want 0; %s", got, errs)
	}
}

// closedPipe is what a writer into `head` becomes.
type closedPipe struct{ after int }

func (p *closedPipe) Write(b []byte) (int, error) {
	if p.after--; p.after < 0 {
		return 0, &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}
	}
	return len(b), nil
}

func TestClosedPipe(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, args := range [][]string{
		{"trace", "network"}, {"trace", "network", "-o", "json"}, {"flows", "--interval", "100ms"},
		{"flows", "--watch"}, {"flows", "-o", "json", "--interval", "100ms"}, {"version"},
	} {
		for after := range 2 {
			a := &fakeAgent{status: healthyStatus(), events: []*orb8v1.Event{oneEvent(1)}, repeat: time.Millisecond}
			if args[0] == "flows" {
				a.repeat = 0
			}
			if args[len(args)-1] == "--watch" {
				args = append(args, "--every", "100ms")
			} else if after > 0 && (args[0] == "flows" || args[0] == "version") {
				continue // they write once
			}
			var errs bytes.Buffer
			if code := run(t, localConfig(a, &closedPipe{after}, &errs), args); code != exitDone {
				t.Errorf("%v: exit code %d, want 0; %s", args, code, errs.String())
			}
			if strings.Contains(errs.String(), "pipe") {
				t.Errorf("%v: complains: %s", args, errs.String())
			}
		}
	}
}

// TestFullDisk: other errors of the output are errors.
func TestFullDisk(t *testing.T) {
	defer goleak.VerifyNone(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	a := &fakeAgent{status: healthyStatus(), events: []*orb8v1.Event{oneEvent(1)}}
	var errs bytes.Buffer
	if code := run(t, localConfig(a, full, &errs), []string{"trace", "network"}); code != exitFailed {
		t.Errorf("exit code %d, want 1", code)
	}
	if !strings.Contains(errs.String(), "no space left") {
		t.Errorf("got %q", errs.String())
	}
}

// TestNotAnAgent: what answers on the agent's port need not be one.
func TestNotAnAgent(t *testing.T) {
	defer goleak.VerifyNone(t)
	tests := []struct {
		name   string
		answer func(net.Conn)
		want   string
	}{
		{"web server", func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
		}, "answers, but not as an orb8 agent: it does not speak gRPC"},
		{"closes", func(net.Conn) {}, "answers, but not as an orb8 agent: it does not speak gRPC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					tt.answer(c)
					_ = c.Close()
				}
			}()
			_, err = dial(context.Background(), l.Addr().String(), dialTimeout)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			// Such a neighbour does not keep root from its own probes.
			a := &fakeAgent{status: healthyStatus()}
			var out, errs bytes.Buffer
			c := localConfig(a, &out, &errs)
			c.DefaultAgent = l.Addr().String()
			if code := run(t, c, []string{"flows", "--interval", "100ms"}); code != exitDone {
				t.Errorf("exit code %d: %s", code, errs.String())
			}
			if !strings.Contains(errs.String(), "warning: "+c.DefaultAgent+" answers, but not as an orb8 agent") {
				t.Errorf("no warning in %s", errs.String())
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			testwait.Receive(t, "the end of the neighbour", done)
		})
	}
}

// TestStopFails: an error of stopping the probes is not swallowed.
func TestStopFails(t *testing.T) {
	defer goleak.VerifyNone(t)
	a := &fakeAgent{status: healthyStatus()}
	var out, errs bytes.Buffer
	c := localConfig(a, &out, &errs)
	local := c.Local
	c.Local = func(ctx context.Context, o LocalOptions) (*grpc.ClientConn, func() error, error) {
		conn, stop, err := local(ctx, o)
		return conn, func() error { return errors.Join(stop(), errors.New("detach tcp: device busy")) }, err
	}
	if code := run(t, c, []string{"flows", "--interval", "100ms"}); code != exitFailed {
		t.Errorf("exit code %d, want 1", code)
	}
	if !strings.Contains(errs.String(), "detach tcp: device busy") {
		t.Errorf("got %q", errs.String())
	}
}

func TestAgentAddress(t *testing.T) {
	tests := []struct{ in, want string }{
		{"10.0.0.5", "10.0.0.5:9090"}, {"10.0.0.5:80", "10.0.0.5:80"}, {"node-1", "node-1:9090"}, {"node-1:http", "node-1:http"},
		{"::1", "[::1]:9090"}, {"[::1]", "[::1]:9090"}, {"[::1]:80", "[::1]:80"}, {"fe80::1%eth0", "[fe80::1%eth0]:9090"},
		{"", ""}, {"a b", ""}, {"http://a", ""}, {":80", ""}, {"a:", ""}, {"a:0x", ""}, {"a:b:c", ""}, {"a:99999", ""},
	}
	for _, tt := range tests {
		got, err := agentAddress(tt.in)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("agentAddress(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	tests := []struct {
		in   string
		want time.Time
	}{
		{"5m", now.Add(-5 * time.Minute)}, {"1h30m", now.Add(-90 * time.Minute)},
		{"2026-11-23T09:00:00Z", now.Add(-time.Hour)}, {"2026-11-23T11:00:00+02:00", now.Add(-time.Hour)},
		{"09:30", now.Add(-30 * time.Minute)}, {"09:30:05", now.Add(-30*time.Minute + 5*time.Second)},
		{"09:59:59.250", now.Add(-750 * time.Millisecond)}, {"10:01", now.Add(-24*time.Hour + time.Minute)},
		{"25:00", time.Time{}}, {"9:61", time.Time{}},
		{"0s", time.Time{}}, {"-5m", time.Time{}}, {"today", time.Time{}}, {"", time.Time{}}, {"5", time.Time{}},
	}
	for _, tt := range tests {
		v := sinceValue{now: func() time.Time { return now }}
		err := v.Set(tt.in)
		if tt.want.IsZero() {
			if err == nil {
				t.Errorf("%q is accepted", tt.in)
			}
			continue
		}
		if got := v.unixNanos(now); err != nil || got != tt.want.UnixNano() {
			t.Errorf("%q: got %v, %v, want %v", tt.in, time.Unix(0, got).UTC(), err, tt.want)
		}
	}
	if got := (&sinceValue{}).unixNanos(now); got != 0 {
		t.Errorf("without a value: %d", got)
	}
}

func TestNearest(t *testing.T) {
	words := []string{"agent", "alerts", "flows", "status", "trace", "no-loopback", "duration"}
	for word, want := range map[string]string{
		"flow": "flows", "tarce": "trace", "aletrs": "alerts", "no-lopback": "no-loopback", "dura": "duration",
		"frobnicate": "", "x": "", "": "", "nothing": "",
	} {
		if got := nearest(word, words); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func parseFilters(args []string) ([]*orb8v1.Filter, error) {
	var f filterFlags
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	f.bind(fs)
	fs.StringP("output", "o", "", "")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	return f.filters()
}

func TestFilterFlags(t *testing.T) {
	tests := []struct {
		args string
		want []*orb8v1.Filter
	}{
		{"", nil},
		{"-A", nil},
		{"--port 1 --port 2,3", []*orb8v1.Filter{{Ports: []uint32{1, 2, 3}}}},
		{"-n a -nb --namespace=c", []*orb8v1.Filter{{Namespaces: []string{"a", "b", "c"}}}},
		{"--not -n a", []*orb8v1.Filter{{Negate: true, Namespaces: []string{"a"}}}},
		{"--not --port 1,2 --port 3", []*orb8v1.Filter{{Ports: []uint32{3}}, {Negate: true, Ports: []uint32{1, 2}}}},
		{"--port 3 --not --port 1 --not --ip ::1", []*orb8v1.Filter{
			{Ports: []uint32{3}}, {Negate: true, Ports: []uint32{1}}, {Negate: true, Ips: []string{"::1"}}}},
		{"-l a=b,c=d --not -l e", []*orb8v1.Filter{{LabelSelector: "a=b,c=d"}, {Negate: true, LabelSelector: "e"}}},
		{"--process a,b", []*orb8v1.Filter{{Processes: []string{"a", "b"}}}},
		{`--process a\,b,c\d --pod a\,`, []*orb8v1.Filter{{Processes: []string{"a,b", `c\d`}, Pods: []string{"a,"}}}},
	}
	for _, tt := range tests {
		got, err := parseFilters(strings.Fields(tt.args))
		if err != nil {
			t.Errorf("%q: %v", tt.args, err)
		}
		if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.args, diff)
		}
	}
}

// FuzzFilterFlags: no command line makes it panic, and what it lets through the
// agent can read.
func FuzzFilterFlags(f *testing.F) {
	f.Add("--not --port 443 --ip 10.0.0.0/8")
	f.Add("-l a=b,c!=d --not -n x --pod a/b*")
	f.Add("--not --not")
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Fields(line)
		if len(args) > 50 {
			return
		}
		filters, err := parseFilters(args)
		if err == nil && len(filters) > len(args) {
			t.Errorf("%q gives %d filters", line, len(filters))
		}
	})
}

// TestLicence: every file says under which licence it is.
func TestLicence(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && !strings.HasPrefix(string(text), "// SPDX-License-Identifier: Apache-2.0\n") {
			t.Errorf("%s does not begin with its SPDX line", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
