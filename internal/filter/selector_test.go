// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSelector(t *testing.T) {
	tests := []struct {
		in   string
		want selector
	}{
		{"", nil},
		{"  ", nil},
		{"x", selector{{key: "x", op: exists}}},
		{"!x", selector{{key: "x", op: absent}}},
		{" ! x ", selector{{key: "x", op: absent}}},
		{"x=a", selector{{"x", in, []string{"a"}}}},
		{"x == a", selector{{"x", in, []string{"a"}}}},
		{"x!=a", selector{{"x", notIn, []string{"a"}}}},
		{"x=", selector{{"x", in, []string{""}}}},
		{"x=,y", selector{{"x", in, []string{""}}, {key: "y", op: exists}}},
		{"x in (a)", selector{{"x", in, []string{"a"}}}},
		{"x in(a,b)", selector{{"x", in, []string{"a", "b"}}}},
		{"x notin (a, b ,c)", selector{{"x", notIn, []string{"a", "b", "c"}}}},
		{"x in ()", selector{{"x", in, []string{""}}}},
		{"x in (,a)", selector{{"x", in, []string{"", "a"}}}},
		{"in in (in,notin)", selector{{"in", in, []string{"in", "notin"}}}},
		{"notin,in=in", selector{{key: "notin", op: exists}, {"in", in, []string{"in"}}}},
		{
			"app.kubernetes.io/name=web,\ttier notin (a),!x-1,y_2.z",
			selector{
				{"app.kubernetes.io/name", in, []string{"web"}}, {"tier", notIn, []string{"a"}},
				{key: "x-1", op: absent}, {key: "y_2.z", op: exists},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := parseSelector(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(requirement{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestSelectorBounds(t *testing.T) {
	for _, in := range []string{
		strings.Repeat("!a,", maxRequirements-1) + "b", "x in (" + strings.Repeat("a,", maxValues-1) + "b)",
	} {
		if _, err := parseSelector(in); err != nil {
			t.Errorf("%.20s...: %v", in, err)
		}
	}
}

func TestParseSelectorErrors(t *testing.T) {
	tests := []struct{ in, want string }{
		{",", `column 1: "," where a label key should be`},
		{"x,", `ends where a label key should be`},
		{"x,,y", `column 3: "," where a label key should be`},
		{"!", `ends where a label key should be`},
		{"!x=a", `column 3: "=" where "," should be`},
		{"x y", `column 3: "y" where one of =, ==, !=, in, notin or a comma should be`},
		{"x=a b", `column 5: "b" where "," should be`},
		{"x>1", `column 2: ">" where one of =, ==, !=, in, notin or a comma should be`},
		{"x in", `ends where "(" should be`},
		{"x in (a", `ends where "," or ")" should be`},
		{"x in (a b)", `column 9: "b" where "," or ")" should be`},
		{"x in a", `column 6: "a" where "(" should be`},
		{"x===a", `column 4: "=" where "," should be`},
		{"-x", `label key "-x"`},
		{"/x", "must be a DNS name"},
		{"a/", "must be 1 to 63"},
		{"a/b/c", "must be 1 to 63"},
		{"A_.b/x", "must be a DNS name"},
		{"x=a:b", `label value "a:b"`},
		{"x=" + strings.Repeat("a", 64), "must be 1 to 63"},
		{"x in (é)", "must be 1 to 63"},
		{strings.Repeat("!a,", maxRequirements) + "b", "at most 64 requirements"},
		{"x in (" + strings.Repeat("a,", maxValues) + "b)", "at most 256 values"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			_, err := parseSelector(tt.in)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSelectorMatch(t *testing.T) {
	labels := map[string]string{"app": "web", "empty": ""}
	tests := []struct {
		in   string
		want bool
	}{
		{"", true},
		{"app", true}, {"none", false}, {"!app", false}, {"!none", true},
		{"app=web", true}, {"app=db", false}, {"none=web", false},
		{"app!=web", false}, {"app!=db", true}, {"none!=web", true},
		{"app in (db,web)", true}, {"app in (db)", false}, {"none in (db)", false},
		{"app notin (db,web)", false}, {"app notin (db)", true}, {"none notin (db)", true},
		{"empty=", true}, {"app=", false}, {"none=", false},
		{"app=web,empty", true}, {"app=web,none", false},
	}
	for _, tt := range tests {
		sel, err := parseSelector(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := sel.match(labels); got != tt.want {
			t.Errorf("%q: got %v, want %v", tt.in, got, tt.want)
		}
	}
}

// format prints a selector in one canonical form of the grammar.
func format(s selector) string {
	var parts []string
	for _, r := range s {
		list := " (" + strings.Join(r.values, ",") + ")"
		switch r.op {
		case exists:
			parts = append(parts, r.key)
		case absent:
			parts = append(parts, "!"+r.key)
		case in:
			parts = append(parts, r.key+" in"+list)
		case notIn:
			parts = append(parts, r.key+" notin"+list)
		}
	}
	return strings.Join(parts, ",")
}

// FuzzSelector: what is accepted means the same after it was printed and read
// again, and its negation by hand of each requirement never agrees with it.
func FuzzSelector(f *testing.F) {
	for _, s := range []string{
		"", "x", "!x", "x=a", "x==a", "x!=a", "x in (a,b)", "x notin ()", "a.b/c in (,),d",
		"x=,", "((", "!!x", "x in in", "=", "x\n=\ty",
	} {
		f.Add(s)
	}
	labels := map[string]string{"x": "a", "app": "web", "": ""}
	f.Fuzz(func(t *testing.T, s string) {
		sel, err := parseSelector(s)
		if err != nil {
			return
		}
		again, err := parseSelector(format(sel))
		if err != nil {
			t.Fatalf("%q prints as %q, which is refused: %v", s, format(sel), err)
		}
		if diff := cmp.Diff(sel, again, cmp.AllowUnexported(requirement{})); diff != "" {
			t.Fatalf("%q changes when printed\n%s", s, diff)
		}
		for i := range sel {
			r := sel[i]
			opposite := requirement{r.key, map[operator]operator{exists: absent, absent: exists, in: notIn, notIn: in}[r.op], r.values}
			if r.match(labels) == opposite.match(labels) {
				t.Fatalf("%q: requirement %d and its opposite agree", s, i)
			}
		}
	})
}
