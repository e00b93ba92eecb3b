// SPDX-License-Identifier: Apache-2.0

package neuron

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const (
	// maxLine bounds a report: about 40 KiB for each of 64 runtimes.
	maxLine = 4 << 20
	// maxAge is how old the latest report may be; there is one a second.
	maxAge = 5 * time.Second
	// endTime is how long it may take to end.
	endTime = 2 * time.Second
)

// config has a report every second, with the groups that are used.
const config = `{"period":"1s","neuron_runtimes":[{"tag_filter":".*","metrics":[` +
	`{"type":"neuroncore_counters"},{"type":"memory_used"}]}],"system_metrics":[{"type":"neuron_hw_counters"}]}`

// stream is a neuron-monitor at work. It ends by itself when nobody reads from it.
type stream struct {
	cancel context.CancelFunc
	done   chan struct{}
	// arrived gets a value with every report.
	arrived chan struct{}

	mu   sync.Mutex
	line []byte
	at   time.Time
	err  error
}

// start runs path, which is told its settings by its standard input.
func start(path string) (*stream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "-c", "/dev/stdin")
	cmd.Stdin = strings.NewReader(config)
	cmd.WaitDelay = endTime
	var complaint tail
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	s := &stream{cancel: cancel, done: make(chan struct{}), arrived: make(chan struct{}, 1)}
	go func() {
		defer close(s.done)
		if err := s.read(out); err != nil {
			s.fail(err)
			cancel()
		}
		err := cmd.Wait()
		s.fail(fmt.Errorf("it ended: %w %s", err, complaint.String()))
		cancel()
	}()
	return s, nil
}

// fail notes why there will be no more reports, the first reason.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = errors.New(strings.TrimSpace(err.Error()))
	}
	s.wake()
}

func (s *stream) wake() {
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

func (s *stream) read(out io.Reader) error {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		s.mu.Lock()
		s.line, s.at = bytes.Clone(lines.Bytes()), time.Now()
		s.mu.Unlock()
		s.wake()
	}
	return lines.Err()
}

// latest returns the latest report and its time, and waits for one if there is none
// of late.
func (s *stream) latest(ctx context.Context) ([]byte, time.Time, error) {
	for {
		s.mu.Lock()
		line, at, err := s.line, s.at, s.err
		s.mu.Unlock()
		switch {
		case err != nil:
			return nil, at, err
		case line != nil && time.Since(at) < maxAge:
			return line, at, nil
		}
		select {
		case <-s.arrived:
		case <-s.done:
		case <-ctx.Done():
			return nil, at, errors.New("it has not reported in time")
		}
	}
}

func (s *stream) close() error {
	s.cancel()
	<-s.done
	return nil
}

// tail keeps the beginning of what a program complains about.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 200 - len(t.text); room > 0 {
		t.text = append(t.text, b[:min(len(b), room)]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
