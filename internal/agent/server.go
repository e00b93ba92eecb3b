// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"iter"
	"math"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/stream"
	"github.com/Ignoramuss/orb8/internal/agent/tracing"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/kinds"
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
func (s *server) interest(filters []*orb8v1.Filter, namespaces, pods []string, self bool) (stream.Interest, error) {
	all := slices.Clone(filters)
	if len(namespaces) > 0 || len(pods) > 0 {
		all = append(all, &orb8v1.Filter{Namespaces: namespaces, Pods: pods})
	}
	set, err := kinds.Compile(all, filter.WithNode(s.agent.node))
	if err != nil {
		return stream.Interest{}, status.Error(codes.InvalidArgument, err.Error())
	}
	return stream.Interest{Filters: set, Self: self || s.agent.Config().IncludeSelf}, nil
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
func (s *server) selectHalves(i *stream.Interest, since int64, limit int) *ranking {
	k := &ranking{limit: limit}
	s.agent.eachRow(func(r *flow.Record) {
		if r.Last < since || !i.WantsFlow(r) {
			return
		}
		tx, rx := flows.Directions(r.Total)
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
		h := flows.Ingress(r)
		if ref.egress {
			h = flows.Egress(r)
		}
		f := flows.NetworkFlow(r, h, s.agent.node)
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
	i.Kinds = []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW}
	return s.follow(stream.Context(), hub.Options{Tag: &i}, nil, func(item hub.Item) error {
		lost += item.Lost
		r, ok := item.Record.(*flow.Record)
		if !ok {
			return nil
		}
		for _, e := range flows.NetworkEvents(r) {
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
	i.Kinds, i.DNSView, i.Steps, i.NoLoopback = req.GetKinds(), req.GetDnsView(), req.GetProcessSteps(), req.GetNoLoopback()
	if slices.Contains(i.Kinds, orb8v1.EventKind_EVENT_KIND_SYSCALL) {
		return s.traceCalls(req, i, stream)
	}
	greeting := s.agent.nodeEvent()
	greeting.Sequence = s.agent.hub.Sequence()
	if err := stream.Send(greeting); err != nil {
		return err
	}
	if req.GetFollow() && req.GetProgress() {
		// Who merges streams is to know before the history comes.
		if err := stream.Send(s.agent.progress(0, 1)); err != nil {
			return err
		}
	}
	if req.GetSnapshot() || req.GetSinceNs() != 0 || req.GetLast() != 0 {
		if err := s.agent.collector.fresh(stream.Context()); err != nil {
			return status.FromContextError(err).Err()
		}
	}
	o := hub.Options{Tag: &i, Past: s.agent.pastOf(req, greeting.Sequence)}
	begin := func(h hub.History) error { return s.begin(req, &i, h, stream) }
	if !req.GetFollow() {
		o.Select = s.agent.streams.Selections(&i)
		past := s.agent.hub.Past(o)
		if req.GetProgress() {
			past.Sort()
		}
		return begin(past)
	}
	if req.GetProgress() {
		o.Idle, o.Low = progressEvery, true
	}
	return s.follow(stream.Context(), o, begin, func(item hub.Item) error { return s.send(stream, &i, item) })
}

// pastOf returns what of the past a request wants; now is the place that its
// stream was told of. What happens from then on belongs to a stream that only
// follows.
func (a *Agent) pastOf(req *orb8v1.ObserveRequest, now uint64) hub.Past {
	p := hub.Past{Since: req.GetSinceNs(), Last: int(req.GetLast())}
	r := req.GetResume()
	switch {
	case r == nil:
		if p == (hub.Past{}) && req.GetFollow() && !req.GetSnapshot() {
			return hub.Past{Resume: true, After: now}
		}
		return p
	case r.GetStartedNs() == a.started.UnixNano():
		return hub.Past{Resume: true, After: r.GetAfter()}
	}
	return hub.Past{Resume: true, Since: p.Since} // all since this agent's start
}

// begin sends the snapshot and the history that were asked for.
func (s *server) begin(req *orb8v1.ObserveRequest, i *stream.Interest, h hub.History, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	if req.GetSnapshot() {
		for _, ev := range s.agent.latestAccelerators(i) {
			if err := stream.Send(ev); err != nil {
				return err
			}
		}
	}
	if req.GetSnapshot() && i.DNSNames() {
		if err := s.sendNames(req, i, stream); err != nil {
			return err
		}
	}
	if req.GetSnapshot() && i.Table() {
		if err := s.sendSnapshot(req, i, stream); err != nil {
			return err
		}
	}
	if h.Missing > 0 {
		if err := stream.Send(s.agent.lostEvent(loss.ResumeGap, h.Missing)); err != nil {
			return err
		}
	}
	if ev := s.agent.reachOf(req, h); ev != nil {
		if err := stream.Send(ev); err != nil {
			return err
		}
	}
	for n := range h.Items {
		if err := stream.Send(s.agent.streams.Event(&h.Items[n], i)); err != nil {
			return err
		}
	}
	return nil
}

// reachOf tells that the history is shorter than what was asked for; nil if it is not. Who
// goes on where a stream broke is told of what is missing, and who asks for all that is kept
// has it.
func (a *Agent) reachOf(req *orb8v1.ObserveRequest, h hub.History) *orb8v1.Event {
	if began := a.started.UnixNano(); h.Since == 0 && req.GetResume() == nil && req.GetSinceNs() > 1 && req.GetSinceNs() < began {
		ev := a.event(&orb8v1.Event{Event: &orb8v1.Event_HistoryReach{HistoryReach: &orb8v1.HistoryReach{SinceNs: began, AgentStarted: true}}})
		ev.TimeNs = began
		return ev
	}
	short := req.GetSinceNs() > 1 && req.GetSinceNs() < h.Since || req.GetLast() > 0 && len(h.Items) < int(req.GetLast())
	if req.GetResume() != nil || h.Since == 0 || !short {
		return nil
	}
	ev := a.event(&orb8v1.Event{Event: &orb8v1.Event_HistoryReach{HistoryReach: new(orb8v1.HistoryReach)}})
	if h.Since < math.MaxInt64 {
		// In its place among the past of several nodes.
		ev.TimeNs, ev.GetHistoryReach().SinceNs = h.Since, h.Since
	}
	return ev
}

// sendNames sends what was asked of DNS lately, and how much of that is missing.
func (s *server) sendNames(req *orb8v1.ObserveRequest, i *stream.Interest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	correction := int64(s.agent.deps.Clock.Correction())
	for _, ev := range s.agent.dnsNames.Events(i.Filters, int(req.GetLimit()), s.agent.node) {
		ev.TimeNs += correction
		ev.GetDnsName().FirstSeenNs += correction
		ev.GetDnsName().LastSeenNs += correction
		if err := stream.Send(ev); err != nil {
			return err
		}
	}
	if n := s.agent.dnsNames.PushedOut(); n > 0 {
		return stream.Send(s.agent.lostEvent(loss.DNSNamesFull, n))
	}
	return nil
}

// sendSnapshot sends the table's rows that match, of any kind.
func (s *server) sendSnapshot(req *orb8v1.ObserveRequest, i *stream.Interest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	release, err := s.admit(stream.Context())
	if err != nil {
		return err
	}
	defer release()
	rows := *i
	rows.Kinds = []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW}
	k := &ranking{limit: int(req.GetLimit())}
	s.agent.eachRow(func(r *flow.Record) {
		if r.Last >= req.GetActiveSinceNs() && rows.WantsFlow(r) {
			k.add(ranked{key: r.Key(), by: sortKey(r, req.GetSort())})
		}
	})
	for _, r := range s.rowsOf(k.cut()) {
		if err := stream.Send(flows.Event(r, s.agent.node)); err != nil {
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

// send sends an item: first how much was lost before it.
func (s *server) send(stream grpc.ServerStreamingServer[orb8v1.Event], i *stream.Interest, item hub.Item) error {
	if item.Lost > 0 {
		if err := stream.Send(s.agent.lostEvent(loss.SubscriberSlow, item.Lost)); err != nil {
			return err
		}
	}
	if item.Record != nil {
		return stream.Send(s.agent.streams.Event(&item, i))
	}
	if notice, ok := item.Notice.(*orb8v1.Event); ok {
		return stream.Send(notice)
	}
	if item.Sequence > 0 || item.Low > 0 {
		return stream.Send(s.agent.progress(item.Sequence, item.Low))
	}
	return nil
}

// progress tells how far things have gone, and up to when nothing more will come.
func (a *Agent) progress(sequence uint64, low int64) *orb8v1.Event {
	return a.event(&orb8v1.Event{
		Sequence: sequence, Event: &orb8v1.Event_Progress{Progress: &orb8v1.Progress{LowWatermarkNs: low}},
	})
}

// follow subscribes, calls begin, if there is one, with the part of the history
// that is asked for, and then send with whatever happens, until ctx is done or the
// agent stops.
func (s *server) follow(ctx context.Context, o hub.Options, begin func(hub.History) error, send func(hub.Item) error) error {
	if s.agent.hub.Subscribers() >= maxStreams {
		return status.Errorf(codes.ResourceExhausted, "%d streams are being served, which is the most", maxStreams)
	}
	if i, ok := o.Tag.(*stream.Interest); ok {
		o.Select = s.agent.streams.Selections(i)
	}
	o.Queue = s.agent.Config().SubscriberQueue
	sub, recent := s.agent.hub.Subscribe(o)
	defer sub.Close()
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
		item, ok := sub.Next(ctx)
		if !ok {
			break
		}
		lost += item.Lost
		if err := send(item); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, tracing.ErrStopping.Error())
}
