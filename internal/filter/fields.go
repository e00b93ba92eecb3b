// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/Ignoramuss/orb8/internal/record"
)

const (
	wantNamespace  = "the name of a namespace"
	wantPod        = "NAME or NAMESPACE/NAME, with * allowed at the end"
	wantWorkload   = "NAME or KIND/NAME, with * allowed at the end"
	wantNode       = "the name of a node"
	wantIP         = "an address such as 10.0.0.1 or fd00::1, or a prefix such as 10.0.0.0/8"
	wantPort       = "a number from 1 to 65535"
	wantProtocol   = "tcp, udp, icmp, icmpv6 or a protocol number from 0 to 255"
	wantProcess    = "a command, with * allowed at the end, or a process id"
	wantExecutable = "the path of an executable or the last part of one, with * allowed at the beginning and at the end"
	wantContainer  = "a container id, or its first 6 or more hexadecimal digits"
	wantService    = "NAME or NAMESPACE/NAME, with * allowed at the end"
	wantSelector   = "a label selector such as app=web,tier in (front,back),!legacy"
)

var errStarInside = errors.New("* may only stand at the end")

// glob is a text, or with prefix set the beginning of one.
type glob struct {
	text   string
	prefix bool
}

func parseGlob(s string) (glob, error) {
	text, prefix := strings.CutSuffix(s, "*")
	if strings.Contains(text, "*") {
		return glob{}, errStarInside
	}
	return glob{text, prefix}, nil
}

func (g glob) match(s string) bool {
	if g.prefix {
		return strings.HasPrefix(s, g.text)
	}
	return s == g.text
}

// parseNames returns values, none of which may be empty or hold a star or slash.
func parseNames(values []string, want string) ([]string, *Error) {
	for _, v := range values {
		if v == "" || strings.ContainsAny(v, "*/") {
			return nil, &Error{Value: v, Want: want}
		}
	}
	return slices.Clone(values), nil
}

func compileNamespaces(values []string) (predicate, *Error) {
	names, err := parseNames(values, wantNamespace)
	if err != nil {
		return nil, err
	}
	return func(r *record.Header, _ any) bool { return slices.Contains(names, r.Owner.Namespace) }, nil
}

func (c *compiler) compileNodes(values []string) (predicate, *Error) {
	names, err := parseNames(values, wantNode)
	if err != nil {
		return nil, err
	}
	own := slices.Contains(names, c.node)
	return func(r *record.Header, _ any) bool {
		if r.Owner.Node == "" {
			return own
		}
		return slices.Contains(names, r.Owner.Node)
	}, nil
}

// qualified is a name pattern with an optional qualifier before a slash.
type qualified struct {
	qualifier string
	name      glob
	// whole is the pattern with its slash, for names that hold one.
	whole glob
}

func parseQualified(values []string, want string) ([]qualified, *Error) {
	all := make([]qualified, 0, len(values))
	for _, v := range values {
		g, err := parseGlob(v)
		if err != nil {
			return nil, &Error{Value: v, Want: want, Err: err}
		}
		q := qualified{name: g, whole: g}
		if before, after, ok := strings.Cut(g.text, "/"); ok {
			if before == "" {
				return nil, &Error{Value: v, Want: want}
			}
			q.qualifier, q.name.text = before, after
		}
		if q.name.text == "" && !q.name.prefix {
			return nil, &Error{Value: v, Want: want}
		}
		all = append(all, q)
	}
	return all, nil
}

// parseNamespaced returns patterns of names that hold no slash.
func parseNamespaced(values []string, want string) ([]qualified, *Error) {
	all, err := parseQualified(values, want)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if strings.Contains(all[i].name.text, "/") {
			return nil, &Error{Value: values[i], Want: want}
		}
	}
	return all, nil
}

// matchAny reports whether one of patterns is that of name in namespace; none
// is that of an empty name.
func matchAny(patterns []qualified, namespace, name string) bool {
	if name == "" {
		return false
	}
	return slices.ContainsFunc(patterns, func(q qualified) bool {
		return (q.qualifier == "" || q.qualifier == namespace) && q.name.match(name)
	})
}

// compilePods: a pattern matches only flows of a pod, "*" thus those of any pod.
func compilePods(values []string) (predicate, *Error) {
	pods, err := parseNamespaced(values, wantPod)
	if err != nil {
		return nil, err
	}
	return func(r *record.Header, _ any) bool { return matchAny(pods, r.Owner.Namespace, r.Owner.Pod) }, nil
}

// compileServices: a client's flow has the Service at its remote end, that of
// the server behind it at its own.
func compileServices(values []string) (predicate, *Error) {
	services, err := parseNamespaced(values, wantService)
	if err != nil {
		return nil, err
	}
	return func(r *record.Header, _ any) bool {
		return matchAny(services, r.Owner.Namespace, r.Owner.Service) ||
			r.Peer != nil && matchAny(services, r.Peer.Namespace, r.Peer.Service)
	}, nil
}

// compileWorkloads: outside Kubernetes a name may hold a slash itself, as in
// kworker/0:1, so the whole pattern is tried on the name as well.
func compileWorkloads(values []string) (predicate, *Error) {
	workloads, err := parseQualified(values, wantWorkload)
	if err != nil {
		return nil, err
	}
	return func(r *record.Header, _ any) bool {
		if r.Owner.Name == "" {
			return false
		}
		for i := range workloads {
			w := &workloads[i]
			if w.whole.match(r.Owner.Name) {
				return true
			}
			if w.qualifier != "" && strings.EqualFold(w.qualifier, r.Owner.Kind) && w.name.match(r.Owner.Name) {
				return true
			}
		}
		return false
	}, nil
}

func compileSelector(values []string) (predicate, *Error) {
	sel, err := parseSelector(values[0])
	if err != nil {
		return nil, &Error{Value: values[0], Want: wantSelector, Err: err}
	}
	return func(r *record.Header, _ any) bool { return sel.match(r.Owner.Labels) }, nil
}

func compileIPs(values []string) (predicate, *Error) {
	prefixes := make([]netip.Prefix, 0, len(values))
	for _, v := range values {
		p, err := parsePrefix(v)
		if err != nil {
			return nil, &Error{Value: v, Want: wantIP}
		}
		prefixes = append(prefixes, p)
	}
	return func(r *record.Header, _ any) bool {
		local, remote := r.Local.IP(), r.Remote.IP()
		for _, p := range prefixes {
			if p.Contains(local) || p.Contains(remote) {
				return true
			}
		}
		return false
	}, nil
}

// parsePrefix reads an address or prefix; what lies within the mapped IPv4
// range becomes IPv4, as records show it.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		a = a.Unmap()
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// decimals turns ports back into text, so that all fields are read alike.
func decimals(ports []uint32) []string {
	if len(ports) == 0 {
		return nil
	}
	s := make([]string, len(ports))
	for i, p := range ports {
		s[i] = strconv.FormatUint(uint64(p), 10)
	}
	return s
}

func compilePorts(values []string) (predicate, *Error) {
	ports := make([]uint16, 0, len(values))
	for _, v := range values {
		p, err := strconv.ParseUint(v, 10, 16)
		if err != nil || p == 0 {
			return nil, &Error{Value: v, Want: wantPort}
		}
		ports = append(ports, uint16(p))
	}
	return func(r *record.Header, _ any) bool {
		return slices.Contains(ports, r.LocalPort) || slices.Contains(ports, r.RemotePort)
	}, nil
}

func compileProtocols(values []string) (predicate, *Error) {
	var wanted [256]bool
	for _, v := range values {
		p, ok := parseProtocol(v)
		if !ok {
			return nil, &Error{Value: v, Want: wantProtocol}
		}
		wanted[p] = true
	}
	return func(r *record.Header, _ any) bool { return wanted[r.Protocol] }, nil
}

func parseProtocol(s string) (record.Protocol, bool) {
	for _, p := range []record.Protocol{record.TCP, record.UDP, record.ICMP, record.ICMPv6} {
		if strings.EqualFold(s, p.String()) {
			return p, true
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return record.Protocol(n), err == nil
}

// commLen is how much of a command the kernel keeps (TASK_COMM_LEN less its NUL).
const commLen = len(record.Comm{}) - 1

func compileProcesses(values []string) (predicate, *Error) {
	var (
		pids  []uint32
		comms []glob
	)
	for _, v := range values {
		if pid, err := strconv.ParseUint(v, 10, 32); err == nil && pid > 0 {
			pids = append(pids, uint32(pid))
			continue
		}
		g, err := parseGlob(v)
		if err != nil || v == "" || v == "0" {
			return nil, &Error{Value: v, Want: wantProcess, Err: err}
		}
		if len(g.text) > commLen {
			g = glob{text: g.text[:commLen]}
		}
		comms = append(comms, g)
	}
	return func(r *record.Header, _ any) bool {
		return slices.Contains(pids, r.PID) || matchComm(comms, &r.Comm)
	}, nil
}

func matchComm(patterns []glob, c *record.Comm) bool {
	if c[0] == 0 {
		return false
	}
	for i := range patterns {
		n := len(patterns[i].text)
		// c is NUL-padded: what follows an exact match is a NUL.
		if string(c[:n]) == patterns[i].text && (patterns[i].prefix || c[n] == 0) {
			return true
		}
	}
	return false
}

func compileContainers(values []string) (predicate, *Error) {
	ids := make([]string, 0, len(values))
	for _, v := range values {
		id := strings.ToLower(v)
		if len(id) < 6 || strings.Trim(id, "0123456789abcdef") != "" {
			return nil, &Error{Value: v, Want: wantContainer}
		}
		ids = append(ids, id)
	}
	return func(r *record.Header, _ any) bool {
		for _, id := range ids {
			if strings.HasPrefix(r.Owner.ContainerID, id) {
				return true
			}
		}
		return false
	}, nil
}

// compileExecutables: without a slash a pattern is of the last part of a path. Steps of
// processes are also matched by what was called.
func compileExecutables(values []string) (predicate, *Error) {
	patterns := make([]Pattern, 0, len(values))
	for _, v := range values {
		p, err := ParsePattern(v)
		if err != nil || v == "" {
			return nil, &Error{Value: v, Want: wantExecutable, Err: err}
		}
		patterns = append(patterns, p)
	}
	return func(r *record.Header, body any) bool {
		if matchPath(patterns, r.Executable) {
			return true
		}
		step, ok := body.(interface{ CalledAs() string })
		return ok && matchPath(patterns, step.CalledAs())
	}, nil
}

func matchPath(patterns []Pattern, path string) bool {
	if path == "" {
		return false
	}
	last := path[strings.LastIndexByte(path, '/')+1:]
	for i := range patterns {
		p := &patterns[i]
		if p.OpenBegin || strings.Contains(p.Text, "/") {
			if p.Match(path) {
				return true
			}
		} else if last != "" && p.Match(last) {
			return true
		}
	}
	return false
}
