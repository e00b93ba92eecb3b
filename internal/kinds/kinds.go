// SPDX-License-Identifier: Apache-2.0

// Package kinds is the list of all kinds of records.
package kinds

import (
	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
)

// Fields are the API's filters that only some kinds have.
func Fields() []filter.Field {
	return flows.Fields()
}

// Compile prepares the API's filters, of all kinds, for matching. The error is a
// *filter.Error.
func Compile(filters []*orb8v1.Filter, opts ...filter.Option) (*filter.Set, error) {
	return filter.Compile(filters, append(opts, filter.WithFields(Fields()...))...)
}
