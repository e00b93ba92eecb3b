// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// hostileName is no text, and what a terminal acts on.
const hostileName = "\x1b]0;own\a\xff\xfe\x9b"

// slowReaders is how many connections wait at a page and read nothing.
const slowReaders = 40

// hostile does to an agent, whose metrics are at addr, what a pod can: it has a name that
// is no text and talks to server, serves a page as a dcgm-exporter's with devices that are
// not there, and asks for pages that it does not read.
func hostile(ctx context.Context, addr, server string) error {
	if err := os.WriteFile("/proc/self/comm", []byte(hostileName), 0); err != nil {
		return fmt.Errorf("take a name: %w", err)
	}
	go func() { _ = http.ListenAndServe(":9400", http.HandlerFunc(forged)) }()
	for ctx.Err() == nil {
		var conns []net.Conn
		for range slowReaders {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err != nil {
				continue
			}
			_ = c.(*net.TCPConn).SetReadBuffer(4096)
			_, _ = fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
			conns = append(conns, c)
		}
		if c, err := net.DialTimeout("tcp", server, time.Second); err == nil {
			_, _ = c.Write([]byte("x"))
			conns = append(conns, c)
		}
		sleep(ctx, 3*time.Second)
		for _, c := range conns {
			c.Close()
		}
	}
	return nil
}

// forged is a page of 20,000 devices.
func forged(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&b, "DCGM_FI_DEV_GPU_UTIL{gpu=\"%d\",UUID=\"GPU-forged-%d\"} 99\n", i, i)
	}
	_, _ = w.Write([]byte(b.String()))
}
