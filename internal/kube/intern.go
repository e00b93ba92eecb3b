// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"hash/maphash"
	"maps"
)

// interner keeps one copy of strings and label sets that many objects share. It
// grows only: its owner makes a new one now and then and puts in what it still
// uses.
type interner struct {
	seed   maphash.Seed
	text   map[string]string
	labels map[uint64]map[string]string
	refs   map[Ref]*Ref
}

func newInterner() *interner {
	return &interner{
		seed:   maphash.MakeSeed(),
		text:   make(map[string]string),
		labels: make(map[uint64]map[string]string),
		refs:   make(map[Ref]*Ref),
	}
}

// size is how many strings and sets are kept.
func (in *interner) size() int { return len(in.text) + len(in.labels) + len(in.refs) }

func (in *interner) ref(r Ref) *Ref {
	kept := in.refs[r]
	if kept == nil {
		kept = &Ref{in.string(r.APIVersion), in.string(r.Kind), in.string(r.Name)}
		in.refs[*kept] = kept
	}
	return kept
}

func (in *interner) string(s string) string {
	if s == "" {
		return ""
	}
	if kept, ok := in.text[s]; ok {
		return kept
	}
	in.text[s] = s
	return s
}

// set returns the kept set that equals m, or keeps a copy of m. Two different
// sets with the same hash are right, but not shared.
func (in *interner) set(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	hash := in.hash(m)
	kept, ok := in.labels[hash]
	if ok && maps.Equal(kept, m) {
		return kept
	}
	own := make(map[string]string, len(m))
	for k, v := range m {
		own[in.string(k)] = in.string(v)
	}
	if !ok {
		in.labels[hash] = own
	}
	return own
}

// keep puts a set in as it is.
func (in *interner) keep(m map[string]string) {
	if len(m) == 0 {
		return
	}
	for k, v := range m {
		in.text[k], in.text[v] = k, v
	}
	in.labels[in.hash(m)] = m
}

// hash does not depend on the order of the labels.
func (in *interner) hash(m map[string]string) uint64 {
	var sum uint64
	for k, v := range m {
		sum += maphash.String(in.seed, k) ^ (maphash.String(in.seed, v) << 1)
	}
	return sum
}
