// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"
)

// strangerError says that something listens where this host's agent is looked for, and
// that it is not root's: any user may listen there.
type strangerError struct {
	at  string
	uid uint32
}

func (e *strangerError) Error() string {
	return fmt.Sprintf("%s is user %d's, not root's: it is not asked unless you name it with --agent", e.at, e.uid)
}

// believed reports whether what a user says of this host is taken for true.
func believed(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

// dialHost finds the agent of this host: at its Unix socket, else at the loopback address.
func (c *Config) dialHost(ctx context.Context) (*source, error) {
	s, socketErr := c.dialSocket(ctx)
	if s != nil || ctx.Err() != nil {
		return s, socketErr
	}
	if err := c.checkListener(); err != nil {
		return nil, err
	}
	s, err := dial(ctx, c.DefaultAgent, lookTimeout)
	if err != nil && socketErr != nil {
		err = fmt.Errorf("%w; %w", err, socketErr)
	}
	return s, err
}

// dialSocket returns neither where there is no socket, or none that anybody listens at.
func (c *Config) dialSocket(ctx context.Context) (*source, error) {
	if c.DefaultSocket == "" || c.PeerUser == nil {
		return nil, nil
	}
	s, err := dial(ctx, unixScheme+c.DefaultSocket, lookTimeout, c.checkPeer)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s is for root and the group orb8", c.DefaultSocket)
	}
	return nil, fmt.Errorf("%s: %w", c.DefaultSocket, err)
}

// checkPeer refuses a Unix socket that somebody else listens at.
func (c *Config) checkPeer(conn net.Conn) error {
	uid, err := c.PeerUser(conn.(*net.UnixConn))
	if err != nil {
		return fmt.Errorf("look who listens: %w", err)
	}
	if !believed(uid) {
		return &strangerError{c.DefaultSocket, uid}
	}
	return nil
}

// checkListener refuses a loopback address that somebody else listens at. Where that
// cannot be told, nobody is refused.
func (c *Config) checkListener() error {
	if c.ListenerUser == nil {
		return nil
	}
	_, service, err := net.SplitHostPort(c.DefaultAgent)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return err
	}
	if uid, listens := c.ListenerUser(uint16(port)); listens && !believed(uid) {
		return &strangerError{c.DefaultAgent, uid}
	}
	return nil
}
