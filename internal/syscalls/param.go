// SPDX-License-Identifier: Apache-2.0

package syscalls

// kind is how a parameter's value is passed and written.
type kind uint8

const (
	kindHex      kind = iota // what nothing better is known of
	kindPtr                  // an address
	kindStr                  // address of a text
	kindAddr                 // address of a struct sockaddr; the next argument is its length
	kindAddrOut              // likewise, but the kernel fills it and the length
	kindHow                  // address of a struct open_how; the next argument is its length
	kindFD                   // file descriptor
	kindNum                  // int
	kindUnum                 // unsigned int
	kindSize                 // as wide as registers, without a sign
	kindOff                  // as wide as registers, with a sign
	kindPair                 // 64 bits in two arguments, the low half first
	kindPairHigh             // 64 bits in two arguments, the high half first
	kindPad                  // an argument without meaning, so that a pair begins at an even one
	kindID                   // user or group id, -1 for none
	kindID16                 // likewise in 16 bits
	kindMode                 // permissions
	kindNewMode              // permissions, if the argument before says that a file is made
	kindDev                  // number of a device
	kindCap                  // number of a capability
	kindValue                // one of names, in the bits of mask, and bits
	kindNamed                // one of names, else an int
	kindOpen                 // like kindValue, with the flags of open, which differ by architecture
	kindMmap                 // likewise of mmap
	kindClone                // bits, and a signal in the lowest byte
	kindCases                // the arguments from here on are those of one of cases
)

// param is a parameter of a system call.
type param struct {
	name string
	kind kind
	// wide: all bits of the register are its value, not only 32.
	wide bool
	// octal: what has no name is written in octal.
	octal bool
	// mask has the bits of the value in which one of names stands.
	mask  uint64
	names map[uint64]string
	bits  []bit
	// needs, if not 0, are bits of argument flag: the call uses the parameter only with
	// one of these.
	flag  uint8
	needs uint64
	// cases has the parameters by the value of argument of.
	of    uint8
	cases map[uint64][]param
}

// bit is a flag, or some together, with its name. In a list those with more bits come
// first.
type bit struct {
	value uint64
	name  string
}

// otherwise is the key in cases of all values that are not there.
const otherwise = 1 << 63

func hex(name string) param     { return param{name: name, kind: kindHex} }
func ptr(name string) param     { return param{name: name, kind: kindPtr} }
func str(name string) param     { return param{name: name, kind: kindStr} }
func addr(name string) param    { return param{name: name, kind: kindAddr} }
func addrOut(name string) param { return param{name: name, kind: kindAddrOut} }
func openHow(name string) param { return param{name: name, kind: kindHow} }
func fd(name string) param      { return param{name: name, kind: kindFD} }
func num(name string) param     { return param{name: name, kind: kindNum} }
func unum(name string) param    { return param{name: name, kind: kindUnum} }
func size(name string) param    { return param{name: name, kind: kindSize} }
func off(name string) param     { return param{name: name, kind: kindOff} }
func pair(name string) param    { return param{name: name, kind: kindPair} }
func id(name string) param      { return param{name: name, kind: kindID} }
func id16(name string) param    { return param{name: name, kind: kindID16} }
func mode(name string) param    { return param{name: name, kind: kindMode} }
func newMode(name string) param { return param{name: name, kind: kindNewMode} }
func dev(name string) param     { return param{name: name, kind: kindDev} }
func capab(name string) param   { return param{name: name, kind: kindCap} }

// pairHigh is a pair with its high half first.
func pairHigh(name string) param { return param{name: name, kind: kindPairHigh} }

// pairFlags is a pair of bits.
func pairFlags(name string, bits []bit) param {
	return param{name: name, kind: kindPair, wide: true, bits: bits}
}

// pad is an argument without meaning.
func pad() param { return param{kind: kindPad} }

// flags is an int of bits, wide a long.
func flags(name string, bits []bit) param {
	return param{name: name, kind: kindValue, bits: bits}
}

func wide(p param) param {
	p.wide = true
	return p
}

// one is a value of a list, some one in the bits of mask, with other bits.
func one(name string, names map[uint64]string) param {
	return param{name: name, kind: kindValue, mask: ^uint64(0), names: names}
}

func some(name string, mask uint64, names map[uint64]string, bits []bit) param {
	return param{name: name, kind: kindValue, mask: mask, names: names, bits: bits}
}

// named is a number of which some have names.
func named(name string, names map[uint64]string) param {
	return param{name: name, kind: kindNamed, names: names}
}

func signal(name string) param { return named(name, signals) }

// fileMode is the type of a file with its permissions.
func fileMode(name string) param {
	return param{name: name, kind: kindValue, mask: 0xf000, names: fileTypes, octal: true}
}

// opening are the flags with which a file is opened, openFlags those without what for.
func opening(name string) param {
	return param{name: name, kind: kindOpen, mask: 3, names: openModes}
}

func openFlags() param { return param{name: "flags", kind: kindOpen} }

// mapping are the flags of mmap.
func mapping(name string) param {
	return param{name: name, kind: kindMmap, wide: true, mask: 0xf, names: mapTypes, bits: mapBits}
}

// cloning are the flags of clone.
func cloning(name string) param {
	return param{name: name, kind: kindClone, wide: true, mask: 0xff, names: signals, bits: cloneBits}
}

// by are the parameters that depend on the value of argument i.
func by(i uint8, cases map[uint64][]param) param {
	return param{kind: kindCases, of: i, mask: 1<<32 - 1, cases: cases}
}

// with says that the call uses the parameter only if argument flag has one of the bits.
func (p param) with(flag uint8, bits uint64) param {
	p.flag, p.needs = flag, bits
	return p
}

// used reports whether the call uses the parameter.
func (p *param) used(c *Call) bool { return p.needs == 0 || c.Args[p.flag]&p.needs != 0 }

// width is how many arguments a parameter takes.
func (p *param) width() int {
	switch p.kind {
	case kindPair, kindPairHigh:
		return 2
	case kindCases:
		return 0
	}
	return 1
}

// chosen returns the parameters of the case that a call is.
func (p *param) chosen(c *Call) []param {
	if ps, ok := p.cases[c.Args[p.of]&p.mask]; ok {
		return ps
	}
	return p.cases[otherwise]
}

// in says which bits of the argument tell the cases apart.
func (p param) in(mask uint64) param {
	p.mask = mask
	return p
}

// inOctal says how what has no name is written.
func (p param) inOctal() param {
	p.octal = true
	return p
}
