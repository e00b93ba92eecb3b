// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// A node under a mixed load: so many of each a second.
const (
	nodeConnections = 1000
	nodeDatagrams   = 5000
	nodeSockets     = 100 // that datagrams are sent from
	nodeQueries     = 500
	nodeStarts      = 100
)

// nodeLoad is what the agent and its programs cost under a mixed load.
type nodeLoad struct {
	made [4]float64 // a second, in the order of nodeLoads
	// agent is its CPU while the kernel measures no programs, programs theirs while it does,
	// both of one core in percent. idle is the agent's before there was a load.
	idle, agent, programs float64
	runs                  float64 // of programs, a second
	rss                   float64 // MiB
	lost                  uint64
}

// nodeLoads are named in the order in which they are made.
func nodeLoads() [4]string {
	return [4]string{"TCP connections", "datagrams", "DNS queries", "programs started"}
}

// measureNode has the real agent, with all that it does by itself, beside a mixed load.
func measureNode(ctx context.Context, o options, r *report) error {
	length := time.Minute
	if o.quick {
		length = 3 * time.Second
	}
	for run := range r.effort.runs {
		say("a node under a mixed load, run %d", run+1)
		l, err := loadNode(ctx, o.binary, length)
		if err != nil {
			return err
		}
		r.nodes = append(r.nodes, l)
	}
	return nil
}

func loadNode(ctx context.Context, binary string, length time.Duration) (l nodeLoad, err error) {
	p, err := startAgent(ctx, binary)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := sleep(ctx, length/6); err != nil { // what was to be done at the start is
		return l, err
	}
	if l.idle, err = p.share(ctx, func(ctx context.Context) error { return sleep(ctx, length/2) }); err != nil {
		return l, err
	}
	if l.agent, err = p.share(ctx, func(ctx context.Context) (err error) {
		l.made, err = mixed(ctx, length)
		return err
	}); err != nil {
		return l, err
	}
	stop, err := enableStats()
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, stop.Close()) }()
	before, err := p.cost(ctx)
	if err != nil {
		return l, err
	}
	began := time.Now()
	if _, err := mixed(ctx, length); err != nil {
		return l, err
	}
	seconds := time.Since(began).Seconds()
	after, err := p.cost(ctx)
	if err != nil {
		return l, err
	}
	l.programs = 100 * float64(after.GetCost().GetProgramsNs()-before.GetCost().GetProgramsNs()) / (seconds * float64(time.Second))
	l.runs = float64(after.GetCost().GetProgramsRuns()-before.GetCost().GetProgramsRuns()) / seconds
	l.lost = after.GetEventsDropped()
	m, err := p.memory()
	l.rss = m.rss
	return l, err
}

// share is the part of a core, in percent, that the agent takes while something is done.
func (p *process) share(ctx context.Context, do func(context.Context) error) (float64, error) {
	before, err := p.cpuTime()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := do(ctx); err != nil {
		return 0, err
	}
	took := time.Since(began)
	after, err := p.cpuTime()
	return 100 * float64(after-before) / float64(took), err
}

// cost asks the agent what it and its programs have cost so far.
func (p *process) cost(ctx context.Context) (*orb8v1.AgentStatus, error) {
	out, err := exec.CommandContext(ctx, p.cmd.Path, "status", "--agent", p.api, "-o", "json").Output()
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	s := new(orb8v1.AgentStatus)
	return s, protojson.Unmarshal(out, s)
}

// mixed makes the load for so long, and returns how many of each a second it came to.
func mixed(ctx context.Context, length time.Duration) (made [4]float64, err error) {
	server, err := openEcho()
	if err != nil {
		return made, err
	}
	defer server.close()
	var g errgroup.Group
	paced := func(i, rate int, op func() error) {
		g.Go(func() (err error) {
			made[i], err = pace(ctx, rate, length, op)
			return err
		})
	}
	paced(0, nodeConnections, server.connect)
	paced(1, nodeDatagrams, server.datagram)
	g.Go(func() error {
		sent, took, err := sendQueries(ctx, nodeQueries, length)
		made[2] = float64(sent) / took.Seconds()
		return err
	})
	paced(3, nodeStarts, startOne)
	return made, g.Wait()
}

// pace does something at a rate, as well as it can, and returns how often a second it was.
func pace(ctx context.Context, rate int, length time.Duration, op func() error) (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n, began := 0, time.Now()
	for ctx.Err() == nil {
		since := time.Since(began)
		if since >= length {
			break
		}
		if n >= int(float64(rate)*since.Seconds()) {
			time.Sleep(500 * time.Microsecond)
			continue
		}
		if err := op(); err != nil {
			return 0, err
		}
		n++
	}
	return float64(n) / time.Since(began).Seconds(), ctx.Err()
}

// echo answers connections and takes datagrams, on loopback.
type echo struct {
	tcp  net.Listener
	udp  net.PacketConn
	out  []net.Conn // what datagrams are sent from
	next int
}

func openEcho() (*echo, error) {
	e := new(echo)
	var err error
	if e.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if e.udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
		return nil, errors.Join(err, e.tcp.Close())
	}
	go e.serve()
	go func() {
		buf := make([]byte, 2048)
		for {
			if _, _, err := e.udp.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	for range nodeSockets {
		c, err := net.Dial("udp", e.udp.LocalAddr().String())
		if err != nil {
			e.close()
			return nil, err
		}
		e.out = append(e.out, c)
	}
	return e, nil
}

// serve answers each request of 200 bytes by a kilobyte.
func (e *echo) serve() {
	for {
		c, err := e.tcp.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var request [200]byte
			if _, err := io.ReadFull(c, request[:]); err == nil {
				_, _ = c.Write(make([]byte, 1024)) // the client tells
			}
		}()
	}
}

// connect is a connection with a request and its answer.
func (e *echo) connect() error {
	c, err := net.Dial("tcp", e.tcp.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 200)); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1024))
	return err
}

func (e *echo) datagram() error {
	e.next++
	_, err := e.out[e.next%len(e.out)].Write(make([]byte, 300))
	return err
}

func (e *echo) close() {
	_ = e.tcp.Close()
	_ = e.udp.Close()
	for _, c := range e.out {
		_ = c.Close()
	}
}

// perNode is what agent and programs take together, of a node of so many cores, in percent.
func (l *nodeLoad) perNode(cores int) float64 { return (l.agent + l.programs) / float64(cores) }

func (r *report) nodeShare() []float64 {
	var all []float64
	for i := range r.nodes {
		all = append(all, r.nodes[i].perNode(nodeCores))
	}
	return all
}

// nodeCores is how many cores the node has that the target is for.
const nodeCores = 16

func (r *report) writeNode(b *strings.Builder) {
	if len(r.nodes) == 0 {
		return
	}
	b.WriteString("\n## A node under a mixed load\n\n")
	loads := nodeLoads()
	fmt.Fprintf(b, "The real agent with its default settings beside a load on loopback, of which both ends are on this host, so that each connection, datagram and query is seen twice: %d %s with a request and an answer, %d %s from %d sockets, %d %s from fresh ports, %d %s, each second. The agent's CPU is that of its threads while the kernel measures no programs; the programs' time is the kernel's own measure, in a load of its own, and has the measuring in it. What the hooks themselves cost beside their programs is in \"With and without orb8\".\n\n",
		nodeConnections, loads[0], nodeDatagrams, loads[1], nodeSockets, nodeQueries, loads[2], nodeStarts, loads[3])
	b.WriteString("| made a second | agent, without load | agent | programs | together | of a node of 2, 16 and 64 cores | program runs a second | resident | events lost |\n|---|---|---|---|---|---|---|---|---|\n")
	for i := range r.nodes {
		l := &r.nodes[i]
		fmt.Fprintf(b, "| %.0f, %.0f, %.0f, %.0f | %.2f %% of a core | %.2f %% | %.2f %% | %.2f %% | %.2f %%, %.2f %%, %.2f %% | %.0f | %.1f MiB | %d |\n",
			l.made[0], l.made[1], l.made[2], l.made[3], l.idle, l.agent, l.programs, l.agent+l.programs,
			l.perNode(2), l.perNode(nodeCores), l.perNode(64), l.runs, l.rss, l.lost)
	}
}
