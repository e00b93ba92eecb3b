// SPDX-License-Identifier: Apache-2.0

// Package filter decides which records a client asked for. It compiles the
// filters of the API once and then matches records, by their headers, without
// allocating. It knows nothing of where records come from, of what their kinds tell or
// what becomes of them, and builds on every platform, so that the CLI can check a filter
// before it sends it.
package filter

import (
	"fmt"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/record"
)

// A request may hold so many filters, and a field so many values: each record
// is compared with all of them.
const (
	maxFilters = 64
	maxValues  = 256
	// maxRequirements bounds a label selector.
	maxRequirements = 64
	// maxShown bounds how much of a bad value an error repeats.
	maxShown = 128
)

// Error says which value of which filter cannot be read, and what could.
type Error struct {
	// Filter counts from 0 in the order of the request.
	Filter int
	// Field is the name in orb8.proto, for instance ips.
	Field string
	Value string
	// Want says what the field accepts.
	Want string
	// Err is the detail, or nil.
	Err error
}

func (e *Error) Error() string {
	value := shorten(e.Value)
	if e.Err != nil {
		return fmt.Sprintf("filter %d: %s: %q: %v: want %s", e.Filter+1, e.Field, value, e.Err, e.Want)
	}
	return fmt.Sprintf("filter %d: %s: %q: want %s", e.Filter+1, e.Field, value, e.Want)
}

func shorten(s string) string {
	if len(s) > maxShown {
		return s[:maxShown] + "..."
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Set is a compiled list of filters. The zero value and nil match every record.
// A Set is immutable and may be used from any goroutine.
type Set struct {
	filters []compiled
}

type compiled struct {
	negate bool
	fields []predicate
}

// predicate is one field of a filter: true if one of its values matches. The second
// argument is the record as its kind has it.
type predicate func(*record.Header, any) bool

// Field is a field of the API's filter that asks for what only some kinds of records tell.
type Field struct {
	// Name is that in orb8.proto.
	Name   string
	Values func(*orb8v1.Filter) []string
	// Compile returns what tells whether one of the values is the record's, which is
	// a pointer as its kind has it; no record of another kind matches. An Error says
	// no more than Value and Want.
	Compile func(values []string) (func(record any) bool, *Error)
}

// Option changes how filters are compiled.
type Option func(*compiler)

// WithNode names the node that records belong to whose workload names none.
func WithNode(name string) Option { return func(c *compiler) { c.node = name } }

// WithFields adds those of kinds. Without it they match no record.
func WithFields(fields ...Field) Option {
	return func(c *compiler) { c.fields = append(c.fields, fields...) }
}

// Compile prepares filters for matching. The error is an *Error.
func Compile(filters []*orb8v1.Filter, opts ...Option) (*Set, error) {
	var c compiler
	for _, o := range opts {
		o(&c)
	}
	if len(filters) > maxFilters {
		return nil, &Error{Filter: maxFilters, Field: "filters", Value: fmt.Sprint(len(filters)), Want: fmt.Sprintf("at most %d filters", maxFilters)}
	}
	set := &Set{filters: make([]compiled, 0, len(filters))}
	for i, f := range filters {
		fields, err := c.compile(f)
		if err != nil {
			err.Filter = i
			return nil, err
		}
		set.filters = append(set.filters, compiled{negate: f.GetNegate(), fields: fields})
	}
	return set, nil
}

// Empty reports whether there are no filters.
func (s *Set) Empty() bool { return s == nil || len(s.filters) == 0 }

// Match reports whether every filter matches a record with this header; body is a pointer
// to it as its kind has it, nil for a header alone. It does not allocate.
func (s *Set) Match(h *record.Header, body any) bool {
	if s == nil {
		return true
	}
	for i := range s.filters {
		if s.filters[i].match(h, body) == s.filters[i].negate {
			return false
		}
	}
	return true
}

func (f *compiled) match(h *record.Header, body any) bool {
	for _, field := range f.fields {
		if !field(h, body) {
			return false
		}
	}
	return true
}

type compiler struct {
	node   string
	fields []Field
}

// field is one set field of a filter on its way to a predicate.
type field struct {
	name   string
	values []string
	parse  func([]string) (predicate, *Error)
}

func (c *compiler) compile(f *orb8v1.Filter) ([]predicate, *Error) {
	var selectors []string
	if s := f.GetLabelSelector(); s != "" {
		selectors = []string{s}
	}
	fields := []field{
		{"namespaces", f.GetNamespaces(), compileNamespaces},
		{"pods", f.GetPods(), compilePods},
		{"label_selector", selectors, compileSelector},
		{"workloads", f.GetWorkloads(), compileWorkloads},
		{"nodes", f.GetNodes(), c.compileNodes},
		{"ips", f.GetIps(), compileIPs},
		{"ports", decimals(f.GetPorts()), compilePorts},
		{"protocols", f.GetProtocols(), compileProtocols},
		{"processes", f.GetProcesses(), compileProcesses},
		{"executables", f.GetExecutables(), compileExecutables},
		{"containers", f.GetContainers(), compileContainers},
		{"services", f.GetServices(), compileServices},
		{"from", f.GetFrom(), compileEnds(record.RoleClient)},
		{"to", f.GetTo(), compileEnds(record.RoleServer)},
	}
	for _, k := range c.fields {
		fields = append(fields, field{k.Name, k.Values(f), func(values []string) (predicate, *Error) {
			match, err := k.Compile(values)
			return func(_ *record.Header, body any) bool { return match(body) }, err
		}})
	}
	var predicates []predicate
	for _, fd := range fields {
		if len(fd.values) == 0 {
			continue
		}
		if len(fd.values) > maxValues {
			return nil, &Error{Field: fd.name, Value: fmt.Sprint(len(fd.values), " values"), Want: fmt.Sprintf("at most %d values", maxValues)}
		}
		p, err := fd.parse(fd.values)
		if err != nil {
			err.Field = fd.name
			return nil, err
		}
		predicates = append(predicates, p)
	}
	return predicates, nil
}
