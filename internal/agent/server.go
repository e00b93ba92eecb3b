// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
)

const (
	defaultRows = 1000
	maxRows     = 10_000
	// maxStreams bounds the queues that clients can make the agent keep.
	maxStreams = 64
	// maxQueries is how many answers of all flows the agent keeps at a time; others
	// wait for queryWait.
	maxQueries = 4
	queryWait  = 5 * time.Second
	// progressEvery is how often a stream that asks for it is told how far things
	// have gone although nothing has matched.
	progressEvery = 10 * time.Second
)

// server answers the API from the agent's table and hub.
type server struct {
	orb8v1.UnimplementedOrbitAgentServiceServer
	agent *Agent
}

// GetStatus implements the API.
func (s *server) GetStatus(context.Context, *orb8v1.GetStatusRequest) (*orb8v1.AgentStatus, error) {
	return s.agent.status(), nil
}

// interest compiles a request's filters, with those of the first version's
// fields at the end.
func (s *server) interest(filters []*orb8v1.Filter, namespaces, pods []string, self bool) (interest, error) {
	all := slices.Clone(filters)
	if len(namespaces) > 0 || len(pods) > 0 {
		all = append(all, &orb8v1.Filter{Namespaces: namespaces, Pods: pods})
	}
	set, err := filter.Compile(all, filter.WithNode(s.agent.node))
	if err != nil {
		return interest{}, status.Error(codes.InvalidArgument, err.Error())
	}
	return interest{filters: set, self: self || s.agent.config().IncludeSelf, flows: true}, nil
}

// QueryFlows implements the API.
func (s *server) QueryFlows(ctx context.Context, req *orb8v1.QueryFlowsRequest) (*orb8v1.QueryFlowsResponse, error) {
	i, err := s.interest(req.GetFilters(), req.GetNamespaces(), req.GetPodNames(), req.GetIncludeSelf())
	if err != nil {
		return nil, err
	}
	if err := s.agent.collector.fresh(ctx); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	limit := int(min(req.GetLimit(), maxRows))
	if limit == 0 {
		limit = defaultRows
	}
	release, err := s.admit(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return s.queryResponse(s.selectHalves(&i, req.GetSinceNs(), limit)), nil
}

// admit waits until there is room for another answer; release gives it back.
func (s *server) admit(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, queryWait)
	defer cancel()
	if s.agent.queries.Acquire(ctx, 1) != nil {
		return nil, status.Errorf(codes.ResourceExhausted,
			"%d queries are being answered, which is the most: try again, or take answers faster", maxQueries)
	}
	return func() { s.agent.queries.Release(1) }, nil
}

// ranked is a row of an answer, or one direction of it, without the row.
type ranked struct {
	key    flow.Key
	egress bool
	by     uint64
	nth    int // in the order of the table
}

func (a ranked) compare(b ranked) int {
	return cmp.Or(cmp.Compare(b.by, a.by), cmp.Compare(a.nth, b.nth))
}

// ranking keeps the first ones of an order.
type ranking struct {
	limit int // 0 for all
	all   []ranked
	total uint64 // that were added
}

func (k *ranking) add(r ranked) {
	r.nth = int(k.total)
	k.total++
	k.all = append(k.all, r)
	if k.limit > 0 && len(k.all) >= 2*k.limit {
		k.cut()
	}
}

func (k *ranking) cut() []ranked {
	slices.SortFunc(k.all, ranked.compare)
	if k.limit > 0 && len(k.all) > k.limit {
		k.all = k.all[:k.limit]
	}
	return k.all
}

// selectHalves returns the directions of the rows that match, most bytes first.
func (s *server) selectHalves(i *interest, since int64, limit int) *ranking {
	k := &ranking{limit: limit}
	s.agent.eachRow(func(r *flow.Record) {
		if r.Last < since || !i.wants(r) {
			return
		}
		tx, rx := directions(r.Total)
		if tx {
			k.add(ranked{key: r.Key(), egress: true, by: r.Total.TxBytes})
		}
		if rx {
			k.add(ranked{key: r.Key(), by: r.Total.RxBytes})
		}
	})
	k.cut()
	return k
}

func (s *server) queryResponse(k *ranking) *orb8v1.QueryFlowsResponse {
	resp := &orb8v1.QueryFlowsResponse{Total: k.total}
	const overhead = 16 // of a row within the response, and of total
	size := overhead
	for ref, r := range s.rowsOf(k.all) {
		h := ingressOf(r)
		if ref.egress {
			h = egressOf(r)
		}
		f := networkFlow(r, h, s.agent.node)
		if size += proto.Size(f) + overhead; size > maxResponse {
			break
		}
		resp.Flows = append(resp.Flows, f)
	}
	return resp
}

// rowsOf yields an answer with its rows, of those that are still there. They are fetched
// some at a time, as the answer is taken.
func (s *server) rowsOf(answer []ranked) iter.Seq2[ranked, *flow.Record] {
	return func(yield func(ranked, *flow.Record) bool) {
		for some := range slices.Chunk(answer, rowsAtOnce) {
			keys := make([]flow.Key, len(some))
			for i := range some {
				keys[i] = some[i].key
			}
			rows := make(map[flow.Key]*flow.Record, len(some))
			s.agent.eachOf(keys, func(r *flow.Record) {
				if key := r.Key(); rows[key] == nil {
					c := *r
					rows[key] = &c
				}
			})
			for _, ref := range some {
				if r := rows[ref.key]; r != nil && !yield(ref, r) {
					return
				}
			}
		}
	}
}

// lostTrailer of a StreamEvents call says how many events the client did not take in time.
const lostTrailer = "orb8-lost-events"

// StreamEvents implements the API.
func (s *server) StreamEvents(req *orb8v1.StreamEventsRequest, stream grpc.ServerStreamingServer[orb8v1.NetworkEvent]) error {
	i, err := s.interest(req.GetFilters(), req.GetNamespaces(), nil, req.GetIncludeSelf())
	if err != nil {
		return err
	}
	// An event of this call has no room for what was lost: it is told at the end.
	lost := uint64(0)
	defer func() {
		if lost > 0 {
			stream.SetTrailer(metadata.Pairs(lostTrailer, strconv.FormatUint(lost, 10)))
		}
	}()
	return s.follow(stream.Context(), following{interest: i}, nil, func(q queued) error {
		lost += q.lost
		if q.update == nil {
			return nil
		}
		for _, e := range q.update.networkEvents() {
			if err := stream.Send(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// Observe implements the API.
func (s *server) Observe(req *orb8v1.ObserveRequest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	i, err := s.interest(req.GetFilters(), nil, nil, req.GetIncludeSelf())
	if err != nil {
		return err
	}
	i.setKinds(req.GetKinds())
	greeting := s.agent.nodeEvent()
	greeting.Sequence = s.agent.hub.place()
	if err := stream.Send(greeting); err != nil {
		return err
	}
	if req.GetSnapshot() || req.GetSinceNs() != 0 || req.GetLast() != 0 {
		if err := s.agent.collector.fresh(stream.Context()); err != nil {
			return status.FromContextError(err).Err()
		}
	}
	f := following{interest: i, past: s.agent.pastOf(req, greeting.Sequence)}
	begin := func(h history) error { return s.begin(req, &i, h, stream) }
	if !req.GetFollow() {
		return begin(s.agent.hub.past(&i, f.past))
	}
	if req.GetProgress() {
		f.idle = progressEvery
	}
	return s.follow(stream.Context(), f, begin, func(q queued) error { return s.send(stream, &i, q) })
}

// pastOf returns what of the past a request wants; now is the place that its
// stream was told of. What happens from then on belongs to a stream that only
// follows.
func (a *Agent) pastOf(req *orb8v1.ObserveRequest, now uint64) past {
	p := past{since: req.GetSinceNs(), last: int(req.GetLast())}
	r := req.GetResume()
	switch {
	case r == nil:
		if p == (past{}) && req.GetFollow() && !req.GetSnapshot() {
			return past{resume: true, after: now}
		}
		return p
	case r.GetStartedNs() == a.started.UnixNano():
		return past{resume: true, after: r.GetAfter()}
	}
	return past{resume: true, since: p.since} // all since this agent's start
}

// setKinds takes over a request's kinds. Losses and node states come unless
// other kinds were asked for.
func (i *interest) setKinds(kinds []orb8v1.EventKind) {
	has := func(k orb8v1.EventKind) bool { return len(kinds) == 0 || slices.Contains(kinds, k) }
	i.flows = has(orb8v1.EventKind_EVENT_KIND_FLOW)
	i.connections = has(orb8v1.EventKind_EVENT_KIND_CONNECTION)
	i.status = has(orb8v1.EventKind_EVENT_KIND_NODE_STATUS)
	i.losses = has(orb8v1.EventKind_EVENT_KIND_LOST_EVENTS)
	i.accelerators = slices.Contains(kinds, orb8v1.EventKind_EVENT_KIND_ACCELERATOR)
}

// onlyAccelerators: of flows nothing is wanted, not even in a snapshot, which
// otherwise has flows of any kind.
func (i *interest) onlyAccelerators() bool { return i.accelerators && !i.flows && !i.connections }

// begin sends the snapshot and the history that were asked for.
func (s *server) begin(req *orb8v1.ObserveRequest, i *interest, h history, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	if req.GetSnapshot() {
		for _, ev := range s.agent.latestAccelerators(i) {
			if err := stream.Send(ev); err != nil {
				return err
			}
		}
	}
	if req.GetSnapshot() && !i.onlyAccelerators() {
		if err := s.sendSnapshot(req, i, stream); err != nil {
			return err
		}
	}
	if h.missing > 0 {
		if err := stream.Send(s.agent.lostEvent(loss.ResumeGap, h.missing)); err != nil {
			return err
		}
	}
	for _, u := range h.updates {
		if err := stream.Send(u.event(i)); err != nil {
			return err
		}
	}
	return nil
}

// sendSnapshot sends the table's rows that match, of any kind.
func (s *server) sendSnapshot(req *orb8v1.ObserveRequest, i *interest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	release, err := s.admit(stream.Context())
	if err != nil {
		return err
	}
	defer release()
	kind := *i
	kind.flows = true
	k := &ranking{limit: int(req.GetLimit())}
	s.agent.eachRow(func(r *flow.Record) {
		if kind.wants(r) {
			k.add(ranked{key: r.Key(), by: sortKey(r, req.GetSort())})
		}
	})
	for _, r := range s.rowsOf(k.cut()) {
		if err := stream.Send(flowEvent(r, s.agent.node)); err != nil {
			return err
		}
	}
	return nil
}

func sortKey(r *flow.Record, by orb8v1.Sort) uint64 {
	switch by {
	case orb8v1.Sort_SORT_PACKETS:
		return r.Total.TxPackets + r.Total.RxPackets
	case orb8v1.Sort_SORT_LAST_SEEN:
		return uint64(max(r.Last, 0))
	case orb8v1.Sort_SORT_RTT:
		return uint64(r.TCP.RTTMicros)
	case orb8v1.Sort_SORT_RETRANSMITS:
		return r.TCP.Retransmits
	}
	return r.Total.TxBytes + r.Total.RxBytes
}

// send sends what was queued: first how much was lost before it.
func (s *server) send(stream grpc.ServerStreamingServer[orb8v1.Event], i *interest, q queued) error {
	if q.lost > 0 {
		if err := stream.Send(s.agent.lostEvent(loss.SubscriberSlow, q.lost)); err != nil {
			return err
		}
	}
	switch {
	case q.update != nil:
		return stream.Send(q.update.event(i))
	case q.reached > 0:
		return stream.Send(s.agent.event(&orb8v1.Event{Sequence: q.reached}))
	}
	return nil
}

var errStopping = errors.New("the agent is stopping")

// following is what a stream that follows is to bring.
type following struct {
	interest
	past past
	idle time.Duration
}

// follow subscribes, calls begin, if there is one, with the part of the history
// that is asked for, and then send with whatever happens, until ctx is done or the
// agent stops.
func (s *server) follow(ctx context.Context, f following, begin func(history) error, send func(queued) error) error {
	if s.agent.hub.subscribers() >= maxStreams {
		return status.Errorf(codes.ResourceExhausted, "%d streams are being served, which is the most", maxStreams)
	}
	sub, recent := s.agent.hub.subscribe(f.interest, s.agent.config().SubscriberQueue, f.past)
	sub.idle = f.idle
	defer s.agent.hub.unsubscribe(sub)
	var lost uint64
	defer func() {
		if lost > 0 {
			s.agent.log.Warn("client was too slow", "lost", lost)
		}
	}()
	if begin != nil {
		if err := begin(recent); err != nil {
			return err
		}
	}
	for {
		q, ok := sub.next(ctx)
		if !ok {
			break
		}
		lost += q.lost
		if err := send(q); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, errStopping.Error())
}
