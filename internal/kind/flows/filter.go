// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"slices"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
)

// is has what records may say, by name.
func is(name string) func(*flow.Record) bool {
	switch name {
	case "connect":
		return func(r *flow.Record) bool { return r.Connected || failed(r) }
	case "failed":
		return failed
	case "close":
		return func(r *flow.Record) bool { return r.Event == flow.EventClose && r.TCP.Valid && !r.TCP.Failed }
	case "reset":
		return func(r *flow.Record) bool {
			return r.Event == flow.EventClose && (r.TCP.ResetSent || r.TCP.ResetReceived)
		}
	case "retransmit":
		return func(r *flow.Record) bool { return r.Retransmitted > 0 }
	}
	return nil
}

func failed(r *flow.Record) bool { return r.Event == flow.EventClose && r.TCP.Failed }

// Types lists by what happened records may be filtered, in order.
func Types() []string { return []string{"close", "connect", "failed", "reset", "retransmit"} }

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
