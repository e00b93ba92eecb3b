// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/Ignoramuss/orb8/internal/anomaly"
)

// noLoopback is the flag of the key loopback, which is on without it.
const noLoopback = "no-loopback"

func (s *setting) flag() string {
	if _, list := s.value.(*[]anomaly.Exception); list {
		return ""
	}
	if s.key == "loopback" {
		return noLoopback
	}
	return strings.NewReplacer("_", "-", ".", "-").Replace(s.key)
}

// Load reads a configuration file over the defaults. A key that is not known, or
// not readable, is an error that names it and its line. The result is not
// validated: flags may still change it.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	cfg, err := parseConfig(b)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

func parseConfig(b []byte) (Config, error) {
	cfg := Default()
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return cfg, nil
		}
		return Config{}, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document")
	}
	known := make(map[string]*setting)
	for _, s := range cfg.settings() {
		known[s.key] = &s
	}
	p := configParser{known: known, seen: make(map[string]bool)}
	if err := p.mapping("", doc.Content[0]); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

type configParser struct {
	known map[string]*setting
	seen  map[string]bool
}

// mapping reads the keys of n, which all begin with prefix.
func (p *configParser) mapping(prefix string, n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: want keys with values, as in \"interval: 5s\"", n.Line)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		key := prefix + name.Value
		if p.seen[key] {
			return fmt.Errorf("line %d: key %q is there twice", name.Line, key)
		}
		p.seen[key] = true
		if err := p.key(key, name, value); err != nil {
			return err
		}
	}
	return nil
}

func (p *configParser) key(key string, name, value *yaml.Node) error {
	if flagsOnly[key] {
		return fmt.Errorf("line %d: %s can only be set by a flag (--%s), since it decides what runs as root", name.Line, key, p.known[key].flag())
	}
	if s, ok := p.known[key]; ok {
		if err := s.decode(value); err != nil {
			return fmt.Errorf("line %d: %s: %w", value.Line, key, err)
		}
		return nil
	}
	for k := range p.known {
		if strings.HasPrefix(k, key+".") {
			return p.mapping(key+".", value)
		}
	}
	if now := moved[key]; now != "" {
		return fmt.Errorf("line %d: there is no key %s any more: %s", name.Line, key, now)
	}
	return fmt.Errorf("line %d: unknown key %q (the keys are in docs/config.md)", name.Line, key)
}

// decode sets the setting to n. Nothing after the colon leaves it as it is.
func (s *setting) decode(n *yaml.Node) error {
	if n.Tag == "!!null" {
		return nil
	}
	switch v := s.value.(type) {
	case *[]string:
		return decodeList(n, v)
	case *[]anomaly.Exception:
		var err error
		*v, err = anomaly.ParseExceptions(n)
		return err
	}
	if n.Kind != yaml.ScalarNode {
		return errors.New("want a single value")
	}
	var err error
	want := "text"
	switch v := s.value.(type) {
	case *string:
		*v = word(n)
	case *Mode:
		*v = Mode(word(n))
	case *bool:
		want, err = "true or false", n.Decode(v)
	case *int:
		want = "a whole number"
		*v, err = strconv.Atoi(strings.ReplaceAll(n.Value, "_", ""))
	case *time.Duration:
		want = "a duration with its unit, such as 5s"
		*v, err = time.ParseDuration(n.Value)
	}
	if err != nil {
		return fmt.Errorf("%q: want %s", n.Value, want)
	}
	return nil
}

// decodeList reads a list of texts, or one.
// word is a text. Helm writes the words on and off as YAML 1.1 reads them: as true and false.
func word(n *yaml.Node) string {
	if n.Tag == "!!bool" && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 {
		switch n.Value {
		case "true":
			return "on"
		case "false":
			return "off"
		}
	}
	return n.Value
}

func decodeList(n *yaml.Node, v *[]string) error {
	*v = nil
	if n.Kind == yaml.ScalarNode {
		*v = []string{n.Value}
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return errors.New("want a list, such as [a, b]")
	}
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode {
			return fmt.Errorf("line %d: want a list of single values", item.Line)
		}
		*v = append(*v, item.Value)
	}
	return nil
}

// assign copies the value of from, the same setting of another Config.
func (s *setting) assign(from *setting) {
	switch v := s.value.(type) {
	case *string:
		*v = *from.value.(*string)
	case *Mode:
		*v = *from.value.(*Mode)
	case *bool:
		*v = *from.value.(*bool)
	case *int:
		*v = *from.value.(*int)
	case *time.Duration:
		*v = *from.value.(*time.Duration)
	case *[]string:
		*v = *from.value.(*[]string)
	case *[]anomaly.Exception:
		*v = *from.value.(*[]anomaly.Exception)
	}
}

// text is the setting's value as it would stand in the file.
func (s *setting) text() string {
	switch v := s.value.(type) {
	case *string:
		return *v
	case *Mode:
		return string(*v)
	case *bool:
		return strconv.FormatBool(*v)
	case *int:
		return strconv.Itoa(*v)
	case *time.Duration:
		return v.String()
	case *[]string:
		return strings.Join(*v, ",")
	case *[]anomaly.Exception:
		if len(*v) > 0 {
			return fmt.Sprintf("%+v", *v)
		}
	}
	return ""
}

// BindFlags adds a flag for every setting to fs; parsing sets c, whose values
// are the defaults shown.
func BindFlags(fs *pflag.FlagSet, c *Config) {
	for _, s := range c.settings() {
		name := s.flag()
		switch v := s.value.(type) {
		case *string:
			fs.StringVar(v, name, *v, s.usage)
		case *Mode:
			fs.Var(v, name, s.usage)
		case *bool:
			if name == noLoopback {
				fs.Var((*inverse)(v), name, "leave out flows that stay on the loopback interface")
				fs.Lookup(name).NoOptDefVal = "true"
				continue
			}
			fs.BoolVar(v, name, *v, s.usage)
		case *int:
			fs.IntVar(v, name, *v, s.usage)
		case *time.Duration:
			fs.DurationVar(v, name, *v, s.usage)
		case *[]string:
			fs.StringSliceVar(v, name, *v, s.usage)
		}
	}
}

// Resolve makes the configuration in force: the defaults, then the file at path
// unless that is empty, then the flags that were given. fs and flags are those
// of BindFlags, after parsing. The result is validated.
func Resolve(fs *pflag.FlagSet, flags Config, path string) (Config, error) {
	cfg := Default()
	if path != "" {
		var err error
		if cfg, err = Load(path); err != nil {
			return Config{}, err
		}
	}
	given := flags.settings()
	for i, s := range cfg.settings() {
		if fs.Changed(s.flag()) {
			s.assign(&given[i])
		}
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return cfg, nil
}

// Reload returns c with those settings of to that a running agent can take over,
// their keys, and the keys of settings that differ but need a restart.
func (c Config) Reload(to Config) (next Config, taken, restart []string) {
	wanted := to.settings()
	for i, s := range c.settings() {
		if s.text() == wanted[i].text() {
			continue
		}
		if !s.reloads {
			restart = append(restart, s.key)
			continue
		}
		s.assign(&wanted[i])
		taken = append(taken, s.key)
	}
	return c, taken, restart
}

// Set makes a Mode a flag, with String and Type.
func (m *Mode) Set(s string) error {
	if err := Mode(s).check(); err != nil {
		return errors.New("want auto, on or off")
	}
	*m = Mode(s)
	return nil
}

func (m *Mode) String() string { return string(*m) }

// Type names the value in the flag's help.
func (m *Mode) Type() string { return "auto|on|off" }

// inverse is a flag that turns off what is on.
type inverse bool

func (i *inverse) Set(s string) error {
	v, err := strconv.ParseBool(s)
	*i = inverse(!v)
	return err
}

func (i *inverse) String() string { return strconv.FormatBool(!bool(*i)) }
func (i *inverse) Type() string   { return "bool" }
