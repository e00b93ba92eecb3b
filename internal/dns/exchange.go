// SPDX-License-Identifier: Apache-2.0

// Package dns makes sense of DNS messages that were seen on their way: it reads
// them, matches answers with queries, and knows what names were asked for and
// whose addresses they gave. It knows nothing of BPF or of who asks.
package dns

import (
	"time"

	"github.com/Ignoramuss/orb8/internal/record"
)

// Outcome is what came of a query; the numbers are those of the API.
type Outcome uint8

// The outcomes of a query.
const (
	Answered Outcome = iota + 1
	// Timeout: there was no answer in time.
	Timeout
	// Unread stands for a connection over TCP of which a part could not be read, with
	// nothing but its ends, and for each query of which it is not known what came of it:
	// its answer may be in such a part, or among messages that were lost, or it was
	// given up before its time because too many waited.
	Unread
)

// Record is a query with what came of it. Its Role tells at which end it was seen, First
// when the query was, and Last and Time when the answer was, or when it was given up.
type Record struct {
	record.Header
	Exchange
}

// Exchange is what a record tells of the query and of its answer.
type Exchange struct {
	Outcome Outcome
	ID      uint16
	// Name is in the form of the API, see orb8.proto.
	Name  string
	Type  Type
	RCode RCode // only if Answered
	// Latency is from the first query to the answer.
	Latency time.Duration
	// Repeats is how often the same query was sent again.
	Repeats uint32
	Answers []Answer
	// More is how many further records the answer section has.
	More                     uint32
	Truncated, Authoritative bool
	// AnswerBytes is the length of the answer's message.
	AnswerBytes uint32
	// SearchFailures is how many queries right before had failed only because a
	// search domain was appended to Name.
	SearchFailures uint32
}

// Nameless reports whether x stands for a connection rather than a query.
func (x *Exchange) Nameless() bool { return x.Outcome == Unread && x.Name == "" }

// Failed reports whether the query brought anything but NOERROR.
func (x *Exchange) Failed() bool {
	return x.Outcome == Timeout || x.Outcome == Answered && x.RCode != NoError
}

// Answer is a record of an answer section.
type Answer struct {
	Name string
	Type Type
	TTL  uint32 // seconds
	// Data is an address or a name, or empty, see the API.
	Data string
}
