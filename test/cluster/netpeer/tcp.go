// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// headerSize is that of what a client sends first: how many bytes it sends in
// all, the header included, and how many it wants back, as two 64-bit numbers.
const headerSize = 16

// plain makes no Multipath TCP, which Go does by default where it listens, and sends
// nothing on connections that nobody uses.
func plain() net.ListenConfig {
	lc := net.ListenConfig{KeepAlive: -1}
	lc.SetMultipathTCP(false)
	return lc
}

func serveTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			// A client that breaks off is none of the server's errors.
			_ = answer(c)
			_ = c.Close()
		}()
	}
}

// answer serves one connection until its client closes it.
func answer(c net.Conn) error {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(c, header); err != nil {
		return err
	}
	rest := int64(binary.BigEndian.Uint64(header)) - headerSize
	if _, err := io.CopyN(io.Discard, c, rest); err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, binary.BigEndian.Uint64(header[8:]))); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

func clientTCP(ctx context.Context, t *traffic) error {
	if t.send < headerSize {
		return fmt.Errorf("-send %d: want at least %d", t.send, headerSize)
	}
	d := net.Dialer{Timeout: t.timeout, KeepAlive: -1}
	c, err := d.DialContext(ctx, "tcp", t.to)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })()
	r := Result{Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()}
	if err := r.print(); err != nil {
		return err
	}
	data := make([]byte, t.send)
	binary.BigEndian.PutUint64(data, uint64(t.send))
	binary.BigEndian.PutUint64(data[8:], uint64(t.receive))
	if err := sendAll(ctx, c, t, data); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	r.Sent = t.send
	if err := c.SetReadDeadline(time.Now().Add(t.timeout)); err != nil {
		return err
	}
	n, err := io.CopyN(io.Discard, c, int64(t.receive))
	if err != nil {
		return fmt.Errorf("received %d of %d bytes: %w", n, t.receive, err)
	}
	r.Received = int(n)
	// A server that goes away meanwhile is not the client's error.
	if t.hold > 0 {
		if err := c.SetReadDeadline(time.Now().Add(t.hold)); err != nil {
			return err
		}
		if n, _ := c.Read(make([]byte, 1)); n != 0 {
			return errors.New("received more than was asked for")
		}
	}
	r.Done = true
	return r.print()
}

// sendAll writes data in chunks.
func sendAll(ctx context.Context, c net.Conn, t *traffic, data []byte) error {
	for len(data) > 0 {
		n := len(data)
		if t.chunk > 0 {
			n = min(n, max(t.chunk, headerSize))
		}
		if err := c.SetWriteDeadline(time.Now().Add(t.timeout)); err != nil {
			return err
		}
		if _, err := c.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
		if len(data) > 0 {
			sleep(ctx, t.pause)
		}
	}
	return nil
}
