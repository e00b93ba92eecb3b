// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
)

// ruleNames are in the order of docs/rules.md.
func ruleNames() []string {
	var names []string
	for _, r := range anomaly.Rules() {
		names = append(names, r.Name)
	}
	return names
}

// setRule asks for a rule.
func setRule(f *orb8v1.Filter, v string) error {
	f.Rules = append(f.Rules, v)
	return anomaly.CheckRules([]string{v})
}

// severityNames are in ascending order.
func severityNames() []string {
	var names []string
	for s := anomaly.Notice; s <= anomaly.Critical; s++ {
		names = append(names, s.String())
	}
	return names
}

// setSeverity asks for a severity and those above.
func setSeverity(f *orb8v1.Filter, v string) error {
	names := severityNames()
	from := slices.Index(names, strings.ToLower(v))
	if from < 0 {
		return fmt.Errorf("want %s or %s", strings.Join(names[:len(names)-1], ", "), names[len(names)-1])
	}
	for _, name := range names[from:] {
		if !slices.Contains(f.Severities, name) {
			f.Severities = append(f.Severities, name)
		}
	}
	return nil
}
