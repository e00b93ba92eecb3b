// SPDX-License-Identifier: Apache-2.0

// Package kinds is the list of all kinds of records.
package kinds

import (
	"slices"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/kind/alerts"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/kind/processes"
	"github.com/Ignoramuss/orb8/internal/kind/queries"
)

// Fields are the API's filters that only some kinds have.
func Fields() []filter.Field {
	return slices.Concat(flows.Fields(), queries.Fields(), alerts.Fields())
}

// Families are the metrics by workload that only some kinds have.
func Families() []kind.Family {
	return slices.Concat(queries.Families(), processes.Families(), alerts.Families())
}

// Compile prepares the API's filters, of all kinds, for matching. The error is a
// *filter.Error.
func Compile(filters []*orb8v1.Filter, opts ...filter.Option) (*filter.Set, error) {
	return filter.Compile(filters, append(opts, filter.WithFields(Fields()...))...)
}
