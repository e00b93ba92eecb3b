// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"strings"
	"testing"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
)

// TestTypes: each kind of record is what it says, and nothing else.
func TestTypes(t *testing.T) {
	tcp := func(event flow.Event, change func(*flow.Record)) *flow.Record {
		r := fullRecord()
		r.TCP = flow.TCPInfo{}
		r.Event, r.TCP.Valid, r.Connected = event, true, false
		change(r)
		return r
	}
	datagrams := fullRecord()
	datagrams.TCP, datagrams.Connected = flow.TCPInfo{}, false
	datagrams.Event = flow.EventClose
	for name, c := range map[string]struct {
		r    *flow.Record
		want string
	}{
		"opened":            {tcp(flow.EventOpen, func(r *flow.Record) { r.Connected = true }), "connect open"},
		"opened later":      {tcp(flow.EventUpdate, func(r *flow.Record) { r.Connected = true }), "connect open"},
		"traffic":           {tcp(flow.EventUpdate, func(*flow.Record) {}), "update"},
		"sent again":        {tcp(flow.EventUpdate, func(r *flow.Record) { r.Retransmitted = 2 }), "retransmit update"},
		"refused":           {tcp(flow.EventClose, func(r *flow.Record) { r.TCP.Failed, r.TCP.ResetReceived, r.TCP.End = true, true, flow.EndRefused }), "connect failed refused"},
		"timed out":         {tcp(flow.EventClose, func(r *flow.Record) { r.TCP.Failed, r.Retransmitted, r.TCP.End = true, 6, flow.EndTimeout }), "connect failed retransmit timeout"},
		"unreachable":       {tcp(flow.EventClose, func(r *flow.Record) { r.TCP.Failed, r.TCP.End = true, flow.EndUnreachable }), "connect failed unreachable"},
		"given up":          {tcp(flow.EventClose, func(r *flow.Record) { r.TCP.Failed, r.TCP.End = true, flow.EndAborted }), "aborted connect failed"},
		"another error":     {tcp(flow.EventClose, func(r *flow.Record) { r.TCP.Failed, r.TCP.End = true, flow.EndError }), "connect error failed"},
		"silent peer":       {tcp(flow.EventClose, func(r *flow.Record) { r.TCP.End = flow.EndTimeout }), "close timeout"},
		"closed":            {tcp(flow.EventClose, func(*flow.Record) {}), "close"},
		"opened and closed": {tcp(flow.EventClose, func(r *flow.Record) { r.Connected = true }), "close connect"},
		"reset":             {tcp(flow.EventClose, func(r *flow.Record) { r.TCP.ResetSent, r.TCP.End = true, flow.EndResetLocal }), "close reset"},
		"expired":           {tcp(flow.EventExpire, func(*flow.Record) {}), "idle"},
		"evicted":           {tcp(flow.EventEvict, func(*flow.Record) {}), "evicted"},
		"datagrams":         {datagrams, "close"},
	} {
		var got []string
		for _, kind := range Types() {
			set, err := compile(strings.ToUpper(kind))
			if err != nil {
				t.Fatal(err)
			}
			if set.Match(&c.r.Header, c.r) {
				got = append(got, kind)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %q, want %q", name, s, c.want)
		}
	}
	if set, err := compile("close"); err != nil || set.Match(&datagrams.Header, nil) {
		t.Errorf("a record of another kind matches, %v", err)
	}
	_, err := compile("drop")
	if err == nil || !strings.Contains(err.Error(), `types: "drop": want aborted, close, connect, error, evicted, failed, idle, open, refused, reset, retransmit, timeout, unreachable, update`) {
		t.Errorf("%v", err)
	}
}

func compile(kind string) (*filter.Set, error) {
	return filter.Compile([]*orb8v1.Filter{{Types: []string{kind}}}, filter.WithFields(Fields()...))
}

func TestMatchDoesNotAllocate(t *testing.T) {
	set, err := compile("close")
	if err != nil {
		t.Fatal(err)
	}
	r := fullRecord()
	if !set.Match(&r.Header, r) {
		t.Fatal("a close does not match")
	}
	if n := testing.AllocsPerRun(100, func() { set.Match(&r.Header, r) }); n != 0 {
		t.Errorf("%v allocations per Match", n)
	}
}
