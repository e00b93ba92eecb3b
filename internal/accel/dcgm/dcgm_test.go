// SPDX-License-Identifier: Apache-2.0

package dcgm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/acceltest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// exporter serves page.
func exporter(t *testing.T, page string) (url string, body *atomic.Value) {
	t.Helper()
	body = new(atomic.Value)
	body.Store(page)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if text := body.Load().(string); text != "" {
			_, _ = w.Write([]byte(text))
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/metrics", body
}

func file(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func read(t *testing.T, b *Backend) []accel.Sample {
	t.Helper()
	all, err := b.Read(testwait.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const uuid = "GPU-604ac76c-d9cf-fef3-62e9-d92044ab6e52"

// The names as they were until DCGM 4.5, with a GPU that two pods share, a MIG
// instance, a blank value and a CPU.
func TestOldNames(t *testing.T) {
	url, body := exporter(t, file(t, "old.prom"))
	b := New(Config{URL: url})
	all := read(t, b)
	if len(all) != 3 {
		t.Fatalf("%d devices, want 3: %+v", len(all), all)
	}
	want := &accel.Device{
		Vendor: accel.NVIDIA, ID: uuid, Index: "0", Model: "NVIDIA A100-SXM4-80GB", PCI: "0000:07:00.0", Driver: "535.54.03",
		Minor: 0, Instance: -1,
	}
	if diff := cmp.Diff(want, all[0].Device); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	wantValues := map[string]string{
		"sm_clock_hertz": "1.35e+09 (dcgm)", "utilization_ratio": "0.87 (dcgm)", "energy_joules": "5000 (dcgm)",
		"memory_used_bytes": "1.6777216e+09 (dcgm)", "memory_total_bytes": "8.55638016e+10 (dcgm)",
		"memory_reserved_bytes": "6.291456e+08 (dcgm)", "tensor_active_ratio": "0.413242 (dcgm)",
	}
	if diff := cmp.Diff(wantValues, acceltest.Values(&all[0].Values)); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	whole, part := all[1].Device, all[2].Device
	if !whole.Divided || part.Parent != whole.ID || part.Instance != 7 || part.Profile != "1g.10gb" || part.Index != "1:7" {
		t.Errorf("MIG: %+v of %+v", part, whole)
	}
	if v := all[2].Values[accel.Utilization]; v.String() != "0.25 (dcgm)" {
		t.Errorf("MIG instance: utilization %v", v)
	}
	if v := all[1].Values[accel.Utilization]; !v.Known() || v.V != 0 {
		t.Errorf("0 is a value: %v", v)
	}
	// The latest XID is there for ever: it counts when it changes.
	if len(all[0].Errors) != 0 {
		t.Errorf("an XID of any age: %v", all[0].Errors)
	}
	body.Store(strings.Replace(file(t, "old.prom"), "} 43", "} 79", 1))
	for i, want := range []int{1, 0} {
		if got := read(t, b)[0].Errors; len(got) != want || want == 1 && got[0].Code != 79 {
			t.Errorf("reading %d after the change: %v", i, got)
		}
	}
}

// Both generations give the same values.
func TestNewNames(t *testing.T) {
	url, _ := exporter(t, file(t, "new.prom"))
	b := New(Config{URL: url})
	all := read(t, b)
	if len(all) != 1 || all[0].Device.ID != uuid || all[0].Device.Model != "NVIDIA H100 80GB HBM3" || all[0].Device.Driver != "570.124.06" {
		t.Fatalf("%+v", all)
	}
	want := map[string]string{
		"sm_clock_hertz": "1.35e+09 (dcgm)", "utilization_ratio": "0.87 (dcgm)", "energy_joules": "5000 (dcgm)",
		"memory_used_bytes": "1.048576e+09 (dcgm)", "memory_total_bytes": "8.5520809984e+10 (dcgm)",
		"tensor_active_ratio": "0.413242 (dcgm)",
	}
	if diff := cmp.Diff(want, acceltest.Values(&all[0].Values)); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

// A percentage that is called a ratio is known by its size, and stays known.
func TestRatioThatIsNone(t *testing.T) {
	page := `DCGM_FI_DEV_GPU_UTIL_RATIO{gpu="0",UUID="` + uuid + `"} `
	url, body := exporter(t, page+"87\n")
	b := New(Config{URL: url})
	for _, c := range []struct {
		text string
		want float64
	}{{"87", 0.87}, {"1", 0.01}, {"0", 0}, {"100", 1}} {
		body.Store(page + c.text + "\n")
		if v := read(t, b)[0].Values[accel.Utilization]; math.Abs(v.V-c.want) > 1e-9 || !v.Known() {
			t.Errorf("%s: %v, want %g", c.text, v, c.want)
		}
	}
	body.Store("# HELP DCGM_FI_DEV_GPU_UTIL_RATIO GPU utilization (in %).\n" + page + "1\n")
	if v := read(t, New(Config{URL: url}))[0].Values[accel.Utilization]; v.V != 0.01 {
		t.Errorf("by its help: %v", v)
	}
}

func TestNoExporter(t *testing.T) {
	down := "http://127.0.0.1:1/metrics"
	unsupported := new(accel.Unsupported)
	_, err := New(Config{Find: func() ([]string, []string) { return []string{down}, []string{"port 9400 is user 7's"} }}).Read(testwait.Context(t))
	if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), down) || !strings.Contains(err.Error(), "user 7's") {
		t.Errorf("nothing found: %v", err)
	}
	_, err = New(Config{URL: down}).Read(testwait.Context(t))
	if err == nil || errors.As(err, &unsupported) {
		t.Errorf("a URL that was given does not answer: %v", err)
	}
	for page, want := range map[string]string{
		"":                "503",
		"up 1\n":          "not a dcgm-exporter's",
		"a{b=\n":          "read page",
		"{\"json\":true}": "read page",
	} {
		url, _ := exporter(t, page)
		if _, err := New(Config{URL: url}).Read(testwait.Context(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", page, err, want)
		}
	}
	// The one that answers is kept, and its loss is an error.
	url, body := exporter(t, file(t, "new.prom"))
	b := New(Config{Find: func() ([]string, []string) { return []string{down, url}, []string{"port 9400 is user 7's"} }})
	if len(read(t, b)) != 1 {
		t.Error("the second URL was not tried")
	}
	body.Store("")
	if _, err := b.Read(testwait.Context(t)); err == nil || errors.As(err, &unsupported) {
		t.Errorf("an exporter that was there: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// Whoever answers does not decide whom the agent asks next, nor how much it keeps, nor
// what it says.
func TestHostileExporter(t *testing.T) {
	asked := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer other.Close()
	redirects := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
	defer redirects.Close()
	if _, err := New(Config{URL: redirects.URL}).Read(testwait.Context(t)); err == nil || !strings.Contains(err.Error(), "302 Found") || asked {
		t.Errorf("redirected: %v, asked %v", err, asked)
	}
	page := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "DCGM_FI_DEV_XID_ERRORS{UUID=\"GPU-%d\"} 1\n", i)
		}
		return b.String()
	}
	url, body := exporter(t, page(maxDevices))
	b := New(Config{URL: url})
	if n := len(read(t, b)); n != maxDevices {
		t.Errorf("%d devices", n)
	}
	body.Store(page(maxDevices + 1))
	if _, err := b.Read(testwait.Context(t)); err == nil || !strings.Contains(err.Error(), "129 devices") {
		t.Errorf("one more: %v", err)
	}
	body.Store(page(2))
	if read(t, b); len(b.xids) != 2 {
		t.Errorf("%d devices are remembered of those that came by", len(b.xids))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			// Before the request is there, the answer would be nobody's.
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, "HTTP/1.1 500 \x1b]0;owned\a\xff\r\nContent-Length: 0\r\n\r\n")
			c.Close()
		}
	}()
	if _, err := New(Config{URL: "http://" + l.Addr().String()}).Read(testwait.Context(t)); err == nil || !strings.HasSuffix(err.Error(), "answers 500 Internal Server Error") {
		t.Errorf("a status line of its own: %q", err)
	}
}

// TestCountedXIDs: an exporter that counts XIDs tells of the same one twice, which the latest one
// does not; what it counts at first may be of any age.
func TestCountedXIDs(t *testing.T) {
	const gpu = "DCGM_FI_DEV_XID_ERRORS{gpu=\"0\",UUID=\"GPU-a\"} 31\n"
	for _, name := range []string{"DCGM_EXP_XID_ERRORS_COUNT", "DCGM_EXP_XID_ERRORS_TOTAL"} {
		count := func(pod, xid string, n int) string {
			return fmt.Sprintf("%s{gpu=\"0\",UUID=\"GPU-a\",pod=%q,xid=%q} %d\n", name, pod, xid, n)
		}
		url, page := exporter(t, gpu+count("a", "13", 7))
		b := New(Config{URL: url})
		for step, tt := range []struct {
			page string
			want []uint64
		}{
			{gpu + count("a", "13", 7), nil},
			{gpu + count("a", "13", 7) + count("a", "31", 1) + count("b", "31", 1), []uint64{31}},
			{gpu + count("a", "13", 7) + count("a", "31", 2) + count("b", "31", 2), []uint64{31}},
			{gpu + count("a", "13", 7) + count("a", "31", 0), nil},
			{strings.Replace(gpu, "31", "79", 1) + count("a", "31", 0) + count("a", "79", 1), []uint64{79}},
			{strings.Replace(gpu, "31", "79", 1), nil},
		} {
			page.Store(tt.page)
			var got []uint64
			for _, e := range read(t, b)[0].Errors {
				got = append(got, e.Code)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s, step %d (-want +got):\n%s", name, step, diff)
			}
		}
	}
}

// TestSharedGPU: exporters give each pod that shares a GPU the GPU's value, newer ones each its
// own; what differs and is not by slot says nothing.
func TestSharedGPU(t *testing.T) {
	line := func(name, labels, value string) string {
		return fmt.Sprintf("%s{gpu=\"0\",UUID=\"GPU-a\",%s} %s\n", name, labels, value)
	}
	for name, tt := range map[string]struct{ page, used, busy string }{
		"each its own": {
			line("DCGM_FI_DEV_FB_USED", `pod="a",vgpu="0"`, "1000") + line("DCGM_FI_DEV_FB_USED", `pod="b",vgpu="1"`, "2000") +
				line("DCGM_FI_DEV_GPU_UTIL", `pod="a",vgpu="0"`, "60") + line("DCGM_FI_DEV_GPU_UTIL", `pod="b",vgpu="1"`, "50"),
			"3.145728e+09 (dcgm)", "1 (dcgm)",
		},
		"each the same": {
			line("DCGM_FI_DEV_FB_USED", `pod="a",vgpu="0"`, "1000") + line("DCGM_FI_DEV_FB_USED", `pod="b",vgpu="1"`, "1000") +
				line("DCGM_FI_DEV_GPU_UTIL", `pod="a"`, "60") + line("DCGM_FI_DEV_GPU_UTIL", `pod="b"`, "60"),
			"1.048576e+09 (dcgm)", "0.6 (dcgm)",
		},
		"different for no reason": {
			line("DCGM_FI_DEV_FB_USED", `pod="a"`, "1000") + line("DCGM_FI_DEV_FB_USED", `pod="b"`, "2000") +
				line("DCGM_FI_DEV_GPU_UTIL", `pod="a",vgpu="0"`, "60") + line("DCGM_FI_DEV_GPU_UTIL", `pod="b"`, "50") +
				line("DCGM_FI_DEV_GPU_TEMP", `pod="b"`, "50"),
			"-", "-",
		},
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := exporter(t, tt.page)
			all := read(t, New(Config{URL: url}))
			if len(all) != 1 {
				t.Fatalf("%d devices", len(all))
			}
			v := &all[0].Values
			if used, busy := v[accel.MemoryUsed].String(), v[accel.Utilization].String(); used != tt.used || busy != tt.busy {
				t.Errorf("used %s, busy %s, want %s and %s", used, busy, tt.used, tt.busy)
			}
		})
	}
}

// It completes what NVML reads of the same devices, MIG instances included, and adds
// no device.
func TestFillsNVML(t *testing.T) {
	url, _ := exporter(t, file(t, "old.prom"))
	main := &fixed{samples: []accel.Sample{
		{Device: &accel.Device{Vendor: accel.NVIDIA, ID: uuid, Index: "0", Instance: -1}},
		{Device: &accel.Device{Vendor: accel.NVIDIA, ID: "GPU-1f2e3d4c-0000-1111-2222-333344445555", Index: "1", Instance: -1, Divided: true}},
		{Device: &accel.Device{Vendor: accel.NVIDIA, ID: "MIG-x", Parent: "GPU-1f2e3d4c-0000-1111-2222-333344445555", Index: "1:0", Instance: 7}},
	}}
	main.samples[0].Values[accel.Utilization] = accel.Of(0.5, accel.Driver)
	latest := make(chan accel.Report, 1000)
	c := accel.NewCollector(accel.Config{
		Sources:  []accel.Source{{Backend: main}, {Backend: New(Config{URL: url}), Fills: true}},
		Interval: func() time.Duration { return 10 * time.Millisecond },
		Report: func(all []accel.Report) {
			for _, r := range all {
				select {
				case latest <- r:
				default:
				}
			}
		},
	})
	ctx := t.Context()
	go c.Run(ctx)
	seen := make(map[string]bool)
	for end := time.After(testwait.Limit); len(seen) < 2; {
		select {
		case r := <-latest:
			if r.Device.ID == uuid && r.Values[accel.TensorActive].Known() {
				if u := r.Values[accel.Utilization]; u.String() != "0.5 (driver)" {
					t.Errorf("NVML's own value: %v", u)
				}
				seen[uuid] = true
			}
			if r.Device.ID == "MIG-x" && r.Values[accel.Utilization].Method == accel.DCGM {
				seen["MIG-x"] = true
			}
		case <-end:
			t.Fatalf("completed: %v", seen)
		}
	}
}

// fixed reads the same each time.
type fixed struct{ samples []accel.Sample }

func (f *fixed) Name() string { return "fixed" }
func (f *fixed) Close() error { return nil }
func (f *fixed) Read(context.Context) ([]accel.Sample, error) {
	all := make([]accel.Sample, len(f.samples))
	copy(all, f.samples)
	for i := range all {
		all[i].Time = time.Now()
	}
	return all, nil
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(file(f, "old.prom")))
	f.Add([]byte(file(f, "new.prom")))
	f.Fuzz(func(t *testing.T, page []byte) {
		families, err := parse(bytes.NewReader(page))
		if err != nil {
			return
		}
		if all, err := New(Config{}).samples(families); err == nil {
			acceltest.Sound(t, all)
		}
	})
}
