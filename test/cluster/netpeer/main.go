// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command netpeer makes traffic of an exactly known size for tests:
//
//	netpeer serve -listen :7000            answers TCP and UDP clients
//	netpeer tcp -send 1000 -receive 2000 ADDRESS:PORT
//	netpeer udp -count 3 -size 100 ADDRESS:PORT
//	netpeer ping -count 3 -size 56 ADDRESS
//	netpeer dns -listen :53 -wait 300ms    answers DNS queries, see serveDNS
//	netpeer resolve -type A -server ADDRESS:53 NAME     sends one query
//	netpeer lookup NAME                    asks as programs do, by resolv.conf
//	netpeer wait                           does nothing, in a pod to run the others in
//	netpeer stop                           ends process 1 of the container
//	netpeer hostile AGENT:PORT ADDRESS:PORT  does to an agent what a pod can do
//
// A client prints a line of JSON (type Result) once it knows its own address and
// another one at its end. It fails if it did not get what it asked for.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Result is what a client has done so far.
type Result struct {
	// Local and Remote are ADDRESS:PORT, for ping just addresses.
	Local  string `json:"local"`
	Remote string `json:"remote"`
	// Sent and Received count payload bytes.
	Sent     int `json:"sent"`
	Received int `json:"received"`
	// ID of a ping's echo requests, or of a query.
	ID int `json:"id,omitempty"`
	// Addresses that a name has, and how long it took to get them.
	Addresses []string      `json:"addresses,omitempty"`
	Took      time.Duration `json:"took_ns,omitempty"`
	// Done is false in the first line and true in the last.
	Done bool `json:"done"`
}

func (r Result) print() error { return json.NewEncoder(os.Stdout).Encode(r) }

// traffic is what a client is told.
type traffic struct {
	to            string
	send, receive int
	count, size   int
	chunk         int
	pause, hold   time.Duration
	timeout       time.Duration
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "netpeer: %v\n", err)
		os.Exit(1) //nolint:gocritic // cancel has nothing left to do
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("want one of serve, tcp, udp, ping, dns, resolve, lookup, wait, stop, hostile")
	}
	var t traffic
	fs := flag.NewFlagSet(args[0], flag.ExitOnError)
	listen := fs.String("listen", ":7000", "addresses to serve, with commas between them")
	file := fs.String("await", "", "file to wait for before doing anything")
	fs.IntVar(&t.send, "send", 1000, "bytes to send, at least 16")
	fs.IntVar(&t.receive, "receive", 1000, "bytes to be answered")
	fs.IntVar(&t.chunk, "chunk", 0, "bytes in one write, 0 for all")
	fs.DurationVar(&t.pause, "pause", 0, "time between two writes, datagrams or pings")
	fs.DurationVar(&t.hold, "hold", 0, "time to keep the connection open at the end")
	fs.IntVar(&t.count, "count", 3, "datagrams or pings")
	fs.IntVar(&t.size, "size", 100, "payload of one datagram or ping")
	fs.DurationVar(&t.timeout, "timeout", 10*time.Second, "time without progress after which a client gives up")
	wait := fs.Duration("wait", 300*time.Millisecond, "time until slow names are answered")
	server := fs.String("server", "", "DNS server to ask")
	kind := fs.String("type", "A", "type to ask for: A or AAAA")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	t.to = fs.Arg(0)
	if *file != "" {
		await(ctx, *file)
	}
	switch args[0] {
	case "serve":
		return serve(ctx, *listen)
	case "tcp":
		return clientTCP(ctx, &t)
	case "udp":
		return clientUDP(ctx, &t)
	case "ping":
		return ping(ctx, &t)
	case "dns":
		return serveDNS(ctx, *listen, *wait)
	case "resolve":
		t.to = *server
		return resolve(ctx, &t, fs.Arg(0), *kind)
	case "lookup":
		return lookup(ctx, t.to)
	case "wait":
		<-ctx.Done()
		return nil
	case "hostile":
		return hostile(ctx, fs.Arg(0), fs.Arg(1))
	case "stop":
		return syscall.Kill(1, syscall.SIGTERM)
	}
	return fmt.Errorf("no command %q", args[0])
}

// await returns when the file is there, or when ctx is done.
func await(ctx context.Context, file string) {
	for ctx.Err() == nil {
		if _, err := os.Stat(file); err == nil {
			return
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// sleep returns after d, or when ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
