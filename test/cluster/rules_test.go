// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/test/cluster/trouble/cases"
)

// troubleSpecs are the pods of these cases, all on one node.
func (l *lab) troubleSpecs(t *testing.T, node string) map[string]corev1.PodSpec {
	t.Helper()
	specs := map[string]corev1.PodSpec{}
	add := func(name string, change func(*corev1.PodSpec, *corev1.Container)) {
		spec := l.troubleSpec(t, node)
		if change != nil {
			change(&spec, &spec.Containers[0])
		}
		specs[name] = spec
	}
	add("victim", nil)
	add("plain", func(s *corev1.PodSpec, c *corev1.Container) {
		addVolume(s, c, "data", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	})
	add("able", func(_ *corev1.PodSpec, c *corev1.Container) { addCapabilities(c, "SYS_ADMIN") })
	add("user", func(_ *corev1.PodSpec, c *corev1.Container) { runAs(c, 1000, true) })
	add("host", func(s *corev1.PodSpec, c *corev1.Container) {
		yes := true
		s.HostPID = true
		c.SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	})
	for _, name := range []string{"cgroups", "calm-cgroups"} {
		add(name, func(s *corev1.PodSpec, c *corev1.Container) {
			yes := true
			c.SecurityContext = &corev1.SecurityContext{Privileged: &yes}
			addVolume(s, c, "cgroups", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/sys/fs/cgroup"}})
		})
	}
	add("calm", l.withTools)
	add("calm-user", func(_ *corev1.PodSpec, c *corev1.Container) { runAs(c, 1000, false) })
	add("calm-host", onHost)
	add("calm-volumes", volumes)
	add("calm-profile", func(_ *corev1.PodSpec, c *corev1.Container) {
		c.SecurityContext = &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	})
	return specs
}

func addVolume(s *corev1.PodSpec, c *corev1.Container, name string, source corev1.VolumeSource) {
	s.Volumes = append(s.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/" + name})
}

func addCapabilities(c *corev1.Container, names ...corev1.Capability) {
	c.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: names}}
}

// runAs makes the container a user's; setuid: it may start programs that give it more
// rights.
func runAs(c *corev1.Container, user int64, setuid bool) {
	c.SecurityContext = &corev1.SecurityContext{RunAsUser: &user, AllowPrivilegeEscalation: &setuid}
}

// withTools has init containers put programs into a volume, as tools are injected.
func (l *lab) withTools(s *corev1.PodSpec, c *corev1.Container) {
	addVolume(s, c, "tools", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	for _, name := range []string{"tool", "removed"} {
		init := l.container("init-"+name, "copy", "/tools/"+name)
		init.Image, init.VolumeMounts = l.trouble, c.VolumeMounts
		s.InitContainers = append(s.InitContainers, init)
	}
	c.LivenessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
		Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "id >/dev/null"}}}}
	c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
		TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(portTrouble)}}}
	c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{
		Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "echo started >/tmp/hook"}}}}
}

// onHost shares all of the host's namespaces that a pod can share.
func onHost(s *corev1.PodSpec, c *corev1.Container) {
	const port = 17201
	s.HostNetwork, s.HostPID, s.HostIPC = true, true, true
	c.Args = []string{"serve", fmt.Sprintf(":%d", port), fmt.Sprintf(":%d", port+1)}
	c.Ports = []corev1.ContainerPort{{ContainerPort: port}}
}

// volumes has one of each kind of volume that every cluster has.
func volumes(s *corev1.PodSpec, c *corev1.Container) {
	yes, group := true, int64(2000)
	s.AutomountServiceAccountToken = &yes
	s.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	addVolume(s, c, "memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}})
	addVolume(s, c, "names", corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
		{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}})
	addVolume(s, c, "config", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "rules"}}})
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "config", MountPath: "/tmp/one", SubPath: "one"})
}

// profiled is what the runtime's seccomp profile refuses before a right is asked for, so
// that no rule hears of it.
func profiled() (all []cases.Twin) {
	for rule, deed := range map[string]string{
		"mount": "mount", "namespace_change": "unshare", "pivot_root": "pivot", "bpf": "bpf", "clock_change": "clock",
		"open_by_handle": "handle", "kernel_log": "syslog", "reboot": "reboot",
	} {
		all = append(all, cases.Twin{Rule: rule, Pod: "calm-profile", Deed: deed, Answer: cases.Refused})
	}
	return all
}

// ordinarySpecs are pods that do nothing but start, each in another way.
func (l *lab) ordinarySpecs(t *testing.T, node string) map[string]corev1.PodSpec {
	t.Helper()
	yes, no := true, false
	contexts := map[string]*corev1.SecurityContext{
		"privileged": {Privileged: &yes},
		"restricted": {
			AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, RunAsUser: new(int64(1000)),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
	specs := map[string]corev1.PodSpec{}
	for name, c := range contexts {
		spec := l.troubleSpec(t, node)
		spec.Containers[0].SecurityContext = c
		specs["ordinary-"+name] = spec
	}
	shared := l.troubleSpec(t, node)
	shared.ShareProcessNamespace = &yes
	second := l.container("second", "wait")
	second.Image = l.trouble
	shared.Containers = append(shared.Containers, second)
	specs["ordinary-shared"] = shared
	// As kubectl run -it makes it.
	interactive := l.troubleSpec(t, node)
	interactive.Containers[0].Command, interactive.Containers[0].Args = []string{"/bin/sh"}, nil
	interactive.Containers[0].TTY, interactive.Containers[0].Stdin = true, true
	specs["ordinary-terminal"] = interactive
	return specs
}

// TestRules has pods do what each rule is about, and what looks like it, and compares
// the alerts of the namespace.
func TestRules(t *testing.T) {
	l := shared
	since := time.Now()
	node := l.nodes[0]
	l.configMap(t, "rules", map[string]string{"one": "1", "two": "2"})
	specs := l.troubleSpecs(t, node)
	for name, spec := range l.ordinarySpecs(t, node) {
		specs[name] = spec
	}
	specs["listener"] = l.troubleSpec(t, l.nodes[len(l.nodes)-1])
	pods := l.troublePods(t, specs)

	calm := cases.Twins(containerID(pods["calm-cgroups"]))
	all := cases.Troubles(net.JoinHostPort(pods["listener"].Status.PodIP, fmt.Sprint(portTrouble+1)), containerID(pods["victim"]), l.hostTrue())
	everyRuleIsTried(t, all, calm)
	l.beCalm(t, pods, append(calm, profiled()...))
	want := l.cause(t, pods, all)

	var alerts []*orb8v1.Event
	eventually(t, 20*time.Second, func() (err error) {
		if alerts, err = l.alerts(t.Context(), since); err != nil {
			return err
		}
		if d := gocmp.Diff(want, foundIn(alerts)); d != "" {
			return fmt.Errorf("alerts (-want +got):\n%s", d)
		}
		return nil
	})
	for _, e := range alerts {
		l.checkAlert(t, pods, e)
	}
	l.checkRemote(t, alerts, pods["listener"])
}

// hostTrue is the file that /bin/true is on the host.
func (l *lab) hostTrue() string {
	if path, err := filepath.EvalSymlinks("/bin/true"); err == nil && l.lab != "" {
		return path
	}
	return "/usr/bin/true"
}

func everyRuleIsTried(t *testing.T, all []cases.Trouble, calm []cases.Twin) {
	t.Helper()
	for _, lacks := range cases.Untried(all, calm) {
		t.Errorf("rule %s", lacks)
	}
}

// beCalm runs the twins, those of one pod one after another.
func (l *lab) beCalm(t *testing.T, pods map[string]*pod, calm []cases.Twin) {
	t.Helper()
	byPod := map[string][]cases.Twin{}
	for _, c := range calm {
		byPod[c.Pod] = append(byPod[c.Pod], c)
	}
	var wg sync.WaitGroup
	for name, all := range byPod {
		wg.Go(func() {
			for _, c := range all {
				if o, err := l.deed(t.Context(), pods[name], strings.Fields(c.Deed)...); err != nil || !c.Ended(&o) {
					t.Errorf("%s: %s: %+v, %v; want %q", name, c.Deed, o, err, c.Answer)
				}
			}
			if _, err := l.command(t.Context(), pods[name], "", false, "/bin/sh", "-c", "id"); err != nil {
				t.Errorf("kubectl exec in %s: %v", name, err)
			}
		})
	}
	wg.Wait()
}

// cause runs the cases and returns the alerts that they are to raise.
func (l *lab) cause(t *testing.T, pods map[string]*pod, all []cases.Trouble) map[string][]cases.Found {
	t.Helper()
	want := map[string][]cases.Found{}
	for _, c := range all {
		if c.Terminal {
			if _, err := l.command(t.Context(), pods[c.Pod], "", true, strings.Fields(c.Deed)...); err != nil {
				t.Errorf("%s: %v", c.Key(), err)
			}
		} else {
			o, err := l.deed(t.Context(), pods[c.Pod], strings.Fields(c.Deed)...)
			if why := c.NotTried(&o); why != "" {
				t.Logf("%s: not tried: %s", c.Key(), why)
				continue
			}
			if err != nil || !o.Is(c.Answer) {
				t.Errorf("%s: %+v, %v; want %q", c.Key(), o, err, c.Answer)
			}
		}
		want[c.Key()] = cases.Sorted(c.Alerts)
	}
	return want
}

// alerts asks `orb8 alerts` for those of the tests' namespace.
func (l *lab) alerts(ctx context.Context, since time.Time) ([]*orb8v1.Event, error) {
	out, err := l.cli(ctx, "alerts", "-n", l.namespace, "-o", "json", "--since", since.Format(time.RFC3339Nano))
	if err != nil {
		return nil, err
	}
	events, err := parseEvents(out)
	return slices.DeleteFunc(events, func(e *orb8v1.Event) bool { return e.GetAlert() == nil }), err
}

// foundIn are the alerts by pod and deed. The same capability may be asked for twice.
func foundIn(alerts []*orb8v1.Event) map[string][]cases.Found {
	all := map[string][]cases.Found{}
	for _, e := range alerts {
		a := e.GetAlert()
		key := a.GetWorkload().GetPodName() + ": " + deedOf(a)
		all[key] = append(all[key], cases.Found{Rule: a.GetRule(), Executable: a.GetProcess().GetExecutable().GetPath(), Call: a.GetSyscall(), Denied: a.GetDenied()})
	}
	for key := range all {
		all[key] = cases.Sorted(all[key])
	}
	return all
}

// deedOf is the deed as which an alert's process, or the one of its ancestors that is
// nearest to the container's first, was started.
func deedOf(a *orb8v1.Alert) string {
	chain := append([]*orb8v1.ProcessInfo{a.GetProcess()}, a.GetAncestors()...)
	for _, p := range slices.Backward(chain) {
		if args := p.GetArguments(); len(args) > 1 && args[0] == cases.Self && args[1] != "serve" {
			return strings.Join(args[1:], " ")
		}
	}
	return strings.Join(a.GetProcess().GetArguments(), " ")
}

// checkAlert compares what the cases do not name.
func (l *lab) checkAlert(t *testing.T, pods map[string]*pod, e *orb8v1.Event) {
	t.Helper()
	a := e.GetAlert()
	p := pods[a.GetWorkload().GetPodName()]
	at := slices.IndexFunc(anomaly.Rules(), func(r *anomaly.Rule) bool { return r.Name == a.GetRule() })
	if p == nil || at < 0 {
		t.Errorf("alert of pod %q and rule %q", a.GetWorkload().GetPodName(), a.GetRule())
		return
	}
	r := anomaly.Rules()[at]
	type shown struct {
		Who                                      identity
		Container, Node                          string
		Severity                                 orb8v1.Severity
		Technique, Reason                        string
		Summary, Process, LookCloser, Exceptions bool
	}
	want := shown{
		p.identity(), containerID(p), p.Spec.NodeName, orb8v1.Severity(r.Severity), r.Technique, r.Reason,
		true, true, true, true,
	}
	got := shown{
		identityOf(a.GetWorkload()), a.GetWorkload().GetContainerId(), e.GetNodeName(),
		a.GetSeverity(), a.GetTechnique(), a.GetReason(), a.GetSummary() != "", a.GetProcess().GetPid() != 0,
		strings.Contains(a.GetLookCloser(), p.Name), strings.Contains(a.GetException(), r.Name),
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("%s: %s: %s (-want +got):\n%s\n%v", p.Name, deedOf(a), r.Name, d, a)
	}
	if err := chained(a); err != nil && a.GetRule() != "terminal_shell" && a.GetRule() != "terminal_session" { // whose parent is outside
		t.Errorf("%s: %s: %s: %v\n%v", p.Name, deedOf(a), r.Name, err, a)
	}
}

// chained returns an error unless the ancestors are each other's parents, up to the
// container's first process.
func chained(a *orb8v1.Alert) error {
	p := a.GetProcess()
	for i, parent := range a.GetAncestors() {
		if p.GetParentPid() != parent.GetPid() {
			return fmt.Errorf("ancestor %d is process %d, but %d is the parent", i, parent.GetPid(), p.GetParentPid())
		}
		if args := parent.GetArguments(); len(args) > 1 && args[1] == "serve" && parent.GetExecutable().GetPath() == cases.Self {
			return nil
		}
		p = parent
	}
	return fmt.Errorf("the container's first process is not among %d ancestors", len(a.GetAncestors()))
}

// checkRemote looks for who is at the other end of the shell.
func (l *lab) checkRemote(t *testing.T, alerts []*orb8v1.Event, listener *pod) {
	t.Helper()
	for _, e := range alerts {
		if e.GetAlert().GetRule() != "reverse_shell" {
			continue
		}
		remote := e.GetAlert().GetRemote()
		got := []any{remote.GetIp(), remote.GetPort(), identityOf(remote.GetWorkload())}
		want := []any{listener.Status.PodIP, uint32(portTrouble + 1), listener.identity()}
		if d := gocmp.Diff(want, got); d != "" {
			t.Errorf("the other end of the shell (-want +got):\n%s", d)
		}
	}
}
