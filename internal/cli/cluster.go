// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
	"github.com/Ignoramuss/orb8/internal/cluster"
)

// Connect reads a kubeconfig; cluster.Connect is one.
type Connect func(o cluster.Options) (*cluster.Cluster, error)

// clusterFlags say which cluster's agents to ask.
type clusterFlags struct {
	kubeconfig, context, namespace string
	timeout                        time.Duration
	// nodes are those whose agents to ask; empty means all.
	nodes []string
}

func (f *clusterFlags) bind(fs *pflag.FlagSet) {
	fs.StringVar(&f.context, "context", "", "ask the agents of the cluster that this `CONTEXT` of the kubeconfig names")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "`FILE` to find clusters in (default $KUBECONFIG, else ~/.kube/config)")
	fs.StringVar(&f.namespace, "orb8-namespace", "", "`NAMESPACE` that the cluster's agents run in (default "+cluster.DefaultNamespace+")")
	fs.DurationVar(&f.timeout, "timeout", cluster.DefaultTimeout, "`TIME` that a node may take to answer")
}

// given reports whether the flags name a cluster.
func (f *clusterFlags) given() bool {
	return f.kubeconfig != "" || f.context != "" || f.namespace != ""
}

// only reports whether nothing but a cluster is to be asked.
func (f *clusterFlags) only() bool { return f.given() || len(f.nodes) > 0 }

func (f *clusterFlags) check() error {
	if f.timeout < 100*time.Millisecond {
		return usagef("--timeout %s: want 100ms or more", f.timeout)
	}
	return nil
}

// events is a stream of them, which ends with an error.
type events interface {
	Recv() (*orb8v1.Event, error)
}

// asker is an agent, or all agents of a cluster.
type asker interface {
	Observe(ctx context.Context, r *orb8v1.ObserveRequest) (events, error)
	// Look has the kernel read, so that what happened so far goes out.
	Look(ctx context.Context)
}

// oneAgent is the asker for one agent.
type oneAgent struct{ orb8v1.OrbitAgentServiceClient }

func (a oneAgent) Observe(ctx context.Context, r *orb8v1.ObserveRequest) (events, error) {
	if !r.GetFollow() || !sampled(r) {
		return a.OrbitAgentServiceClient.Observe(ctx, r)
	}
	r = proto.CloneOf(r)
	r.Progress = true
	stream, err := a.OrbitAgentServiceClient.Observe(ctx, r)
	if err != nil {
		return nil, err
	}
	return cluster.Order(ctx, stream.Recv), nil
}

// sampled reports whether a request is for flows, some of which are told of by samples, after
// what happened later.
func sampled(r *orb8v1.ObserveRequest) bool {
	flows := func(k orb8v1.EventKind) bool {
		return k == orb8v1.EventKind_EVENT_KIND_FLOW || k == orb8v1.EventKind_EVENT_KIND_CONNECTION
	}
	return len(r.GetKinds()) == 0 || slices.ContainsFunc(r.GetKinds(), flows)
}

func (a oneAgent) Look(ctx context.Context) {
	_, _ = a.QueryFlows(ctx, &orb8v1.QueryFlowsRequest{Limit: 1}) // for its effect only
}

// manyAgents is the asker for a cluster.
type manyAgents struct{ fleet *cluster.Fleet }

func (a manyAgents) Observe(ctx context.Context, r *orb8v1.ObserveRequest) (events, error) {
	return a.fleet.Observe(ctx, r)
}

func (a manyAgents) Look(ctx context.Context) {
	_, _ = a.fleet.QueryFlows(ctx, &orb8v1.QueryFlowsRequest{Limit: 1}) // for its effect only
}

// errNoCluster says that nothing names a cluster.
var errNoCluster = errors.New("no kubeconfig")

// openCluster asks the agents of a cluster how they are. At least one answers,
// or the error, a *failure, says why none does. Where there is no kubeconfig and
// none was asked for it is errNoCluster.
func (c *Config) openCluster(ctx context.Context, f *clusterFlags) (*source, error) {
	if c.Connect == nil {
		return nil, errNoCluster
	}
	cl, err := c.Connect(cluster.Options{
		Kubeconfig: f.kubeconfig, Context: f.context, Namespace: f.namespace, UserAgent: "orb8/" + versionOf(c.Version),
	})
	if errors.Is(err, cluster.ErrNoConfig) {
		if f.given() {
			return nil, c.noKubeconfig()
		}
		return nil, errNoCluster
	}
	if err != nil {
		return nil, badConfig(err)
	}
	fleet := cluster.NewFleet(cl, f.nodes, f.timeout)
	answers, err := fleet.Status(ctx)
	if err != nil {
		return nil, errors.Join(clusterFailure(cl, err), fleet.Close())
	}
	s := &source{
		ask: manyAgents{fleet}, nodes: answers, close: fleet.Close,
		settle: lastEvents + 2*mergeTime,
	}
	for _, status := range s.statuses() {
		cleanText(status.ProtoReflect())
	}
	answered := len(s.statuses())
	if answered == 0 {
		return nil, errors.Join(nobodyAnswers(cl, answers), fleet.Close())
	}
	s.name = fmt.Sprintf("%s of context %s", render.Plural(uint64(answered), "node", "nodes"), cl.Context)
	return s, nil
}

// noKubeconfig says what to do where there is none.
func (c *Config) noKubeconfig() *failure {
	f := &failure{what: "no cluster: there is no kubeconfig", remedy: []string{"name one: --kubeconfig FILE, or set KUBECONFIG"}}
	if missing := c.missingKubeconfig(); missing != "" {
		f.what = "no cluster: " + missing
	}
	if c.Getenv("SUDO_USER") != "" && c.Getenv("KUBECONFIG") == "" {
		f.remedy = append(f.remedy, "sudo does not pass KUBECONFIG on: sudo --preserve-env=KUBECONFIG orb8 ..., or run orb8 without sudo, which a cluster does not need")
	}
	return f
}

// missingKubeconfig says that none of the files is there that KUBECONFIG names; empty where
// one is, or it names none.
func (c *Config) missingKubeconfig() string {
	var missing []string
	for _, path := range filepath.SplitList(c.Getenv("KUBECONFIG")) {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return ""
		}
		missing = append(missing, path)
	}
	if len(missing) == 0 {
		return ""
	}
	return "KUBECONFIG names " + strings.Join(missing, " and ") + ", which is not there"
}

// mergeTime is at least how long a fleet holds events back to order them.
const mergeTime = 200 * time.Millisecond

func badConfig(err error) error {
	f := &failure{what: "no cluster", err: err, remedy: []string{"name a kubeconfig and a context: --kubeconfig FILE --context NAME"}}
	var bad *cluster.ConfigError
	if errors.As(err, &bad) && len(bad.Contexts) > 0 {
		f.remedy = []string{"use --context with one of: " + strings.Join(bad.Contexts, ", ")}
	}
	return f
}

// clusterFailure says why the agents of a cluster could not be listed.
func clusterFailure(cl *cluster.Cluster, err error) error {
	f := &failure{what: "context " + cl.Context, err: err}
	var forbidden *cluster.ForbiddenError
	var away *cluster.UnreachableError
	var credentials *cluster.CredentialsError
	switch {
	case errors.As(err, &forbidden):
		f.remedy = []string{rights(forbidden)}
	case errors.As(err, &away):
		f.remedy = []string{"check that the cluster runs and can be reached from here", "or name another: --context NAME"}
	case errors.As(err, &credentials):
		f.remedy = []string{"log in to the cluster again", "or name another: --context NAME"}
	case errors.As(err, new(*cluster.NoAgentsError)):
		f.remedy = []string{"install them: kubectl apply -f deploy/orb8-daemonset.yaml",
			"or name the namespace that they run in: --orb8-namespace NAMESPACE"}
	}
	return f
}

func rights(e *cluster.ForbiddenError) string {
	return fmt.Sprintf("have an administrator grant you the verb %s on %s in namespace %s", e.Verb, e.Resource, e.Namespace)
}

// nobodyAnswers names every node with its reason.
func nobodyAnswers(cl *cluster.Cluster, answers []cluster.Answer[*orb8v1.AgentStatus]) error {
	f := &failure{what: "no agent of context " + cl.Context + " answers"}
	var forbidden *cluster.ForbiddenError
	for _, a := range answers {
		f.tried = append(f.tried, a.Agent.Node+": "+cluster.Reason(a.Err))
		if forbidden == nil && errors.As(a.Err, &forbidden) {
			f.remedy = append(f.remedy, rights(forbidden))
		}
	}
	if forbidden == nil {
		f.remedy = []string{fmt.Sprintf("see how the pods are: kubectl -n %s get pods -o wide -l %s", cl.Namespace, cluster.Selector)}
	}
	return f
}

// asFailure finds the failure in err, for its parts.
func asFailure(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	return &failure{what: err.Error()}
}

// summaryLine is a failure's first line.
func (e *failure) summaryLine() string {
	line, _, _ := strings.Cut(e.Error(), "\n")
	return line
}

// joined reports whether the node is one that did not answer at first.
func (s *source) joined(node string) bool {
	if !s.many() {
		return false
	}
	for _, n := range s.nodes {
		if n.Agent.Node == node {
			return n.Err != nil
		}
	}
	return true
}

// nodeStatuses are the statuses of all agents, also of those that did not answer.
func (s *source) nodeStatuses() []render.NodeStatus {
	if !s.many() {
		return []render.NodeStatus{{Status: s.status}}
	}
	var all []render.NodeStatus
	for _, n := range s.nodes {
		status := render.NodeStatus{Status: n.Value, Agent: n.Agent.Pod}
		if n.Err != nil {
			status.Away = cluster.Reason(n.Err)
			status.Status = &orb8v1.AgentStatus{NodeName: n.Agent.Node, HealthMessage: "unreachable: " + status.Away}
		}
		all = append(all, status)
	}
	return all
}
