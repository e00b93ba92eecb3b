// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/transport/websocket"
	"k8s.io/streaming/pkg/httpstream"
	streamspdy "k8s.io/streaming/pkg/httpstream/spdy"
)

const (
	// tunnelPing keeps load balancers from closing an idle connection.
	tunnelPing = 10 * time.Second
	// kubeletWords is how long to wait, once the data has ended, for the reason.
	kubeletWords = time.Second
	// maxWords bounds what the kubelet may say.
	maxWords = 16 << 10
)

// tunnel is a connection to a port of a pod: one data stream of a port-forward.
type tunnel struct {
	stream httpstream.Connection
	data   httpstream.Stream
	// told is closed once the kubelet will say no more; words is what it said.
	told  chan struct{}
	words string
	// broken is called with the first error that is not the caller's doing.
	broken func(error)
	once   sync.Once
	closed chan struct{}
}

// open connects to the agent's port of a pod. The libraries below cannot be
// interrupted while they wait for the API server, so that when ctx is done what
// they make is closed when it comes.
func (c *Cluster) open(ctx context.Context, pod string, broken func(error)) (net.Conn, error) {
	type result struct {
		t   *tunnel
		err error
	}
	done := make(chan result, 1)
	select {
	case c.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("port-forward to pod %s: %w", pod, errNoAnswer)
	}
	go func() {
		defer func() { <-c.opening }()
		t, err := c.connect(ctx, pod)
		done <- result{t, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, c.explain(r.err, "create", "pods/portforward")
		}
		r.t.broken = broken
		return r.t, nil
	case <-ctx.Done():
		go func() {
			if r := <-done; r.t != nil {
				_ = r.t.Close()
			}
		}()
		return nil, fmt.Errorf("port-forward to pod %s: %w", pod, errNoAnswer)
	}
}

// connect asks for a WebSocket, which passes all proxies, and falls back to
// SPDY, which is all that API servers before 1.31 know and for which the right
// to create is enough.
func (c *Cluster) connect(ctx context.Context, pod string) (*tunnel, error) {
	where := c.core.Post().Namespace(c.Namespace).Resource("pods").Name(pod).SubResource("portforward").URL()
	conn, err := c.overWebSocket(ctx, where)
	if httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err) {
		conn, err = c.overSPDY(ctx, where)
	}
	if err != nil {
		return nil, err
	}
	t, err := newTunnel(conn, pod)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return t, nil
}

func (c *Cluster) overWebSocket(ctx context.Context, where *url.URL) (httpstream.Connection, error) {
	transport, holder, err := websocket.RoundTripperFor(c.config)
	if err != nil {
		return nil, fmt.Errorf("prepare a WebSocket: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("prepare a WebSocket: %w", err)
	}
	conn, err := websocket.Negotiate(transport, holder, req, "SPDY/3.1+"+portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	return streamspdy.NewClientConnectionWithPings(portforward.NewTunnelingConnection("orb8", conn), tunnelPing)
}

func (c *Cluster) overSPDY(ctx context.Context, where *url.URL) (httpstream.Connection, error) {
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, fmt.Errorf("prepare SPDY: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where.String(), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("prepare SPDY: %w", err)
	}
	code := &answerCode{RoundTripper: transport}
	conn, protocol, err := spdy.NegotiateStreaming(upgrader, &http.Client{Transport: code}, req, portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, code.explain(err)
	}
	if protocol != portforward.PortForwardProtocolV1Name {
		return nil, errors.Join(fmt.Errorf("the API server offers protocol %q for port-forward", protocol), conn.Close())
	}
	return conn, nil
}

// answerCode keeps the code of the answer, which the error of a failed upgrade
// has lost.
type answerCode struct {
	http.RoundTripper
	code int
}

// RoundTrip implements http.RoundTripper.
func (t *answerCode) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		t.code = resp.StatusCode
	}
	return resp, err
}

func (t *answerCode) explain(err error) error {
	reasons := map[int]metav1.StatusReason{
		http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusUnauthorized: metav1.StatusReasonUnauthorized,
	}
	switch reason, ok := reasons[t.code]; {
	case ok:
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: int32(t.code), Reason: reason, Message: err.Error()}}
	case t.code != 0: // the API server has answered: what it says is enough
		return errors.New(strings.TrimPrefix(err.Error(), "unable to upgrade connection: "))
	}
	return err
}

// newTunnel opens the two streams that a port-forward wants.
func newTunnel(conn httpstream.Connection, pod string) (*tunnel, error) {
	headers := http.Header{}
	headers.Set(v1.StreamType, v1.StreamTypeError)
	headers.Set(v1.PortHeader, strconv.Itoa(agentPort))
	headers.Set(v1.PortForwardRequestIDHeader, "0")
	errs, err := conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("port-forward to pod %s: %w", pod, err)
	}
	if err := errs.Close(); err != nil { // nothing is written to it
		return nil, fmt.Errorf("port-forward to pod %s: %w", pod, err)
	}
	headers.Set(v1.StreamType, v1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("port-forward to pod %s: %w", pod, err)
	}
	t := &tunnel{stream: conn, data: data, told: make(chan struct{}), closed: make(chan struct{})}
	go func() { // ends with the connection, which Close waits for
		defer close(t.told)
		said, _ := io.ReadAll(io.LimitReader(errs, maxWords)) // cut short, it is still the reason
		t.words = kubeletReason(string(said))
	}()
	return t, nil
}

// kubeletReason leaves out of a kubelet's message what does not help, such as
// the path of a network namespace.
func kubeletReason(said string) string {
	said = oneLine(said)
	if said == "" {
		return ""
	}
	if strings.Contains(said, "connection refused") {
		return fmt.Sprintf("port %d of the pod: connection refused", agentPort)
	}
	return "port-forward: " + said
}

// Read implements net.Conn. What the kubelet says becomes the error.
func (t *tunnel) Read(p []byte) (int, error) {
	n, err := t.data.Read(p)
	if err != nil {
		err = t.why()
	}
	return n, err
}

// Write implements net.Conn, with errors as Read's.
func (t *tunnel) Write(p []byte) (int, error) {
	n, err := t.data.Write(p)
	if err != nil {
		err = t.why()
	}
	return n, err
}

// why is the error after the connection has ended.
func (t *tunnel) why() error {
	err := errors.New("the port-forward was closed")
	select {
	case <-t.closed:
		return net.ErrClosed
	case <-t.told:
		if t.words != "" {
			err = errors.New(t.words)
		}
	case <-time.After(kubeletWords):
	}
	if isClosed(t.closed) {
		return net.ErrClosed
	}
	if t.broken != nil {
		t.broken(err)
	}
	return err
}

// Close implements net.Conn. It ends a Read that waits.
func (t *tunnel) Close() error {
	var err error
	t.once.Do(func() {
		close(t.closed)
		_ = t.data.Reset() // fails where the connection is gone, which is the aim
		err = t.stream.Close()
		<-t.told
	})
	return err
}

// tunnelAddr is the address of either end: a pod has none that is of use here.
type tunnelAddr struct{}

func (tunnelAddr) Network() string { return "port-forward" }
func (tunnelAddr) String() string  { return "port-forward" }

// LocalAddr implements net.Conn.
func (t *tunnel) LocalAddr() net.Addr { return tunnelAddr{} }

// RemoteAddr implements net.Conn.
func (t *tunnel) RemoteAddr() net.Addr { return tunnelAddr{} }

// SetDeadline implements net.Conn. Deadlines have no effect: gRPC sets them only
// before it closes the connection, and closing ends reads and writes as well.
func (t *tunnel) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn, see SetDeadline.
func (t *tunnel) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn, see SetDeadline.
func (t *tunnel) SetWriteDeadline(time.Time) error { return nil }
