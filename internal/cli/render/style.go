// SPDX-License-Identifier: Apache-2.0

package render

// style is the meaning that a colour stands for.
type style int

const (
	styleNone style = iota
	styleTitle
	styleDim
	styleGood
	styleWarn
	styleBad
)

func (s style) code() string {
	switch s {
	case styleTitle:
		return "1"
	case styleDim:
		return "2"
	case styleGood:
		return "32"
	case styleWarn:
		return "33"
	case styleBad:
		return "31"
	}
	return ""
}

func (o Options) paint(s style, text string) string {
	code := s.code()
	if !o.Color || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}
