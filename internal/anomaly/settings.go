// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// byCall finds rules by a call's ABI and number.
type byCall [numABIs][syscalls.MaxNumber][]*Rule

func (t *byCall) find(abi process.ABI, nr int32) []*Rule {
	if int(abi) >= len(t) || nr < 0 || nr >= syscalls.MaxNumber {
		return nil
	}
	return t[abi][nr]
}

func (t *byCall) add(r *Rule) {
	for abi := range t {
		for _, nr := range syscalls.Numbers(process.ABI(abi), r.Calls...) {
			t[abi][nr] = append(t[abi][nr], r)
		}
	}
}

// settings are what an Engine was configured with. They are immutable.
type settings struct {
	// steps has rules by the kind of step, privileged those of Privileged that look at
	// some calls only.
	steps      [numKinds][]*Rule
	privileged byCall
	// calls has the rules that flag calls, anyCall those that look at all.
	calls      byCall
	anyCall    []*Rule
	flagging   []*Rule // both
	exceptions []Exception
	images     func(*workload.Identity) [][]string // may be nil
}

func newSettings(off []string, exceptions []Exception) (*settings, error) {
	if err := CheckRules(off); err != nil {
		return nil, err
	}
	if err := CheckExceptions(exceptions); err != nil {
		return nil, err
	}
	s := &settings{exceptions: slices.Clone(exceptions)}
	for _, r := range Rules() {
		if !slices.Contains(off, r.Name) {
			s.add(r)
		}
	}
	return s, nil
}

func (s *settings) add(r *Rule) {
	for _, what := range r.On {
		if what == process.Privileged && len(r.Calls) > 0 {
			s.privileged.add(r)
			continue
		}
		s.steps[what] = append(s.steps[what], r)
	}
	if r.Call != nil {
		s.flagging = append(s.flagging, r)
	}
	switch {
	case r.Call == nil:
	case len(r.Calls) == 0:
		s.anyCall = append(s.anyCall, r)
	default:
		s.calls.add(r)
	}
}

// forStep returns the rules that a step may match.
func (s *settings) forStep(step *process.Step) (rules [2][]*Rule) {
	if int(step.What) < len(s.steps) {
		rules[0] = s.steps[step.What]
	}
	if step.What == process.Privileged && step.Privilege != nil {
		rules[1] = s.privileged.find(step.Privilege.ABI, step.Privilege.Call)
	}
	return rules
}

// CheckRules returns an error that suggests what may be meant if one of the names is
// not a rule's.
func CheckRules(names []string) error {
	for _, name := range names {
		if err := checkRule(name); err != nil {
			return err
		}
	}
	return nil
}

func checkRule(name string) error {
	var known []string
	for _, r := range Rules() {
		if r.Name == name {
			return nil
		}
		known = append(known, r.Name)
	}
	if similar := nearest(name, known); similar != "" {
		return fmt.Errorf("unknown rule %q: is %s meant? The rules are in docs/rules.md: %s", name, similar, strings.Join(known, ", "))
	}
	return fmt.Errorf("unknown rule %q: the rules, in docs/rules.md, are %s", name, strings.Join(known, ", "))
}

// nearest returns the name that begins like a mistyped one or shares most pairs of
// letters with it, empty if none shares half of them.
func nearest(typed string, names []string) string {
	best, most := "", 0.5
	for _, name := range names {
		if len(typed) > 2 && strings.HasPrefix(name, typed) {
			return name
		}
		shared := 0
		for i := 0; i+1 < len(typed); i++ {
			if strings.Contains(name, typed[i:i+2]) {
				shared++
			}
		}
		if score := 2 * float64(shared) / float64(len(typed)+len(name)-2); score > most {
			best, most = name, score
		}
	}
	return best
}

var errEmpty = errors.New("it names nothing, and would silence every alert; name a rule, namespace, workload, image, executable or parent")
