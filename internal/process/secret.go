// SPDX-License-Identifier: Apache-2.0

package process

import "strings"

// secretKind is what the name of an option, variable, field or header says of its value.
type secretKind uint8

const (
	noSecret    secretKind = iota
	secret                 // it is one
	weak                   // it is one if the name is not followed by a colon
	weakKey                // likewise, unless it is the path of a file
	justKey                // likewise; in most texts it is none, and sort has columns
	tokens                 // it is one, unless it is a number: how many
	directory              // it is one, unless it is the path of a directory: PWD
	credentials            // it is one behind a word that says how it is encoded
)

// strongWords make a secret of a name that has one of them anywhere.
var strongWords = [...]string{
	"password", "passwd", "passphrase", "passcode", "requirepass", "masterauth", "secret", "token", "credential",
	"api_key", "api-key", "apikey", "access_key", "access-key", "accesskey", "private_key", "private-key", "privatekey",
}

// harmlessEnds are those of names whose value is about a secret, and is none.
var harmlessEnds = [...]string{
	"file", "files", "path", "dir", "url", "uri", "endpoint", "type", "name", "names", "ttl", "timeout", "length",
	"lifetime", "expiry", "expiration", "version", "helper", "store", "stdin", "fd", "policy", "bypass", "compass",
	"public_key", "public-key", "publickey", "newkey", "through",
}

// kindOf judges a name.
func kindOf(name string) secretKind {
	low := strings.ToLower(name)
	for _, end := range harmlessEnds {
		if strings.HasSuffix(low, end) {
			return noSecret
		}
	}
	if strings.HasPrefix(low, "no-") || strings.Contains(low, "tokeniz") {
		return noSecret
	}
	if low == "authorization" || low == "proxy-authorization" {
		return credentials
	}
	if strings.HasSuffix(low, "tokens") {
		return tokens
	}
	for _, w := range strongWords {
		if strings.Contains(low, w) {
			return secret
		}
	}
	return kindByEnd(low)
}

func kindByEnd(low string) secretKind {
	for _, end := range [...]string{"cookie", "cookies", "creds", "jwt", "bearer", "signature"} {
		if strings.HasSuffix(low, end) {
			return secret
		}
	}
	switch {
	case low == "pwd", low == "oldpwd":
		return directory
	case strings.HasSuffix(low, "pass"), strings.HasSuffix(low, "pwd"), strings.HasSuffix(low, "pw"):
		return secret
	case strings.TrimLeft(low, "-") == "key", low == "keys":
		return justKey
	case strings.HasSuffix(low, "key"), strings.HasSuffix(low, "keys"):
		return weakKey
	case strings.HasSuffix(low, "auth"), low == "sig":
		return weak
	}
	return noSecret
}

// hideValue hides the value of a name, unless it is of no harm.
func hideValue(kind secretKind, value string) string {
	if at, ok := harm(kind, value); ok {
		return value[:at] + hidden
	}
	return value
}

// harm reports whether a value is a secret, and where in it that begins.
func harm(kind secretKind, value string) (at int, ok bool) {
	inner := unquoted(value)
	switch {
	case inner == "", inner == "true", inner == "false", (kind == weakKey || kind == justKey) && isPath(inner),
		kind == justKey && isColumns(inner), kind == tokens && isNumber(inner), kind == directory && inner[0] == '/' && isPathText(inner):
		return 0, false
	case kind == credentials:
		trimmed := strings.TrimLeft(value, " ")
		if scheme, rest, ok := strings.Cut(trimmed, " "); ok && rest != "" && isName(scheme) {
			return len(value) - len(rest), true
		}
	}
	return len(value) - len(strings.TrimLeft(value, " ")), true
}

// suspiciousWords are parts of which each form of a secret in one word has at least one.
var suspiciousWords = [...]string{"pass", "pw", "secret", "token", "key", "cred", "auth", "cookie", "jwt", "bearer", "sig", "://"}

// suspicious reports whether s may have a secret in it: most arguments have none of
// these words.
func suspicious(s string) bool {
	for i := range len(s) {
		switch s[i] | 0x20 {
		case 'p', 's', 't', 'k', 'c', 'a', 'j', 'b', ':' | 0x20:
		default:
			continue
		}
		for _, w := range suspiciousWords {
			if s[i]|0x20 == w[0]|0x20 && len(s)-i >= len(w) && strings.EqualFold(s[i:i+len(w)], w) {
				return true
			}
		}
	}
	return false
}

// leadingName judges the name that a begins with, and returns where its value does. There
// is none if nothing but a value follows that is a secret as a whole.
func leadingName(a string) (from int, kind secretKind) {
	n := 0
	for n < len(a) && isNameByte(a[n]) {
		n++
	}
	if n == 0 || n+1 >= len(a) || a[n] != '=' && a[n] != ':' || strings.HasPrefix(a[n:], "://") {
		return 0, noSecret
	}
	kind = kindOf(a[:n])
	if kind == noSecret || a[n] == ':' && !byColon(kind, a[n+1:]) {
		return 0, noSecret
	}
	from = n + 1
	for a[n] == ':' && from < len(a) && a[from] == ' ' {
		from++
	}
	return from, kind
}

// byColon reports whether a value is secret that follows such a name and a colon: volumes
// and images have colons as well.
func byColon(kind secretKind, value string) bool {
	switch kind {
	case weak, justKey:
		return false
	case weakKey:
		return strings.HasPrefix(value, " ")
	}
	return !isVolume(value)
}

// isVolume reports whether a value is the path of a volume in a container, maybe with its
// mode.
func isVolume(value string) bool {
	path, mode, _ := strings.Cut(value, ":")
	return len(mode) < 3 && (isPath(path) || len(path) > 1 && path[0] == '/' && strings.Trim(path[1:], lowerCase) == "")
}

const lowerCase = "abcdefghijklmnopqrstuvwxyz"

// hideWithin hides values of names, and what is secret of URLs, anywhere in s.
func hideWithin(s string) string {
	c := cutter{s: s}
	quoted, seen := false, 0 // in s[:seen] are brackets or quotes
	for i := 0; i < len(s); i++ {
		if s[i] != '=' && s[i] != ':' {
			continue
		}
		quoted, seen = quoted || strings.ContainsAny(s[seen:i], brackets), i
		switch {
		case strings.HasPrefix(s[i:], "://"):
			from, to, end := inURL(s, i, quoted)
			if from < to {
				c.cut(from, to)
			}
			i = end - 1
		default:
			if from, to := valueAt(s, i, quoted); from < to {
				c.cut(from, to)
				i = to - 1
			}
		}
	}
	return c.done()
}

// valueAt finds the secret that is the value of the name before the separator at i; none
// if from is not before to.
func valueAt(s string, i int, quoted bool) (from, to int) {
	end := i
	if s[i] == '=' && end > 0 && s[end-1] == '!' {
		end--
	}
	for end > 0 && s[end-1] == ' ' {
		end--
	}
	inQuotes := end > 0 && (s[end-1] == '"' || s[end-1] == '\'')
	if s[i] == '=' && end > 1 && s[end-1] == ']' && (s[end-2] == '"' || s[end-2] == '\'') { // environ['NAME']=
		end, inQuotes = end-1, true
	}
	if inQuotes {
		if end--; end > 0 && s[end-1] == '\\' {
			end--
		}
	}
	begin := end
	for begin > 0 && isNameByte(s[begin-1]) {
		begin--
	}
	name, kind := s[begin:end], noSecret
	if suspicious(name) {
		kind = kindOf(name)
	}
	if from = i + 1; s[i] == '=' && from < len(s) && s[from] == '=' { // a comparison
		from++
	}
	if kind == noSecret || s[i] == ':' && !isField(s[:begin], kind, s[from:], inQuotes) {
		return 0, 0
	}
	for (s[i] == ':' || end < i) && from < len(s) && s[from] == ' ' {
		from++
	}
	closing := byte(0) // of the quotes that a header is in as a whole
	if begin > 0 && s[i] == ':' && !inQuotes && (s[begin-1] == '"' || s[begin-1] == '\'') {
		closing = s[begin-1]
	}
	from, to = valueEnd(s, from, closing, kind, quoted)
	at, ok := harm(kind, s[from:to])
	if !ok {
		return 0, 0
	}
	return from + at, to
}

// isField reports whether a name with a colon behind it, and maybe in quotes, is that of
// a secret.
func isField(before string, kind secretKind, value string, inQuotes bool) bool {
	if inQuotes {
		return kind != justKey
	}
	if n := strings.IndexAny(value, " \t\n\"'"); n > 0 {
		value = value[:n]
	}
	return byColon(kind, value) && !strings.HasSuffix(before, "/")
}

// valueEnd finds where the value ends that begins at from, and where it begins without
// its quotes.
func valueEnd(s string, from int, closing byte, kind secretKind, quoted bool) (begin, end int) {
	quote := from
	if strings.HasPrefix(s[from:], `\"`) {
		quote++
	}
	if quote < len(s) && (s[quote] == '"' || s[quote] == '\'') {
		if quote == from && s[quote] == '"' {
			return quote + 1, closingAt(s, quote+1, s[quote])
		}
		for end = quote + 1; end < len(s) && s[end] != s[quote]; end++ {
			if s[end] == '\\' && quote == from {
				end++
			}
		}
		if end = min(end, len(s)); quote > from && end > quote+1 && s[end-1] == '\\' {
			end--
		}
		return quote + 1, end
	}
	const usual = " \t\n&;,|"
	stop := usual
	if quoted {
		stop = usual + brackets
	}
	if closing != 0 {
		stop = string(closing) + "\n"
	} else if kind == credentials {
		stop = "\"'\n"
	}
	switch {
	case strings.HasPrefix(s[from:], "$("):
		return from, min(closingAt(s, from+2, '(')+1, len(s))
	case strings.HasPrefix(s[from:], "`"):
		return from, min(closingAt(s, from+1, '`')+1, len(s))
	}
	for end = from; end < len(s); end++ {
		switch b := s[end]; {
		case b == ' ' && end > from && s[end-1] == '\\':
		case strings.IndexByte(stop, b) >= 0:
			return from, end
		case b == '"', b == '\'':
			end = closingAt(s, end+1, b)
		}
	}
	return from, len(s)
}

// brackets end a value, if it may be within some.
const brackets = "\"'`<>(){}[]"

func isNameByte(b byte) bool {
	return isLetter(b) || '0' <= b && b <= '9' || b == '_' || b == '-' || b == '.'
}

func isLetter(b byte) bool { return 'a' <= b|0x20 && b|0x20 <= 'z' }

func isName(s string) bool {
	for i := range len(s) {
		if !isNameByte(s[i]) {
			return false
		}
	}
	return s != ""
}

// isColumns reports whether a key is one that sort has: 1, 2nr or 1.2,3.
func isColumns(s string) bool {
	for part := range strings.SplitSeq(s, ",") {
		if part == "" || len(part) > 4 || part[0] < '0' || part[0] > '9' || strings.Trim(part[1:], "0123456789.bdfghinrMRV") != "" {
			return false
		}
	}
	return true
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// isPath reports whether a value looks like a file's path: a key in base64 may begin with
// a slash as well.
func isPath(s string) bool {
	if !isPathText(s) {
		return false
	}
	for _, end := range [...]string{".key", ".pem", ".pub", ".crt", ".cer", ".der", ".p12", ".pfx", ".jks"} {
		if strings.HasSuffix(s, end) {
			return true
		}
	}
	for _, begin := range [...]string{"/", "./", "../", "~/"} {
		if rest, ok := strings.CutPrefix(s, begin); ok {
			return begin != "/" || strings.ContainsAny(rest, "/.")
		}
	}
	return false
}

func isPathText(s string) bool {
	for i := range len(s) {
		if !isNameByte(s[i]) && s[i] != '/' && s[i] != '~' && s[i] != '@' {
			return false
		}
	}
	return true
}

// inURL finds the secret of the URL whose :// is at i; none if from is not before to. What
// may have more begins at end.
func inURL(s string, i int, quoted bool) (from, to, end int) {
	start := i + len("://")
	url := s[start:]
	const usual = " \t\n"
	stop := usual
	if quoted {
		stop = usual + brackets
	}
	if n := strings.IndexAny(url, stop); n >= 0 {
		url = url[:n]
	}
	host := url
	if n := strings.IndexAny(url, "/?#"); n >= 0 {
		host = url[:n]
	}
	end = start + len(host)
	web := strings.HasSuffix(s[:i], "http") || strings.HasSuffix(s[:i], "https")
	if at := strings.LastIndexByte(host, '@'); at >= 0 {
		if colon := strings.IndexByte(host[:at], ':'); colon >= 0 {
			return start + colon + 1, start + at, end
		}
		if web { // a token
			return start, start + at, end
		}
		return 0, 0, end
	}
	user, rest, found := strings.Cut(host, ":")
	if !found || rest == "" {
		return 0, 0, end
	}
	port := isPort(user, rest)
	if port {
		url, _, _ = strings.Cut(url, "?")
	}
	at := strings.LastIndexByte(url, '@')
	if port && (at < 0 || web) {
		return 0, 0, end
	}
	// A password with a slash in it, or the URL is cut off before its host.
	from, to = start+len(user)+1, end
	if at > len(user) {
		to = start + at
	}
	return from, to, max(to, end)
}

// isPort reports whether what follows a colon is a host's port, and not a password.
func isPort(host, rest string) bool {
	if strings.HasPrefix(host, "[") || strings.IndexByte("${%", rest[0]) >= 0 {
		return true
	}
	port, _, _ := strings.Cut(rest, ",") // several hosts
	return host != "" && isNumber(port)
}
