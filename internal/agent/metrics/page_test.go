// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

// ask sends a request and reads nothing.
func ask(t *testing.T, addr, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	return c
}

// Readers that take nothing keep nobody from reading.
func TestSlowReaders(t *testing.T) {
	page := newSharedPage(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 8<<20)) // more than sockets hold
	}))
	s := httptest.NewServer(page)
	t.Cleanup(s.Close) // after the connections
	for range 10 {
		ask(t, s.Listener.Addr().String(), "/")
	}
	time.Sleep(100 * time.Millisecond)
	client := http.Client{Timeout: testwait.Limit}
	resp, err := client.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != 8<<20 || err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%s, %d bytes, %v", resp.Status, n, err)
	}
}

// Many readers make no more work than two: what is being made when they come, and what is
// made for all of them afterwards.
func TestReadersShare(t *testing.T) {
	var made atomic.Int32
	begun, goOn := make(chan struct{}, 100), make(chan struct{})
	page := newSharedPage(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		begun <- struct{}{}
		<-goOn
		w.Header().Set("X-Made", fmt.Sprint(made.Add(1)))
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "text")
	}))
	var wg sync.WaitGroup
	answers := make(chan *httptest.ResponseRecorder, 100)
	started := make(chan struct{}, 100)
	get := func() {
		wg.Go(func() {
			started <- struct{}{}
			w := httptest.NewRecorder()
			page.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			answers <- w
		})
	}
	get()
	testwait.Receive(t, "the first", begun)
	for range 50 {
		get()
	}
	for range 51 {
		testwait.Receive(t, "a reader", started)
	}
	time.Sleep(50 * time.Millisecond) // for most of them to wait
	close(goOn)
	wg.Wait()
	close(answers)
	for w := range answers {
		if w.Code != http.StatusTeapot || w.Body.String() != "text" || w.Header().Get("X-Made") == "" {
			t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
		}
	}
	if n := made.Load(); n < 2 || n > 25 {
		t.Errorf("made %d times for 51 readers", n)
	}
}

// One address has a share of the connections.
func TestConnectionsByClient(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	counted := newClients()
	s.Config.ConnState = counted.track
	s.Start()
	t.Cleanup(s.Close) // after the connections
	addr := s.Listener.Addr().String()
	answers := func(c net.Conn) bool {
		if err := c.SetReadDeadline(time.Now().Add(testwait.Limit)); err != nil {
			t.Fatal(err)
		}
		_, err := bufio.NewReader(c).ReadString('\n')
		return err == nil
	}
	var first net.Conn
	for i := range maxPerClient {
		c := ask(t, addr, "/")
		if !answers(c) {
			t.Fatalf("connection %d is turned away", i+1)
		}
		first = c
	}
	if c := ask(t, addr, "/"); answers(c) {
		t.Error("one too many is served")
	}
	first.Close()
	testwait.True(t, "room for another", func() bool { return answers(ask(t, addr, "/")) })
	s.CloseClientConnections()
	testwait.True(t, "all forgotten", func() bool {
		counted.mu.Lock()
		defer counted.mu.Unlock()
		return len(counted.conns) == 0 && len(counted.over) == 0
	})
}
