// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/Ignoramuss/orb8/internal/anomaly"
)

func TestPageIsUpToDate(t *testing.T) {
	got, err := os.ReadFile("../../docs/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(page(), string(got)); diff != "" {
		t.Errorf("docs/rules.md is old; run: go run ./tools/rulesdoc > docs/rules.md (-want +got)\n%s", diff)
	}
}

func TestTechniquesHaveNames(t *testing.T) {
	for _, r := range anomaly.Rules() {
		if techniques[r.Technique] == "" {
			t.Errorf("rule %s: technique %s has no name", r.Name, r.Technique)
		}
	}
}

// The example of the introduction can be used as it stands.
func TestExample(t *testing.T) {
	_, text, ok := strings.Cut(intro, "```yaml\n")
	text, _, closed := strings.Cut(text, "```")
	var cfg struct {
		Exceptions yaml.Node
		Off        []string `yaml:"rules_off"`
	}
	if err := yaml.Unmarshal([]byte(text), &cfg); err != nil || !ok || !closed {
		t.Fatal(err, ok, closed)
	}
	exceptions, err := anomaly.ParseExceptions(&cfg.Exceptions)
	if err != nil || len(exceptions) != 3 {
		t.Errorf("%d exceptions, error %v", len(exceptions), err)
	}
	if err := anomaly.CheckRules(cfg.Off); err != nil || len(cfg.Off) == 0 {
		t.Errorf("rules off %q: %v", cfg.Off, err)
	}
}
