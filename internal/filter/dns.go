// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"slices"
	"strings"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	wantDNSName   = "a DNS name, with * allowed at the beginning and at the end"
	wantRCode     = "NOERROR, NXDOMAIN, SERVFAIL or another name of a response code, a number from 0 to 4095, timeout or unread"
	wantQueryType = "A, AAAA, SRV or another name of a record type, or a number from 0 to 65535"
)

var errStarWithin = errors.New("* may only stand at the beginning or at the end")

// namePattern is a DNS name, or with open ends a part of one, in lower case as records
// have names.
type namePattern struct {
	text                string
	openBegin, openTail bool
}

func parseNamePattern(s string) (namePattern, error) {
	var p namePattern
	p.text = strings.ToLower(s)
	if p.text != "." && !strings.HasSuffix(p.text, `\.`) { // the root; a dot within a label
		p.text = strings.TrimSuffix(p.text, ".")
	}
	p.text, p.openTail = strings.CutSuffix(p.text, "*")
	p.text, p.openBegin = strings.CutPrefix(p.text, "*")
	if strings.Contains(p.text, "*") {
		return p, errStarWithin
	}
	return p, nil
}

func (p *namePattern) match(name string) bool {
	switch {
	case p.openBegin && p.openTail:
		return strings.Contains(name, p.text)
	case p.openBegin:
		return strings.HasSuffix(name, p.text)
	case p.openTail:
		return strings.HasPrefix(name, p.text)
	}
	return name == p.text
}

// compileDNSNames: a flow's name is the one by which its peer was looked up.
func compileDNSNames(values []string) (predicate, *Error) {
	patterns := make([]namePattern, 0, len(values))
	for _, v := range values {
		p, err := parseNamePattern(v)
		if err != nil || v == "" {
			return nil, &Error{Value: v, Want: wantDNSName, Err: err}
		}
		patterns = append(patterns, p)
	}
	return func(r *flow.Record) bool {
		name := dnsName(r)
		if name == "" {
			return false
		}
		for i := range patterns {
			if patterns[i].match(name) {
				return true
			}
		}
		return false
	}, nil
}

// dnsName is empty where r has none.
func dnsName(r *flow.Record) string {
	if x, ok := r.Detail.(*dns.Exchange); ok {
		return x.Name
	}
	if r.Detail == nil && r.Remote != nil && r.Remote.Kind == workload.KindExternal {
		return r.Remote.Name
	}
	return ""
}

func compileRCodes(values []string) (predicate, *Error) {
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
			return nil, &Error{Value: v, Want: wantRCode}
		}
		codes = append(codes, code)
	}
	return func(r *flow.Record) bool {
		x, ok := r.Detail.(*dns.Exchange)
		if !ok {
			return false
		}
		switch x.Outcome {
		case dns.Answered:
			return slices.Contains(codes, x.RCode)
		case dns.Timeout:
			return timeout
		case dns.Unread:
			return unread
		}
		return false
	}, nil
}

func compileQueryTypes(values []string) (predicate, *Error) {
	types := make([]dns.Type, 0, len(values))
	for _, v := range values {
		t, ok := dns.ParseType(v)
		if !ok {
			return nil, &Error{Value: v, Want: wantQueryType}
		}
		types = append(types, t)
	}
	return func(r *flow.Record) bool {
		x, ok := r.Detail.(*dns.Exchange)
		return ok && x.Outcome != dns.Unread && slices.Contains(types, x.Type)
	}, nil
}
