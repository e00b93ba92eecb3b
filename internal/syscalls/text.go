// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"strconv"
	"unicode"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendHex writes a number as 0x2a, and 0 as 0.
func appendHex(b []byte, v uint64) []byte {
	if v != 0 {
		b = append(b, "0x"...)
	}
	return strconv.AppendUint(b, v, 16)
}

// appendOctal writes a number as 0644, and 0 as 0.
func appendOctal(b []byte, v uint64) []byte {
	if v != 0 {
		b = append(b, '0')
	}
	return strconv.AppendUint(b, v, 8)
}

func appendPtr(b []byte, v uint64) []byte {
	if v == 0 {
		return append(b, "NULL"...)
	}
	return appendHex(b, v)
}

// appendStr writes the text at which argument i points, or the address v where it
// could not be read.
func appendStr(b []byte, c *Call, i int, v uint64) []byte {
	if c.Read&(1<<i) == 0 {
		return appendPtr(b, v)
	}
	b = append(b, '"')
	b = appendEscaped(b, c.Strings[i], true)
	b = append(b, '"')
	if c.Cut&(1<<i) != 0 {
		b = append(b, "..."...)
	}
	return b
}

// appendFD writes a file descriptor with what it stands for.
func appendFD(b []byte, fd int32, file string) []byte {
	if fd == atCWD {
		b = append(b, "AT_FDCWD"...)
	} else {
		b = strconv.AppendInt(b, int64(fd), 10)
	}
	if file == "" {
		return b
	}
	b = append(b, '<')
	b = appendClean(b, file)
	return append(b, '>')
}

// appendDev writes the number of a device as its major and minor one.
func appendDev(b []byte, v uint32) []byte {
	b = append(b, "makedev("...)
	b = strconv.AppendUint(b, uint64(v>>8&0xfff), 10)
	b = append(b, ", "...)
	b = strconv.AppendUint(b, uint64(v&0xff|v>>12&0xfff00), 10)
	return append(b, ')')
}

// appendClean writes a text that is not in quotes.
func appendClean(b []byte, s string) []byte { return appendEscaped(b, s, false) }

// appendEscaped writes a text with what cannot be printed, and what would end a quoted
// one, as in C; other bytes than those of printable characters as \xNN.
func appendEscaped(b []byte, s string, quoted bool) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) {
				for _, c := range []byte(s[i : i+n]) {
					b = appendByte(b, c)
				}
			} else {
				b = append(b, s[i:i+n]...)
			}
			i += n
			continue
		}
		switch {
		case c == '\\' || c == '"' && quoted:
			b = append(b, '\\', c)
		case c >= ' ' && c < 0x7f:
			b = append(b, c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c == '\r':
			b = append(b, `\r`...)
		default:
			b = appendByte(b, c)
		}
		i++
	}
	return b
}

func appendByte(b []byte, c byte) []byte {
	return append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&0xf])
}
