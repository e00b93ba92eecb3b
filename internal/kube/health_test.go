// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
