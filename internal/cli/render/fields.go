// SPDX-License-Identifier: Apache-2.0

package render

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

const none = "-"

// several stands for the peers of flows that are shown as one sum.
const several = "(several)"

// shortID is as much of a container id as people quote.
const shortID = 12

func containerID(w *orb8v1.Workload) string {
	id := Clean(w.GetContainerId())
	return id[:min(len(id), shortID)]
}

// workloadName is the workload alone: pod, container, unit or command.
func workloadName(w *orb8v1.Workload) string {
	if pod := Clean(w.GetPodName()); pod != "" {
		if ns := Clean(w.GetNamespace()); ns != "" {
			return ns + "/" + pod
		}
		return pod
	}
	if id := containerID(w); id != "" {
		if name := Clean(w.GetName()); name != "" && !strings.HasPrefix(w.GetContainerId(), w.GetName()) {
			return name
		}
		return id
	}
	return Clean(w.GetName())
}

// who names the local end, with its command where that says more. Where room is
// short a pod loses its namespace, anything else all but its command.
func who(f *orb8v1.Flow) cell {
	w := f.GetLocal().GetWorkload()
	name, command := workloadName(w), Clean(f.GetProcess().GetCommand())
	switch {
	case name == "" && command == "":
		return cell{text: none}
	case name == "" || name == command:
		return cell{text: command}
	case command == "":
		return cell{text: name, fit: func(n int) string { return cutMiddle(name, n) }}
	}
	return cell{text: name + " (" + command + ")", fit: func(n int) string {
		short := command
		if pod := Clean(w.GetPodName()); pod != "" {
			if cells(name) <= n {
				return name
			}
			short = pod
		}
		return cutMiddle(short, n)
	}}
}

// address writes an end as the packets name it, an IPv6 address in brackets
// where a port follows.
func address(e *orb8v1.Endpoint) string {
	host, port := hostPort(e)
	return host + port
}

func hostPort(e *orb8v1.Endpoint) (host, port string) {
	host = Clean(e.GetIp())
	if host == "" {
		host = none
	}
	if e.GetPort() == 0 {
		return host, ""
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is6() {
		host = "[" + host + "]"
	}
	return host, ":" + strconv.FormatUint(uint64(e.GetPort()), 10)
}

// local writes the near end; where room is short the port alone is left, for
// the address is the same on most lines.
func local(f *orb8v1.Flow) cell {
	host, port := hostPort(f.GetLocal())
	return cell{text: host + port, fit: func(n int) string {
		switch {
		case port != "":
			return port
		case n < len("127.0.0.1"):
			return none
		}
		return cutMiddle(host, n)
	}}
}

// remote writes the far end: its pod or service where known, else its address.
func remote(f *orb8v1.Flow, mark string) cell {
	host, port := hostPort(f.GetRemote())
	if f.GetRemote().GetIp() == "" && f.GetProtocol() != "" {
		host = several
	}
	backend := ""
	switch w := f.GetRemote().GetWorkload(); {
	case w.GetService() != "":
		host = serviceName(w)
		if pod := Clean(w.GetPodName()); pod != "" {
			backend = " (" + pod + ")"
		}
	case w.GetPodName() != "":
		host = workloadName(w)
	case w.GetKind() == "Node" && w.GetName() != "":
		host = "node/" + Clean(w.GetName())
	case w.GetKind() == "External" && w.GetName() != "":
		host = Clean(w.GetName())
	}
	return cell{text: host + port + backend + mark, fit: func(n int) string {
		room := n - len(port) - len(mark)
		if room < 5 {
			mark, room = "", n-len(port)
		}
		return cutMiddle(host, room) + port + mark
	}}
}

// serviceName is the Service that an address belongs to.
func serviceName(w *orb8v1.Workload) string {
	if ns := Clean(w.GetNamespace()); ns != "" {
		return ns + "/" + Clean(w.GetService())
	}
	return Clean(w.GetService())
}

func nodeCell(name string) cell {
	return cell{text: name, fit: func(n int) string { return cutMiddle(name, n) }}
}

// nodeWord names the node in a line of words that may come from any of several.
func (o Options) nodeWord(name string) string {
	if !o.Nodes {
		return ""
	}
	return " node=" + word(name)
}

func arrow(f *orb8v1.Flow) string {
	switch f.GetRole() {
	case orb8v1.Role_ROLE_CLIENT:
		return "→"
	case orb8v1.Role_ROLE_SERVER:
		return "←"
	}
	return "↔"
}

func protocol(f *orb8v1.Flow) string {
	if p := Clean(f.GetProtocol()); p != "" {
		return p
	}
	return none
}

func rtt(us uint32) string {
	if us == 0 {
		return none
	}
	return Micros(uint64(us))
}

func retransmits(f *orb8v1.Flow) cell {
	switch n := f.GetTcp().GetRetransmits(); {
	case f.GetTcp() == nil:
		return cell{text: none}
	case n == 0:
		return cell{text: "0"}
	default:
		return cell{text: strconv.FormatUint(n, 10), style: styleWarn}
	}
}

func connectTime(t *orb8v1.TcpInfo) string {
	if t.GetConnectNs() == 0 {
		return none
	}
	return Micros(max(t.GetConnectNs()/uint64(time.Microsecond), 1))
}

func tcpState(t *orb8v1.TcpInfo) string {
	if t == nil {
		return none
	}
	return strings.ToLower(strings.TrimPrefix(t.GetState().String(), "TCP_STATE_"))
}

// numberOr writes n, or a dash for a 0 that means "not known".
func numberOr(n uint64) string {
	if n == 0 {
		return none
	}
	return strconv.FormatUint(n, 10)
}

func byteUnit(u orb8v1.ByteUnit) string {
	switch u {
	case orb8v1.ByteUnit_BYTE_UNIT_PAYLOAD:
		return "payload"
	case orb8v1.ByteUnit_BYTE_UNIT_IP:
		return "ip"
	}
	return none
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return Clean(s)
}
