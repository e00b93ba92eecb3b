// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	allCaps   = "000001ffffffffff"
	hostUsers = "         0          0 4294967295\n"
)

// files maps a path below the fake host's directory to its text, or to "-> "
// and the target of a symbolic link.
type files map[string]string

// Tables of sockets as in /proc/net.
const (
	tcpHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	tcp4    = tcpHead +
		"   0: 0100007F:2382 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18563 1 0000000000000000 100 0 0 10 0\n" +
		"   1: 0100007F:2383 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 18564 1 0000000000000000 20 4 30 10 -1\n" +
		"   2: 0501A8C0:2383 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18565 1 0000000000000000 100 0 0 10 0\n"
	tcp6 = tcpHead +
		"   0: 00000000000000000000000000000000:2383 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 21 1 0000000000000000 100 0 0 10 0\n" +
		"   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 22 1 0000000000000000 100 0 0 10 0\n" +
		"   2: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 23 1 0000000000000000 100 0 0 10 0\n"
)

// fakeHost is a machine on which all is well, changed by change; a text of
// "absent" takes a file away.
func fakeHost(t *testing.T, change files) *host {
	t.Helper()
	all := files{
		"proc/self/status":                  status(0, allCaps),
		"proc/self/uid_map":                 hostUsers,
		"proc/self/ns/pid":                  "-> pid:[4026531836]",
		"proc/self/ns/cgroup":               "-> cgroup:[4026531835]",
		"proc/self/net/tcp":                 tcpHead,
		"proc/self/net/tcp6":                tcpHead,
		"proc/self/mountinfo":               "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
		"proc/sys/net/core/bpf_jit_enable":  "1\n",
		"proc/sys/kernel/bpf_stats_enabled": "0\n",
		"proc/sys/net/core/optmem_max":      "131072\n",
		"sys/kernel/btf/vmlinux":            "\x9f\xeb\x01",
		"sys/kernel/security/lockdown":      "[none] integrity confidentiality\n",
	}
	for name, text := range change {
		all[name] = text
	}
	dir := t.TempDir()
	for name, text := range all {
		if text != "absent" {
			write(t, filepath.Join(dir, name), text)
		}
	}
	h := newHost(Config{
		Proc: filepath.Join(dir, "proc"), Sys: filepath.Join(dir, "sys"), Root: dir,
		Getenv: func(string) string { return "" },
	})
	h.uname = func() (string, string, error) { return "6.1.0-28-cloud-amd64", "x86_64", nil }
	h.memlock = func() (uint64, error) { return math.MaxUint64, nil }
	h.inode = func(string) (uint64, error) { return 1, nil }
	h.needs = nil
	h.caps = h.readCaps()
	return h
}

func status(uid int, capEff string) string {
	return fmt.Sprintf("Name:\torb8\nUid:\t%d\t%d\t%d\t%d\nCapEff:\t%s\n", uid, uid, uid, uid, capEff)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if target, link := strings.CutPrefix(text, "-> "); link {
		err = os.Symlink(target, name)
	} else {
		err = os.WriteFile(name, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkForm checks what is promised of every finding.
func checkForm(t *testing.T, f Finding) {
	t.Helper()
	switch f.Status {
	case OK:
		if f.Remedy != "" {
			t.Errorf("%s: ok with a remedy: %s", f.Name, f.Remedy)
		}
	case Warn, Fail:
		if !strings.HasSuffix(f.Remedy, ".") {
			t.Errorf("%s: %s: remedy is no sentence: %q", f.Name, f.Status, f.Remedy)
		}
	case Info:
	default:
		t.Errorf("%s: status %q", f.Name, f.Status)
	}
	if f.Detail == "" {
		t.Errorf("%s: no detail", f.Name)
	}
}

// want is the status of a finding and a part of its detail and its remedy.
type want struct {
	status         Status
	detail, remedy string
}

func (w want) check(t *testing.T, f Finding) {
	t.Helper()
	checkForm(t, f)
	if f.Status != w.status || !strings.Contains(f.Detail, w.detail) || !strings.Contains(f.Remedy, w.remedy) {
		t.Errorf("got %+v, want %+v", f, w)
	}
}

func TestFiles(t *testing.T) {
	jit, stats := "proc/sys/net/core/bpf_jit_enable", "proc/sys/kernel/bpf_stats_enabled"
	optmem := "proc/sys/net/core/optmem_max"
	lockdown, btf := "sys/kernel/security/lockdown", "sys/kernel/btf/vmlinux"
	for _, tt := range []struct {
		name   string
		check  func(*host) Finding
		change files
		want   want
	}{
		{"option memory", (*host).optionMemory, nil, want{OK, "131072", ""}},
		{"little option memory", (*host).optionMemory, files{optmem: "64\n"}, want{Warn, "may not be accepted", "optmem_max=20480"}},
		{"option memory absent", (*host).optionMemory, files{optmem: "absent"}, want{Info, "not checked", ""}},
		{"option memory strange", (*host).optionMemory, files{optmem: "many"}, want{Info, "many", ""}},
		{"btf", (*host).btf, nil, want{OK, "kernel/btf/vmlinux", ""}},
		{"btf absent", (*host).btf, files{btf: "absent"}, want{Fail, "missing", "CONFIG_DEBUG_INFO_BTF"}},
		{"btf empty", (*host).btf, files{btf: ""}, want{Fail, "not BTF", "CONFIG_DEBUG_INFO_BTF"}},
		{"lockdown none", (*host).lockdown, nil, want{OK, "none", ""}},
		{"lockdown integrity", (*host).lockdown, files{lockdown: "none [integrity] confidentiality"}, want{OK, "integrity", ""}},
		{"lockdown confidentiality", (*host).lockdown, files{lockdown: "none integrity [confidentiality]"}, want{Warn, "refuses", "integrity"}},
		{"lockdown absent", (*host).lockdown, files{lockdown: "absent"}, want{OK, "does not exist", ""}},
		{"lockdown strange", (*host).lockdown, files{lockdown: "what"}, want{Info, "cannot be told", ""}},
		{"jit on", (*host).jit, nil, want{OK, "compiled", ""}},
		{"jit off", (*host).jit, files{jit: "0\n"}, want{Warn, "interpreted", "bpf_jit_enable=1"}},
		{"jit with log", (*host).jit, files{jit: "2"}, want{Warn, "log", "bpf_jit_enable=1"}},
		{"jit unknown", (*host).jit, files{jit: "absent"}, want{Info, "not checked", ""}},
		{"statistics off", (*host).statistics, nil, want{OK, "off", ""}},
		{"statistics on", (*host).statistics, files{stats: "1"}, want{Warn, "times every run", "bpf_stats_enabled=0"}},
		{"statistics unknown", (*host).statistics, files{stats: "absent"}, want{Info, "not checked", ""}},
		{"statistics unreadable", (*host).statistics, files{stats: "-> ."}, want{Info, "not checked", ""}},
		{"systemd", (*host).systemd, files{"run/systemd/system/x": ""}, want{Info, "runs this host", ""}},
		{"no systemd", (*host).systemd, nil, want{Info, "does not run", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.want.check(t, tt.check(fakeHost(t, tt.change))) })
	}
}

func TestKernel(t *testing.T) {
	for _, tt := range []struct {
		release, machine string
		want             want
	}{
		{"6.18.1", "x86_64", want{OK, "6.18.1 on x86_64", ""}},
		{"5.15.153.1-microsoft-standard-WSL2", "aarch64", want{OK, "Windows Subsystem for Linux", ""}},
		{"5.8.0", "x86_64", want{OK, "5.8.0", ""}},
		{"5.4.0-200-generic", "x86_64", want{Warn, "older than 5.8", "Use a kernel from 5.8"}},
		{"4.18.0-553.el8", "x86_64", want{Warn, "older than 5.8", "BTF"}},
		{"strange", "x86_64", want{OK, "strange", ""}},
		{"6.18.1", "riscv64", want{Fail, "x86_64 and aarch64", "Use a machine"}},
	} {
		h := fakeHost(t, nil)
		h.uname = func() (string, string, error) { return tt.release, tt.machine, nil }
		tt.want.check(t, h.kernel())
	}
	h := fakeHost(t, nil)
	h.uname = func() (string, string, error) { return "", "", unix.EFAULT }
	want{Info, "not checked", ""}.check(t, h.kernel())
}

func TestPrivileges(t *testing.T) {
	only := func(caps ...int) string {
		var set uint64
		for _, c := range caps {
			set |= 1 << c
		}
		return fmt.Sprintf("%016x", set)
	}
	three := []int{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}
	for _, tt := range []struct {
		name, status string
		want         want
		load         bool
	}{
		{"root", status(0, allCaps), want{OK, "root, all", ""}, true},
		{"user", status(1000, "0"), want{Warn, "not root", "sudo"}, false},
		{"user with file capabilities", status(1000, only(append(three, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH)...)),
			want{OK, "not root, all", ""}, true},
		{"the three", status(0, only(three...)), want{Warn, "SYS_PTRACE, DAC_READ_SEARCH: details", "Grant SYS_PTRACE"}, true},
		{"administrator", status(0, only(unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE)), want{Warn, "cgroups are found", "Grant DAC_READ_SEARCH"}, true},
		{"container", status(0, "00000000a80425fb"), want{Fail, "root, but without BPF, PERFMON, NET_ADMIN", "--cap-add"}, false},
		{"one missing", status(0, only(three[:2]...)), want{Fail, "NET_ADMIN", "NET_ADMIN"}, false},
		{"unreadable", "absent", want{Info, "not checked", ""}, false},
		{"strange", "CapEff:\tx\nUid:\n", want{Info, "not checked", ""}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := fakeHost(t, files{"proc/self/status": tt.status})
			tt.want.check(t, h.privileges())
			if h.mayLoad() != tt.load {
				t.Errorf("may load: %v, want %v", h.mayLoad(), tt.load)
			}
		})
	}
}

func TestNamespaces(t *testing.T) {
	for _, tt := range []struct {
		name   string
		check  func(*host) Finding
		change files
		want   want
	}{
		{"host's users", (*host).userNamespace, nil, want{OK, "host", ""}},
		{"own users", (*host).userNamespace, files{"proc/self/uid_map": "0 1000 1\n"}, want{Fail, "private", "rootless"}},
		{"no users", (*host).userNamespace, files{"proc/self/uid_map": "absent"}, want{OK, "no user namespaces", ""}},
		{"host's pids", (*host).pidNamespace, nil, want{OK, "host", ""}},
		{"own pids", (*host).pidNamespace, files{"proc/self/ns/pid": "-> pid:[4026532200]"}, want{Warn, "private", "hostPID"}},
		{"unknown pids", (*host).pidNamespace, files{"proc/self/ns/pid": "absent"}, want{Info, "not checked", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.want.check(t, tt.check(fakeHost(t, tt.change))) })
	}
	h := fakeHost(t, files{"proc/self/uid_map": "0 1000 1\n"})
	want{Info, "not checked", "user-namespace"}.check(t, h.memoryLimit())
}

func TestMemoryLimit(t *testing.T) {
	for _, tt := range []struct {
		name  string
		limit uint64
		err   error
		want  want
	}{
		{"none", math.MaxUint64, nil, want{OK, "no limit", ""}},
		{"enough", 1 << 30, nil, want{OK, "1024 MiB", ""}},
		{"too low", 64 << 10, nil, want{Fail, "64 KiB", "LimitMEMLOCK"}},
		{"unknown", 0, unix.EPERM, want{Info, "not checked", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := fakeHost(t, nil)
			h.memlock = func() (uint64, error) { return tt.limit, tt.err }
			tt.want.check(t, h.memoryLimit())
		})
	}
	h := fakeHost(t, files{"proc/self/status": status(1000, "0")})
	want{Info, "not checked", "sudo"}.check(t, h.memoryLimit())
}

func TestCgroup(t *testing.T) {
	const mounts, ns = "proc/self/mountinfo", "proc/self/ns/cgroup"
	for _, tt := range []struct {
		name   string
		change files
		inode  uint64
		want   want
	}{
		{"unified", nil, 1, want{OK, "/sys/fs/cgroup (unified)", ""}},
		{"hybrid", files{mounts: "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
			"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"}, 1, want{OK, "/unified (hybrid", ""}},
		{"host's mount in a private namespace", files{
			mounts: "31 23 0:28 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ns: "-> cgroup:[4026532000]",
		}, 1, want{OK, "the whole of it although this process is in a private cgroup namespace", ""}},
		{"private", files{ns: "-> cgroup:[4026532000]"}, 77, want{Warn, "only a part of the hierarchy: other", "--cgroupns=host"}},
		{"bind mount", files{mounts: "31 23 0:28 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}, 77, want{Warn, "only a part", "hostPath"}},
		{"none", files{mounts: "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"}, 1, want{Fail, "no cgroup2", "mount -t cgroup2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := fakeHost(t, tt.change)
			h.inode = func(string) (uint64, error) { return tt.inode, nil }
			tt.want.check(t, h.cgroup())
		})
	}
}

func TestCgroupUnreadable(t *testing.T) {
	h := fakeHost(t, nil)
	h.inode = func(string) (uint64, error) { return 0, fs.ErrPermission }
	want{Info, "not checked", "sudo"}.check(t, h.cgroup())
	h.findMount = func(string, string) (workload.CgroupMount, error) { return workload.CgroupMount{}, unix.EIO }
	want{Info, "not checked", ""}.check(t, h.cgroup())
}

func TestFeature(t *testing.T) {
	lacks := fmt.Errorf("load tp_btf/x: %w", ebpf.ErrNotSupported)
	for _, tt := range []struct {
		name   string
		status string
		err    error
		want   want
	}{
		{"has", status(0, allCaps), nil, want{OK, "it is there", ""}},
		{"lacks", status(0, allCaps), lacks, want{Warn, "tcp is off (load tp_btf/x", "Use a later kernel."}},
		{"refused", status(0, allCaps), unix.EPERM, want{Warn, "refuses: operation not permitted: tcp is off", "SYS_ADMIN"}},
		{"unclear", status(0, allCaps), unix.ENOMEM, want{Warn, "cannot be told", "orb8 trace network"}},
		{"not root", status(1000, "0"), nil, want{Info, "not checked", "sudo"}},
		{"root without capabilities", status(0, "0"), nil, want{Info, "not checked", "privileges"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := fakeHost(t, files{"proc/self/status": tt.status})
			try := func() error { return tt.err }
			tt.want.check(t, h.feature(need{"x", "it is there", try, Warn, "tcp is off", "Use a later kernel."}))
		})
	}
}

func TestUnsupportedHelper(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"unknown", &ebpf.VerifierError{Cause: unix.EINVAL, Log: []string{"0: (85) call bpf_x#107", "unknown func bpf_x#107"}}, true},
		{"out of range", &ebpf.VerifierError{Cause: unix.EINVAL, Log: []string{"invalid func bpf_x#999"}}, true},
		{"other type", &ebpf.VerifierError{Cause: unix.EINVAL, Log: []string{"program of this type cannot use helper bpf_x#1"}}, true},
		{"known", &ebpf.VerifierError{Cause: unix.EACCES, Log: []string{"R1 !read_ok"}}, false},
		{"other reason", &ebpf.VerifierError{Cause: unix.EINVAL, Log: []string{"back-edge"}}, false},
		{"no verdict", unix.EINVAL, false},
		{"loaded", nil, false},
	} {
		if got := unsupportedHelper(tt.err); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestHelperName(t *testing.T) {
	if got := helperName(asm.FnSkStorageGet); got != "bpf_sk_storage_get" {
		t.Errorf("got %s", got)
	}
}

func TestPort(t *testing.T) {
	holder := func(comm string) files {
		return files{
			"proc/self/net/tcp": tcp4, "proc/self/net/tcp6": tcp6,
			"proc/4/fd/0": "-> socket:[1]", "proc/42/fd/3": "-> socket:[18563]", "proc/42/comm": comm + "\n",
			"proc/self/fd/3": "-> socket:[18563]",
		}
	}
	for _, tt := range []struct {
		name   string
		change files
		port   uint16
		want   want
	}{
		{"free", nil, 9090, want{OK, "port 9090 is free", ""}},
		{"no IPv6", files{"proc/self/net/tcp6": "absent"}, 9090, want{OK, "free", ""}},
		{"our agent", holder("orb8"), 9090, want{OK, "agent (pid 42)", ""}},
		{"another", holder("prometheus"), 9090, want{Warn, "prometheus (pid 42)", "start the agent with --listen"}},
		{"another, out of sight", holder("orb8"), 9091, want{Warn, "cannot look up", "sport = :9091"}},
		{"on another address only", files{"proc/self/net/tcp": tcp4}, 9091, want{OK, "free", ""}},
		{"no table", files{"proc/self/net/tcp": "absent"}, 9090, want{Info, "not checked", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.want.check(t, fakeHost(t, tt.change).port(tt.port, "--listen")) })
	}
}

func TestKubernetes(t *testing.T) {
	const token = "var/run/secrets/kubernetes.io/serviceaccount/token"
	inPod := map[string]string{"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
	for _, tt := range []struct {
		name   string
		env    map[string]string
		change files
		want   want
	}{
		{"none", nil, nil, want{Info, "without Kubernetes", ""}},
		{"pod", inPod, files{token: "x"}, want{Info, "in a pod", ""}},
		{"pod without account", inPod, nil, want{Info, "without Kubernetes", ""}},
		{"k3s", nil, files{"etc/rancher/k3s/k3s.yaml": ""}, want{Info, "k3s.yaml", ""}},
		{"home", map[string]string{"HOME": "HERE/home"}, files{"home/.kube/config": ""}, want{Info, "home/.kube/config", ""}},
		{"environment", map[string]string{"KUBECONFIG": "HERE/none:HERE/a"}, files{"a": ""}, want{Info, "kubeconfig", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := fakeHost(t, tt.change)
			h.Getenv = func(key string) string { return strings.ReplaceAll(tt.env[key], "HERE", h.Root) }
			tt.want.check(t, h.kubernetes())
		})
	}
}

func TestProbes(t *testing.T) {
	h := fakeHost(t, nil)
	h.Probes = func(context.Context) []probe.Status {
		return []probe.Status{
			{Name: "tcp", State: probe.StateRunning},
			{Name: "packet", State: probe.StateRunning, Degraded: []string{"fragments"}},
			{Name: "dns", State: probe.StateFallback, Reason: "no ring", Remedy: "Get one."},
			{Name: "drop", State: probe.StateOff, Reason: "no BTF"},
		}
	}
	got := h.probes(t.Context())
	for i, w := range []want{
		{OK, "runs", ""}, {Warn, "without: fragments", "later kernel"}, {Warn, "no ring", "Get one."}, {Fail, "no BTF", "later kernel"},
	} {
		w.check(t, got[i])
	}
	if got[0].Name != "probe-tcp" {
		t.Errorf("name %q", got[0].Name)
	}
	h.caps = caps{}
	if got := h.probes(t.Context()); got != nil {
		t.Errorf("probes were tried without privileges: %+v", got)
	}
}

func TestExamineStopsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := fakeHost(t, nil).examine(ctx); len(got) != 0 {
		t.Errorf("%d findings after the end, want none", len(got))
	}
}

func TestAllIsWell(t *testing.T) {
	for _, f := range fakeHost(t, nil).examine(t.Context()) {
		checkForm(t, f)
		if f.Status != OK && f.Status != Info {
			t.Errorf("got %+v, want ok or info", f)
		}
	}
}

func TestUnreadable(t *testing.T) {
	want{Info, "permission denied", "sudo"}.check(t, unreadable(fmt.Errorf("open x: %w", fs.ErrPermission), ok("")))
	want{Info, "odd", ""}.check(t, unreadable(errors.New("odd"), ok("")))
	if diff := cmp.Diff(ok("absent"), unreadable(fs.ErrNotExist, ok("absent"))); diff != "" {
		t.Error(diff)
	}
}

// TestRealMachine examines this machine: each finding is well-formed, and nothing
// stays open.
func TestRealMachine(t *testing.T) {
	Run(t.Context(), Config{}) // fills the library's caches
	before := descriptors(t)
	found := Run(t.Context(), Config{})
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, were %d", after, before)
	}
	seen := make(map[string]bool)
	for _, f := range found {
		t.Logf("%-5s %-15s %s", f.Status, f.Name, f.Detail)
		checkForm(t, f)
		if seen[f.Name] || f.Name == "" {
			t.Errorf("name %q is empty or not unique", f.Name)
		}
		seen[f.Name] = true
	}
	if want := len(checks()) + len(needs()) + len(surroundings()); len(found) != want {
		t.Errorf("%d findings, want %d", len(found), want)
	}
}

// The kernel has what a program that does load needs, and lacks what no kernel
// has: the trials tell one from the other.
func TestTrialsOnRealKernel(t *testing.T) {
	if h := newHost(Config{}); !h.readCaps().load() {
		t.Skip("SKIP: loading BPF programs needs root")
	}
	if err := tryTracing(ebpf.AttachTraceRawTp, "no_such_tracepoint", nil); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("unknown tracepoint: %v, want not supported", err)
	}
	if err := tryHelper(ebpf.AttachTraceIter, "no_such_iterator", 1); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("unknown iterator: %v, want not supported", err)
	}
	const mapLookup, redirect = 1, 23 // helpers for all, and for tc and xdp only
	if err := tryHelper(ebpf.AttachTraceRawTp, "inet_sock_set_state", mapLookup); err != nil {
		t.Errorf("helper for all programs: %v", err)
	}
	if err := tryHelper(ebpf.AttachTraceRawTp, "inet_sock_set_state", redirect); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("helper of other programs: %v, want not supported", err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func FuzzParseCaps(f *testing.F) {
	f.Add(status(0, allCaps))
	f.Fuzz(func(t *testing.T, text string) {
		if c := parseCaps(text); !c.known && c.load() {
			t.Errorf("unknown capabilities allow to load: %+v", c)
		}
	})
}

func TestAccelerators(t *testing.T) {
	h := fakeHost(t, nil)
	if got := h.accelerators(t.Context()); got != nil {
		t.Errorf("%v", got)
	}
	var all []accel.Status
	h.Accelerators = func(context.Context) []accel.Status { return all }
	all = []accel.Status{{Name: "nvml", Reason: "no driver"}, {Name: "amd", Reason: "no AMD GPU"}}
	if diff := cmp.Diff([]Finding{{Name: "accelerators", Status: Info, Detail: "no driver; no AMD GPU"}}, h.accelerators(t.Context())); diff != "" {
		t.Errorf("none (-want +got):\n%s", diff)
	}
	all = []accel.Status{
		{Name: "nvml", State: accel.StateRunning, Devices: 8}, {Name: "amd", Reason: "no AMD GPU"},
		{Name: "tpu", Reason: "no permission", Remedy: "Run it as root."}, {Name: "neuron", State: accel.StateStuck, Reason: "silent"},
	}
	want := []Finding{
		{"accelerators-nvml", OK, "8 devices", ""}, {"accelerators-tpu", Warn, "no permission", "Run it as root."},
		{"accelerators-neuron", Warn, "stuck: silent", "See the driver's own tools, and dmesg."},
	}
	if diff := cmp.Diff(want, h.accelerators(t.Context())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
