// SPDX-License-Identifier: Apache-2.0

package alerts

import (
	"slices"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/filter"
)

// Severities are the names of severities, the least first.
func Severities() []string {
	var all []string
	for s := anomaly.Notice; s <= anomaly.Critical; s++ {
		all = append(all, s.String())
	}
	return all
}

// Fields are the API's filters that only alerts have.
func Fields() []filter.Field {
	return []filter.Field{
		{Name: "rules", Values: (*orb8v1.Filter).GetRules, Compile: compileRules},
		{Name: "severities", Values: (*orb8v1.Filter).GetSeverities, Compile: compileSeverities},
	}
}

// of makes of a test of alerts one of records.
func of(test func(*anomaly.Alert) bool) func(any) bool {
	return func(body any) bool {
		r, ok := body.(*anomaly.Record)
		return ok && test(r.Alert)
	}
}

func compileRules(values []string) (func(any) bool, *filter.Error) {
	for _, v := range values {
		if err := anomaly.CheckRules([]string{v}); err != nil {
			return nil, &filter.Error{Value: v, Want: "the name of a rule", Err: err}
		}
	}
	return func(body any) bool {
		r, ok := body.(interface{ RuleNames() []string })
		return ok && slices.ContainsFunc(r.RuleNames(), func(name string) bool { return slices.Contains(values, name) })
	}, nil
}

func compileSeverities(values []string) (func(any) bool, *filter.Error) {
	wanted := make([]string, 0, len(values))
	for _, v := range values {
		v = strings.ToLower(v)
		if !slices.Contains(Severities(), v) {
			return nil, &filter.Error{Value: v, Want: strings.Join(Severities(), ", ")}
		}
		wanted = append(wanted, v)
	}
	return of(func(a *anomaly.Alert) bool { return slices.Contains(wanted, a.Rule.Severity.String()) }), nil
}
