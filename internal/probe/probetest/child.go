// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probetest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	childEnv = "ORB8_TEST_CHILD"
	// answerTime is how long a child may take to answer.
	answerTime = 30 * time.Second
)

// Child is the test binary, run a second time in a cgroup and a network namespace. It
// does what it is told.
type Child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
	end *os.File // the other end of out
}

// ServeChild is for TestMain. In a child it carries out commands until the test ends,
// each given as words, and returns true; else it returns false at once.
func ServeChild(do func(words []string) (answer string, err error)) bool {
	if os.Getenv(childEnv) == "" {
		return false
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := do(strings.Fields(in.Text()))
		if err != nil {
			fmt.Println("error:", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok", answer)
	}
	return true
}

// Pipes are the standard input and output of a command that has not been started.
func Pipes(t testing.TB, cmd *exec.Cmd) (in io.WriteCloser, out io.ReadCloser) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	return in, out
}

// NewChild starts a child for the time of the test. The package's TestMain must call
// ServeChild. cgroup is a folder; netns may be nil, for the test's own.
func NewChild(t testing.TB, cgroup string, netns *Netns) *Child {
	t.Helper()
	cmd := Command(t, "/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	InCgroup(t, cmd, cgroup)
	in, out := Pipes(t, cmd)
	var err error
	if netns.Do(func() { err = cmd.Start() }); err != nil {
		t.Fatalf("start a process in its own cgroup: %v", err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("child: %v", err)
		}
	})
	return &Child{t: t, cmd: cmd, in: in, out: bufio.NewReader(out), end: out.(*os.File)}
}

// PID is the child's process id.
func (c *Child) PID() uint32 { return uint32(c.cmd.Process.Pid) }

// Try sends a command and returns the answer, or the child's error. A child that does not
// answer in time says on its standard error what it waits for.
func (c *Child) Try(format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		return "", err
	}
	if err := c.end.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return "", err
	}
	line, err := c.out.ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.cmd.Process.Signal(syscall.SIGQUIT)
	}
	if err != nil {
		return "", fmt.Errorf("answer of the child process: %w", err)
	}
	if msg, ok := strings.CutPrefix(strings.TrimSpace(line), "ok"); ok {
		return strings.TrimSpace(msg), nil
	}
	return "", errors.New(strings.TrimSpace(line))
}

// Do is Try for what must succeed.
func (c *Child) Do(format string, args ...any) string {
	c.t.Helper()
	answer, err := c.Try(format, args...)
	if err != nil {
		c.t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
	return answer
}

// Addr is Do for a command whose answer is an address and a port. An IPv4 address is
// never mapped into IPv6.
func (c *Child) Addr(format string, args ...any) netip.AddrPort {
	c.t.Helper()
	a, err := netip.ParseAddrPort(c.Do(format, args...))
	if err != nil {
		c.t.Fatal(err)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
