// SPDX-License-Identifier: Apache-2.0

package queries

import (
	"slices"
	"strconv"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	wantName      = "a DNS name, with * allowed at the beginning and at the end"
	wantRCode     = "NOERROR, NXDOMAIN, SERVFAIL or another name of a response code, a number from 0 to 4095, timeout or unread"
	wantQueryType = "A, AAAA, SRV or another name of a record type, or a number from 0 to 65535"
	wantSlower    = "a time in nanoseconds, more than 0"
)

// Fields are the API's filters that only queries have.
func Fields() []filter.Field {
	return []filter.Field{
		{Name: "dns_names", Values: (*orb8v1.Filter).GetDnsNames, Compile: compileNames},
		{Name: "rcodes", Values: (*orb8v1.Filter).GetRcodes, Compile: compileRCodes},
		{Name: "query_types", Values: (*orb8v1.Filter).GetQueryTypes, Compile: compileTypes},
		{Name: "slower_ns", Values: slower, Compile: compileSlower},
	}
}

// parsePattern reads a pattern of names, which records have in lower case.
func parsePattern(s string) (filter.Pattern, error) {
	s = strings.ToLower(s)
	if s != "." && !strings.HasSuffix(s, `\.`) { // the root; a dot within a label
		s = strings.TrimSuffix(s, ".")
	}
	return filter.ParsePattern(s)
}

// of makes of a test of queries one of records.
func of(test func(*dns.Record) bool) func(any) bool {
	return func(body any) bool {
		r, ok := body.(*dns.Record)
		return ok && test(r)
	}
}

func compileNames(values []string) (func(any) bool, *filter.Error) {
	patterns := make([]filter.Pattern, 0, len(values))
	for _, v := range values {
		p, err := parsePattern(v)
		if err != nil || v == "" {
			return nil, &filter.Error{Value: v, Want: wantName, Err: err}
		}
		patterns = append(patterns, p)
	}
	return func(body any) bool {
		name := nameOf(body)
		return name != "" && slices.ContainsFunc(patterns, func(p filter.Pattern) bool { return p.Match(name) })
	}, nil
}

// nameOf is what a query asks for, and of a flow the name by which its peer was looked up;
// empty where there is none.
func nameOf(body any) string {
	switch r := body.(type) {
	case *dns.Record:
		return r.Name
	case *flow.Record:
		if r.Peer != nil && r.Peer.Kind == workload.KindExternal {
			return r.Peer.Name
		}
	}
	return ""
}

func compileRCodes(values []string) (func(any) bool, *filter.Error) {
	var (
		codes           []dns.RCode
		timeout, unread bool
	)
	for _, v := range values {
		switch {
		case strings.EqualFold(v, "timeout"):
			timeout = true
			continue
		case strings.EqualFold(v, "unread"):
			unread = true
			continue
		}
		code, ok := dns.ParseRCode(v)
		if !ok {
			return nil, &filter.Error{Value: v, Want: wantRCode}
		}
		codes = append(codes, code)
	}
	return of(func(r *dns.Record) bool {
		switch r.Outcome {
		case dns.Answered:
			return slices.Contains(codes, r.RCode)
		case dns.Timeout:
			return timeout
		case dns.Unread:
			return unread
		}
		return false
	}), nil
}

func compileTypes(values []string) (func(any) bool, *filter.Error) {
	types := make([]dns.Type, 0, len(values))
	for _, v := range values {
		t, ok := dns.ParseType(v)
		if !ok {
			return nil, &filter.Error{Value: v, Want: wantQueryType}
		}
		types = append(types, t)
	}
	return of(func(r *dns.Record) bool { return !r.Nameless() && slices.Contains(types, r.Type) }), nil
}

func slower(f *orb8v1.Filter) []string {
	if f.GetSlowerNs() == 0 {
		return nil
	}
	return []string{strconv.FormatInt(f.GetSlowerNs(), 10)}
}

func compileSlower(values []string) (func(any) bool, *filter.Error) {
	n, err := strconv.ParseInt(values[0], 10, 64)
	if err != nil || n <= 0 {
		return nil, &filter.Error{Value: values[0], Want: wantSlower}
	}
	least := time.Duration(n)
	return of(func(r *dns.Record) bool {
		if r.Outcome == dns.Answered {
			return r.Latency > least
		}
		return r.Outcome == dns.Timeout && r.Time-r.First > int64(least)
	}), nil
}
