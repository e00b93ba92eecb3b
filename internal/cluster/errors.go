// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// ErrNoConfig says that there is neither a kubeconfig nor a cluster around.
var ErrNoConfig = errors.New("no kubeconfig")

// errNoAnswer is why a node is given up that says nothing.
var errNoAnswer = errors.New("no answer in time")

// ConfigError says that the kubeconfig is of no use.
type ConfigError struct {
	Err error
	// Contexts that the kubeconfig has, where the one asked for is not there.
	Contexts []string
}

func (e *ConfigError) Error() string { return e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// UnreachableError says that the API server does not answer.
type UnreachableError struct {
	Server string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("the API server %s cannot be reached: %v", e.Server, e.Err)
}
func (e *UnreachableError) Unwrap() error { return e.Err }

// CredentialsError says that the API server does not know the user.
type CredentialsError struct{ Err error }

func (e *CredentialsError) Error() string {
	return fmt.Sprintf("the API server does not accept the credentials: %v", e.Err)
}
func (e *CredentialsError) Unwrap() error { return e.Err }

// ForbiddenError says which right the user lacks.
type ForbiddenError struct {
	Verb, Resource, Namespace string
	Err                       error
}

func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("no right to %s %s in namespace %s", e.Verb, e.Resource, e.Namespace)
}
func (e *ForbiddenError) Unwrap() error { return e.Err }

// NoAgentsError says that no pod has the agents' labels.
type NoAgentsError struct{ Namespace string }

func (e *NoAgentsError) Error() string {
	return fmt.Sprintf("no pods with labels %s in namespace %s", Selector, e.Namespace)
}

// explain gives an error of the API server its type. verb and resource are what
// was tried.
func (c *Cluster) explain(err error, verb, resource string) error {
	var dns *net.DNSError
	var op *net.OpError
	var transport *url.Error
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		return &ForbiddenError{Verb: verb, Resource: resource, Namespace: c.Namespace, Err: err}
	case apierrors.IsUnauthorized(err):
		return &CredentialsError{err}
	case apierrors.ReasonForError(err) != "": // it has answered
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return &UnreachableError{c.Server, errNoAnswer}
	case errors.As(err, &dns):
		return &UnreachableError{c.Server, dns}
	case errors.As(err, &op):
		return &UnreachableError{c.Server, op.Err}
	case errors.As(err, &transport):
		return &UnreachableError{c.Server, transport.Err}
	}
	return err
}

// Reason says in a few words why an agent could not be asked.
func Reason(err error) string {
	s, ok := status.FromError(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errNoAnswer):
		return errNoAnswer.Error()
	case errors.Is(err, io.EOF):
		return "the agent ended the stream"
	case !ok:
		return oneLine(err.Error())
	case s.Code() == codes.DeadlineExceeded:
		return errNoAnswer.Error()
	case s.Code() == codes.Unimplemented:
		return "the agent does not know this call: it has another version"
	}
	return oneLine(s.Message())
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
