// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
)

// protobufList is a list as an API server sends it.
func protobufList(t testing.TB, items ...*corev1.Pod) []byte {
	list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "77", Continue: "next"}}
	for _, p := range items {
		list.Items = append(list.Items, *p)
	}
	raw, err := list.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	unknown := &k8sruntime.Unknown{
		TypeMeta: k8sruntime.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Raw: raw, ContentType: "application/vnd.kubernetes.protobuf",
	}
	text, err := unknown.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte(protobufMagic), text...)
}

// TestReadList: lists are read object by object, in both encodings, whatever pieces they
// come in; one that ends early or makes no sense is no list.
func TestReadList(t *testing.T) {
	pods := []*corev1.Pod{apiPod("n1", "a", "10.0.0.1"), apiPod("n2", "b", "10.0.0.2"), apiPod("n2", "c", "10.0.0.3")}
	for _, p := range pods {
		p.TypeMeta = metav1.TypeMeta{} // lists of protobuf have none
	}
	proto := protobufList(t, pods...)
	var js bytes.Buffer
	list := &corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "77", Continue: "next"}}
	for _, p := range pods {
		list.Items = append(list.Items, *p)
	}
	encode(t, &js, list)
	read := func(r io.Reader) (meta metav1.ListMeta, got []*corev1.Pod, err error) {
		meta, err = readList(r, func() *corev1.Pod { return new(corev1.Pod) }, func(p *corev1.Pod) error {
			got = append(got, p)
			return nil
		})
		return meta, got, err
	}
	for name, text := range map[string][]byte{"protobuf": proto, "JSON": js.Bytes()} {
		for how, r := range map[string]io.Reader{
			"at once": bytes.NewReader(text), "byte by byte": iotest.OneByteReader(bytes.NewReader(text)),
		} {
			meta, got, err := read(r)
			if err != nil || meta.ResourceVersion != "77" || meta.Continue != "next" {
				t.Errorf("%s %s: %+v, %v", name, how, meta, err)
			}
			if diff := cmp.Diff(pods, got); diff != "" {
				t.Errorf("%s %s (-want +got)\n%s", name, how, diff)
			}
		}
		for cut := range len(text) - 1 {
			if name == "protobuf" && cut > len(text)-60 {
				break // what follows the list itself
			}
			if _, _, err := read(bytes.NewReader(text[:cut])); err == nil {
				t.Errorf("%s: %d of %d bytes are a list", name, cut, len(text))
			}
		}
		stop := errors.New("stop")
		n := 0
		if _, err := readList(bytes.NewReader(text), func() *corev1.Pod { return new(corev1.Pod) }, func(*corev1.Pod) error {
			n++
			return stop
		}); !errors.Is(err, stop) || n != 1 {
			t.Errorf("%s: read on: %v, %d", name, err, n)
		}
	}
	for name, text := range map[string]string{
		"no list": `"text"`, "an array": `[]`, "items that are none": `{"items":{"a":1}}`, "an item that is none": `{"items":[7]}`,
		"empty": "", "no field": "k8s\x00", "a bad field": "k8s\x00\x17", "a huge object": "k8s\x00\x12\x0a\x12" + string(binary.AppendUvarint(nil, 1<<40)) + "xxx",
		"a bad object": "k8s\x00\x12\x04\x12\x02\xff\xff", "a huge field": "k8s\x00\x0a" + string(binary.AppendUvarint(nil, 1<<60)),
	} {
		if _, _, err := read(strings.NewReader(text)); err == nil {
			t.Errorf("%s is read", name)
		}
	}
	for name, text := range map[string]string{"none": `{"metadata":{"resourceVersion":"1"},"items":null}`, "no items": `{"kind":"x","metadata":{}}`} {
		if _, got, err := read(strings.NewReader(text)); err != nil || len(got) != 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzReadList(f *testing.F) {
	f.Add(protobufList(f, apiPod("n1", "a", "10.0.0.1")))
	f.Add([]byte(`{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"a"}}]}`))
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _ = readList(bytes.NewReader(text), func() *corev1.Pod { return new(corev1.Pod) }, func(*corev1.Pod) error { return nil })
	})
}

// TestListsComeFromMemory: an API server without streamed lists is asked for all at once,
// out of its memory, at first and after it was away, and not for pods that have ended.
func TestListsComeFromMemory(t *testing.T) {
	a := newAPIServer(t)
	fill(a)
	const n = 1100
	for i := range n {
		a.put("pods", apiPod("n2", fmt.Sprintf("web-%04d", i), fmt.Sprintf("10.2.%d.%d", i/250, i%250)))
	}
	for i := range 50 {
		a.put("pods", apiPod("n2", fmt.Sprint("done-", i), fmt.Sprintf("10.3.0.%d", i), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }))
	}
	c := runCluster(t, a, Config{})
	eventually(t, "all peers", func() bool { return c.Status().Peers == n+1 })
	a.expire()
	a.shut()
	a.put("pods", apiPod("n2", "new", "10.4.0.1"))
	a.start()
	eventually(t, "the new pod", func() bool { return c.Status().Peers == n+2 })
	// One that ends is told of as deleted.
	a.put("pods", apiPod("n2", "new", "10.4.0.1", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }))
	eventually(t, "the ended pod to go", func() bool { return c.Status().Peers == n+1 })
	if got := who(c.store, peer("10.4.0.1")); got != "pod new" {
		t.Errorf("a pod that has just ended is %q", got)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.limits) != 0 {
		t.Errorf("pages were asked for: %v", a.limits)
	}
	if a.listed["pods "+running] != 2 {
		t.Errorf("lists: %v", a.listed)
	}
}

// manyProtobuf answers a list of n pods as they are in clusters, some 5 KB each, without
// having them all: they are copies of one, with numbers in place of letters.
func manyProtobuf(t testing.TB, n int, asked *atomic.Int32) func(w http.ResponseWriter) {
	p := apiPod("node-NNN", "application-AAAAA-6d4cf56db6-PPPPP", "fd00::1:PPPPP", func(p *corev1.Pod) {
		p.TypeMeta = metav1.TypeMeta{}
		p.Namespace, p.UID = "namespace-SS", "3f5c1d7e-8a2b-4c6d-9e0f-0000000PPPPP"
		p.Labels = map[string]string{"app": "application-AAAAA", labelTemplateHash: "6d4cf56db6", "team": "team-SS"}
		p.OwnerReferences[0].Name = "application-AAAAA-6d4cf56db6"
		p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 4000))}}
	})
	p.Status.PodIP = "fd00::P:PPPP"
	p.Status.PodIPs[0].IP = p.Status.PodIP
	item, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	meta, err := (&metav1.ListMeta{ResourceVersion: "10"}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	field := func(number byte, text []byte) []byte {
		return append(binary.AppendUvarint([]byte{number<<3 | wireBytes}, uint64(len(text))), text...)
	}
	head, one := field(listMeta, meta), field(listItems, item)
	return func(w http.ResponseWriter) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		w.Write([]byte(protobufMagic))
		w.Write(binary.AppendUvarint([]byte{unknownRaw<<3 | wireBytes}, uint64(n*len(one)+len(head))))
		w.Write(head)
		for i := range n {
			number := func(format string, n int) []byte { return fmt.Appendf(nil, format, n) }
			text := slices.Clone(one)
			for letters, digits := range map[string][]byte{
				"P:PPPP": fmt.Appendf(nil, "%x:%04x", i>>16, i&0xffff), "PPPPP": number("%05d", i), "AAAAA": number("%05d", i/10),
				"NNN": number("%03d", i%1000), "SS": number("%02d", i%40),
			} {
				for at := bytes.Index(text, []byte(letters)); at >= 0; at = bytes.Index(text, []byte(letters)) {
					copy(text[at:], digits)
				}
			}
			if _, err := w.Write(text); err != nil {
				return
			}
		}
	}
}

// TestSixtyThousandPods of a server that does not stream lists fit into the memory that the
// chart allows, by one list; an agent with less says so, keeps its own node's pods and does
// not ask again.
func TestSixtyThousandPods(t *testing.T) {
	const n = 60_000
	for _, tt := range []struct {
		name  string
		most  int
		peers int
	}{{"they fit", 87_381, n + 1}, {"they do not", 40_000, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAPIServer(t)
			fill(a)
			var asked atomic.Int32
			a.protobuf["pods"] = manyProtobuf(t, n, &asked)
			before := heap()
			var most atomic.Uint64
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					most.Store(max(most.Load(), m.HeapAlloc))
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			}()
			c := runCluster(t, a, Config{MaxPods: tt.most})
			eventually(t, "the list", func() bool { s := c.Status(); return s.Synced && s.Peers == tt.peers })
			close(stop)
			<-done
			got, ok := c.Pod("c-web-1", "")
			if !ok || got.Name != "web" {
				t.Errorf("the own node's pod is %v", got)
			}
			words := c.Status().Degraded
			if strings.Contains(words, "more than 40000 pods, which do not fit") != (tt.peers == 0) {
				t.Errorf("said: %q", words)
			}
			if asked.Load() != 1 {
				t.Errorf("%d lists", asked.Load())
			}
			held := int64(heap()) - int64(before)
			t.Logf("%d pods: %d MiB held, %d MiB at most meanwhile, with the garbage of this test's server", c.Status().Peers, held>>20, most.Load()>>20)
			if held > 100<<20 {
				t.Errorf("%d MiB are held", held>>20)
			}
			runtime.KeepAlive(c)
		})
	}
}

// TestOwnOnly: with own alone, nothing is asked for that is of other nodes.
func TestOwnOnly(t *testing.T) {
	for _, streams := range []bool{false, true} {
		a := newAPIServer(t)
		a.streams = streams
		fill(a)
		c := runCluster(t, a, Config{OwnOnly: true})
		eventually(t, "synced", func() bool { return c.Status().Synced })
		if got, want := c.Status(), (Status{Counts: Counts{Pods: 1, Services: 1, Nodes: 1}, Synced: true}); got != want {
			t.Errorf("status %+v, want %+v", got, want)
		}
		if id, ok := c.Pod("c-web-1", ""); !ok || id.Zone != "z-n1" {
			t.Errorf("own pod %+v", id)
		}
		for q, want := range map[string]string{"10.1.0.6": "", "192.168.0.2": "", "192.168.0.1": "Node n1"} {
			if got := who(c.store, peer(q)); got != want {
				t.Errorf("%s: %q, want %q", q, got, want)
			}
		}
		a.mu.Lock()
		if slices.ContainsFunc(slices.Collect(maps.Keys(a.listed)), func(s string) bool {
			return strings.HasPrefix(s, "endpointslices") || s == "pods "+running || s == "nodes "
		}) {
			t.Errorf("lists: %v", a.listed)
		}
		a.mu.Unlock()
	}
}

// TestGrowsBeyondTheBound: what the watch brings counts as well.
func TestGrowsBeyondTheBound(t *testing.T) {
	for _, streams := range []bool{false, true} {
		a := newAPIServer(t)
		a.streams = streams
		fill(a)
		c := runCluster(t, a, Config{MaxPods: 10})
		eventually(t, "synced", func() bool { s := c.Status(); return s.Synced && s.Peers == 1 })
		for i := range 12 {
			a.put("pods", apiPod("n2", fmt.Sprint("more-", i), fmt.Sprint("10.9.0.", i+1)))
		}
		eventually(t, "own alone", func() bool {
			s := c.Status()
			return s.Peers == 0 && s.Pods == 1 && strings.Contains(s.Degraded, "more than 10 pods")
		})
	}
}

func encode(t *testing.T, w io.Writer, v any) {
	t.Helper()
	if err := json.NewEncoder(w).Encode(v); err != nil {
		t.Fatal(err)
	}
}
