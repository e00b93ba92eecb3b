// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const wantEnd = "an address or prefix, NAME or NAMESPACE/NAME of a pod, workload, Service or node with * allowed at the end, or NAMESPACE/ for all in it"

// end says who one end of a flow may be: by its address, its namespace, or one of its names.
type end struct {
	prefix    netip.Prefix
	namespace string
	name      []qualified
}

func parseEnd(v string) (end, *Error) {
	if p, err := parsePrefix(v); err == nil {
		return end{prefix: p}, nil
	}
	if ns, rest, ok := strings.Cut(v, "/"); ok && ns != "" && rest == "" && !strings.Contains(ns, "*") {
		return end{namespace: ns}, nil
	}
	name, err := parseNamespaced([]string{v}, wantEnd)
	return end{name: name}, err
}

func (e *end) match(addr record.Addr, id *workload.Identity) bool {
	switch {
	case e.prefix.IsValid():
		return e.prefix.Contains(addr.IP())
	case id == nil:
		return false
	case e.namespace != "":
		return id.Namespace == e.namespace
	}
	return matchAny(e.name, id.Namespace, id.Pod) || matchAny(e.name, id.Namespace, id.Name) ||
		matchAny(e.name, id.Namespace, id.Service)
}

// compileEnds matches who opened a flow, or to whom it was opened. Where it is not known who
// did, it may be either.
func compileEnds(opener record.Role) func([]string) (predicate, *Error) {
	return func(values []string) (predicate, *Error) {
		ends := make([]end, 0, len(values))
		for _, v := range values {
			e, err := parseEnd(v)
			if err != nil {
				return nil, err
			}
			ends = append(ends, e)
		}
		return func(r *record.Header, _ any) bool {
			return slices.ContainsFunc(ends, func(e end) bool {
				known := r.Role == record.RoleClient || r.Role == record.RoleServer
				return (!known || r.Role == opener) && e.match(r.Local, r.Owner) ||
					(!known || r.Role != opener) && e.match(r.Remote, r.Peer)
			})
		}, nil
	}
}
