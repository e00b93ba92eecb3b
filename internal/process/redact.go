// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"regexp"
	"strings"
)

const hidden = "***"

// Redactor hides what looks like a secret in arguments.
type Redactor struct{ own *regexp.Regexp }

// NewRedactor returns one that knows the usual forms and hides, beside these, what the
// pattern matches: its groups, or all of it where it has none. It may be empty.
func NewRedactor(pattern string) (*Redactor, error) {
	r := new(Redactor)
	if pattern == "" {
		return r, nil
	}
	own, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", pattern, err)
	}
	r.own = own
	return r, nil
}

// Redact replaces secrets by ***. It changes args and returns it.
func (r *Redactor) Redact(args []string) []string {
	var w words
	for i, a := range args {
		if i == 0 { // the program itself; a shell that one logs into is called -sh
			a = w.plain(a)
		} else {
			a = w.take(a)
		}
		if r.own != nil {
			a = hide(r.own, a)
		}
		args[i] = a
	}
	return args
}

// hide replaces what p's groups match in s, or all that p matches if it has none.
func hide(p *regexp.Regexp, s string) string {
	found := p.FindAllStringSubmatchIndex(s, -1)
	if found == nil {
		return s
	}
	c := cutter{s: s}
	for _, m := range found {
		if len(m) == 2 {
			c.cut(m[0], m[1])
		}
		for g := 2; g < len(m); g += 2 {
			c.cut(m[g], m[g+1])
		}
	}
	return c.done()
}

// cutter hides parts of a text, from left to right.
type cutter struct {
	s   string
	out strings.Builder
	at  int // so much of s is through
}

// cut hides a part, unless it has been in part.
func (c *cutter) cut(from, to int) {
	if from >= c.at {
		c.out.WriteString(c.s[c.at:from])
		c.out.WriteString(hidden)
		c.at = to
	}
}

func (c *cutter) done() string {
	if c.at == 0 {
		return c.s
	}
	c.out.WriteString(c.s[c.at:])
	return c.out.String()
}

// expect is what the next word is, as the one before it says.
type expect uint8

const (
	anything    expect = iota
	aValue             // of an option that is called like a secret
	aLogin             // a user's name and a secret, in two words, or the secret only
	aUser              // a user's name and, after a colon, a secret
	aCookie            // a name and, after =, a secret; or a file
	aQuotedText        // a secret if it is in quotes, as in SQL
	aScript            // after a shell's flags
	aMode              // of a shell (-o MODE), and then a script
)

// words are the arguments of a program, or those in a shell's script, one after another.
type words struct {
	next       expect
	kind       secretKind // of aValue
	flags      flags      // of the program
	login      bool       // it logs in somewhere: -p is a password
	setting    bool       // a setting's name comes, and then its value
	identified bool       // SQL: what follows BY or = is a password
	expanded   bool       // scripts within double quotes are done
	depth      int        // scripts within scripts
}

const maxDepth = 4

// take returns a word without the secrets that are in it.
func (w *words) take(a string) string {
	next := w.next
	w.next = anything
	if next != anything && next < aScript && isOption(a) {
		next = anything
	}
	switch next {
	case aValue, aLogin:
		if got := hideValue(w.kind, a); got != a {
			if next == aLogin {
				w.next = aValue
			}
			return got
		}
	case aUser:
		return hideUser(a)
	case aCookie:
		return hideAfter(a, "=")
	case aScript, aMode:
		return w.shell(a, next)
	case aQuotedText:
		if text := strings.TrimLeft(a, `\`); text != "" && (text[0] == '\'' || text[0] == '"') {
			return hidden
		}
	}
	return w.bare(a, false)
}

// bare returns a word with what is in its quotes changed, like a script or an argument.
func (w *words) bare(a string, script bool) string {
	inner := unquoted(a)
	var got string
	if script {
		got = w.script(inner)
	} else {
		got = w.argument(inner)
	}
	switch {
	case got == inner:
		return a
	case len(inner) < len(a):
		return a[:1] + got + a[len(a)-1:]
	}
	return got
}

// argument is take for a word without quotes.
func (w *words) argument(a string) string {
	if len(a) > 1 && a[0] == '-' {
		return w.option(a)
	}
	return w.plain(a)
}

// shell is take for what follows sh -c: more flags, or the script.
func (w *words) shell(a string, next expect) string {
	switch {
	case next == aMode, a == "--":
		w.next = aScript
	case isShellFlags(a):
		if w.next = aScript; a[len(a)-1] == 'o' {
			w.next = aMode
		}
		if w.login || w.flags != (flags{}) { // no shell: -c means something else
			w.next = anything
			return w.argument(a)
		}
	case strings.ContainsAny(a, " \t\n;|&`<>()"):
		return w.bare(a, true)
	default:
		return w.bare(a, false)
	}
	return a
}

// isShellFlags reports whether a word may be some of a shell's flags.
func isShellFlags(a string) bool {
	return len(a) > 1 && len(a) < 8 && (a[0] == '-' || a[0] == '+') && strings.Trim(a[1:], "abcefhilmnoprstuvxCE") == ""
}

// option is take for what begins with -.
func (w *words) option(a string) string {
	if a[1] != '-' {
		if got, ok := w.short(a); ok {
			return got
		}
	}
	name, value, given := strings.Cut(strings.TrimLeft(a, "-"), "=")
	if !isName(name) {
		return w.plain(a)
	}
	kind := noSecret
	if suspicious(name) {
		kind = kindOf(name)
	}
	begin, user := a[:len(a)-len(value)], w.flags.users && (name == "user" || name == "proxy-user") ||
		w.flags.cookies && (name == "cert" || name == "proxy-cert")
	switch {
	case given && kind != noSecret:
		return begin + hideValue(kind, value)
	case given && user:
		return begin + hideUser(value)
	case given:
		return begin + w.plain(value)
	case user:
		w.next = aUser
	case kind != noSecret:
		w.next, w.kind = aValue, kind
	}
	return a
}

// short is option for those of one letter, of which there may be several in a word, with
// or without the value of the last one; ok is false if it does not know them.
func (w *words) short(a string) (got string, ok bool) {
	f, last := &w.flags, a[len(a)-1]
	switch {
	case len(a) > 2 && (a[1] == f.attached || a[1] == f.secret):
		return a[:2] + hidden, true
	case last == f.secret && isName(a), len(a) == 2 && (w.login && last == 'p' || strings.IndexByte(f.alone, last) >= 0):
		w.next, w.kind = aValue, secret
	case f.users && (last == 'u' || last == 'U') && isName(a), f.cookies && last == 'E' && isName(a):
		w.next = aUser
	case f.cookies && last == 'b' && isName(a):
		w.next = aCookie
	case f.cookies && a[1] == 'b':
		return hideAfter(a, "="), true
	case f.users && strings.ContainsAny(a, "uU") && strings.ContainsAny(a, ":%,"), f.cookies && a[1] == 'E':
		return hideUser(a), true
	case strings.IndexByte(a, 'c') > 0 && isShellFlags(a): // sh -c, bash -lc
		if w.next = aScript; last == 'o' {
			w.next = aMode
		}
	default:
		return "", false
	}
	return a, true
}

// plain is take for what is no option.
func (w *words) plain(a string) string {
	setting := w.setting
	w.setting = false
	w.named(a)
	if !suspicious(a) {
		if strings.IndexByte(a, ' ') >= 0 {
			return w.text(a)
		}
		return a
	}
	if from, kind := leadingName(a); kind != noSecret {
		return a[:from] + hideValue(kind, a[from:])
	}
	a = hideWithin(a)
	if strings.ContainsAny(a, " \t\n") {
		return w.text(a)
	}
	switch {
	case strings.EqualFold(a, "password"): // ALTER USER
		w.identified = true
		if w.next = aQuotedText; w.flags.admin {
			w.next, w.kind = aValue, secret
		}
	case strings.EqualFold(a, "requirepass"), strings.EqualFold(a, "masterauth"), // CONFIG SET
		setting && isSetting(a):
		w.next, w.kind = aValue, secret
	case w.flags.secret == 'a' && strings.EqualFold(a, "auth"):
		w.next, w.kind = aLogin, secret
	}
	return a
}

// text is script for what may have something before its quotes: x="…".
func (w *words) text(a string) string {
	i, end := strings.IndexAny(a, "\"' "), len(a)-1
	if i > 0 && a[i] != ' ' && closingAt(a, i+1, a[i]) == end {
		return a[:i+1] + w.script(a[i+1:end]) + a[end:]
	}
	return w.script(a)
}

// isSetting reports whether a setting that is called so is a secret.
func isSetting(a string) bool {
	name := a[strings.LastIndexAny(a, "/:")+1:]
	kind := kindOf(name)
	return isName(name) && (kind == secret || kind == weak) && !strings.HasPrefix(a, "set-")
}

// script returns a shell's script without secrets: each of its words is looked at like an
// argument.
func (w *words) script(s string) string {
	if w.depth == maxDepth {
		return s
	}
	if suspicious(s) {
		s = hideWithin(s)
	}
	inner := words{depth: w.depth + 1, expanded: w.expanded}
	c := cutter{s: s}
	comment := false
	for at := 0; at < len(s); {
		comment = comment || s[at] == '#'
		if end := wordEnd(s, at, comment); end > at {
			if got := inner.word(s[at:end]); got != s[at:end] {
				c.replace(at, end, got)
			}
			at = end
			continue
		}
		switch s[at] {
		case '\\': // the line goes on
			at++
		case ';', '|', '&', '\n': // another command
			if s[at] == '&' && at > 0 && (s[at-1] == '>' || s[at-1] == '<') { // 2>&1
				break
			}
			inner = words{depth: inner.depth, expanded: inner.expanded}
			comment = comment && s[at] != '\n'
		}
		at++
	}
	return c.done()
}

// word is take for one of a script, which may have other scripts in it.
func (w *words) word(a string) string {
	if w.expanded || strings.IndexByte(a, '`') < 0 && !strings.Contains(a, "$(") {
		return w.take(a)
	}
	a = w.expand(a)
	w.expanded = true
	a = w.take(a)
	w.expanded = false
	return a
}

// expand hides the secrets of the scripts in a word: $(…) and what is in backticks.
func (w *words) expand(a string) string {
	c := cutter{s: a}
	quoted := false
	for at := 0; at < len(a); at++ {
		switch b := a[at]; {
		case b == '\\':
			at++
		case b == '"':
			quoted = !quoted
		case b == '\'' && !quoted:
			at = closingAt(a, at+1, b)
		case b == '`', b == '(' && at > 0 && a[at-1] == '$':
			begin := at + 1
			at = closingAt(a, begin, b)
			if got := w.script(a[begin:at]); got != a[begin:at] {
				c.replace(begin, at, got)
			}
		}
	}
	return c.done()
}

// replace is cut with something else than stars.
func (c *cutter) replace(from, to int, by string) {
	c.out.WriteString(c.s[c.at:from])
	c.out.WriteString(by)
	c.at = to
}

// wordEnd is where the word ends that begins at some place of a script; there is none if
// it is the same place. What is in quotes, $(…) or backticks belongs to one word, but not
// in a comment.
func wordEnd(s string, at int, comment bool) int {
	for ; at < len(s); at++ {
		switch b := s[at]; b {
		case ' ', '\t', '\n', ';', '|', '&', '(', ')', '<', '>':
			return at
		case '\\':
			if at+1 < len(s) && !comment && (s[at+1] == '\n' || s[at+1] == '`') {
				return at
			}
			if !comment {
				at++
			}
		case '\'', '"', '`':
			if !comment {
				at = closingAt(s, at+1, b)
			}
		case '$':
			if !comment && at+1 < len(s) && s[at+1] == '(' {
				at = closingAt(s, at+2, '(')
			}
		}
	}
	return min(at, len(s))
}

// closingAt is where that is closed which was opened just before a place: quotes, brackets
// or backticks. It is the end of s if nothing closes it.
func closingAt(s string, at int, open byte) int {
	end := open
	if open == '(' {
		end = ')'
	}
	for ; at < len(s) && s[at] != end; at++ {
		b := s[at]
		if open == '\'' || b != '\\' && b != '\'' && b != '"' && b != '`' && b != '(' {
			continue
		}
		switch {
		case b == '\\':
			at++
		case open != '"', b == '`', b == '(' && s[at-1] == '$':
			at = closingAt(s, at+1, b)
		}
	}
	return min(at, len(s))
}

// unquoted is what is in quotes, or all of it where it is not.
func unquoted(a string) string {
	if n := len(a); n >= 2 && (a[0] == '\'' || a[0] == '"') && a[n-1] == a[0] {
		return a[1 : n-1]
	}
	return a
}

// isOption reports whether a word looks like an option, and not like a value that begins
// with -.
func isOption(a string) bool {
	if len(a) == 2 {
		return a[0] == '-' && isLetter(a[1])
	}
	name, _, _ := strings.Cut(a, "=")
	return len(name) > 3 && name[:2] == "--" && isLetter(name[2]) && isName(name[2:])
}

// hideUser hides what follows a user's name.
func hideUser(a string) string { return hideAfter(a, ":%,") }

// hideAfter hides what follows the first of some bytes, but not the quote that closes what
// was opened before.
func hideAfter(a, separators string) string {
	i := strings.IndexAny(a, separators)
	if i < 0 || i+1 == len(a) {
		return a
	}
	begin, end := a[:i+1], len(a)-1
	if a[end] != '"' && a[end] != '\'' || strings.Count(begin, a[end:])%2 == 0 {
		return begin + hidden
	}
	if end > i+1 && a[end-1] == '\\' {
		end--
	}
	return begin + hidden + a[end:]
}

// flags are a program's options of one letter whose value is a secret.
type flags struct {
	secret   byte   // followed by it, in the same word or the next
	attached byte   // followed by it in the same word only
	alone    string // each of them followed by it in the next word only
	users    bool   // -u is a user's name and secret, --user as well
	cookies  bool   // -b is a cookie, and -E a certificate with its secret
	admin    bool   // password is followed by it
}

// named takes note of a program's name: it need not be the first word, as in env or sudo.
func (w *words) named(a string) {
	switch name := a[strings.LastIndexByte(a, '/')+1:]; name {
	case "mysql", "mysqldump", "mysqlimport", "mysqlcheck", "mysqlshow", "mysqlsh",
		"mariadb", "mariadb-dump", "mariadb-import", "mariadb-check", "mariadb-show",
		"7z", "7za", "7zr", "7zz":
		w.flags = flags{attached: 'p'}
	case "mysqladmin", "mariadb-admin":
		w.flags = flags{attached: 'p', admin: true}
	case "sshpass", "mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport", "mongostat":
		w.flags = flags{secret: 'p'}
	case "redis-cli", "valkey-cli", "keydb-cli":
		w.flags = flags{secret: 'a'}
	case "ldapsearch", "ldapmodify", "ldapadd", "ldapdelete", "ldapwhoami", "ldappasswd", "ldapcompare":
		w.flags = flags{secret: 'w'}
	case "zip", "unzip", "sqlcmd":
		w.flags = flags{secret: 'P'}
	case "curl":
		w.flags = flags{users: true, cookies: true}
	case "etcdctl", "lftp", "smbclient":
		w.flags = flags{users: true}
	case "openssl":
		w.flags = flags{alone: "kK"}
	case "set", "config":
		w.setting = true
	case "IDENTIFIED", "identified":
		w.identified = true
	case "BY", "by", "=":
		if w.identified {
			w.next = aQuotedText
		}
	case "login":
		w.login = true
	}
}
