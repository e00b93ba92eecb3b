// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/Ignoramuss/orb8/internal/agent"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/host"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// realConfig has this host's probes; the test is skipped where none can run.
func realConfig(t *testing.T, out, errs *watched) Config {
	t.Helper()
	c := Config{
		Version: "1.2.3", Stdout: out, Stderr: errs, Getenv: func(string) string { return "" },
		DefaultAgent: "127.0.0.1:1",
	}
	platform(&c)
	if !c.MayProbe() {
		t.Skip("needs root: the probes are loaded into the kernel")
	}
	for _, s := range tryProbes(context.Background()) {
		if s.Name == "packet" && s.Reason == "" {
			return c
		}
	}
	t.Skipf("the packet probe does not run here: %+v", tryProbes(context.Background()))
	return c
}

// TestTraceShowsItsEnd: what happened before Ctrl-C is shown although the next
// sample would have been long after it; with the probes in this process and with
// an agent elsewhere.
func TestTraceShowsItsEnd(t *testing.T) {
	for _, source := range []string{"local", "agent"} {
		t.Run(source, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			out, errs := newWatched(), newWatched()
			c := realConfig(t, out, errs)
			args := []string{"trace", "network", "--include-self", "-o", "compact", "--protocol", "udp", "--local", "--interval", "1h"}
			if source == "agent" {
				cfg := config.Default()
				cfg.Listen, cfg.MetricsListen = "127.0.0.1:0", ""
				cfg.Interval = time.Hour
				addr := startAgentOn(t, cfg)
				args = append(args[:len(args)-3], "--agent", addr)
			}
			l, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			code := make(chan int, 1)
			go func() { code <- Run(ctx, c, args) }()
			errs.await(t, "probes running")
			sent, err := net.Dial("udp4", l.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer sent.Close()
			time.Sleep(300 * time.Millisecond) // past the sample that the stream begins with; if not, that one has it
			if _, err := sent.Write([]byte("at the last moment")); err != nil {
				t.Fatal(err)
			}
			cancel()
			if got := testwait.Receive(t, "the command's end", code); got != exitDone {
				t.Errorf("exit code %d; %s", got, errs)
			}
			if want := fmt.Sprintf("-> %s ", l.LocalAddr()); !strings.Contains(out.String(), want) {
				t.Errorf("no %q in %q; %s", want, out, errs)
			}
		})
	}
}

// startAgentOn runs an agent on a free port and returns its address.
func startAgentOn(t *testing.T, cfg config.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen = ""
	h, err := host.New(cfg, agent.Deps{Version: "1.2.3", Listener: l}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(h.Run(ctx), h.Close()) }()
	t.Cleanup(func() {
		cancel()
		if err := testwait.Receive(t, "the agent's end", done); err != nil {
			t.Error(err)
		}
	})
	testwait.Receive(t, "the agent to be ready", h.Ready())
	return l.Addr().String()
}

// TestRealTrace: traffic of this host is on the screen, without an agent.
func TestRealTrace(t *testing.T) {
	defer goleak.VerifyNone(t)
	out, errs := newWatched(), newWatched()
	c := realConfig(t, out, errs)
	l, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.LocalAddr().(*net.UDPAddr).Port

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- Run(ctx, c, []string{"trace", "network", "--include-self", "--port", fmt.Sprint(port), "-o", "compact"})
	}()
	errs.await(t, "probes running") // the header
	sent, err := net.Dial("udp4", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer sent.Close()
	if _, err := sent.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	out.await(t, fmt.Sprintf("-> 127.0.0.1:%d ", port))
	cancel()
	if got := testwait.Receive(t, "the command's end", code); got != exitDone {
		t.Errorf("exit code %d; %s", got, errs)
	}
	// 5 bytes and the headers of UDP and IP.
	if !strings.Contains(out.String(), "tx=33B") {
		t.Errorf("no 33 bytes in %s", out)
	}
	// Another test may send packets that cannot be read, which all probes count.
	if !strings.Contains(errs.String(), "nothing lost") && !strings.Contains(errs.String(), "packet_unreadable") {
		t.Errorf("no summary in %s", errs)
	}
}

// TestTraceExecLocal: a program that is started while the probe runs in this process, with
// what it is called and how it ends, and without the password that it is given.
func TestTraceExecLocal(t *testing.T) {
	defer goleak.VerifyNone(t)
	out, errs := newWatched(), newWatched()
	c := realConfig(t, out, errs)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- Run(ctx, c, []string{"trace", "exec", "--include-self", "--exits", "--executable", "sh", "-o", "compact"})
	}()
	errs.await(t, "probes running: cgroup, exec\n")
	if err := osexec.Command("/bin/sh", "-c", "exit 3", "sh", "--password=open-sesame").Run(); err == nil {
		t.Fatal("exit 3 is no failure")
	}
	out.await(t, " code=3 ")
	cancel()
	if got := testwait.Receive(t, "the command's end", code); got != exitDone {
		t.Errorf("exit code %d; %s", got, errs)
	}
	if !strings.Contains(out.String(), "command=/bin/sh_-c_'exit_3'_sh_'--password=***'") || strings.Contains(out.String(), "open-sesame") {
		t.Error(out.String())
	}
}

// TestExecutables: each of several short commands is told of with what it ran, although the
// kernel tells of packets and of processes apart.
func TestExecutables(t *testing.T) {
	for _, source := range []string{"local", "agent"} {
		t.Run(source, func(t *testing.T) { testExecutables(t, source == "local") })
	}
}

func testExecutables(t *testing.T, local bool) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	out, errs := newWatched(), newWatched()
	c := realConfig(t, out, errs)
	bash, err := filepath.EvalSymlinks("/bin/bash")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	l, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.LocalAddr().(*net.UDPAddr).Port
	from := []string{"--local"}
	if !local {
		cfg := config.Default()
		cfg.Listen, cfg.MetricsListen, cfg.Socket = "127.0.0.1:0", "", ""
		from = []string{"--agent", startAgentOn(t, cfg)}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- Run(ctx, c, append([]string{
			"trace", "network", "--port", fmt.Sprint(port), "--process", "bash", "--executable", bash, "-o", "compact",
		}, from...))
	}()
	errs.await(t, "probes running")
	var want []string
	for range 10 {
		sent, err := osexec.Command(bash, "-c", fmt.Sprintf("exec 3<>/dev/udp/127.0.0.1/%d; echo hello >&3", port)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, sent)
		}
		_, from, err := l.ReadFrom(make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("%v -> 127.0.0.1:%d ", from, port))
	}
	for _, w := range want {
		out.await(t, w)
	}
	cancel()
	if got := testwait.Receive(t, "the command's end", code); got != exitDone {
		t.Errorf("exit code %d; %s", got, errs)
	}
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, " executable="+bash+" ") {
			t.Errorf("no executable: %s", line)
		}
	}
}

// TestTraceSyscallLocal: the calls of a program of this host, without an agent, and those of
// the same program that comes into its cgroup later; chosen by its name, or by the cgroup's.
func TestTraceSyscallLocal(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, by := range []string{"process", "workload"} {
		t.Run(by, func(t *testing.T) { testTraceSyscall(t, by == "process") })
	}
}

func testTraceSyscall(t *testing.T, byProcess bool) {
	out, errs := newWatched(), newWatched()
	c := realConfig(t, out, errs)
	dir, _ := probetest.NewCgroup(t)
	shell := osexec.Command("/bin/sh", "-c", "while read name; do /bin/ls $name; done")
	probetest.InCgroup(t, shell, dir)
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = shell.Wait() // ls finds nothing
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	code := make(chan int, 1)
	by := []string{"--workload", filepath.Base(dir)}
	if byProcess {
		by = []string{"--process", "sh", "--process", "ls"}
	}
	go func() {
		code <- Run(ctx, c, append([]string{"trace", "syscall", "--local", "--errors-only", "-o", "compact"}, by...))
	}()
	errs.await(t, "each system call of every process")
	for !strings.Contains(out.String(), "count=1 ") { // the shell is found once it has been looked for
		out.await(t, " targets ")
		time.Sleep(10 * time.Millisecond)
	}
	for _, name := range []string{"/nonexistent-one", "/nonexistent-two"} {
		if _, err := io.WriteString(in, name+"\n"); err != nil {
			t.Fatal(err)
		}
		out.await(t, name)
	}
	cancel()
	if got := testwait.Receive(t, "the command's end", code); got != exitDone {
		t.Errorf("exit code %d; %s", got, errs)
	}
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "nonexistent") && (!strings.Contains(line, " error=ENOENT") || !strings.Contains(line, " process=ls ")) {
			t.Errorf("%s", line)
		}
	}
	if !strings.Contains(errs.String(), " system calls in ") || !strings.Contains(errs.String(), "nothing lost") {
		t.Error(errs.String())
	}
}

func TestAgentConfigErrors(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("bogus: 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--config", bad}, exitUsage, `unknown key "bogus"`},
		{[]string{"--config", bad + "no"}, exitFailed, "no such file"},
		{[]string{"--listen", "0.0.0.0:9090"}, exitUsage, "can be reached from other machines"},
		{[]string{"--interval", "5"}, exitUsage, "--interval"},
	}
	for _, tt := range tests {
		var out, errs bytes.Buffer
		c := Config{Stdout: &out, Stderr: &errs}
		platform(&c)
		c.MayProbe = func() bool { return true }
		code := run(t, c, append([]string{"agent"}, tt.args...))
		if code != tt.code || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("%v: exit code %d, want %d; %s", tt.args, code, tt.code, errs.String())
		}
	}
}
