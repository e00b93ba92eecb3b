// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// notes are what is worth saying of a flow beyond its numbers, the most telling
// first.
func notes(f *orb8v1.Flow, first bool) []string {
	words := []string{ending(f.GetTcp()), icmp(f)}
	if t := f.GetTcp(); t.GetState() == orb8v1.TcpState_TCP_STATE_SYN_SENT && words[0] == "" {
		words[0] = "half-open"
	}
	if f.GetLoopback() {
		words = append(words, "lo")
	}
	if first && f.GetTcp().GetPreexisting() {
		words = append(words, "preexisting")
	}
	if f.GetSelf() {
		words = append(words, "orb8")
	}
	if f.GetProtocol() == "TCP" && f.GetByteUnit() == orb8v1.ByteUnit_BYTE_UNIT_IP {
		words = append(words, "ip bytes")
	}
	return slices.DeleteFunc(words, func(w string) bool { return w == "" })
}

func note(f *orb8v1.Flow, first bool) string { return strings.Join(notes(f, first), ", ") }

// noteCell writes words and, after them, notes. marked tells that another column
// marks loopback flows already. Where room is short the first word and lo stay.
func noteCell(f *orb8v1.Flow, first, marked bool, s style, words ...string) cell {
	words = append(words, notes(f, first)...)
	if marked {
		words = slices.DeleteFunc(words, func(w string) bool { return w == "lo" })
	}
	return cell{text: strings.Join(words, ", "), style: s, fit: func(n int) string {
		if len(words) == 0 {
			return ""
		}
		main, tail := shortNote(f, words[0]), ""
		if slices.Contains(words[1:], "lo") {
			tail = ", lo"
		}
		if text := words[0] + tail; cells(text) <= n {
			return text
		}
		return cutEnd(main, n-len(tail)) + tail
	}}
}

// shortNote is a note's form for narrow columns.
func shortNote(f *orb8v1.Flow, note string) string {
	switch {
	case note == "established":
		return "estab"
	case note == ending(f.GetTcp()):
		return endingWord(f.GetTcp())
	}
	return note
}

// ending says how a connection ended, unless in order.
func ending(t *orb8v1.TcpInfo) string {
	switch t.GetEnd() {
	case orb8v1.TcpEnd_TCP_END_RESET_LOCAL:
		return "reset sent"
	case orb8v1.TcpEnd_TCP_END_RESET_REMOTE:
		return "reset by peer"
	case orb8v1.TcpEnd_TCP_END_TIMEOUT:
		return "timeout"
	case orb8v1.TcpEnd_TCP_END_REFUSED:
		return "refused"
	case orb8v1.TcpEnd_TCP_END_UNREACHABLE:
		return "unreachable"
	case orb8v1.TcpEnd_TCP_END_ABORTED:
		return "aborted"
	case orb8v1.TcpEnd_TCP_END_ERROR:
		return errnoName(t.GetErrno())
	}
	return ""
}

// endingWord is ending in at most seven cells without a space.
func endingWord(t *orb8v1.TcpInfo) string {
	switch e := t.GetEnd(); e {
	case orb8v1.TcpEnd_TCP_END_RESET_LOCAL, orb8v1.TcpEnd_TCP_END_RESET_REMOTE:
		return "reset"
	case orb8v1.TcpEnd_TCP_END_UNREACHABLE:
		return "unreach"
	case orb8v1.TcpEnd_TCP_END_ERROR:
		return "error"
	default:
		return ending(t)
	}
}

// errnoName names a Linux errno; the host that shows it may not be Linux.
func errnoName(n uint32) string {
	names := map[uint32]string{
		1: "EPERM", 11: "EAGAIN", 12: "ENOMEM", 13: "EACCES", 22: "EINVAL", 32: "EPIPE",
		71: "EPROTO", 90: "EMSGSIZE", 92: "ENOPROTOOPT", 98: "EADDRINUSE", 99: "EADDRNOTAVAIL",
		100: "ENETDOWN", 101: "ENETUNREACH", 102: "ENETRESET", 103: "ECONNABORTED",
		104: "ECONNRESET", 105: "ENOBUFS", 107: "ENOTCONN", 110: "ETIMEDOUT",
		111: "ECONNREFUSED", 112: "EHOSTDOWN", 113: "EHOSTUNREACH", 125: "ECANCELED",
	}
	if name, ok := names[n]; ok {
		return name
	}
	if n == 0 {
		return "error"
	}
	return "errno " + strconv.FormatUint(uint64(n), 10)
}

// icmp names the ICMP messages that are seen every day (RFC 792, RFC 4443,
// RFC 4861).
func icmp(f *orb8v1.Flow) string {
	if f.GetIcmp() == nil {
		return ""
	}
	names := map[uint32]string{
		0: "echo", 3: "unreachable", 4: "source quench", 5: "redirect", 8: "echo",
		9: "router advert", 10: "router solicit", 11: "time exceeded", 12: "bad parameter",
		13: "timestamp", 14: "timestamp",
	}
	if f.GetProtocol() == "ICMPv6" {
		names = map[uint32]string{
			1: "unreachable", 2: "too big", 3: "time exceeded", 4: "bad parameter",
			128: "echo", 129: "echo", 130: "mld query", 131: "mld report", 132: "mld done",
			133: "router solicit", 134: "router advert", 135: "neighbor solicit",
			136: "neighbor advert", 137: "redirect", 143: "mld report",
		}
	}
	kind, code := f.GetIcmp().GetType(), f.GetIcmp().GetCode()
	name, ok := names[kind]
	switch {
	case !ok:
		return fmt.Sprintf("type %d/%d", kind, code)
	case code != 0:
		return fmt.Sprintf("%s/%d", name, code)
	}
	return name
}
