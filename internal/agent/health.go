// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"time"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// countDrops takes what the kernel dropped since the last call.
func (a *Agent) countDrops(counts []flow.DropCount) {
	now := time.Now().UnixNano()
	for i := range counts {
		if id := a.dropped(&counts[i]); id != nil {
			a.metrics.observeDrops(id, counts[i].Reason, counts[i].Packets, now)
		}
	}
}

// dropped names whose packets were dropped; nil if they are none of this node's.
func (a *Agent) dropped(c *flow.DropCount) *workload.Identity {
	if c.CgroupID != 0 {
		return a.deps.Resolver.Local(c.CgroupID, 0, "", c.Dst.IP())
	}
	first, second := c.Src, c.Dst
	if c.Ingress {
		first, second = second, first
	}
	id, _ := a.ownEnd(first.IP(), second.IP())
	if id == nil && !a.deps.SharedKernel {
		id = a.deps.Resolver.Local(0, 0, "", netip.Addr{}) // the kernel
	}
	return id
}

// ownEnd returns who of this node has one of the addresses of a packet: the first that
// is a pod's, or else the first that is a node's. Where nodes share the kernel their
// agents all see the packet: then it is only that node's. second says that it is the
// second one; id is nil if it is neither.
func (a *Agent) ownEnd(addrs ...netip.Addr) (id *workload.Identity, second bool) {
	for i, addr := range addrs {
		at := a.deps.Resolver.Remote(workload.Peer{Addr: addr})
		switch {
		case at == nil || at.Node == "" || at.Service != "":
		case !a.deps.SharedKernel && at.Node != a.node:
		case id == nil || id.Pod == "" && at.Pod != "":
			id, second = at, i > 0
		}
	}
	if id != nil && id.Node != a.node {
		return nil, false
	}
	return id, second
}

// noteDrop takes a packet that was dropped. Where no socket was found it is told of
// from the end that it counts for.
func (a *Agent) noteDrop(s *flow.Sample, d *flow.Drop) {
	if s.CgroupID != 0 {
		a.table.Note(s, d)
		return
	}
	id, remote := a.ownEnd(s.Local.IP(), s.Remote.IP())
	if id == nil && a.deps.SharedKernel {
		return // another node's agent tells of it
	}
	if remote {
		turned := *s
		turned.Local, turned.Remote = s.Remote, s.Local
		turned.LocalPort, turned.RemotePort = s.RemotePort, s.LocalPort
		other := *d
		other.Ingress = !d.Ingress
		s, d = &turned, &other
	}
	a.table.Note(s, d)
}

// countSockets takes how many TCP sockets there are now.
func (a *Agent) countSockets(counts []flow.SocketCount) {
	who := make([]*workload.Identity, len(counts))
	for i := range counts {
		who[i] = a.deps.Resolver.Local(counts[i].CgroupID, 0, "", flow.Addr{}.IP())
	}
	a.metrics.observeSockets(counts, who, time.Now().UnixNano())
}
