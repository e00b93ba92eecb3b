// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cluster"
	"github.com/Ignoramuss/orb8/internal/doctor"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// serveAt makes an agent of that name available at a Unix socket until the test ends.
func serveAt(t *testing.T, path, name string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	st := healthyStatus()
	st.NodeName = name
	orb8v1.RegisterOrbitAgentServiceServer(s, &fakeAgent{status: st})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		testwait.Receive(t, "the end of the server", done)
	})
}

// On a host root's socket is asked first; what listens for another user is not asked
// unless it is named.
func TestWhomToBelieve(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "agent.sock")
	serveAt(t, socket, "at-socket")
	tcp := serve(t, &fakeAgent{status: func() *orb8v1.AgentStatus { s := healthyStatus(); s.NodeName = "at-port"; return s }()})
	const stranger = 12345
	own := uint32(os.Getuid())
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for _, tt := range []struct {
		name, socket         string
		peerUser, portsUser  uint32
		args                 string
		code                 int
		stdout, stderr, deny string
		port, denyError      string
	}{
		{name: "the socket", socket: socket, peerUser: own, portsUser: own, args: "status", stdout: "at-socket"},
		{name: "the socket, whoever has the port", socket: socket, peerUser: own, portsUser: stranger, args: "status", stdout: "at-socket"},
		{name: "no socket", socket: filepath.Join(dir, "none"), portsUser: own, args: "status", stdout: "at-port"},
		{name: "a socket of an agent that has ended", socket: dead, portsUser: own, args: "status", stdout: "at-port"},
		{name: "a stranger's socket", socket: socket, peerUser: stranger, portsUser: own, args: "status", stdout: "at-port"},
		{name: "a stranger's port", socket: "", portsUser: stranger, args: "status", code: 1, deny: "at-port",
			stderr: "is user 12345's, not root's: it is not asked unless you name it with --agent"},
		{name: "a stranger's socket and port", socket: socket, peerUser: stranger, portsUser: stranger, args: "flows", code: 1, deny: "at-",
			stderr: "is user 12345's, not root's: it is not asked unless you name it with --agent"},
		{name: "a stranger's port that is named", portsUser: stranger, args: "status --agent " + tcp, stdout: "at-port"},
		{name: "a socket that is named", peerUser: stranger, portsUser: stranger, args: "status --agent unix:" + socket, stdout: "at-socket"},
		{name: "neither", socket: dead, portsUser: own, port: "127.0.0.1:1", args: "status", code: 1,
			stderr: "127.0.0.1:1: connection refused\n", denyError: "agent.sock"},
		{name: "doctor", socket: socket, peerUser: own, portsUser: own, args: "doctor", stdout: "at unix:" + socket},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			c := Config{
				Version: "test", Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" },
				DefaultAgent: cmp.Or(tt.port, tcp), DefaultSocket: tt.socket,
				Connect:      func(cluster.Options) (*cluster.Cluster, error) { return nil, cluster.ErrNoConfig },
				MayProbe:     func() bool { return false },
				PeerUser:     func(*net.UnixConn) (uint32, error) { return tt.peerUser, nil },
				ListenerUser: func(uint16) (uint32, bool) { return tt.portsUser, true },
				Doctor:       func(context.Context) []doctor.Finding { return nil },
			}
			code := Run(testwait.Context(t), c, strings.Fields(tt.args))
			if code != tt.code || !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("exit code %d\n%s\n%s", code, &stdout, &stderr)
			}
			if tt.deny != "" && strings.Contains(stdout.String(), tt.deny) {
				t.Errorf("was asked: %s", &stdout)
			}
			if tt.denyError != "" && strings.Contains(stderr.String(), tt.denyError) {
				t.Errorf("says more than there is: %s", &stderr)
			}
		})
	}
}

// The kernel says who listens.
func TestPeerUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if uid, err := peerUser(conn.(*net.UnixConn)); err != nil || int(uid) != os.Getuid() {
		t.Errorf("user %d, %v", uid, err)
	}
	if _, err := peerUser(new(net.UnixConn)); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("no connection: %v", err)
	}
}
