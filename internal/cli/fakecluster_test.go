// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"flag"
	"net"
	"os"
	"os/signal"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	v1 "k8s.io/api/core/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cluster/clustertest"
)

// runFakeCluster is the script command fakecluster: an API server with agents
// behind it, until it is interrupted. Its arguments are nodes: NAME=FILE with
// the events of its agent, NAME=dead where nobody listens, NAME=pending where
// the pod waits.
func runFakeCluster() {
	fs := flag.NewFlagSet("fakecluster", flag.ExitOnError)
	config := fs.String("kubeconfig", "kubeconfig", "file for the kubeconfig")
	forbid := fs.String("forbid", "", "rights to refuse, with commas between")
	namespace := fs.String("namespace", "orb8-system", "of the agents")
	requests := fs.String("requests", "", "file for the latest request, a dot and the node after it")
	fs.Parse(os.Args[1:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	s := clustertest.New()
	if *forbid != "" {
		s.Forbid(strings.Split(*forbid, ",")...)
	}
	for _, arg := range fs.Args() {
		node, how, _ := strings.Cut(arg, "=")
		pod := clustertest.AgentPod("agent-of-"+node, node)
		pod.Namespace = *namespace
		if how == "pending" {
			pod.Status = v1.PodStatus{Phase: v1.PodPending, ContainerStatuses: []v1.ContainerStatus{{
				State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}}}}}
		}
		if how == "dead" || how == "pending" {
			s.Set(pod, nil)
			continue
		}
		s.Set(pod, fakeNode(ctx, node, how, *requests))
	}
	if err := os.WriteFile(*config+".tmp", s.Kubeconfig(), 0o600); err != nil {
		fatal(err)
	}
	if err := os.Rename(*config+".tmp", *config); err != nil {
		fatal(err)
	}
	<-ctx.Done()
	fatal(nil)
}

func fakeNode(ctx context.Context, node, path, requests string) func() (net.Conn, error) {
	a := &fakeAgent{status: healthyStatus()}
	a.status.NodeName = node
	var err error
	if a.events, err = readEvents(path); err != nil {
		fatal(err)
	}
	if requests != "" {
		a.requests = requests + "." + node
	}
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	orb8v1.RegisterOrbitAgentServiceServer(server, a)
	go func() { fatal(server.Serve(l)) }()
	return func() (net.Conn, error) { return l.DialContext(ctx) }
}
