// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/Ignoramuss/orb8/internal/record"
)

// MaxPorts is how many ports the kernel's program can compare each packet with.
const MaxPorts = 8

// Packet is what was copied of a DNS message on its way, with its ends.
type Packet struct {
	BootNanos             uint64
	CgroupID              uint64
	Local, Remote         record.Addr
	LocalPort, RemotePort uint16
	Protocol              record.Protocol
	// Out: the local end sent it.
	Out, Loopback bool
	PID           uint32
	Comm          record.Comm
	// Length of the whole UDP or TCP payload, Data the beginning of it.
	Length int
	// Segment, where several messages are in one packet of UDP, is the length of each
	// but the last (UDP_SEGMENT); else 0 or any other number.
	Segment int
	Data    []byte
}

// maxAnswers bounds the records of an answer that are kept, maxText about how many
// bytes their names and data may have: pointers make long names of a few bytes.
const (
	maxAnswers = 32
	maxText    = 4096
)

// message is what is read of a message.
type message struct {
	id                       uint16
	response                 bool
	name                     string
	kind                     Type
	rcode                    RCode
	truncated, authoritative bool
	// bare: an error without the question that it answers.
	bare bool
}

var (
	errOpcode    = errors.New("not a query")
	errQuestions = errors.New("not one question")
	errLength    = errors.New("an address of another length")
)

// reader reads messages, one at a time.
type reader struct {
	p    dnsmessage.Parser
	name []byte
	// last is the latest name, which the next one often is again.
	last string
}

// read reads a message's header and question. Whatever the bytes are, it takes a
// bounded time: the parser follows 10 compression pointers at most.
func (r *reader) read(data []byte, m *message) error {
	h, err := r.p.Start(data)
	if err != nil {
		return err
	}
	if h.OpCode != 0 {
		return errOpcode
	}
	*m = message{
		id: h.ID, response: h.Response, rcode: RCode(h.RCode), truncated: h.Truncated, authoritative: h.Authoritative,
	}
	q, err := r.p.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) && h.Response && h.RCode != dnsmessage.RCodeSuccess {
		m.bare = true // servers that do not know EDNS answer so
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errQuestions, err)
	}
	if err := r.p.SkipQuestion(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return errQuestions // RFC 9619: a query has one
	}
	m.name, m.kind = r.text(&q.Name), Type(q.Type)
	return nil
}

// extendedRCode returns m's code with the bits that EDNS adds, if the message has such
// a record and that is in data. The answers have been read; what else is wrong with the
// message behind them does not matter.
func (r *reader) extendedRCode(data []byte, m *message) RCode {
	if data[10] == 0 && data[11] == 0 {
		return m.rcode
	}
	if r.p.SkipAllAnswers() != nil || r.p.SkipAllAuthorities() != nil {
		return m.rcode
	}
	for {
		h, err := r.p.AdditionalHeader()
		if err != nil {
			return m.rcode
		}
		if h.Type == dnsmessage.TypeOPT {
			return RCode(h.ExtendedRCode(dnsmessage.RCode(m.rcode)))
		}
		if r.p.SkipAdditional() != nil {
			return m.rcode
		}
	}
}

// answers reads the answer section of the message that was read last. whole says
// that all of the message is there.
func (r *reader) answers(data []byte, whole bool) (all []Answer, more uint32, err error) {
	count := uint32(data[6])<<8 | uint32(data[7])
	if count == 0 {
		return nil, 0, nil
	}
	all = make([]Answer, 0, min(count, maxAnswers))
	text := 0
	for range count {
		h, err := r.p.AnswerHeader()
		if err == nil && len(all) < maxAnswers && text < maxText {
			var a Answer
			if a, err = r.answer(&h); err == nil {
				all = append(all, a)
				text += len(a.Name) + len(a.Data)
				continue
			}
		} else if err == nil {
			err = r.p.SkipAnswer()
		}
		if err != nil && !whole {
			break
		}
		if err != nil {
			return nil, 0, err
		}
	}
	return all, count - uint32(len(all)), nil
}

func (r *reader) answer(h *dnsmessage.ResourceHeader) (Answer, error) {
	a := Answer{Name: r.text(&h.Name), Type: Type(h.Type), TTL: h.TTL}
	// The parser takes these two as long as they are, whatever the record says.
	if a.Type == TypeA && h.Length != 4 || a.Type == TypeAAAA && h.Length != 16 {
		return a, errLength
	}
	switch a.Type {
	case TypeA:
		res, err := r.p.AResource()
		a.Data = netip.AddrFrom4(res.A).String()
		return a, err
	case TypeAAAA:
		res, err := r.p.AAAAResource()
		a.Data = netip.AddrFrom16(res.AAAA).String()
		return a, err
	case TypeCNAME:
		res, err := r.p.CNAMEResource()
		a.Data = r.text(&res.CNAME)
		return a, err
	case TypeNS:
		res, err := r.p.NSResource()
		a.Data = r.text(&res.NS)
		return a, err
	case TypePTR:
		res, err := r.p.PTRResource()
		a.Data = r.text(&res.PTR)
		return a, err
	case TypeMX:
		res, err := r.p.MXResource()
		a.Data = r.text(&res.MX)
		return a, err
	case TypeSRV:
		res, err := r.p.SRVResource()
		a.Data = fmt.Sprintf("%s:%d", r.text(&res.Target), res.Port)
		return a, err
	}
	return a, r.p.SkipAnswer()
}

// text writes a name in the form of the API. The parser has refused labels with a
// dot in them.
func (r *reader) text(n *dnsmessage.Name) string {
	raw := n.Data[:n.Length]
	if len(raw) > 1 && raw[len(raw)-1] == '.' {
		raw = raw[:len(raw)-1]
	}
	out := r.name[:0]
	for _, b := range raw {
		switch {
		case b >= 'A' && b <= 'Z':
			out = append(out, b+'a'-'A')
		case b == '\\':
			out = append(out, '\\', b)
		case b > ' ' && b < 0x7f:
			out = append(out, b)
		default:
			out = append(out, '\\', '0'+b/100, '0'+b/10%10, '0'+b%10)
		}
	}
	r.name = out
	if string(out) != r.last {
		r.last = string(out)
	}
	return r.last
}
