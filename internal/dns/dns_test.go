// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/Ignoramuss/orb8/internal/record"
)

const ms = uint64(time.Millisecond)

// query returns the bytes of a query.
func query(t testing.TB, id uint16, name string, kind Type) []byte {
	t.Helper()
	return build(t, dnsmessage.Header{ID: id, RecursionDesired: true}, name, kind)
}

// answer returns the bytes of an answer with records.
func answer(t testing.TB, id uint16, name string, kind Type, code RCode, records ...dnsmessage.Resource) []byte {
	t.Helper()
	return build(t, dnsmessage.Header{ID: id, Response: true, RCode: dnsmessage.RCode(code)}, name, kind, records...)
}

func build(t testing.TB, h dnsmessage.Header, name string, kind Type, records ...dnsmessage.Resource) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: h, Answers: records, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.Type(kind), Class: dnsmessage.ClassINET,
	}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func a(name, addr string) dnsmessage.Resource {
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name + "."), Class: dnsmessage.ClassINET, TTL: 30},
		Body:   &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()},
	}
}

func cname(name, to string) dnsmessage.Resource {
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name + "."), Class: dnsmessage.ClassINET, TTL: 60},
		Body:   &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to + ".")},
	}
}

// told is what a Matcher has emitted.
type told = Record

// rig is a Matcher with what it has told.
type rig struct {
	*Matcher
	t       *testing.T
	told    []told
	learned []string
}

func newRig(t *testing.T, change func(*Config)) *rig {
	r := &rig{t: t}
	cfg := Config{
		Emit:    func(x *Record) { r.told = append(r.told, *x) },
		Unix:    func(boot uint64) int64 { return int64(boot) + 1e18 },
		Timeout: func() time.Duration { return 5 * time.Second },
		Learned: func(cgroup uint64, addr netip.Addr, name string) {
			r.learned = append(r.learned, fmt.Sprint(cgroup, " ", addr, " ", name))
		},
	}
	if change != nil {
		change(&cfg)
	}
	r.Matcher = NewMatcher(cfg)
	return r
}

// packet is one between a client's port 40000 and a server's port 53.
func packet(at uint64, data []byte, out bool) *Packet {
	return &Packet{
		BootNanos: at, CgroupID: 42, Local: record.AddrOf(netip.MustParseAddr("10.244.1.5")),
		Remote: record.AddrOf(netip.MustParseAddr("10.96.0.10")), LocalPort: 40000, RemotePort: 53,
		Protocol: record.UDP, Out: out, PID: 7, Comm: record.Comm{'c'}, Length: len(data), Data: data,
	}
}

func (r *rig) add(at uint64, data []byte, out bool) { r.Add(packet(at, data, out)) }

// outcomes are what was told, in words.
func (r *rig) outcomes() []string {
	var all []string
	for _, e := range r.told {
		role := map[record.Role]string{record.RoleClient: "client", record.RoleServer: "server"}[e.Role]
		what := map[Outcome]string{Answered: e.RCode.String(), Timeout: "timeout", Unread: "unread"}[e.Outcome]
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", role, e.Exchange.Name, e.Type, what, e.Latency)))
	}
	return all
}

func (r *rig) want(outcomes ...string) {
	r.t.Helper()
	if diff := cmp.Diff(outcomes, r.outcomes()); diff != "" {
		r.t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestExchange(t *testing.T) {
	r := newRig(t, nil)
	r.add(10*ms, query(t, 1, "API.example.test", TypeA), true)
	r.add(12*ms, answer(t, 1, "api.EXAMPLE.test", TypeA, NoError, cname("api.example.test", "edge.test"), a("edge.test", "198.51.100.7")), false)
	want := []told{{
		record.Header{
			Local: record.AddrOf(netip.MustParseAddr("10.244.1.5")), Remote: record.AddrOf(netip.MustParseAddr("10.96.0.10")),
			LocalPort: 40000, RemotePort: 53, Protocol: record.UDP, CgroupID: 42,
			Role: record.RoleClient, PID: 7, Comm: record.Comm{'c'}, First: 1e18 + int64(10*ms), Last: 1e18 + int64(12*ms),
			Time: 1e18 + int64(12*ms),
		},
		Exchange{
			Outcome: Answered, ID: 1, Name: "api.example.test", Type: TypeA, Latency: 2 * time.Millisecond,
			Answers: []Answer{
				{Name: "api.example.test", Type: TypeCNAME, TTL: 60, Data: "edge.test"},
				{Name: "edge.test", Type: TypeA, TTL: 30, Data: "198.51.100.7"},
			},
			AnswerBytes: r.told[0].AnswerBytes,
		},
	}}
	if diff := cmp.Diff(want, r.told); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if r.told[0].AnswerBytes < 40 {
		t.Errorf("an answer of %d bytes", r.told[0].AnswerBytes)
	}
	// The address is known by the name that was asked for, not by its alias.
	if diff := cmp.Diff([]string{"42 198.51.100.7 api.example.test"}, r.learned); diff != "" {
		t.Errorf("learned (-want +got)\n%s", diff)
	}
	if r.Pending() != 0 {
		t.Errorf("%d queries wait", r.Pending())
	}
}

// TestBothEnds: the server's view is one of its own, also where both ends share all
// but the direction, as on loopback.
func TestBothEnds(t *testing.T) {
	r := newRig(t, nil)
	r.add(10*ms, query(t, 1, "a.test", TypeA), true)
	server := func(at uint64, data []byte, out bool) {
		p := packet(at, data, out)
		p.Local, p.Remote, p.LocalPort, p.RemotePort = p.Remote, p.Local, p.RemotePort, p.LocalPort
		r.Add(p)
	}
	server(11*ms, query(t, 1, "a.test", TypeA), false)
	server(14*ms, answer(t, 1, "a.test", TypeA, NXDomain), true)
	r.add(15*ms, answer(t, 1, "a.test", TypeA, NXDomain), false)
	r.want("server a.test A NXDOMAIN 3ms", "client a.test A NXDOMAIN 5ms")
	if r.learned != nil {
		t.Errorf("learned %v from a server", r.learned)
	}
}

func TestPairsOnOneSocket(t *testing.T) {
	r := newRig(t, nil)
	r.add(10*ms, query(t, 1, "a.test", TypeA), true)
	r.add(10*ms, query(t, 2, "a.test", TypeAAAA), true)
	r.add(12*ms, answer(t, 2, "a.test", TypeAAAA, NoError), false)
	r.add(13*ms, answer(t, 1, "a.test", TypeA, NoError, a("a.test", "192.0.2.1")), false)
	r.want("client a.test AAAA NOERROR 2ms", "client a.test A NOERROR 3ms")
}

func TestUnanswered(t *testing.T) {
	r := newRig(t, nil)
	r.add(10*ms, query(t, 1, "dead.test", TypeA), true)
	r.add(1000*ms, query(t, 1, "dead.test", TypeA), true) // sent again
	r.add(2000*ms, query(t, 2, "later.test", TypeA), true)
	r.Expire(5009 * ms)
	r.want()
	r.Expire(5010 * ms)
	r.want("client dead.test A timeout 0s")
	if got := r.told[0]; got.Repeats != 1 || got.First != 1e18+int64(10*ms) || got.Last != 1e18+int64(5010*ms) {
		t.Errorf("%+v", got)
	}
	r.add(6000*ms, answer(t, 1, "dead.test", TypeA, NoError), false)
	r.add(6001*ms, answer(t, 2, "other.test", TypeA, NoError), false) // not what was asked
	if got := r.Counts(); got != (Counts{Queries: 3, Answers: 2, Unmatched: 2}) {
		t.Errorf("%+v", got)
	}
	r.add(6500*ms, answer(t, 2, "later.test", TypeA, NoError), false)
	r.want("client dead.test A timeout 0s", "client later.test A NOERROR 4.5s")
}

func TestSentAgain(t *testing.T) {
	r := newRig(t, nil)
	for i := range uint64(3) {
		r.add(10*ms+i*1000*ms, query(t, 1, "slow.test", TypeA), true)
	}
	r.add(2500*ms, answer(t, 1, "slow.test", TypeA, NoError), false)
	r.want("client slow.test A NOERROR 2.49s")
	if r.told[0].Repeats != 2 {
		t.Errorf("sent again %d times, want 2", r.told[0].Repeats)
	}
}

// TestIDInUseAgain: whoever asks something else under the same id has given up.
func TestIDInUseAgain(t *testing.T) {
	r := newRig(t, nil)
	r.add(10*ms, query(t, 1, "a.test", TypeA), true)
	r.add(20*ms, query(t, 1, "b.test", TypeA), true)
	r.add(21*ms, answer(t, 1, "b.test", TypeA, NoError), false)
	r.want("client a.test A timeout 0s", "client b.test A NOERROR 1ms")
}

func TestCrowded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxPending = 2 })
	for i := range uint16(3) {
		r.add(uint64(i)*ms, query(t, i, fmt.Sprintf("n%d.test", i), TypeA), true)
	}
	r.want("client n0.test A unread 0s") // it has not waited for long enough
	if r.Counts().Crowded != 1 || r.Pending() != 2 {
		t.Errorf("%+v, %d wait", r.Counts(), r.Pending())
	}
}

// TestHarmful: messages made to harm count as malformed and as nothing else.
func TestHarmful(t *testing.T) {
	q := query(t, 1, "a.test", TypeA)
	good := answer(t, 1, "a.test", TypeA, NoError, a("a.test", "192.0.2.1"))
	edit := func(b []byte, change func(b []byte) []byte) []byte { return change(append([]byte(nil), b...)) }
	loop := func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }
	tests := []struct {
		name string
		data []byte
	}{
		{"nothing", nil},
		{"half a header", q[:11]},
		{"header alone", q[:12]},
		{"half a question", q[:len(q)-3]},
		{"no question", edit(q, func(b []byte) []byte { b[5] = 0; return b })},
		{"two questions of one", edit(q, func(b []byte) []byte { b[5] = 2; return b })},
		{"65535 questions", edit(q, func(b []byte) []byte { b[4], b[5] = 255, 255; return b })},
		{"name that points at itself", edit(q, loop)},
		{"pointer past the end", edit(q, func(b []byte) []byte { b[12], b[13] = 0xff, 0xff; return b })},
		{"label longer than the message", edit(q, func(b []byte) []byte { b[12] = 63; return b })},
		{"label with a dot", edit(q, func(b []byte) []byte { b[13] = '.'; return b })},
		{"65535 answers", edit(good, func(b []byte) []byte { b[6], b[7] = 255, 255; return b })},
		{"answer cut off", good[:len(good)-2]},
		{"answer's length too long", edit(good, func(b []byte) []byte { b[len(b)-5] = 200; return b })},
		{"zeroes", make([]byte, 100)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.add(ms, tt.data, true)
			r.add(2*ms, tt.data, false)
			if got := r.Counts(); got != (Counts{Malformed: 2}) || r.told != nil || r.Pending() != 0 {
				t.Errorf("%+v, told %v, %d wait", got, r.told, r.Pending())
			}
		})
	}
	// A query that gets only such an answer is one without.
	r := newRig(t, nil)
	r.add(ms, q, true)
	r.add(2*ms, good[:len(good)-2], false)
	r.Expire(5001 * ms)
	r.want("client a.test A timeout 0s")
}

// TestCut: what was not copied is not held against a message.
func TestCut(t *testing.T) {
	var records []dnsmessage.Resource
	for i := range 40 {
		records = append(records, a("many.test", fmt.Sprintf("192.0.2.%d", i)))
	}
	whole := answer(t, 1, "many.test", TypeA, NoError, records...)
	for _, tt := range []struct {
		name       string
		keep, more int
	}{{"whole", len(whole), 8}, {"cut", len(whole) - 20*27, 40 - 20}} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.add(ms, query(t, 1, "many.test", TypeA), true)
			p := packet(2*ms, whole[:tt.keep], false)
			p.Length = len(whole)
			r.Add(p)
			if len(r.told) != 1 {
				t.Fatalf("%v, %+v", r.told, r.Counts())
			}
			x := r.told[0].Exchange
			if int(x.More)+len(x.Answers) != 40 || len(x.Answers) > maxAnswers || x.AnswerBytes != uint32(len(whole)) {
				t.Errorf("%d answers and %d more of %d bytes", len(x.Answers), x.More, x.AnswerBytes)
			}
			if tt.name == "whole" && x.More != uint32(tt.more) {
				t.Errorf("%d more, want %d", x.More, tt.more)
			}
		})
	}
}

func framed(messages ...[]byte) []byte {
	var b []byte
	for _, m := range messages {
		b = append(append(b, byte(len(m)>>8), byte(len(m))), m...)
	}
	return b
}

func TestTCP(t *testing.T) {
	segment := func(at uint64, data []byte, out bool) *Packet {
		p := packet(at, data, out)
		p.Protocol = record.TCP
		return p
	}
	r := newRig(t, nil)
	r.Add(segment(ms, framed(query(t, 1, "a.test", TypeA), query(t, 2, "b.test", TypeA)), true))
	r.Add(segment(3*ms, framed(answer(t, 2, "b.test", TypeA, NXDomain)), false))
	r.Add(segment(4*ms, framed(answer(t, 1, "a.test", TypeA, NoError)), false))
	r.want("client b.test A NXDOMAIN 2ms", "client a.test A NOERROR 3ms")

	// In pieces: the length by itself, as some clients send it; a message over two
	// segments, of which the second goes on with another.
	r = newRig(t, nil)
	q := framed(query(t, 1, "a.test", TypeA))
	r.Add(segment(ms, q[:2], true))
	r.Add(segment(ms, q[2:], true))
	answers := framed(answer(t, 1, "a.test", TypeA, NoError, a("a.test", "192.0.2.1"), a("a.test", "192.0.2.2")), answer(t, 7, "b.test", TypeA, NXDomain))
	first := len(answers) - 39
	r.Add(segment(2*ms, answers[:first], false))
	r.Add(segment(2*ms, answers[first:], false))
	r.want("client a.test A NOERROR 1ms")
	if got := r.Counts(); got != (Counts{Queries: 1, Answers: 2, Unmatched: 1}) {
		t.Errorf("%+v", got)
	}
	if x := r.told[0].Exchange; len(x.Answers) != 1 || x.More != 1 {
		t.Errorf("%+v", x)
	}
	if len(r.streams) != 0 {
		t.Errorf("%d streams are in the middle of a message", len(r.streams))
	}
	// What begins elsewhere is said to be unread.
	r.Add(segment(ms, q[5:], true))
	r.want("client a.test A NOERROR 1ms", "client  TYPE0 unread 0s")
	if got := r.Counts().Unread; got != 1 {
		t.Errorf("%d unread", got)
	}
	// The end of a long segment was not copied, and is not missed.
	r = newRig(t, nil)
	r.Add(segment(ms, framed(query(t, 1, "a.test", TypeA)), true))
	long := framed(answer(t, 1, "a.test", TypeA, NoError, a("a.test", "192.0.2.1"), a("a.test", "192.0.2.2")))
	p := segment(2*ms, long[:len(long)-10], false)
	p.Length = len(long)
	r.Add(p)
	r.want("client a.test A NOERROR 1ms")
	if x := r.told[0].Exchange; x.More != 1 || len(r.streams) != 0 {
		t.Errorf("%+v", x)
	}
}

// TestStreamsAreBounded: connections that stop in the middle of a message are
// forgotten when there are too many.
func TestStreamsAreBounded(t *testing.T) {
	r := newRig(t, nil)
	for i := range 2*maxStreams + 10 {
		p := packet(ms, []byte{0, 50}, true)
		p.Protocol, p.LocalPort = record.TCP, uint16(i)
		r.Add(p)
		if len(r.streams) > maxStreams {
			t.Fatalf("%d streams", len(r.streams))
		}
	}
}

// TestTCPIsNotTimedOut: queries whose answers may be in what could not be read did not
// go without, and one connection is told of once.
func TestTCPIsNotTimedOut(t *testing.T) {
	r := newRig(t, nil)
	tcp := func(at uint64, data []byte, out bool) {
		p := packet(at, data, out)
		p.Protocol = record.TCP
		r.Add(p)
	}
	tcp(ms, framed(query(t, 1, "a.test", TypeA)), true)
	for range 3 {
		tcp(2*ms, []byte{0, 1, 2, 3, 4}, false)
	}
	r.Expire(6000 * ms)
	r.want("client  TYPE0 unread 0s", "client a.test A unread 0s")
	if got := r.Counts(); got != (Counts{Queries: 1, Unread: 3}) {
		t.Errorf("%+v", got)
	}
	// What is whole and no query counts like over UDP.
	r = newRig(t, nil)
	bad := query(t, 2, "b.test", TypeA)
	bad[5] = 7
	tcp(ms, framed(build(t, dnsmessage.Header{ID: 1, OpCode: 4}, "zone.test", 6), bad, query(t, 3, "c.test", TypeA)), true)
	if got := r.Counts(); got != (Counts{Queries: 1, Other: 1, Malformed: 1}) || r.told != nil {
		t.Errorf("%+v, told %v", got, r.told)
	}
}

// TestTCPBetweenTheSameEnds: what could not be read of one connection says nothing of a
// later one between the same ends.
func TestTCPBetweenTheSameEnds(t *testing.T) {
	r := newRig(t, nil)
	tcp := func(at uint64, data []byte, out bool) {
		p := packet(at, data, out)
		p.Protocol = record.TCP
		r.Add(p)
	}
	tcp(ms, []byte{0, 1, 2, 3, 4}, true)
	r.want("client  TYPE0 unread 0s")
	tcp(10*ms, framed(query(t, 1, "dead.test", TypeA)), true)
	r.Expire(5010 * ms)
	r.want("client  TYPE0 unread 0s", "client dead.test A timeout 0s")

	// A message that never came to its end does not swallow the next connection's.
	begun := framed(query(t, 2, "a.test", TypeA))
	tcp(6000*ms, begun[:len(begun)-2], true)
	tcp(6000*ms, framed(query(t, 6, "at.once.test", TypeA)), true)
	tcp(6002*ms, framed(answer(t, 6, "at.once.test", TypeA, NoError)), false)
	if got := r.outcomes()[len(r.told)-1]; got != "client at.once.test A NOERROR 2ms" {
		t.Error(got)
	}
	tcp(6010*ms, begun[:len(begun)-2], true)
	tcp(6000*ms+2*uint64(streamTime), framed(query(t, 3, "next.test", TypeA), query(t, 4, "more.test", TypeA)), true)
	tcp(6001*ms+2*uint64(streamTime), framed(answer(t, 3, "next.test", TypeA, NoError)), false)
	if got := r.outcomes()[len(r.told)-1]; got != "client next.test A NOERROR 1ms" {
		t.Error(got)
	}
	// After a while what cannot be read is told of again, and nothing stays for good.
	late := uint64(brokenTime) + 10_000*ms
	tcp(late, []byte{0, 1, 2, 3, 4}, true)
	if got := r.outcomes()[len(r.told)-1]; got != "client  TYPE0 unread 0s" {
		t.Error(got)
	}
	tcp(late, []byte{0, 50}, true)
	r.Expire(2 * late)
	if len(r.broken)+len(r.streams) != 0 {
		t.Errorf("%d connections are remembered as unread, %d as in the middle of a message", len(r.broken), len(r.streams))
	}
}

// TestLost: a query whose answer may be among lost messages did not go without.
func TestLost(t *testing.T) {
	lost := uint64(7)
	r := newRig(t, func(c *Config) { c.Lost = func() uint64 { return lost } })
	r.Expire(ms)
	r.add(10*ms, query(t, 1, "a.test", TypeA), true)
	r.Expire(100 * ms)
	lost++
	r.Expire(200 * ms)
	r.add(300*ms, query(t, 2, "b.test", TypeA), true)
	r.Expire(6000 * ms)
	r.want("client a.test A unread 0s", "client b.test A timeout 0s")
}

// TestBatch: messages that were sent in one packet are read one by one, as far as they
// were copied.
func TestBatch(t *testing.T) {
	r := newRig(t, nil)
	var all []byte
	size := len(query(t, 0, "n0.test", TypeA))
	for i := range uint16(5) {
		all = append(all, query(t, i, fmt.Sprintf("n%d.test", i), TypeA)...)
	}
	p := packet(ms, all[:2*size+20], true)
	p.Length, p.Segment = len(all), size
	r.Add(p)
	if got := r.Counts(); got != (Counts{Queries: 2, Uncopied: 3}) {
		t.Errorf("%+v", got)
	}
	// The last is shorter, and all of them are there.
	r = newRig(t, nil)
	all = append(all[:4*size], query(t, 9, "n.test", TypeA)...)
	p = packet(ms, all, true)
	p.Segment = size
	r.Add(p)
	r.add(2*ms, answer(t, 9, "n.test", TypeA, NoError), false)
	r.want("client n.test A NOERROR 1ms")
	if got := r.Counts(); got != (Counts{Queries: 5, Answers: 1}) {
		t.Errorf("%+v", got)
	}
}

// opt is the record of EDNS, with the upper bits of a code.
func opt(code RCode) dnsmessage.Resource {
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(1232, dnsmessage.RCode(code), false); err != nil {
		panic(err)
	}
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}}
}

// TestExtendedCodes: EDNS has a part of the code elsewhere.
func TestExtendedCodes(t *testing.T) {
	reply := func(id uint16, code RCode, question bool, more ...dnsmessage.Resource) []byte {
		m := dnsmessage.Message{
			Header:      dnsmessage.Header{ID: id, Response: true, RCode: dnsmessage.RCode(code & 15)},
			Additionals: append(more, opt(code)),
		}
		if question {
			m.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}
			m.Answers = []dnsmessage.Resource{a("a.test", "192.0.2.1"), a("a.test", "192.0.2.2")}
			m.Authorities = []dnsmessage.Resource{cname("a.test", "b.test")}
		}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	r := newRig(t, nil)
	cut := reply(5, 23, true, a("b.test", "192.0.2.3"))
	for id, data := range map[uint16][]byte{
		1: reply(1, 16, true), 2: reply(2, 23, true, a("b.test", "192.0.2.3")), 3: reply(3, NXDomain, true), 4: reply(4, 23, false),
		5: cut[:len(cut)-11],
	} {
		r.add(ms, query(t, id, "a.test", TypeA), true)
		p := packet(2*ms, data, false)
		p.Length = len(data) + 1 // or the one that is cut would be malformed
		r.Add(p)
	}
	got := map[uint16]string{}
	for _, e := range r.told {
		got[e.ID] = e.RCode.String()
	}
	// Where the record was not copied, only the header's bits are known.
	want := map[uint16]string{1: "BADVERS", 2: "BADCOOKIE", 3: "NXDOMAIN", 4: "BADCOOKIE", 5: "YXRRSET"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s\n%+v", diff, r.Counts())
	}
}

// TestBareErrors: an error without its question answers, and so does what was cut off
// to fit.
func TestBareErrors(t *testing.T) {
	r := newRig(t, nil)
	r.add(ms, query(t, 1, "a.test", TypeA), true)
	r.add(2*ms, []byte{0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0}, false)
	cut := answer(t, 2, "b.test", TypeA, NoError, a("b.test", "192.0.2.1"), a("b.test", "192.0.2.2"))
	cut[2] |= 2 // TC
	r.add(3*ms, query(t, 2, "b.test", TypeA), true)
	r.add(4*ms, cut[:len(cut)-3], false)
	r.want("client a.test A FORMERR 1ms", "client b.test A NOERROR 1ms")
	if got := r.Counts(); got != (Counts{Queries: 2, Answers: 2}) {
		t.Errorf("%+v", got)
	}
}

// TestTranslated: a client that does not connect its socket gets its answer from
// another address than the query was seen to go to.
func TestTranslated(t *testing.T) {
	r := newRig(t, nil)
	to := packet(ms, query(t, 1, "a.test", TypeA), true)
	to.Remote = record.AddrOf(netip.MustParseAddr("10.244.2.9"))
	r.Add(to)
	r.add(2*ms, answer(t, 1, "b.test", TypeA, NoError), false) // about something else
	r.want()
	r.add(3*ms, answer(t, 1, "a.test", TypeA, NoError, a("a.test", "192.0.2.1")), false)
	r.want("client a.test A NOERROR 2ms")
}

// TestTranslatedAmongMany: however many others wait, the query is found; and not those
// of another socket.
func TestTranslatedAmongMany(t *testing.T) {
	r := newRig(t, nil)
	ask := func(cgroup uint64, port uint16, server string) {
		p := packet(ms, query(t, 1, "a.test", TypeA), true)
		p.CgroupID, p.LocalPort, p.Remote = cgroup, port, record.AddrOf(netip.MustParseAddr(server))
		r.Add(p)
	}
	ask(42, 40000, "10.244.2.9")
	for i := range 5000 {
		ask(43, uint16(i+1), "10.244.2.9")
		ask(uint64(i+100), 40000, "10.244.2.9")
	}
	r.add(3*ms, answer(t, 1, "a.test", TypeA, NoError, a("a.test", "192.0.2.1")), false)
	r.want("client a.test A NOERROR 2ms")
	if r.Pending() != 10_000 {
		t.Errorf("%d queries wait", r.Pending())
	}
	r.Expire(10_000 * ms)
	if r.Pending() != 0 || len(r.waiting) != 0 {
		t.Errorf("%d queries wait under %d", r.Pending(), len(r.waiting))
	}
}

// TestManyServers: one id and socket for many servers, which answer in any order.
func TestManyServers(t *testing.T) {
	r := newRig(t, nil)
	send := func(at uint64, i int, data []byte, out bool) {
		p := packet(at, data, out)
		p.Remote = record.AddrOf(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		r.Add(p)
	}
	for i := range maxAlike + 2 {
		send(ms, i, query(t, 1, "a.test", TypeA), true)
	}
	if got := r.Counts(); got.Crowded != 2 || r.Pending() != maxAlike || len(r.waiting) != 1 {
		t.Errorf("%+v, %d wait", got, r.Pending())
	}
	for _, i := range []int{30, 2, maxAlike + 1} { // the first two were crowded out
		r.told = nil
		send(uint64(i)*ms, i, answer(t, 1, "a.test", TypeA, NoError), false)
		if len(r.told) != 1 || r.told[0].Header.Remote.IP().As4()[3] != byte(i) {
			t.Errorf("server %d: %+v", i, r.told)
		}
	}
	r.Expire(10_000 * ms)
	if r.Pending() != 0 || len(r.waiting) != 0 {
		t.Errorf("%d queries wait", r.Pending())
	}
}

// TestLongAnswers: a few bytes on their way do not become many here.
func TestLongAnswers(t *testing.T) {
	long := strings.Repeat(strings.Repeat("\x01", 62)+".", 3) + "test"
	var records []dnsmessage.Resource
	for i := range 30 {
		records = append(records, cname(long, fmt.Sprint("x", i, ".", long)))
	}
	r := newRig(t, nil)
	r.add(ms, query(t, 1, long, TypeA), true)
	r.add(2*ms, answer(t, 1, long, TypeA, NoError, records...), false)
	if len(r.told) != 1 {
		t.Fatalf("%+v", r.Counts())
	}
	x := r.told[0].Exchange
	size := 0
	for _, a := range x.Answers {
		size += len(a.Name) + len(a.Data)
	}
	if size > maxText+2*1024 || len(x.Answers)+int(x.More) != 30 {
		t.Errorf("%d answers with %d bytes of text, %d more", len(x.Answers), size, x.More)
	}
}

// TestNobodysAddresses: what blocking resolvers answer with names nothing.
func TestNobodysAddresses(t *testing.T) {
	r := newRig(t, nil)
	r.add(ms, query(t, 1, "ads.test", TypeA), true)
	r.add(2*ms, answer(t, 1, "ads.test", TypeA, NoError, a("ads.test", "0.0.0.0"), a("ads.test", "127.0.0.1"), a("ads.test", "224.0.0.1")), false)
	if r.learned != nil {
		t.Errorf("learned %v", r.learned)
	}
}

func TestOtherMessages(t *testing.T) {
	r := newRig(t, nil)
	r.add(ms, build(t, dnsmessage.Header{ID: 1, OpCode: 4}, "zone.test", 6), true) // NOTIFY
	if got := r.Counts(); got != (Counts{Other: 1}) || r.Pending() != 0 {
		t.Errorf("%+v", got)
	}
}

func TestSearched(t *testing.T) {
	const ns, svc, cluster = ".default.svc.cluster.local", ".svc.cluster.local", ".cluster.local"
	tests := []struct {
		failed, found string
		want          bool
	}{
		{"api.test" + ns, "api.test", true},
		{"api.test.corp.example", "api.test", true},
		{"api.testing", "api.test", false},
		{"api.test", "api.test", false},
		{"web.other" + ns, "web.other" + svc, true},
		{"web.other" + ns, "web.other" + cluster, true},
		{"web.other" + svc, "web.other" + cluster, true},
		{"web.other" + ns, "db.other" + svc, false},
		{"web.other" + svc, "web.other" + ns, false},
		{"a.x.example.com", "a.example.com", false},
		{"web" + ns, "web.other" + svc, false},
	}
	for _, tt := range tests {
		if got := searched(tt.failed, tt.found); got != tt.want {
			t.Errorf("searched(%s, %s) = %v", tt.failed, tt.found, got)
		}
	}
}

// searchDomains are those of a pod.
func searchDomains() []string {
	return []string{".default.svc.cluster.local", ".svc.cluster.local", ".cluster.local"}
}

// resolve asks for names all at once, as busy clients do: A and AAAA of each with one
// search domain, then with the next, then as it is.
func (r *rig) resolve(at uint64, cgroup uint64, names ...string) {
	id := uint16(0)
	ask := func(name string, kind Type, code RCode, records ...dnsmessage.Resource) {
		id++
		at++
		for i, data := range [][]byte{query(r.t, id, name, kind), answer(r.t, id, name, kind, code, records...)} {
			p := packet(at, data, i == 0)
			p.CgroupID = cgroup
			r.Add(p)
		}
	}
	for _, domain := range searchDomains() {
		for _, name := range names {
			ask(name+domain, TypeA, NXDomain)
			ask(name+domain, TypeAAAA, NXDomain)
		}
	}
	for _, name := range names {
		ask(name, TypeA, NoError, a(name, "192.0.2.1"))
		ask(name, TypeAAAA, NoError)
	}
}

// searched is how many failures have been told of.
func (r *rig) searched() (n int) {
	for i := range r.told {
		n += int(r.told[i].SearchFailures)
	}
	return n
}

func number(format string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf(format, i)
	}
	return names
}

// TestSearchesInterleaved: a client that looks many names up at once.
func TestSearchesInterleaved(t *testing.T) {
	for _, n := range []int{20, 500} {
		r := newRig(t, nil)
		r.resolve(ms, 1, number("api%d.example.test", n)...)
		if got := r.searched(); got != 6*n {
			t.Errorf("%d names at once: %d failures, want %d", n, got, 6*n)
		}
		// What is settled makes room.
		if r.searches.n > 2*n || r.Counts().Forgotten != 0 {
			t.Errorf("%d are remembered, %d forgotten", r.searches.n, r.Counts().Forgotten)
		}
	}
}

// TestSearchesAreBounded: a client that asks for what does not exist pushes out its
// own failures, and that is counted.
func TestSearchesAreBounded(t *testing.T) {
	r := newRig(t, nil)
	for i := range maxSearches + 100 {
		r.searches.add(1, &Exchange{Name: fmt.Sprint("x", i, ".example.test"), RCode: NXDomain}, ms)
	}
	if r.searches.n != maxSearches || r.Counts().Forgotten != 100 {
		t.Errorf("%d are remembered, %d forgotten", r.searches.n, r.Counts().Forgotten)
	}
	r.resolve(2*ms, 2, number("api%d.example.test", 20)...)
	if got := r.searched(); got != 120 {
		t.Errorf("%d failures of another client, want 120", got)
	}
	// Names that begin alike do not pile up either.
	before := r.Counts().Forgotten
	for i := range maxAlikeSearches + 10 {
		r.searches.add(3, &Exchange{Name: fmt.Sprint("www.x", i, ".test.lan"), RCode: NXDomain}, 2*ms)
	}
	if n := len(r.searches.of[3].under["www"]); n != maxAlikeSearches || r.Counts().Forgotten-before < 10 {
		t.Errorf("%d that begin alike are remembered, %d forgotten", n, r.Counts().Forgotten-before)
	}
	found := &Exchange{Name: fmt.Sprint("www.x", maxAlikeSearches, ".test"), Answers: make([]Answer, 1)}
	if r.searches.add(3, found, 3*ms); found.SearchFailures != 1 {
		t.Errorf("%d failures, want 1", found.SearchFailures)
	}
	r.Expire(2*ms + uint64(searchTime) + uint64(time.Second))
	if len(r.searches.of) != 0 || r.searches.n != 0 {
		t.Errorf("%d clients with %d failures are remembered", len(r.searches.of), r.searches.n)
	}
}

func TestSearchFailures(t *testing.T) {
	r := newRig(t, nil)
	id := uint16(0)
	ask := func(at uint64, name string, code RCode, records ...dnsmessage.Resource) {
		id++
		r.add(at, query(t, id, name, TypeA), true)
		r.add(at+ms, answer(t, id, name, TypeA, code, records...), false)
	}
	last := func() uint32 { return r.told[len(r.told)-1].SearchFailures }
	for _, domain := range []string{".default.svc.cluster.local", ".svc.cluster.local", ".cluster.local"} {
		ask(10*ms, "api.test"+domain, NXDomain)
	}
	ask(11*ms, "else.test", NXDomain)
	ask(20*ms, "api.test", NoError, a("api.test", "192.0.2.1"))
	if last() != 3 {
		t.Errorf("%d failures, want 3", last())
	}
	// They count once.
	ask(30*ms, "api.test", NoError, a("api.test", "192.0.2.1"))
	if last() != 0 {
		t.Errorf("%d failures again", last())
	}
	// Not after a long time, and not of a name that was not found either.
	ask(40*ms, "old.test.local", NXDomain)
	ask(40*ms+uint64(searchTime)+2*ms, "old.test", NoError, a("old.test", "192.0.2.1"))
	if last() != 0 {
		t.Errorf("%d failures of long ago", last())
	}
	r.Expire(40*ms + 3*uint64(searchTime))
	if n := len(r.searches.of); n != 0 {
		t.Errorf("%d clients are remembered", n)
	}
}

func TestNames(t *testing.T) {
	r := newRig(t, nil)
	for id, name := range map[uint16]string{1: `we\ird.test`, 2: "tab\tnull\x00.test", 3: "ünï.test"} {
		q := query(t, id, name, TypeA)
		r.add(ms, q, true)
	}
	r.add(ms, build(t, dnsmessage.Header{ID: 4}, "", TypeNS), true)
	got := map[uint16]string{}
	for k, q := range r.waiting { // nothing is alike here
		got[k.id] = q.name
	}
	want := map[uint16]string{1: `we\\ird.test`, 2: `tab\009null\000.test`, 3: `\195\188n\195\175.test`, 4: "."}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestNumbers(t *testing.T) {
	for s, want := range map[string]Type{"a": 1, "AAAA": 28, "https": 65, "TYPE4711": 4711, "4711": 4711} {
		if got, ok := ParseType(s); !ok || got != want {
			t.Errorf("ParseType(%q) = %d, %v", s, got, ok)
		}
	}
	for s, want := range map[string]RCode{"nxdomain": 3, "NOERROR": 0, "RCODE15": 15, "2": 2, "badvers": 16, "RCODE4095": 4095} {
		if got, ok := ParseRCode(s); !ok || got != want {
			t.Errorf("ParseRCode(%q) = %d, %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "nope", "TYPE", "99999"} {
		if got, ok := ParseType(s); ok {
			t.Errorf("ParseType(%q) = %v", s, got)
		}
	}
	if got, ok := ParseRCode("4096"); ok {
		t.Errorf("ParseRCode(4096) = %v", got)
	}
	if got := Type(300).String() + " " + RCode(13).String(); got != "TYPE300 RCODE13" {
		t.Error(got)
	}
}

// FuzzAdd: whatever comes, nothing breaks, every message counts once, and what is
// told can be sent as text.
func FuzzAdd(f *testing.F) {
	good := answer(f, 1, "a.test", TypeA, NoError, a("a.test", "192.0.2.1"), cname("a.test", "b.test"))
	f.Add(query(f, 1, "a.test", TypeA), good, false)
	f.Add(framed(query(f, 1, "a.test", TypeSRV)), framed(good, good), true)
	f.Add([]byte{}, []byte{0xc0, 12}, true)
	f.Add(framed(good, []byte{1}), append(framed(good), 0), true)
	f.Add(framed(good)[:20], framed(good)[:2], true)
	f.Fuzz(func(t *testing.T, first, second []byte, tcp bool) {
		r := newRig(t, nil)
		for i, data := range [][]byte{first, second} {
			p := packet(uint64(i+1)*ms, data, i == 0)
			if tcp {
				p.Protocol = record.TCP
			}
			r.Add(p)
		}
		c := r.Counts()
		n := c.Queries + c.Answers + c.Malformed + c.Other
		if !tcp && n != 2 {
			t.Errorf("2 messages count as %d: %+v", n, c)
		}
		if want := segments(first) + segments(second); tcp && n+c.Unread != want {
			t.Errorf("%d messages and unread segments, want %d: %+v", n+c.Unread, want, c)
		}
		r.Expire(10_000 * ms)
		if r.Pending() != 0 {
			t.Errorf("%d queries still wait", r.Pending())
		}
		for _, e := range r.told {
			for _, s := range append([]string{e.Exchange.Name}, answerTexts(e.Answers)...) {
				if strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
					t.Errorf("told of %q", s)
				}
			}
		}
	})
}

// segments is how often a segment that begins with a message is to be counted: for each
// message that begins in it, or once for what is behind the last that can be read.
func segments(b []byte) (n uint64) {
	for len(b) > 0 {
		n++
		if len(b) < 2 {
			return n
		}
		size := int(b[0])<<8 | int(b[1])
		if b = b[2:]; len(b) == 0 {
			return n - 1 // the next segment begins with the message
		}
		if size < headerSize || size > len(b) && len(b) < headerSize {
			return n
		}
		b = b[min(size, len(b)):]
	}
	return n
}

func answerTexts(all []Answer) []string {
	var texts []string
	for _, a := range all {
		texts = append(texts, a.Name, a.Data)
	}
	return texts
}

// BenchmarkSearch is a name that is not found with a search domain, and then without.
func BenchmarkSearch(b *testing.B) {
	s := newSearches()
	failed := &Exchange{Name: "api.example.test.default.svc.cluster.local", RCode: NXDomain}
	found := &Exchange{Name: "api.example.test", Answers: make([]Answer, 1)}
	b.ReportAllocs()
	for b.Loop() {
		s.add(1, failed, ms)
		s.add(1, found, ms)
	}
}

func BenchmarkExchange(b *testing.B) {
	m := NewMatcher(Config{
		Emit: func(*Record) {}, Unix: func(boot uint64) int64 { return int64(boot) },
		Timeout: func() time.Duration { return time.Second },
	})
	q := query(b, 1, "api.example.test", TypeA)
	ans := answer(b, 1, "api.example.test", TypeA, NoError, a("api.example.test", "192.0.2.1"))
	b.ReportAllocs()
	for b.Loop() {
		m.Add(packet(ms, q, true))
		m.Add(packet(2*ms, ans, false))
	}
}
