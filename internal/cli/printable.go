// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"io"
	"regexp"
	"slices"
	"sync"
	"unicode"
	"unicode/utf8"
)

// printable is what the commands write to: it lets text through and takes out what a
// terminal would act on, but for the colours and movements that the commands use
// themselves. What renderers clean, it finds clean; it is for all that they miss.
// Names, reasons and messages are chosen by workloads and by whoever answers.
type printable struct {
	w io.Writer

	mu   sync.Mutex // a log is written to while a command writes
	tail []byte     // the begin of a character or sequence whose rest is still to come
	buf  bytes.Buffer
}

func newPrintable(w io.Writer) *printable { return &printable{w: w} }

// control is what the commands write on purpose: colours, and what `orb8 flows --watch`
// draws with.
var control = regexp.MustCompile(`^\x1b\[(?:[0-9;]{0,16}m|[HKJ]|\?7[lh])`)

// maxControl is the length of the longest of these.
const maxControl = len("\x1b[") + 16 + len("m")

// Write implements io.Writer.
func (p *printable) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := b
	if len(p.tail) > 0 {
		text = slices.Concat(p.tail, b)
		p.tail = nil
	}
	p.buf.Reset()
	for len(text) > 0 {
		n := plain(text)
		p.buf.Write(text[:n])
		if text = text[n:]; len(text) == 0 {
			break
		}
		if n = len(control.Find(text)); n > 0 {
			p.buf.Write(text[:n])
		} else if begun(text) {
			p.tail = bytes.Clone(text)
			break
		} else {
			n = p.rune(text)
		}
		text = text[n:]
	}
	if _, err := p.w.Write(p.buf.Bytes()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// plain is how many bytes at the begin need no look.
func plain(b []byte) int {
	for i, c := range b {
		if (c < ' ' || c > '~') && c != '\n' && c != '\t' {
			return i
		}
	}
	return len(b)
}

// begun reports whether b may be the begin of a character or of a control sequence.
func begun(b []byte) bool {
	if b[0] == '\x1b' {
		if len(b) >= maxControl || len(b) > 1 && b[1] != '[' {
			return false
		}
		for _, c := range b[min(2, len(b)):] {
			if c != ';' && c != '?' && (c < '0' || c > '9') {
				return false
			}
		}
		return true
	}
	return !utf8.FullRune(b)
}

// rune writes the first character of b, or what stands for it, and returns its length.
func (p *printable) rune(b []byte) int {
	r, n := utf8.DecodeRune(b)
	if !unicode.IsPrint(r) {
		r = unicode.ReplacementChar
	}
	p.buf.WriteRune(r)
	return n
}

// Close writes what has not become whole.
func (p *printable) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf.Reset()
	for len(p.tail) > 0 {
		p.tail = p.tail[p.rune(p.tail):]
	}
	_, err := p.w.Write(p.buf.Bytes())
	return err
}

// Unwrap returns what is written to.
func (p *printable) Unwrap() io.Writer { return p.w }
