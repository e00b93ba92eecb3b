// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"strconv"
	"strings"
)

// Type is the type of a query or a record (IANA's "Resource Record (RR) TYPEs").
type Type uint16

// The types that code here asks for by name.
const (
	TypeA     Type = 1
	TypeNS    Type = 2
	TypeCNAME Type = 5
	TypePTR   Type = 12
	TypeMX    Type = 15
	TypeAAAA  Type = 28
	TypeSRV   Type = 33
)

// String returns IANA's name, or TYPE123 (RFC 3597) for a type without one here.
func (t Type) String() string {
	if name, ok := types[t]; ok {
		return name
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// types are those that are seen in use. The map is never changed.
var types = map[Type]string{
	1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT",
	28: "AAAA", 33: "SRV", 35: "NAPTR", 39: "DNAME", 41: "OPT", 43: "DS", 44: "SSHFP", 46: "RRSIG",
	47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 51: "NSEC3PARAM", 52: "TLSA", 64: "SVCB", 65: "HTTPS",
	99: "SPF", 249: "TKEY", 250: "TSIG", 251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA",
}

// ParseType reads a type's name in any case, TYPE123, or its number.
func ParseType(s string) (Type, bool) { return parse(types, "TYPE", s) }

// parse reads one of the names in any case, or a number that may have a prefix.
func parse[T ~uint16](names map[T]string, prefix, s string) (T, bool) {
	s = strings.ToUpper(s)
	for v, name := range names {
		if name == s {
			return v, true
		}
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(s, prefix), 10, 16)
	return T(n), err == nil
}

// RCode is how the server answered, with the bits that EDNS adds.
type RCode uint16

// The codes that code here asks for by name.
const (
	NoError  RCode = 0
	NXDomain RCode = 3
)

// maxRCode is one more than the largest: 4 bits of the header, and 8 of EDNS.
const maxRCode = 1 << 12

// rcodes is never changed.
var rcodes = map[RCode]string{
	0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED",
	6: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 11: "DSOTYPENI",
	16: "BADVERS", 17: "BADKEY", 18: "BADTIME", 19: "BADMODE", 20: "BADNAME", 21: "BADALG",
	22: "BADTRUNC", 23: "BADCOOKIE",
}

// String returns IANA's name, or RCODE12 for one without.
func (r RCode) String() string {
	if name, ok := rcodes[r]; ok {
		return name
	}
	return "RCODE" + strconv.Itoa(int(r))
}

// ParseRCode reads a code's name in any case, RCODE12, or its number.
func ParseRCode(s string) (RCode, bool) {
	r, ok := parse(rcodes, "RCODE", s)
	return r, ok && r < maxRCode
}
