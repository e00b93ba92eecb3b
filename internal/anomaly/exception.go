// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/workload"
)

type exceptionField struct {
	key   string
	value *string
}

// fields lists the fields by their keys, in the order in which they are written.
func (x *Exception) fields() []exceptionField {
	return []exceptionField{
		{"rule", &x.Rule}, {"namespace", &x.Namespace}, {"workload", &x.Workload},
		{"image", &x.Image}, {"executable", &x.Executable}, {"parent", &x.Parent},
	}
}

var exceptionKeys = [...]string{"rule", "namespace", "workload", "image", "executable", "parent"}

// CheckExceptions returns an error that names the first that cannot be used.
func CheckExceptions(all []Exception) error {
	for i := range all {
		if err := all[i].Validate(); err != nil {
			return fmt.Errorf("exception %d: %w", i+1, err)
		}
	}
	return nil
}

// Validate returns an error if the exception can silence nothing or silences
// everything.
func (x *Exception) Validate() error {
	narrow := false
	for _, f := range x.fields() {
		prefix := strings.TrimSuffix(*f.value, "*")
		if strings.Contains(prefix, "*") {
			return fmt.Errorf("%s %q: * may stand at the end only", f.key, *f.value)
		}
		narrow = narrow || prefix != ""
	}
	if !narrow {
		return errEmpty
	}
	if x.Rule == "" || strings.HasSuffix(x.Rule, "*") && anyRule(x.Rule) {
		return nil
	}
	return checkRule(x.Rule)
}

// anyRule reports whether a pattern matches the name of a rule.
func anyRule(pattern string) bool {
	for _, r := range Rules() {
		if matches(pattern, r.Name) {
			return true
		}
	}
	return false
}

// ParseExceptions reads a list of exceptions from a configuration file: mappings with
// the keys of Exception. Errors name the line.
func ParseExceptions(n *yaml.Node) ([]Exception, error) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil, nil
	}
	if n.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("line %d: want a list, as in \"- {rule: mount, namespace: storage}\"", n.Line)
	}
	all := make([]Exception, len(n.Content))
	for i, item := range n.Content {
		if err := all[i].decode(item); err != nil {
			return nil, err
		}
		if err := all[i].Validate(); err != nil {
			return nil, fmt.Errorf("line %d: exception: %w", item.Line, err)
		}
	}
	return all, nil
}

func (x *Exception) decode(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: an exception wants keys with values, as in \"rule: mount\"", n.Line)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		if err := x.set(name.Value, value); err != nil {
			return fmt.Errorf("line %d: exception: %w", name.Line, err)
		}
	}
	return nil
}

func (x *Exception) set(key string, value *yaml.Node) error {
	for _, f := range x.fields() {
		switch {
		case f.key != key:
			continue
		case value.Kind != yaml.ScalarNode || value.Tag == "!!null" || value.Value == "":
			return fmt.Errorf("%s: want a single value", key)
		case *f.value != "":
			return fmt.Errorf("key %q is there twice", key)
		}
		*f.value = value.Value
		return nil
	}
	return fmt.Errorf("unknown key %q (the keys are %s)", key, strings.Join(exceptionKeys[:], ", "))
}

// silenced reports whether an exception silences what a rule found.
func (s *settings) silenced(r *Rule, subject *Subject) bool {
	for i := range s.exceptions {
		x := &s.exceptions[i]
		if x.covers(r, subject) && (x.Image == "" || s.imageMatches(x.Image, subject.Workload)) {
			return true
		}
	}
	return false
}

func (x *Exception) covers(r *Rule, s *Subject) bool {
	w := s.Workload
	return covers(x.Rule, r.Name) && covers(x.Namespace, w.Namespace) &&
		(x.Workload == "" || workloadMatches(x.Workload, w)) &&
		(x.Executable == "" || exeMatches(x.Executable, &s.Process.Exe)) &&
		(x.Parent == "" || anyMatches(x.Parent, s.Ancestors))
}

// covers reports whether a field of an exception matches, or is empty.
func covers(pattern, value string) bool { return pattern == "" || matches(pattern, value) }

// matches compares with a pattern that may have * at the end.
func matches(pattern, value string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(value, prefix)
	}
	return value == pattern
}

// workloadMatches compares with NAME or KIND/NAME; the kind in any case.
func workloadMatches(pattern string, w *workload.Identity) bool {
	kind, name, ok := strings.Cut(pattern, "/")
	if !ok {
		return matches(pattern, w.Name)
	}
	return strings.EqualFold(kind, w.Kind) && matches(name, w.Name)
}

// imageMatches reports whether a workload's container is surely made of an image that a
// pattern names.
func (s *settings) imageMatches(pattern string, w *workload.Identity) bool {
	if s.images == nil {
		return false
	}
	all := s.images(w)
	for _, refs := range all {
		if !slices.ContainsFunc(refs, func(ref string) bool { return refMatches(pattern, ref) }) {
			return false
		}
	}
	return len(all) > 0
}

// refMatches compares with the reference of an image, as it is and without its tag and
// digest.
func refMatches(pattern, ref string) bool {
	if ref == "" {
		return false
	}
	name, _, _ := strings.Cut(ref, "@")
	if tag := strings.LastIndexByte(name, ':'); tag > strings.LastIndexByte(name, '/') {
		name = name[:tag]
	}
	return matches(pattern, ref) || matches(pattern, name)
}

// exeMatches compares with a path or the last part of one: of the file, or of what was
// called.
func exeMatches(pattern string, e *process.Executable) bool {
	for _, p := range [...]string{e.Path, e.Called} {
		if p == "" {
			continue
		}
		if matches(pattern, p) || !strings.Contains(pattern, "/") && matches(pattern, base(p)) {
			return true
		}
	}
	return false
}

func anyMatches(pattern string, ancestors []*process.Process) bool {
	for _, p := range ancestors {
		if exeMatches(pattern, &p.Exe) {
			return true
		}
	}
	return false
}

// exceptionFor is what would silence an alert and little else, as an item of the
// configuration's list of exceptions.
func exceptionFor(r *Rule, s *Subject) string {
	w := s.Workload
	x := Exception{
		Rule: r.Name, Namespace: w.Namespace, Workload: w.Kind + "/" + w.Name,
		Executable: literal(excused(&s.Process.Exe)),
	}
	if w.Kind == "" || w.Name == "" {
		x.Workload = ""
	}
	item := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	for _, f := range x.fields() {
		if *f.value == "" {
			continue
		}
		value := new(yaml.Node)
		value.SetString(*f.value)
		item.Content = append(item.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: f.key}, value)
	}
	out, err := yaml.Marshal(&yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{item}})
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(out), "\n")
}

// excused is the path by which an executable is excused: a script's own rather than
// its interpreter's.
func excused(e *process.Executable) string {
	if strings.HasPrefix(e.Called, "/") && !strings.HasPrefix(e.Called, "/proc/") && !strings.HasPrefix(e.Called, "/dev/fd/") {
		return e.Called
	}
	if e.PathTruncated || e.Path == "" {
		return e.Name()
	}
	return e.Path
}

// literal cuts a text before what cannot stand in an exception.
func literal(text string) string {
	for i, r := range text {
		if r == '*' || r == utf8.RuneError || r < ' ' || r == 0x7f {
			return text[:i] + "*"
		}
	}
	return text
}
