// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"strconv"

	"github.com/Ignoramuss/orb8/internal/process"
)

// Bits of open's flags with which it makes a file: O_CREAT, and the one of O_TMPFILE
// that is its own.
const creates = 0o100 | 0o20000000

// atCWD is AT_FDCWD, which stands for the current directory.
const atCWD = -100

// Decode returns a call's arguments with their names and texts, without control
// characters, without those at the end that its flags say it does not use. Of a call that
// is not known by its arguments these are arg0, arg1 and so on, up to the last that is
// not zero.
func Decode(c *Call) []Arg {
	params, ok := paramsOf(c.ABI, known(c.ABI, c.Number))
	if !ok {
		return unknown(c)
	}
	var (
		room [256]byte
		ends [MaxArgs]int
	)
	text, args, used := room[:0], make([]Arg, 0, len(params)), 0
	for i := 0; len(params) > 0 && i < MaxArgs; {
		p := &params[0]
		if p.kind == kindCases {
			params = p.chosen(c)
			continue
		}
		if p.kind != kindPad && (p.kind != kindNewMode || c.Args[max(i-1, 0)]&creates != 0) {
			text = p.write(text, c, i)
			ends[len(args)] = len(text)
			args = append(args, Arg{Name: p.name, Value: p.value(c, i)})
			if p.used(c) {
				used = len(args)
			}
		}
		i += p.width()
		params = params[1:]
	}
	return fill(args[:used], text, ends[:])
}

var argNames = [...]string{"arg0", "arg1", "arg2", "arg3", "arg4", "arg5"}

// unknown returns the arguments of a call of which nothing else is known.
func unknown(c *Call) []Arg {
	var (
		room [128]byte
		ends [MaxArgs]int
	)
	n := MaxArgs
	for n > 0 && c.word(c.Args[n-1]) == 0 {
		n--
	}
	text, args := room[:0], make([]Arg, n)
	for i := range n {
		args[i] = Arg{Name: argNames[i], Value: c.word(c.Args[i])}
		text = appendHex(text, args[i].Value)
		ends[i] = len(text)
	}
	return fill(args, text, ends[:])
}

// fill sets the arguments' texts. They share one string.
func fill(args []Arg, text []byte, ends []int) []Arg {
	all, begin := string(text), 0
	for i := range args {
		args[i].Text, begin = all[begin:ends[i]], ends[i]
	}
	return args
}

// compat reports whether the call was made by a 32-bit program.
func (c *Call) compat() bool { return c.ABI == process.I386 || c.ABI == process.ARM }

// word returns a value as wide as the program's registers.
func (c *Call) word(v uint64) uint64 {
	if c.compat() {
		return uint64(uint32(v))
	}
	return v
}

// value is what the program passed for a parameter that begins at argument i.
func (p *param) value(c *Call, i int) uint64 {
	if p.width() == 1 {
		return c.word(c.Args[i])
	}
	low, high := c.Args[i], uint64(0)
	if i+1 < MaxArgs {
		high = c.Args[i+1]
	}
	if p.kind == kindPairHigh {
		low, high = high, low
	}
	return uint64(uint32(low)) | high<<32
}

// write appends the text of a parameter that begins at argument i.
func (p *param) write(b []byte, c *Call, i int) []byte {
	v := p.value(c, i)
	switch p.kind {
	case kindPtr:
		return appendPtr(b, v)
	case kindStr:
		return appendStr(b, c, i, v)
	case kindAddr, kindAddrOut:
		if c.Addr != "" && v != 0 {
			return appendClean(b, c.Addr)
		}
		return appendPtr(b, v)
	case kindHow:
		if c.How.Given && v != 0 {
			return appendHow(b, c)
		}
		return appendPtr(b, v)
	case kindFD:
		return appendFD(b, int32(v), c.Files[i])
	case kindNum, kindUnum, kindSize, kindOff, kindPair, kindPairHigh, kindID, kindID16:
		return p.appendNumber(b, c, v)
	case kindMode, kindNewMode:
		return appendOctal(b, uint64(uint32(v)))
	case kindDev:
		return appendDev(b, uint32(v))
	case kindCap:
		if v < uint64(len(capabilities)) {
			return append(b, capabilities[v]...)
		}
		return strconv.AppendUint(b, v, 10)
	case kindNamed:
		if name, ok := p.names[uint64(uint32(v))]; ok {
			return append(b, name...)
		}
		return strconv.AppendInt(b, int64(int32(v)), 10)
	case kindValue, kindOpen, kindMmap, kindClone:
		return p.appendValue(b, c.ABI, v)
	}
	return appendHex(b, v)
}

func (p *param) appendNumber(b []byte, c *Call, v uint64) []byte {
	switch p.kind {
	case kindNum:
		return strconv.AppendInt(b, int64(int32(v)), 10)
	case kindUnum:
		return strconv.AppendUint(b, uint64(uint32(v)), 10)
	case kindOff:
		if c.compat() {
			return strconv.AppendInt(b, int64(int32(v)), 10)
		}
		return strconv.AppendInt(b, int64(v), 10)
	case kindPair, kindPairHigh:
		if p.bits != nil {
			return p.appendValue(b, c.ABI, v)
		}
		return strconv.AppendInt(b, int64(v), 10)
	case kindID16:
		if v &= 1<<16 - 1; v == 1<<16-1 {
			return append(b, "-1"...)
		}
		return strconv.AppendUint(b, v, 10)
	case kindID:
		if int32(v) == -1 {
			return append(b, "-1"...)
		}
		return strconv.AppendUint(b, uint64(uint32(v)), 10)
	}
	return strconv.AppendUint(b, v, 10)
}

// appendHow writes how openat2 opens, as a C program would say it.
func appendHow(b []byte, c *Call) []byte {
	opens, resolves := wide(opening("")), wide(flags("", resolveBits))
	b = opens.appendValue(append(b, "{flags="...), c.ABI, c.How.Flags)
	b = appendOctal(append(b, ", mode="...), c.How.Mode)
	b = resolves.appendValue(append(b, ", resolve="...), c.ABI, c.How.Resolve)
	return append(b, '}')
}

// appendValue writes names with | between them, and what has none as a number.
func (p *param) appendValue(b []byte, abi process.ABI, v uint64) []byte {
	if !p.wide {
		v = uint64(uint32(v))
	}
	begin := len(b)
	name, ok := p.names[v&p.mask]
	if ok {
		v &^= p.mask
	}
	if ok && p.kind != kindClone {
		b = append(b, name...)
	}
	arm := abi == process.ARM || abi == process.ARM64
	switch {
	case p.kind == kindOpen && arm:
		b, v = appendBits(b, begin, v, openArmBits)
	case p.kind == kindOpen:
		b, v = appendBits(b, begin, v, openX86Bits)
	case p.kind == kindMmap && !arm:
		b, v = appendBits(b, begin, v, mapX86Bits)
	}
	if p.kind == kindOpen {
		b, v = appendBits(b, begin, v, openBits)
	}
	b, v = appendBits(b, begin, v, p.bits)
	if ok && p.kind == kindClone {
		b = append(separate(b, begin), name...)
	}
	if v == 0 && len(b) > begin {
		return b
	}
	b = separate(b, begin)
	if p.octal {
		return appendOctal(b, v)
	}
	return appendHex(b, v)
}

// appendBits writes the names of the bits that v has, and returns v without them.
func appendBits(b []byte, begin int, v uint64, bits []bit) (text []byte, rest uint64) {
	for i := range bits {
		if v == 0 {
			break
		}
		if f := &bits[i]; v&f.value == f.value {
			b = append(separate(b, begin), f.name...)
			v &^= f.value
		}
	}
	return b, v
}

// separate appends | if something has been written since begin.
func separate(b []byte, begin int) []byte {
	if len(b) > begin {
		return append(b, '|')
	}
	return b
}
