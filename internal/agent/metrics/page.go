// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"maps"
	"net"
	"net/http"
	"sync"
)

// sharedPage serves what handler makes. It makes one at a time, for all who wait for it, and
// before it writes to any of them: a slow reader keeps nobody from reading, and many
// readers make no more work than one. A request is answered by what was begun after it
// came.
type sharedPage struct {
	handler http.Handler
	turn    chan struct{} // holds a token while none is made

	mu sync.Mutex
	// next are those that have not been begun yet, by what readers accept.
	next map[string]*rendering
}

// rendering is an answer that several may read.
type rendering struct {
	made   chan struct{} // closed once the rest is there
	header http.Header
	code   int
	body   bytes.Buffer
}

func newSharedPage(handler http.Handler) *sharedPage {
	p := &sharedPage{handler: handler, turn: make(chan struct{}, 1), next: make(map[string]*rendering)}
	p.turn <- struct{}{}
	return p
}

func (p *sharedPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	accepts := r.Header.Get("Accept") + "\n" + r.Header.Get("Accept-Encoding")
	p.mu.Lock()
	c, mine := p.next[accepts], false
	if c == nil {
		c, mine = &rendering{made: make(chan struct{}), header: make(http.Header), code: http.StatusOK}, true
		p.next[accepts] = c
	}
	p.mu.Unlock()
	if mine {
		// Others may wait for it, so it is made even if this client has gone.
		p.render(c, accepts, r)
	}
	select {
	case <-c.made:
	case <-r.Context().Done():
		return
	}
	maps.Copy(w.Header(), c.header)
	w.WriteHeader(c.code)
	_, _ = w.Write(c.body.Bytes()) // the client may have gone
}

func (p *sharedPage) render(c *rendering, accepts string, r *http.Request) {
	<-p.turn
	defer func() { p.turn <- struct{}{} }()
	defer close(c.made)
	p.mu.Lock()
	delete(p.next, accepts)
	p.mu.Unlock()
	p.handler.ServeHTTP((*renderer)(c), r)
}

// renderer writes into a rendering.
type renderer rendering

func (r *renderer) Header() http.Header         { return r.header }
func (r *renderer) WriteHeader(code int)        { r.code = code }
func (r *renderer) Write(b []byte) (int, error) { return r.body.Write(b) }

// maxPerClient is how many connections one address may have; a Prometheus has two.
const maxPerClient = 16

// clients counts connections by address and turns away what is too many.
type clients struct {
	mu    sync.Mutex
	conns map[string]int
	over  map[net.Conn]bool // turned away, and not counted
}

func newClients() *clients {
	return &clients{conns: make(map[string]int), over: make(map[net.Conn]bool)}
}

// track is a server's ConnState.
func (c *clients) track(conn net.Conn, state http.ConnState) {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if c.conns[host] >= maxPerClient {
			c.over[conn] = true
			_ = conn.Close() // the server finds out when it reads
			return
		}
		c.conns[host]++
	case http.StateClosed, http.StateHijacked:
		if c.over[conn] {
			delete(c.over, conn)
			return
		}
		if c.conns[host]--; c.conns[host] <= 0 {
			delete(c.conns, host)
		}
	}
}
