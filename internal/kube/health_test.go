// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A client that lacked both permissions and got them back may never list again:
// it watches, and gets what is there by that.
func TestPermissionsGivenBack(t *testing.T) {
	denied := apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("no"))
	for _, tt := range []struct {
		name    string
		granted []string
		missing int
	}{
		{"none", nil, 1},
		{"list alone", []string{"list"}, 1},
		{"watch in place of list", []string{"watch"}, 0},
		{"both", []string{"list", "watch"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLink("services", slog.New(slog.DiscardHandler), time.Now)
			l.done(t.Context(), "watch", denied)
			l.done(t.Context(), "list", denied)
			for _, verb := range tt.granted {
				l.done(t.Context(), verb, nil)
			}
			if got := l.health().Missing; len(got) != tt.missing {
				t.Errorf("missing: %q, want %d sentences", got, tt.missing)
			}
		})
	}
}

func TestTrouble(t *testing.T) {
	answer := func(code int, reason metav1.StatusReason) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Code: int32(code), Reason: reason}}
	}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"refused":       {&net.OpError{Op: "dial", Err: errors.New("connection refused")}, "cannot be reached"},
		"timeout":       {context.DeadlineExceeded, "cannot be reached"},
		"unauthorized":  {answer(401, metav1.StatusReasonUnauthorized), "does not accept the agent's credentials"},
		"too many":      {answer(429, metav1.StatusReasonTooManyRequests), "refuses requests as too many"},
		"internal":      {answer(500, metav1.StatusReasonInternalError), "answers with an error"},
		"starting":      {answer(503, metav1.StatusReasonServiceUnavailable), "answers with an error"},
		"not found":     {answer(404, metav1.StatusReasonNotFound), "refuses requests"},
		"unknown CA":    {fmt.Errorf("get: %w", x509.UnknownAuthorityError{}), "has a certificate that cannot be verified"},
		"name":          {x509.HostnameError{Certificate: &x509.Certificate{}, Host: "api"}, "has a certificate that cannot be verified"},
		"expired":       {&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}, "has a certificate that cannot be verified"},
		"wrapped in it": {fmt.Errorf("list: %w", answer(401, metav1.StatusReasonUnauthorized)), "does not accept the agent's credentials"},
	} {
		what, todo := trouble(c.err)
		if what != c.want || todo == "" {
			t.Errorf("%s: %q, %q; want %q", name, what, todo, c.want)
		}
	}
}
