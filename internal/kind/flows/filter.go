// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"slices"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
)

// is has what records may say, by name: the words that tables and compact lines have for
// an event, how a connection ended, and two that are wider.
func is(name string) func(*flow.Record) bool {
	switch name {
	case "open":
		return func(r *flow.Record) bool { return r.Event == flow.EventOpen || opened(r) }
	case "update":
		return func(r *flow.Record) bool { return r.Event == flow.EventUpdate && !opened(r) }
	case "close":
		return func(r *flow.Record) bool { return r.Event == flow.EventClose && !failed(r) }
	case "idle":
		return func(r *flow.Record) bool { return r.Event == flow.EventExpire }
	case "evicted":
		return func(r *flow.Record) bool { return r.Event == flow.EventEvict }
	case "connect":
		return func(r *flow.Record) bool { return r.Connected || failed(r) }
	case "failed":
		return failed
	case "refused":
		return ended(flow.EndRefused)
	case "timeout":
		return ended(flow.EndTimeout)
	case "unreachable":
		return ended(flow.EndUnreachable)
	case "aborted":
		return ended(flow.EndAborted)
	case "error":
		return ended(flow.EndError)
	case "reset":
		return func(r *flow.Record) bool {
			return r.Event == flow.EventClose && !r.TCP.Failed && (r.TCP.ResetSent || r.TCP.ResetReceived)
		}
	case "retransmit":
		return func(r *flow.Record) bool { return r.Retransmitted > 0 }
	}
	return nil
}

func opened(r *flow.Record) bool { return Step(r) == orb8v1.ConnectionEvent_CONNECTION_EVENT_OPENED }

func ended(how flow.End) func(*flow.Record) bool {
	return func(r *flow.Record) bool { return r.Event == flow.EventClose && r.TCP.Valid && r.TCP.End == how }
}

func failed(r *flow.Record) bool {
	return r.Event == flow.EventClose && r.TCP.Valid && r.TCP.Failed
}

// Types lists by what happened records may be filtered, in order.
func Types() []string {
	return []string{
		"aborted", "close", "connect", "error", "evicted", "failed", "idle", "open", "refused", "reset",
		"retransmit", "timeout", "unreachable", "update",
	}
}

// Fields are the API's filters by what happened. Records of other kinds that can fail are
// failed.
func Fields() []filter.Field {
	return []filter.Field{{Name: "types", Values: (*orb8v1.Filter).GetTypes, Compile: compileTypes}}
}

func compileTypes(values []string) (func(any) bool, *filter.Error) {
	var all []func(*flow.Record) bool
	failing := false
	for _, v := range values {
		name := strings.ToLower(v)
		failing = failing || name == "failed"
		p := is(name)
		if p == nil {
			return nil, &filter.Error{Value: v, Want: strings.Join(Types(), ", ")}
		}
		all = append(all, p)
	}
	return func(body any) bool {
		if f, ok := body.(interface{ Failed() bool }); ok { // of another kind
			return failing && f.Failed()
		}
		r, ok := body.(*flow.Record)
		return ok && slices.ContainsFunc(all, func(p func(*flow.Record) bool) bool { return p(r) })
	}, nil
}
