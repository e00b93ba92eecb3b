// SPDX-License-Identifier: Apache-2.0

package kind

// Family is a family of metrics by workload that one kind of record feeds.
type Family struct {
	Name, Unit, Help string
	// Label beside those of the workload, empty for none. Its values need not be known
	// beforehand; of a workload's those beyond MaxValues share the value "other".
	Label string
	// Buckets are a histogram's upper bounds in nanoseconds; nil for a counter.
	Buckets []uint64
}

// MaxValues bounds the values that a family's label has of one workload.
const MaxValues = 32

// Meter counts for the owner of a record, in families by their names.
type Meter interface {
	// Count adds to a counter.
	Count(family, value string, n uint64)
	// Observe adds nanoseconds to a histogram.
	Observe(family string, ns uint64)
}
