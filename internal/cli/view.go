// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

// liveView writes events as they come.
type liveView interface {
	Titles() error
	Write(*orb8v1.Event) error
	Resize(width, height int)
}

// A view may also have something to do when nothing is waiting, and at the end.
type (
	drawer   interface{ Draw() error }
	finisher interface{ Finish() error }
)

// newView returns what shows the kind of events that f asks for.
func newView(w io.Writer, f *traceFlags, src *source, options render.Options, inPlace bool) liveView {
	var events *render.Events
	var view liveView
	switch f.kind.only {
	case orb8v1.EventKind_EVENT_KIND_DNS:
		v := render.NewDNS(w, options, render.DNSOptions{ServerSide: f.serverSide})
		events, view = v.Events, v
	case orb8v1.EventKind_EVENT_KIND_PROCESS:
		v := render.NewProcesses(w, options, render.ProcessOptions{Exits: f.exits})
		events, view = v.Events, v
	case orb8v1.EventKind_EVENT_KIND_ALERT:
		v := render.NewAlerts(w, options, render.AlertOptions{Hold: !f.following()})
		events, view = v.Events, v
	case orb8v1.EventKind_EVENT_KIND_SYSCALL:
		if f.calls.summary {
			v := newCountsView(w, options, inPlace)
			events, view = v.Events, v
			break
		}
		v := render.NewSyscalls(w, options, render.SyscallOptions{One: f.onePod()})
		events, view = v.Events, v
	default:
		events, view = newTrafficView(w, f, options)
	}
	events.Meanings = meanings(src.statuses())
	return view
}

func newTrafficView(w io.Writer, f *traceFlags, options render.Options) (*render.Events, liveView) {
	if f.onlyDrops() {
		v := render.NewDrops(w, options)
		return v.Events, v
	}
	v := render.NewEvents(w, options)
	return v, v
}

// subject is what the summary at the end is about.
func (f *traceFlags) subject() render.Subject {
	switch f.kind.only {
	case orb8v1.EventKind_EVENT_KIND_DNS:
		return render.OfDNS
	case orb8v1.EventKind_EVENT_KIND_PROCESS:
		return render.OfProcesses
	case orb8v1.EventKind_EVENT_KIND_ALERT:
		return render.OfAlerts
	case orb8v1.EventKind_EVENT_KIND_SYSCALL:
		if f.calls.summary {
			return render.OfSyscallCounts
		}
		return render.OfSyscalls
	}
	if f.onlyDrops() {
		return render.OfDrops
	}
	return render.OfFlows
}

func meanings(all []*orb8v1.AgentStatus) map[string]string {
	m := map[string]string{}
	for _, s := range all {
		for _, l := range s.GetLosses() {
			m[l.GetStage()] = l.GetMeaning()
		}
	}
	return m
}
