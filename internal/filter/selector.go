// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// selector is a Kubernetes label selector: all of its requirements must hold.
// The grammar is that of `kubectl -l`: KEY, !KEY, KEY=V, KEY==V, KEY!=V,
// KEY in (V, ...), KEY notin (V, ...), joined by commas. As there, != and notin
// hold for a key that is absent.
type selector []requirement

type operator uint8

const (
	exists operator = iota
	absent
	in
	notIn
)

type requirement struct {
	key    string
	op     operator
	values []string
}

func (s selector) match(labels map[string]string) bool {
	for i := range s {
		if !s[i].match(labels) {
			return false
		}
	}
	return true
}

func (r *requirement) match(labels map[string]string) bool {
	v, ok := labels[r.key]
	switch r.op {
	case exists:
		return ok
	case absent:
		return !ok
	case in:
		return ok && slices.Contains(r.values, v)
	default:
		return !ok || !slices.Contains(r.values, v)
	}
}

// parseSelector reads a selector; one of nothing but spaces matches everything.
func parseSelector(s string) (selector, error) {
	p := parser{in: s}
	p.next()
	if p.tok == "" {
		return nil, nil
	}
	var sel selector
	for {
		r, err := p.requirement()
		if err != nil {
			return nil, err
		}
		sel = append(sel, r)
		if p.tok == "" {
			return sel, nil
		}
		if len(sel) == maxRequirements {
			return nil, fmt.Errorf("at most %d requirements", maxRequirements)
		}
		if err := p.expect(","); err != nil {
			return nil, err
		}
	}
}

// parser holds the current token in tok; the empty token is the end.
type parser struct {
	in       string
	pos      int
	tok      string
	tokStart int
}

const symbols = "=!(),<>"

func (p *parser) next() {
	for p.pos < len(p.in) && isSpace(p.in[p.pos]) {
		p.pos++
	}
	start := p.pos
	p.tokStart = start
	rest := p.in[start:]
	switch {
	case rest == "":
	case strings.HasPrefix(rest, "=="), strings.HasPrefix(rest, "!="):
		p.pos += 2
	case strings.IndexByte(symbols, rest[0]) >= 0:
		p.pos++
	default:
		for p.pos < len(p.in) && !isSpace(p.in[p.pos]) && strings.IndexByte(symbols, p.in[p.pos]) < 0 {
			p.pos++
		}
	}
	p.tok = p.in[start:p.pos]
}

func isSpace(b byte) bool { return b == ' ' || b == '\t' || b == '\n' || b == '\r' }

func (p *parser) isWord() bool {
	return p.tok != "" && strings.IndexByte(symbols, p.tok[0]) < 0
}

func (p *parser) unexpected(want string) error {
	if p.tok == "" {
		return fmt.Errorf("ends where %s should be", want)
	}
	return fmt.Errorf("column %d: %q where %s should be", p.tokStart+1, shorten(p.tok), want)
}

func (p *parser) expect(tok string) error {
	if p.tok != tok {
		return p.unexpected(fmt.Sprintf("%q", tok))
	}
	p.next()
	return nil
}

func (p *parser) requirement() (requirement, error) {
	if p.tok == "!" {
		p.next()
		key, err := p.key()
		return requirement{key: key, op: absent}, err
	}
	key, err := p.key()
	if err != nil {
		return requirement{}, err
	}
	r := requirement{key: key}
	switch p.tok {
	case "", ",":
		return r, nil
	case "=", "==":
		r.op = in
		r.values, err = p.oneValue()
	case "!=":
		r.op = notIn
		r.values, err = p.oneValue()
	case "in":
		r.op = in
		r.values, err = p.valueList()
	case "notin":
		r.op = notIn
		r.values, err = p.valueList()
	default:
		err = p.unexpected("one of =, ==, !=, in, notin or a comma")
	}
	return r, err
}

func (p *parser) key() (string, error) {
	if !p.isWord() {
		return "", p.unexpected("a label key")
	}
	key := p.tok
	if err := checkKey(key); err != nil {
		return "", fmt.Errorf("column %d: label key %q: %w", p.tokStart+1, shorten(key), err)
	}
	p.next()
	return key, nil
}

// oneValue reads what follows = or !=; nothing is the empty value.
func (p *parser) oneValue() ([]string, error) {
	p.next()
	v, err := p.value()
	return []string{v}, err
}

func (p *parser) value() (string, error) {
	if !p.isWord() {
		return "", nil
	}
	v := p.tok
	if v != "" {
		if err := checkName(v); err != nil {
			return "", fmt.Errorf("column %d: label value %q: %w", p.tokStart+1, shorten(v), err)
		}
	}
	p.next()
	return v, nil
}

func (p *parser) valueList() ([]string, error) {
	p.next()
	if err := p.expect("("); err != nil {
		return nil, err
	}
	var values []string
	for {
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		values = append(values, v)
		if p.tok == ")" {
			p.next()
			return values, nil
		}
		if len(values) == maxValues {
			return nil, fmt.Errorf("column %d: at most %d values", p.tokStart+1, maxValues)
		}
		if p.tok != "," {
			return nil, p.unexpected(`"," or ")"`)
		}
		p.next()
	}
}

var (
	errKeyPrefix = errors.New("what stands before the / must be a DNS name of at most 253 characters")
	errName      = errors.New("must be 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends")
)

func checkKey(key string) error {
	name := key
	if prefix, after, ok := strings.Cut(key, "/"); ok {
		if !isDNSName(prefix) {
			return errKeyPrefix
		}
		name = after
	}
	return checkName(name)
}

func checkName(s string) error {
	if len(s) == 0 || len(s) > 63 || !isAlnum(s[0]) || !isAlnum(s[len(s)-1]) {
		return errName
	}
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte("-_.", s[i]) < 0 {
			return errName
		}
	}
	return nil
}

func isDNSName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

func isAlnum(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}
