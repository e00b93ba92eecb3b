// SPDX-License-Identifier: Apache-2.0

package anomaly

import "container/list"

// lru is a map of bounded size that forgets what was used least lately.
type lru[K comparable, V any] struct {
	max   int
	order *list.List // of *lruEntry[K, V], the latest first
	byKey map[K]*list.Element
	// evicted, if set, is told what add pushes out.
	evicted func(K, *V)
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](maxSize int) *lru[K, V] {
	return &lru[K, V]{max: maxSize, order: list.New(), byKey: make(map[K]*list.Element)}
}

func (l *lru[K, V]) size() int { return len(l.byKey) }

// get returns the value under key, to be changed in place, or nil.
func (l *lru[K, V]) get(key K) *V {
	e := l.byKey[key]
	if e == nil {
		return nil
	}
	l.order.MoveToFront(e)
	return &e.Value.(*lruEntry[K, V]).value
}

// add makes a value under key, which must be new.
func (l *lru[K, V]) add(key K) *V {
	if len(l.byKey) >= l.max {
		oldest := l.order.Back()
		e := oldest.Value.(*lruEntry[K, V])
		delete(l.byKey, e.key)
		l.order.Remove(oldest)
		if l.evicted != nil {
			l.evicted(e.key, &e.value)
		}
	}
	e := &lruEntry[K, V]{key: key}
	l.byKey[key] = l.order.PushFront(e)
	return &e.value
}

// each calls f with every key and value, those used least lately first.
func (l *lru[K, V]) each(f func(K, *V)) {
	for e := l.order.Back(); e != nil; e = e.Prev() {
		entry := e.Value.(*lruEntry[K, V])
		f(entry.key, &entry.value)
	}
}

func (l *lru[K, V]) remove(key K) {
	if e := l.byKey[key]; e != nil {
		delete(l.byKey, key)
		l.order.Remove(e)
	}
}
