// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"net/netip"
	"time"

	"github.com/Ignoramuss/orb8/internal/record"
)

// DefaultMaxPending bounds the queries that wait for an answer.
const DefaultMaxPending = 65_536

// Config is what a Matcher needs. Emit is required.
type Config struct {
	// Emit takes what came of a query. It must not keep the record.
	Emit func(*Record)
	// Unix turns boot-time nanoseconds into Unix nanoseconds.
	Unix func(boot uint64) int64
	// Timeout, asked at each Expire, says how long a query waits for its answer.
	Timeout func() time.Duration
	// Lost, if set, asked at each Expire, is how many messages were lost on their way
	// here until now.
	Lost func() uint64
	// MaxPending is DefaultMaxPending if 0.
	MaxPending int
	// Learned, if set, is told of each address in an answer that a client has got, with
	// the name that it asked for.
	Learned func(cgroup uint64, addr netip.Addr, name string)
}

// Counts are how many messages there were, by what was made of them.
type Counts struct {
	Queries, Answers uint64
	// Malformed messages are none of DNS, or made to harm; Other are no queries.
	Malformed, Other uint64
	// Unmatched answers had no query that waits for one.
	Unmatched uint64
	// Unread are segments of TCP in which no message begins where one should.
	Unread uint64
	// Uncopied are messages behind others in one packet (UDP_SEGMENT), too far to have
	// been copied.
	Uncopied uint64
	// Crowded is how many queries were given up because too many waited.
	Crowded uint64
	// Forgotten failures were pushed out by others before it was known whether they
	// were due to a search domain alone.
	Forgotten uint64
}

// Matcher finds the answer to each query. It is not safe for concurrent use.
type Matcher struct {
	cfg    Config
	counts Counts

	reader   reader
	message  message
	searches searches
	streams  map[half]stream
	// broken is when a part of a connection could not be read last.
	broken map[connection]uint64
	// lost is how many messages were lost, lostAt the boot time by which the latest was.
	lost, lostAt uint64

	// waiting has the latest query of each index, the others of it follow as alike.
	waiting map[key]*pending
	pending int
	// Doubly linked ring through all of them, the oldest first; head is only its anchor.
	head pending
	free *pending
}

// key is what a query and its answer have in common: the server's and the client's
// end as one of them sees it, and the id.
type key struct {
	cgroup                uint64
	local, remote         record.Addr
	localPort, remotePort uint16
	id                    uint16
	protocol              record.Protocol
	server                bool
}

// index is k without the server's end for a client that asks over UDP. One that does
// not connect its socket may send to an address that the host translates after it was
// seen here, and get its answer from the one that it asked.
func (k key) index() key {
	if !k.server && k.protocol == record.UDP {
		k.remote, k.remotePort = record.Addr{}, 0
	}
	return k
}

type pending struct {
	key
	sent     uint64 // boot time
	name     string
	kind     Type
	repeats  uint32
	pid      uint32
	comm     record.Comm
	loopback bool

	alike      *pending // an older one of the same index
	prev, next *pending
}

// NewMatcher returns a Matcher that waits for nothing.
func NewMatcher(cfg Config) *Matcher {
	if cfg.MaxPending == 0 {
		cfg.MaxPending = DefaultMaxPending
	}
	m := &Matcher{
		cfg: cfg, waiting: make(map[key]*pending), streams: make(map[half]stream),
		broken: make(map[connection]uint64), searches: newSearches(),
	}
	m.head.prev, m.head.next = &m.head, &m.head
	return m
}

// Counts returns how many messages there were until now.
func (m *Matcher) Counts() Counts {
	c := m.counts
	c.Forgotten = m.searches.forgotten
	return c
}

// Pending is how many queries wait for an answer.
func (m *Matcher) Pending() int { return m.pending }

// Add takes a packet in. It does not keep it.
func (m *Matcher) Add(p *Packet) {
	switch {
	case p.Protocol == record.TCP:
		m.addSegment(p)
	case p.Segment > 0 && p.Segment < p.Length:
		m.addBatch(p)
	default:
		m.reject(m.addMessage(p, p.Data, p.Length))
	}
}

// addBatch takes the messages of one packet in, as far as they were copied.
func (m *Matcher) addBatch(p *Packet) {
	data, rest := p.Data, p.Length
	for rest > 0 && len(data) > 0 {
		n := min(p.Segment, rest)
		got := min(n, len(data))
		err := m.addMessage(p, data[:got], n)
		if err != nil && got < n {
			break
		}
		m.reject(err)
		data, rest = data[got:], rest-n
	}
	if rest > 0 {
		m.counts.Uncopied += uint64((rest + p.Segment - 1) / p.Segment)
		m.lostAt = p.BootNanos
	}
}

// reject counts a message that is none.
func (m *Matcher) reject(err error) {
	switch {
	case errors.Is(err, errOpcode):
		m.counts.Other++
	case err != nil:
		m.counts.Malformed++
	}
}

// addMessage takes one message of the given length in, of which data may lack the end.
func (m *Matcher) addMessage(p *Packet, data []byte, length int) error {
	if err := m.reader.read(data, &m.message); err != nil {
		return err
	}
	k := key{
		cgroup: p.CgroupID, local: p.Local, remote: p.Remote, localPort: p.LocalPort, remotePort: p.RemotePort,
		id: m.message.id, protocol: p.Protocol,
		// Whoever sends a query or gets an answer is a client.
		server: p.Out == m.message.response,
	}
	if m.message.response {
		return m.answer(p, data, length, k)
	}
	m.query(p, k)
	return nil
}

// maxAlike bounds the queries that wait under one index.
const maxAlike = 64

func (m *Matcher) query(p *Packet, k key) {
	m.counts.Queries++
	old, last, n := m.find(k)
	if old != nil && old.name == m.message.name && old.kind == m.message.kind {
		old.repeats++
		return
	}
	switch {
	case old != nil: // the id is in use again
		m.giveUp(old, p.BootNanos)
	case n >= maxAlike:
		m.crowdOut(last, p.BootNanos)
	case m.pending >= m.cfg.MaxPending:
		m.crowdOut(m.head.next, p.BootNanos)
	}
	q := m.free
	if q == nil {
		q = new(pending)
	} else {
		m.free = q.next
	}
	index := k.index()
	*q = pending{
		key: k, sent: p.BootNanos, name: m.message.name, kind: m.message.kind,
		pid: p.PID, comm: p.Comm, loopback: p.Loopback, alike: m.waiting[index], prev: m.head.prev, next: &m.head,
	}
	q.prev.next, m.head.prev = q, q
	m.waiting[index] = q
	m.pending++
}

// find returns the query that waits under k, if there is one, and the oldest and the
// number of those that share its index.
func (m *Matcher) find(k key) (q, oldest *pending, n int) {
	for other := m.waiting[k.index()]; other != nil; other = other.alike {
		if other.key == k {
			q = other
		}
		oldest, n = other, n+1
	}
	return q, oldest, n
}

// remove takes q out of those that wait.
func (m *Matcher) remove(q *pending) {
	index := q.index()
	switch at := m.waiting[index]; {
	case at != q:
		for at.alike != q {
			at = at.alike
		}
		at.alike = q.alike
	case q.alike == nil:
		delete(m.waiting, index)
	default:
		m.waiting[index] = q.alike
	}
	q.prev.next, q.next.prev = q.next, q.prev
	*q = pending{next: m.free}
	m.free = q
	m.pending--
}

func (m *Matcher) answer(p *Packet, data []byte, length int, k key) error {
	var answers []Answer
	var more uint32
	if !m.message.bare {
		var err error
		// What was cut off on the way to fit need not be complete either.
		whole := len(data) == length && !m.message.truncated
		if answers, more, err = m.reader.answers(data, whole); err != nil {
			return err
		}
	}
	m.counts.Answers++
	q := m.asked(k)
	if q == nil {
		m.counts.Unmatched++
		return nil
	}
	x := &Exchange{
		Outcome: Answered, ID: k.id, Name: q.name, Type: q.kind, RCode: m.reader.extendedRCode(data, &m.message),
		Latency: time.Duration(p.BootNanos - min(q.sent, p.BootNanos)), Repeats: q.repeats,
		Answers: answers, More: more, Truncated: m.message.truncated, Authoritative: m.message.authoritative,
		AnswerBytes: uint32(length),
	}
	if !k.server {
		m.searches.add(k.cgroup, x, p.BootNanos)
		m.learn(k.cgroup, x)
	}
	m.tell(q, x, p.BootNanos)
	return nil
}

// asked returns the query that the message answers, or nil.
func (m *Matcher) asked(k key) *pending {
	q, _, _ := m.find(k)
	if q == nil && !k.server && k.protocol == record.UDP {
		for q = m.waiting[k.index()]; q != nil && !m.answers(q); {
			q = q.alike
		}
	}
	if q == nil || !m.answers(q) {
		return nil
	}
	return q
}

// answers reports whether the message is about what q asked.
func (m *Matcher) answers(q *pending) bool {
	return m.message.bare || q.name == m.message.name && q.kind == m.message.kind
}

// learn tells of the addresses in an answer. They belong to the name that was asked
// for, however many aliases are between.
func (m *Matcher) learn(cgroup uint64, x *Exchange) {
	if m.cfg.Learned == nil || x.RCode != NoError {
		return
	}
	for i := range x.Answers {
		if a := &x.Answers[i]; a.Type == TypeA || a.Type == TypeAAAA {
			if addr, err := netip.ParseAddr(a.Data); err == nil && isSomebodys(addr) {
				m.cfg.Learned(cgroup, addr.Unmap(), x.Name)
			}
		}
	}
}

// isSomebodys: blocking resolvers answer with addresses that are nobody's.
func isSomebodys(a netip.Addr) bool { return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() }

// Expire gives up the queries that have waited for the timeout. Whatever was seen
// until now has been taken in.
func (m *Matcher) Expire(now uint64) {
	if m.cfg.Lost != nil {
		if n := m.cfg.Lost(); n != m.lost {
			m.lost, m.lostAt = n, now
		}
	}
	timeout := uint64(m.cfg.Timeout())
	limit := now - min(timeout, now)
	for q := m.head.next; q != &m.head && q.sent <= limit; q = m.head.next {
		m.giveUp(q, now)
	}
	m.searches.expire(now)
	m.expireStreams(now, timeout)
}

// giveUp tells of q as one without an answer, if there was none for certain.
func (m *Matcher) giveUp(q *pending, now uint64) {
	outcome := Timeout
	at, ok := m.broken[connection{q.cgroup, q.local, q.remote, q.localPort, q.remotePort}]
	if m.lostAt >= q.sent || ok && q.protocol == record.TCP && at >= q.sent {
		outcome = Unread
	}
	m.tell(q, &Exchange{Outcome: outcome, ID: q.id, Name: q.name, Type: q.kind, Repeats: q.repeats}, now)
}

// crowdOut gives q up before its time.
func (m *Matcher) crowdOut(q *pending, now uint64) {
	m.counts.Crowded++
	m.tell(q, &Exchange{Outcome: Unread, ID: q.id, Name: q.name, Type: q.kind, Repeats: q.repeats}, now)
}

// tell hands out what came of q, which no longer waits.
func (m *Matcher) tell(q *pending, x *Exchange, now uint64) {
	r := Record{
		Header: record.Header{
			Local: q.local, Remote: q.remote, LocalPort: q.localPort, RemotePort: q.remotePort,
			Protocol: q.protocol, CgroupID: q.cgroup,
			Role: record.RoleClient, Loopback: q.loopback, PID: q.pid, Comm: q.comm,
			First: m.cfg.Unix(q.sent),
		},
		Exchange: *x,
	}
	if q.server {
		r.Role = record.RoleServer
	}
	m.remove(q)
	m.emit(&r, now)
}

// emit dates a record with what happens now.
func (m *Matcher) emit(r *Record, now uint64) {
	r.Last = m.cfg.Unix(now)
	r.Time = r.Last
	m.cfg.Emit(r)
}
