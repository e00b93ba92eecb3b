// SPDX-License-Identifier: Apache-2.0

package filter_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func addr(s string) record.Addr { return record.AddrOf(netip.MustParseAddr(s)) }

func comm(s string) (c record.Comm) {
	copy(c[:15], s)
	return c
}

// pod is a TCP flow of a pod to a service; host one of a process outside
// Kubernetes to a peer of which nothing is known.
func pod() *record.Header {
	return &record.Header{
		Local: addr("10.0.1.7"), Remote: addr("10.96.0.10"),
		LocalPort: 41000, RemotePort: 443, Protocol: record.TCP,
		PID: 4242, Comm: comm("prometheus-node"),
		Owner: &workload.Identity{
			Namespace: "shop", Pod: "web-7f9-abcde", Kind: "Deployment", Name: "web",
			ContainerID: "4f2d9c1e8a7b", Node: "node-a",
			Labels: map[string]string{"app": "web", "tier": "front", "canary": ""},
		},
		Peer: &workload.Identity{Namespace: "shop", Service: "api"},
	}
}

func host() *record.Header {
	return &record.Header{
		Local: addr("fd00::1"), Remote: addr("fd00:1::2"),
		LocalPort: 5353, RemotePort: 53, Protocol: record.UDP,
		PID: 7, Comm: comm("kworker/0:1"),
		Owner: &workload.Identity{Kind: workload.KindProcess, Name: "kworker/0:1"},
	}
}

type F = orb8v1.Filter

func TestMatch(t *testing.T) {
	tests := []struct {
		name      string
		filters   []*F
		pod, host bool
	}{
		{"none", nil, true, true},
		{"empty", []*F{{}}, true, true},
		{"nil filter", []*F{nil}, true, true},
		{"empty negated", []*F{{Negate: true}}, false, false},
		{"namespace", []*F{{Namespaces: []string{"other", "shop"}}}, true, false},
		{"namespace is exact", []*F{{Namespaces: []string{"sho"}}}, false, false},
		{"not namespace", []*F{{Negate: true, Namespaces: []string{"shop"}}}, false, true},
		{"pod", []*F{{Pods: []string{"web-7f9-abcde"}}}, true, false},
		{"pod glob", []*F{{Pods: []string{"web-*"}}}, true, false},
		{"pod of namespace", []*F{{Pods: []string{"shop/web-7f9-abcde"}}}, true, false},
		{"pod of other namespace", []*F{{Pods: []string{"bank/web-*"}}}, false, false},
		{"any pod of namespace", []*F{{Pods: []string{"shop/*"}}}, true, false},
		{"any pod", []*F{{Pods: []string{"*"}}}, true, false},
		{"workload", []*F{{Workloads: []string{"web"}}}, true, false},
		{"workload kind", []*F{{Workloads: []string{"deployment/we*"}}}, true, false},
		{"workload other kind", []*F{{Workloads: []string{"StatefulSet/web"}}}, false, false},
		{"workload with slash in its name", []*F{{Workloads: []string{"kworker/*"}}}, false, true},
		{"workload kind and slash", []*F{{Workloads: []string{"process/kworker/0:1"}}}, false, true},
		{"selector", []*F{{LabelSelector: "app=web,tier in (front,back)"}}, true, false},
		{"selector absent key", []*F{{LabelSelector: "!app"}}, false, true},
		{"node of workload", []*F{{Nodes: []string{"node-a"}}}, true, false},
		{"node of agent", []*F{{Nodes: []string{"node-b"}}}, false, true},
		{"ip local", []*F{{Ips: []string{"10.0.1.7"}}}, true, false},
		{"ip remote", []*F{{Ips: []string{"fd00:1::2"}}}, false, true},
		{"ip mapped", []*F{{Ips: []string{"::ffff:10.0.1.7"}}}, true, false},
		{"ip either of two", []*F{{Ips: []string{"192.0.2.1", "fd00::1"}}}, false, true},
		{"cidr", []*F{{Ips: []string{"10.0.1.99/24"}}}, true, false},
		{"cidr mapped", []*F{{Ips: []string{"::ffff:10.96.0.0/112"}}}, true, false},
		{"cidr all of IPv4", []*F{{Ips: []string{"0.0.0.0/0"}}}, true, false},
		{"cidr all of IPv6", []*F{{Ips: []string{"::/0"}}}, false, true},
		{"port remote", []*F{{Ports: []uint32{443}}}, true, false},
		{"port local", []*F{{Ports: []uint32{1, 5353}}}, false, true},
		{"protocol any case", []*F{{Protocols: []string{"Tcp"}}}, true, false},
		{"protocol number", []*F{{Protocols: []string{"17"}}}, false, true},
		{"protocol other", []*F{{Protocols: []string{"icmp", "icmpv6", "132"}}}, false, false},
		{"process", []*F{{Processes: []string{"kworker/0:1"}}}, false, true},
		{"process is exact", []*F{{Processes: []string{"kworker"}}}, false, false},
		{"process glob", []*F{{Processes: []string{"kwork*"}}}, false, true},
		{"process longer than the kernel keeps", []*F{{Processes: []string{"prometheus-node-exporter"}}}, true, false},
		{"process glob longer than the kernel keeps", []*F{{Processes: []string{"prometheus-node-exp*"}}}, true, false},
		{"process id", []*F{{Processes: []string{"4242"}}}, true, false},
		{"process any", []*F{{Processes: []string{"*"}}}, true, true},
		{"container", []*F{{Containers: []string{"4F2D9C"}}}, true, false},
		{"container other", []*F{{Containers: []string{"4f2d9d"}}}, false, false},
		{"service", []*F{{Services: []string{"api"}}}, true, false},
		{"service in its namespace", []*F{{Services: []string{"shop/a*"}}}, true, false},
		{"service in another namespace", []*F{{Services: []string{"test/api"}}}, false, false},
		{"service other", []*F{{Services: []string{"ap"}}}, false, false},
		{"service any", []*F{{Services: []string{"*"}}}, true, false},
		{"fields of one filter must all match", []*F{{Ports: []uint32{443}, Protocols: []string{"udp"}}}, false, false},
		{"filters must all match", []*F{{Ports: []uint32{443, 53}}, {Protocols: []string{"udp"}}}, false, true},
		{"negated together", []*F{{Negate: true, Ports: []uint32{443}, Protocols: []string{"udp"}}}, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, err := filter.Compile(tt.filters, filter.WithNode("node-b"))
			if err != nil {
				t.Fatal(err)
			}
			if got := set.Match(pod(), nil); got != tt.pod {
				t.Errorf("pod: got %v, want %v", got, tt.pod)
			}
			if got := set.Match(host(), nil); got != tt.host {
				t.Errorf("host: got %v, want %v", got, tt.host)
			}
		})
	}
}

func TestNilSetMatches(t *testing.T) {
	var set *filter.Set
	if !set.Match(pod(), nil) {
		t.Error("a nil Set must match everything")
	}
}

func TestRecordWithoutNamesMatchesNoName(t *testing.T) {
	r := &record.Header{Owner: &workload.Identity{}}
	for _, f := range []*F{
		{Pods: []string{"*"}}, {Workloads: []string{"*"}}, {Processes: []string{"*"}},
		{Nodes: []string{"node-a"}}, {Services: []string{"api"}}, {Containers: []string{"abcdef"}},
	} {
		set, err := filter.Compile([]*F{f})
		if err != nil {
			t.Fatal(err)
		}
		if set.Match(r, nil) {
			t.Errorf("%v matches a record without names", f)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	const (
		ip        = "want an address such as 10.0.0.1 or fd00::1, or a prefix such as 10.0.0.0/8"
		port      = "want a number from 1 to 65535"
		protocol  = "want tcp, udp, icmp, icmpv6 or a protocol number from 0 to 255"
		container = "want a container id, or its first 6 or more hexadecimal digits"
		podName   = "want NAME or NAMESPACE/NAME, with * allowed at the end"
		name      = "want NAME or KIND/NAME, with * allowed at the end"
		process   = "want a command, with * allowed at the end, or a process id"
		sel       = "want a label selector such as app=web,tier in (front,back),!legacy"
	)
	tests := []struct {
		filter *F
		want   string
	}{
		{&F{Namespaces: []string{""}}, `namespaces: "": want the name of a namespace`},
		{&F{Namespaces: []string{"kube-*"}}, `namespaces: "kube-*": want the name of a namespace`},
		{&F{Pods: []string{"*-web"}}, `pods: "*-web": * may only stand at the end: ` + podName},
		{&F{Pods: []string{"/web"}}, `pods: "/web": ` + podName},
		{&F{Pods: []string{"shop/"}}, `pods: "shop/": ` + podName},
		{&F{Pods: []string{"a/b/c"}}, `pods: "a/b/c": ` + podName},
		{&F{Workloads: []string{""}}, `workloads: "": ` + name},
		{&F{Nodes: []string{"a/b"}}, `nodes: "a/b": want the name of a node`},
		{&F{Ips: []string{"10.0.0.256"}}, `ips: "10.0.0.256": ` + ip},
		{&F{Ips: []string{"10.0.0.0/33"}}, `ips: "10.0.0.0/33": ` + ip},
		{&F{Ips: []string{"localhost"}}, `ips: "localhost": ` + ip},
		{&F{Ports: []uint32{443, 70000}}, `ports: "70000": ` + port},
		{&F{Ports: []uint32{0}}, `ports: "0": ` + port},
		{&F{Protocols: []string{"sctpp"}}, `protocols: "sctpp": ` + protocol},
		{&F{Protocols: []string{"256"}}, `protocols: "256": ` + protocol},
		{&F{Processes: []string{""}}, `processes: "": ` + process},
		{&F{Processes: []string{"0"}}, `processes: "0": ` + process},
		{&F{Processes: []string{"a*b"}}, `processes: "a*b": * may only stand at the end: ` + process},
		{&F{Containers: []string{"abcde"}}, `containers: "abcde": ` + container},
		{&F{Containers: []string{"nginx-1"}}, `containers: "nginx-1": ` + container},
		{&F{Services: []string{"a*b"}}, `services: "a*b": * may only stand at the end: want NAME or NAMESPACE/NAME, with * allowed at the end`},
		{&F{Services: []string{"a/b/c"}}, `services: "a/b/c": want NAME or NAMESPACE/NAME, with * allowed at the end`},
		{&F{LabelSelector: "a in b"}, `label_selector: "a in b": column 6: "b" where "(" should be: ` + sel},
		{&F{LabelSelector: "a=b,"}, `label_selector: "a=b,": ends where a label key should be: ` + sel},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			_, err := filter.Compile([]*F{{}, tt.filter})
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff("filter 2: "+tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			fe, ok := errors.AsType[*filter.Error](err)
			if !ok || fe.Filter != 1 || !strings.HasPrefix(tt.want, fe.Field+":") {
				t.Errorf("not a filter.Error for filter 1, field of %q: %#v", tt.want, err)
			}
		})
	}
}

func TestCompileBounds(t *testing.T) {
	if _, err := filter.Compile(make([]*F, 65)); err == nil {
		t.Error("65 filters: no error")
	}
	if _, err := filter.Compile([]*F{{Ports: slices.Repeat([]uint32{80}, 257)}}); err == nil {
		t.Error("257 ports: no error")
	}
	_, err := filter.Compile([]*F{{LabelSelector: strings.Repeat("x", 1<<20)}})
	if err == nil || len(err.Error()) > 1024 {
		t.Errorf("a bad value of 1 MiB: error of %d bytes", len(err.Error()))
	}
}

func fullSet(tb testing.TB) *filter.Set {
	tb.Helper()
	set, err := filter.Compile([]*F{
		{
			Namespaces: []string{"bank", "shop"}, Pods: []string{"shop/web-*"}, LabelSelector: "app=web,tier in (front,back),!x",
			Workloads: []string{"Deployment/web"}, Nodes: []string{"node-a"}, Ips: []string{"192.0.2.0/24", "10.0.0.0/8"},
			Ports: []uint32{80, 443}, Protocols: []string{"tcp"}, Processes: []string{"1", "prom*"},
			Containers: []string{"4f2d9c"}, Services: []string{"api"},
		},
		{Negate: true, Ports: []uint32{53}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

func TestMatchDoesNotAllocate(t *testing.T) {
	set, r := fullSet(t), pod()
	if !set.Match(r, nil) {
		t.Fatal("the record must pass every field")
	}
	if n := testing.AllocsPerRun(100, func() { set.Match(r, nil) }); n != 0 {
		t.Errorf("%v allocations per Match", n)
	}
}

func BenchmarkMatch(b *testing.B) {
	set, r := fullSet(b), pod()
	b.ReportAllocs()
	for b.Loop() {
		set.Match(r, nil)
	}
}

// FuzzCompile: whatever a client sends is either refused with an *Error or
// matches without a panic, and negate turns the result round.
func FuzzCompile(f *testing.F) {
	for _, seed := range []*F{
		{}, {Namespaces: []string{"shop"}, Pods: []string{"shop/web-*"}},
		{LabelSelector: "app in (web,),!x"}, {Ips: []string{"::ffff:10.0.0.0/104"}},
		{Ports: []uint32{443}, Processes: []string{"4242", "prometheus-node-exp*"}},
		{Containers: []string{"4f2d9c"}, Protocols: []string{"58"}, Negate: true},
	} {
		b, err := proto.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	records := []*record.Header{pod(), host(), {Owner: &workload.Identity{}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var pb F
		if proto.Unmarshal(b, &pb) != nil {
			return
		}
		set, err := filter.Compile([]*F{&pb})
		if err != nil {
			if _, ok := errors.AsType[*filter.Error](err); !ok || err.Error() == "" {
				t.Fatalf("error of another type: %#v", err)
			}
			return
		}
		pb.Negate = !pb.Negate
		negated, err := filter.Compile([]*F{&pb})
		if err != nil {
			t.Fatalf("negated: %v", err)
		}
		for _, r := range records {
			if set.Match(r, nil) == negated.Match(r, nil) {
				t.Fatalf("negate changes nothing for %v", &pb)
			}
		}
	})
}

// The server behind a Service is asked for by the same name as its clients.
func TestServiceOfTheServer(t *testing.T) {
	r := host()
	r.Owner = &workload.Identity{Namespace: "shop", Pod: "api-0", Service: "api"}
	for value, want := range map[string]bool{"api": true, "shop/api": true, "test/api": false, "api-0": false} {
		set, err := filter.Compile([]*F{{Services: []string{value}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := set.Match(r, nil); got != want {
			t.Errorf("services %s: %v, want %v", value, got, want)
		}
	}
}

// called is a record that knows how its executable was called.
type called string

func (c called) CalledAs() string { return string(c) }

func TestExecutables(t *testing.T) {
	h := &record.Header{Owner: &workload.Identity{}, Executable: "/usr/bin/python3.11"}
	for value, want := range map[string]bool{
		"app": true, "/tmp/app": true, "*pp": true, "/tmp/*": true, "ap*": true, "*mp/a*": true,
		"python3.11": true, "python*": true, "/usr/bin/*": true,
		"ap": false, "/app": false, "tmp/app": false, "/tmp": false, "*/ap": false, "bin*": false,
	} {
		set, err := filter.Compile([]*orb8v1.Filter{{Executables: []string{"nothing", value}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := set.Match(h, called("/tmp/app")); got != want {
			t.Errorf("%s: %v, want %v", value, got, want)
		}
		if set.Match(&record.Header{Owner: h.Owner}, nil) {
			t.Errorf("%s matches where no executable is known", value)
		}
	}
	for _, value := range []string{"", "a*b"} {
		if _, err := filter.Compile([]*orb8v1.Filter{{Executables: []string{value}}}); err == nil {
			t.Errorf("%q is taken", value)
		}
	}
}

// TestEnds: --from and --to go by who opened the flow, at either end that this node is, and
// by whatever the end is called.
func TestEnds(t *testing.T) {
	client := pod() // web opened to the Service api
	client.Role = record.RoleClient
	client.Peer = &workload.Identity{Namespace: "shop", Service: "api", Pod: "api-1", Kind: "Deployment", Name: "api"}
	server := pod() // what it answers
	server.Role = record.RoleServer
	server.Local, server.Remote, server.Owner, server.Peer = client.Remote, client.Local, client.Peer, client.Owner
	unknown := pod()
	unknown.Peer = client.Peer
	outside := host()
	outside.Role = record.RoleClient
	for _, tt := range []struct {
		from, to                         []string
		client, server, unknown, outside bool
	}{
		{[]string{"web"}, nil, true, true, true, false},
		{[]string{"shop/web-7f9-*"}, []string{"shop/api"}, true, true, true, false},
		{[]string{"shop/"}, []string{"api-1"}, true, true, true, false},
		{[]string{"api"}, nil, false, false, true, false},
		{nil, []string{"web"}, false, false, true, false},
		{[]string{"10.0.1.0/24"}, []string{"10.96.0.10"}, true, true, true, false},
		{[]string{"10.96.0.10"}, nil, false, false, true, false},
		{[]string{"other/web", "bank/"}, nil, false, false, false, false},
		{[]string{"fd00::1"}, []string{"fd00:1::2"}, false, false, false, true},
		{nil, []string{"*"}, true, true, true, false},
		{[]string{"kworker*"}, nil, false, false, false, true},
	} {
		set, err := filter.Compile([]*F{{From: tt.from, To: tt.to}})
		if err != nil {
			t.Fatalf("%v %v: %v", tt.from, tt.to, err)
		}
		for name, c := range map[string]struct {
			h    *record.Header
			want bool
		}{"client": {client, tt.client}, "server": {server, tt.server}, "unknown": {unknown, tt.unknown}, "outside": {outside, tt.outside}} {
			if got := set.Match(c.h, nil); got != c.want {
				t.Errorf("from %q to %q, the %s's: %t", tt.from, tt.to, name, got)
			}
			if n := testing.AllocsPerRun(20, func() { set.Match(c.h, nil) }); n != 0 {
				t.Errorf("from %q to %q: %v allocations", tt.from, tt.to, n)
			}
		}
	}
	for _, bad := range []string{"", "/x", "a/b/c", "a*b", "*/", "a*/"} {
		if _, err := filter.Compile([]*F{{From: []string{bad}}}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
