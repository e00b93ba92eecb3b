// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/kind/alerts"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/kinds"
)

// filterFlags collect filters in the order of the command line: what --not
// means depends on the flag that comes after it.
type filterFlags struct {
	positive  *orb8v1.Filter
	selectors []*orb8v1.Filter
	negative  []*orb8v1.Filter
	// asked is how the header words each flag.
	asked []string
	// kubernetes lists the flags given that need pods to match.
	kubernetes []string
	// pending is set between --not and the flag that it negates.
	pending       bool
	allNamespaces bool
}

// filterKind is one filter flag: how a value of it gets into a Filter.
type filterKind struct {
	name, short, placeholder, usage string
	set                             func(f *orb8v1.Filter, value string) error
	// whole values are not split at commas.
	whole bool
	// alone: every occurrence must match by itself.
	alone bool
	// event: only for commands that show events.
	event bool
	// fixed is the only value, which the flag does not take.
	fixed      string
	kubernetes bool
}

func filterKinds() []filterKind {
	list := func(field func(f *orb8v1.Filter) *[]string) func(*orb8v1.Filter, string) error {
		return func(f *orb8v1.Filter, v string) error {
			*field(f) = append(*field(f), v)
			return nil
		}
	}
	return []filterKind{
		{name: "namespace", short: "n", placeholder: "NAME", usage: "Kubernetes namespace", kubernetes: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Namespaces })},
		{name: "pod", placeholder: "POD", usage: "pod, as NAME or NAMESPACE/NAME; * may stand at the end", kubernetes: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Pods })},
		{name: "selector", short: "l", placeholder: "SELECTOR", usage: "labels of the pod, as in app=web,tier!=test; if repeated, all must match", whole: true, alone: true, kubernetes: true,
			set: func(f *orb8v1.Filter, v string) error { f.LabelSelector = v; return nil }},
		{name: "workload", placeholder: "WORKLOAD", usage: "deployment, container, systemd unit or command, as NAME or KIND/NAME; * may stand at the end",
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Workloads })},
		{name: "service", placeholder: "SERVICE", usage: "Kubernetes Service of either end, as NAME or NAMESPACE/NAME; * may stand at the end", kubernetes: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Services })},
		{name: "container", placeholder: "ID", usage: "container id, or its first 6 or more digits",
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Containers })},
		{name: "process", placeholder: "COMMAND|PID", usage: "process; * may stand at the end of a command, \\, is a comma in it",
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Processes })},
		{name: "executable", placeholder: "PATH", usage: "executable, as it is or as it was called: the path or its last part; * may stand at the beginning and at the end",
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Executables })},
		{name: "ip", placeholder: "IP", usage: "address or prefix of either end, as in 10.0.0.0/8",
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Ips })},
		{name: "port", placeholder: "PORT", usage: "port of either end", set: setPort},
		{name: "from", placeholder: "WHO", usage: "who opened it: IP or prefix, NAME or NAMESPACE/NAME of a pod, workload, Service or node, or NAMESPACE/ for all in it; * may stand at the end", event: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.From })},
		{name: "to", placeholder: "WHO", usage: "to whom it was opened, as with --from; with both: from one to the other", event: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.To })},
		{name: "protocol", placeholder: "PROTOCOL", usage: "tcp, udp, icmp, icmpv6 or an IP protocol number",
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Protocols })},
		{name: "node", placeholder: "NAME", usage: "node; of a cluster, the nodes whose agents are asked",
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Nodes })},
		{name: "type", placeholder: "TYPE", usage: "what happened: " + strings.Join(flows.Types(), ", "), event: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Types })},
		{name: "name", placeholder: "NAME", usage: "DNS name: that was asked for, or by which an address was looked up; * may stand at the beginning and at the end", event: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.DnsNames })},
		{name: "rcode", placeholder: "CODE", usage: "how it was answered: NOERROR, NXDOMAIN, SERVFAIL, ..., timeout or unread", event: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Rcodes })},
		{name: "qtype", placeholder: "TYPE", usage: "type of the query: A, AAAA, SRV, ...", event: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.QueryTypes })},
		{name: "slower", placeholder: "TIME", usage: "answered later than after this time, as in 50ms, or not at all", event: true, alone: true, whole: true, set: setSlower},
		{name: "rule", placeholder: "RULE", usage: "rule by its name", event: true,
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Rules })},
		{name: "severity", placeholder: "SEVERITY", usage: "alerts at least this severe: " + strings.Join(alerts.Severities(), ", "), event: true, alone: true, set: setSeverity},
		{name: "failed", placeholder: "bool", usage: "what failed: connections that could not be established (refused, timed out, unreachable, aborted), queries without NOERROR", event: true, alone: true, fixed: "failed",
			set: list(func(f *orb8v1.Filter) *[]string { return &f.Types })},
	}
}

func setSlower(f *orb8v1.Filter, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return errors.New("want a time such as 50ms or 1s")
	}
	f.SlowerNs = int64(d)
	return nil
}

// setSeverity takes a severity and all that are more.
func setSeverity(f *orb8v1.Filter, v string) error {
	all := alerts.Severities()
	i := slices.Index(all, strings.ToLower(v))
	if i < 0 {
		return errors.New("want " + strings.Join(all, ", "))
	}
	f.Severities = append(f.Severities, all[i:]...)
	return nil
}

func setPort(f *orb8v1.Filter, v string) error {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return errors.New("want a number from 1 to 65535")
	}
	f.Ports = append(f.Ports, uint32(n))
	return nil
}

// bindEvents adds those flags of filters that are only about some kinds of events.
func (f *filterFlags) bindEvents(fs *pflag.FlagSet, names ...string) {
	for _, k := range filterKinds() {
		if k.event && slices.Contains(names, k.name) {
			f.add(fs, k)
		}
	}
}

func (f *filterFlags) add(fs *pflag.FlagSet, k filterKind) {
	flag := fs.VarPF(&filterValue{f, k}, k.name, k.short, k.usage)
	if k.fixed != "" {
		flag.NoOptDefVal = "true"
	}
}

// bind adds the filters' flags, those named or all but those about events.
func (f *filterFlags) bind(fs *pflag.FlagSet, only ...string) {
	f.positive = &orb8v1.Filter{}
	for _, k := range filterKinds() {
		if len(only) > 0 && !slices.Contains(only, k.name) || k.event {
			continue
		}
		f.add(fs, k)
	}
	fs.VarPF(&notValue{f}, "not", "", "invert the next filter, as in --not --port 443").NoOptDefVal = "true"
	fs.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "all namespaces: what kubectl has this flag for is the default here")
}

// filters returns what was asked for. Values of one flag are alternatives; all
// flags must match.
func (f *filterFlags) filters() ([]*orb8v1.Filter, error) {
	if f.pending {
		return nil, usagef("--not must be followed by the filter that it inverts, as in --not --port 443")
	}
	if f.allNamespaces && len(f.positive.GetNamespaces()) > 0 {
		return nil, usagef("--all-namespaces and --namespace exclude each other")
	}
	var all []*orb8v1.Filter
	if len(f.asked) > len(f.negative)+len(f.selectors) {
		all = append(all, f.positive)
	}
	all = append(all, f.selectors...)
	all = append(all, f.negative...)
	if _, err := kinds.Compile(all); err != nil {
		return nil, usagef("filters: %w", err)
	}
	return all, nil
}

// filterValue makes a filter flag a pflag.Value.
type filterValue struct {
	flags *filterFlags
	kind  filterKind
}

func (v *filterValue) String() string   { return "" }
func (v *filterValue) Type() string     { return v.kind.placeholder }
func (v *filterValue) IsBoolFlag() bool { return v.kind.fixed != "" }

// Set takes one occurrence of the flag; its comma-separated values are
// alternatives, also under --not.
func (v *filterValue) Set(s string) error {
	if v.kind.fixed != "" {
		if s != "true" {
			return errors.New("takes no value")
		}
		s = v.kind.fixed
	}
	f, target := v.flags, v.flags.positive
	negated := f.pending
	switch {
	case negated:
		target = &orb8v1.Filter{Negate: true}
	case v.kind.alone:
		target = &orb8v1.Filter{}
	}
	for _, value := range v.values(s) {
		if err := v.check(value); err != nil {
			return err
		}
		if err := v.kind.set(target, value); err != nil {
			return err
		}
	}
	words := v.kind.name + " " + s
	if v.kind.fixed != "" {
		words = v.kind.name
	}
	switch {
	case negated:
		f.negative, f.pending = append(f.negative, target), false
		words = "not " + words
	case v.kind.alone:
		f.selectors = append(f.selectors, target)
	}
	f.asked = append(f.asked, words)
	if v.kind.kubernetes {
		f.kubernetes = append(f.kubernetes, "--"+v.kind.name)
	}
	return nil
}

func (v *filterValue) values(s string) []string {
	if v.kind.whole {
		return []string{s}
	}
	// A command may have any character.
	var values []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == ',':
			values = append(values, b.String())
			b.Reset()
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == ',':
			i++
			fallthrough
		default:
			b.WriteByte(s[i])
		}
	}
	return append(values, b.String())
}

// check compiles the value alone, so that the error can name the flag.
func (v *filterValue) check(value string) error {
	if strings.TrimSpace(value) == "" {
		return errors.New("want a value")
	}
	alone := &orb8v1.Filter{}
	if err := v.kind.set(alone, value); err != nil {
		return err
	}
	_, err := kinds.Compile([]*orb8v1.Filter{alone})
	var wrong *filter.Error
	if !errors.As(err, &wrong) {
		return err
	}
	if wrong.Err != nil {
		return fmt.Errorf("%w: want %s", wrong.Err, wrong.Want)
	}
	return fmt.Errorf("want %s", wrong.Want)
}

// notValue is --not.
type notValue struct{ flags *filterFlags }

func (v *notValue) String() string   { return "" }
func (v *notValue) Type() string     { return "bool" }
func (v *notValue) IsBoolFlag() bool { return true }

func (v *notValue) Set(s string) error {
	if s != "true" {
		return errors.New("takes no value: put it before a filter, as in --not --port 443")
	}
	if v.flags.pending {
		return errors.New("given twice before one filter")
	}
	v.flags.pending = true
	return nil
}

// byPID reports whether a single process is asked for.
func (f *filterFlags) byPID() bool {
	for _, of := range append([]*orb8v1.Filter{f.positive}, f.negative...) {
		for _, p := range of.GetProcesses() {
			if _, err := strconv.ParseUint(p, 10, 32); err == nil {
				return true
			}
		}
	}
	return false
}
