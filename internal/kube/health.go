// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Health says how well something keeps up with the API server or a relay.
type Health struct {
	// Synced: everything was delivered once.
	Synced bool
	// Settled: what there is no permission for aside, everything was.
	Settled bool
	// Err is why nothing is delivered, since Since; nil while all is well. A
	// permission that is missing is in Missing instead.
	Err   error
	Since time.Time
	// Bounded has what is left out for want of memory.
	Bounded []string
	// Missing has one sentence per permission, such as "list and watch pods:
	// forbidden: ... lacks it".
	Missing []string
}

// and joins two answers.
func (h Health) and(o Health) Health {
	h.Synced, h.Settled = h.Synced && o.Synced, h.Settled && o.Settled
	if h.Err == nil || o.Err != nil && o.Since.Before(h.Since) {
		h.Err, h.Since = o.Err, o.Since
	}
	h.Missing = append(slices.Clip(h.Missing), o.Missing...)
	h.Bounded = append(slices.Clip(h.Bounded), o.Bounded...)
	return h
}

// link keeps the state of one watch.
type link struct {
	resource string // services, endpointslices.discovery.k8s.io
	log      *slog.Logger
	now      func() time.Time

	mu      sync.Mutex
	synced  bool
	err     error
	since   time.Time
	contact time.Time
	denied  map[string]string // account, by verb
	// most is how many objects may be known, where there were more.
	most int
}

func newLink(resource string, log *slog.Logger, now func() time.Time) *link {
	return &link{resource: resource, log: log, now: now, contact: now(), denied: make(map[string]string)}
}

// done notes how a request ended: a list, or the begin of a watch.
func (l *link) done(ctx context.Context, verb string, err error) {
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.most > 0: // it has ended
	case err == nil:
		if l.err != nil {
			l.log.Info("Kubernetes watch recovered", "resource", l.resource, "after", l.now().Sub(l.since))
		}
		l.err = nil
		delete(l.denied, verb)
		if verb == "watch" {
			// It follows a list, or delivers in place of one.
			clear(l.denied)
		}
	case apierrors.IsForbidden(err):
		if _, known := l.denied[verb]; !known {
			l.log.Warn("Kubernetes permission missing", "verb", verb, "resource", l.resource, "err", err)
		}
		l.err = nil
		l.denied[verb] = account(err)
		return
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
		// Answered: all is listed again.
	case l.err == nil:
		// Until now the watch stood.
		l.since = l.now()
		if l.synced {
			l.contact = l.since
		}
		l.err = short(err)
		l.log.Warn("Kubernetes watch failed", "verb", verb, "resource", l.resource, "err", l.err)
		return
	default:
		l.err = short(err)
		return
	}
	l.contact = l.now()
}

// full notes that there are more objects than may be known: none will be.
func (l *link) full(most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.most == 0 {
		l.log.Warn("the cluster has more than fits: only this node's are known", "resource", l.resource, "bound", most)
	}
	l.most, l.synced, l.err = most, true, nil
}

func (l *link) isFull() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.most > 0
}

func (l *link) sync() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.synced = true
}

// waiting reports whether news may come: the watch stands, or did a moment ago.
func (l *link) waiting(grace time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.synced && l.err == nil && len(l.denied) == 0 {
		return true
	}
	return l.now().Sub(l.contact) < grace
}

func (l *link) health() Health {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := Health{Synced: l.synced, Settled: l.synced || len(l.denied) > 0, Err: l.err, Since: l.since}
	if l.most > 0 {
		h.Bounded = []string{fmt.Sprintf("the cluster has more than %d %s, which do not fit this agent's memory limit: those of other nodes have no names; "+
			"give it more memory (resources.limits.memory in the chart), or set kubernetes_peers to own", l.most, l.resource)}
		return h
	}
	if len(l.denied) == 0 {
		return h
	}
	var verbs []string
	who := ""
	for verb, account := range l.denied {
		verbs, who = append(verbs, verb), account
	}
	slices.Sort(verbs)
	h.Missing = []string{fmt.Sprintf("%s %s: forbidden: %s lacks it", strings.Join(verbs, " and "), l.resource, who)}
	return h
}

var forbiddenUser = regexp.MustCompile(`User "([^"]+)"`)

// account is who the API server says may not do what was asked.
func account(err error) string {
	m := forbiddenUser.FindStringSubmatch(err.Error())
	if m == nil {
		return "the account of this agent"
	}
	if sa, ok := strings.CutPrefix(m[1], "system:serviceaccount:"); ok {
		return "the service account " + strings.Replace(sa, ":", "/", 1)
	}
	return "the user " + m[1]
}

// short leaves the address of a request out of its error.
func short(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

// trouble says in words what an error of a request to the API server means, and
// what to do about it.
func trouble(err error) (what, todo string) {
	var (
		untrusted *tls.CertificateVerificationError
		answer    apierrors.APIStatus
		code      int32
	)
	if errors.As(err, &answer) {
		code = answer.Status().Code
	}
	switch {
	case errors.As(err, &untrusted), errors.As(err, new(x509.UnknownAuthorityError)),
		errors.As(err, new(x509.HostnameError)), errors.As(err, new(x509.CertificateInvalidError)):
		return "has a certificate that cannot be verified",
			"check the certificate authority that the agent was given (ConfigMap kube-root-ca.crt, or the kubeconfig) and the node's clock"
	case apierrors.IsUnauthorized(err):
		return "does not accept the agent's credentials",
			"check that the service account exists and its token has not expired, then restart the agent's pod"
	case code == http.StatusTooManyRequests:
		return "refuses requests as too many", "it is asked again; see its logs if that goes on"
	case code >= http.StatusInternalServerError:
		return "answers with an error", "it may be starting or overloaded; see its logs if that goes on"
	case code != 0:
		return "refuses requests", "see its logs"
	}
	return "cannot be reached", "check the address and the network between the node and it"
}
