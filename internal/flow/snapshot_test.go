// SPDX-License-Identifier: Apache-2.0

package flow

// Snapshot appends a copy of every row to dst, most recently active first.
func (t *Table) Snapshot(dst []Record) []Record { return t.Rows(t.Keys(nil), dst) }
