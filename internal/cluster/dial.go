// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	// keepaliveTime is more than the shortest that agents allow.
	keepaliveTime    = 15 * time.Second
	keepaliveTimeout = 10 * time.Second
	// connectTimeout is how long opening a port-forward may take.
	connectTimeout = 10 * time.Second
	maxReconnect   = 10 * time.Second
)

// Conn is a gRPC connection to an agent. It connects when it is first used, and
// anew when it breaks.
type Conn struct {
	*grpc.ClientConn
	trouble atomic.Pointer[error]
}

// Trouble is why the connection does not work, as far as that is known; nil
// while it does. It says more than the error of a call.
func (c *Conn) Trouble() error {
	if err := c.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

func (c *Conn) setTrouble(err error) {
	if err == nil {
		c.trouble.Store(nil)
		return
	}
	c.trouble.Store(&err)
}

// Dial returns a connection to the agent. The traffic is not encrypted beyond
// what the API server and the kubelet do: it ends on the pod's loopback.
func (c *Cluster) Dial(a Agent) (*Conn, error) {
	conn := &Conn{}
	dialer := func(ctx context.Context, _ string) (net.Conn, error) {
		t, err := c.open(ctx, a.Pod, conn.setTrouble)
		conn.setTrouble(err)
		return t, err
	}
	var err error
	conn.ClientConn, err = grpc.NewClient("passthrough:///"+a.Pod, append(dialOptions(), grpc.WithContextDialer(dialer))...)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func dialOptions() []grpc.DialOption {
	retry := backoff.DefaultConfig
	retry.MaxDelay = maxReconnect
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	}
}
