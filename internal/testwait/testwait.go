// SPDX-License-Identifier: Apache-2.0

// Package testwait waits in tests: long enough for a starved machine, never for
// ever, and with a word on what did not come. Only tests import it.
package testwait

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Limit is how long one wait may take.
const Limit = 30 * time.Second

// every is the time between two looks.
const every = 5 * time.Millisecond

var errNotYet = errors.New("not so yet")

// Until returns once look does not return an error any more. The last error says
// what was seen instead.
func Until(t testing.TB, what string, look func() error) {
	t.Helper()
	for end := time.Now().Add(Limit); ; time.Sleep(every) {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s: %v", Limit, what, err)
		}
	}
}

// True returns once ok says yes.
func True(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Until(t, what, func() error {
		if ok() {
			return nil
		}
		return errNotYet
	})
}

// Receive returns the next value of a channel, the zero value if it is closed.
func Receive[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	late := time.NewTimer(Limit)
	defer late.Stop()
	var v T
	select {
	case v = <-from:
	case <-late.C:
		t.Fatalf("waited %v for %s: nothing came", Limit, what)
	}
	return v
}

// Return calls f, such as a WaitGroup's Wait, and returns when it does.
func Return(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	Receive(t, what, done)
}

// Context is the test's context, with the limit.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Limit)
	t.Cleanup(cancel)
	return ctx
}
