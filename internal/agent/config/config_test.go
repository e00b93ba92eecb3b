// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/Ignoramuss/orb8/internal/anomaly"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "orb8.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsAreValid(t *testing.T) {
	for _, c := range []Config{Default(), Local()} {
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestLoad(t *testing.T) {
	const all = `# every key
listen: "127.0.0.1:9999"
metrics_listen: ""
socket: /run/x.sock
interval: 2s
idle_timeout: 1m
max_flows: 100_000
loopback: false
include_self: true
tcp: on
packet: off
packet_map_entries: 1000
tcp_ring_bytes: 8192
dns: on
dns_ports: 53, 5353
dns_timeout: 2s
dns_ring_bytes: 16384
exec: off
syscall: off
alert_events: warning
exec_ring_bytes: 32768
process_args: 77
process_redact: pin=(\d+)
rules_off: [chroot, io_uring]
exceptions:
- {rule: mount, namespace: storage}
cgroup_root: /cg
gpu: on
gpu_interval: 1s
kubelet_socket: /k.sock
dcgm_url: http://localhost:9400/metrics
dcgm_namespace: gpus
history: 0
subscriber_queue: 7
metrics:
  allow_remote: true
  tls_cert: /c.pem
  tls_key: /k.pem
  authentication: kubernetes
  max_series: 5
  keep: 30s
  pod: true
  dcgm: true
log_level: debug
log_format: json
node_name: n
kubernetes: off
kubernetes_peers: own
`
	want := Config{
		Listen: "127.0.0.1:9999", Socket: "/run/x.sock", Interval: 2 * time.Second, IdleTimeout: time.Minute,
		MaxFlows: 100_000, IncludeSelf: true, TCP: ModeOn, Packet: ModeOff, PacketMapEntries: 1000, TCPRingBytes: 8192,
		DNS: ModeOn, DNSPorts: "53, 5353", DNSTimeout: 2 * time.Second, DNSRingBytes: 16384,
		Exec: ModeOff, Syscall: ModeOff, AlertEvents: "warning", ExecRingBytes: 32768, ProcessArgs: 77, ProcessRedact: `pin=(\d+)`,
		RulesOff: []string{"chroot", "io_uring"}, Exceptions: []anomaly.Exception{{Rule: "mount", Namespace: "storage"}},
		CgroupRoot: "/cg", GPU: ModeOn, GPUInterval: time.Second,
		Kubelet: "/k.sock", DCGMURL: "http://localhost:9400/metrics", DCGMNamespace: "gpus", MetricsDCGM: true, SubscriberQueue: 7, MetricsAllowRemote: true, MetricsTLSCert: "/c.pem", MetricsTLSKey: "/k.pem", MetricsAuthentication: AuthenticateByKubernetes, MetricsMaxSeries: 5, MetricsKeep: 30 * time.Second, MetricsPod: true, LogLevel: "debug", LogFormat: "json", NodeName: "n",
		Kubernetes: ModeOff, KubernetesPeers: PeersOwn,
	}
	one := Default()
	one.History = 1
	tests := []struct {
		name, text string
		want       Config
	}{
		{"empty", "", Default()},
		{"comment", "# nothing\n", Default()},
		{"nothing after the colon", "listen:\nmetrics:\n", Default()},
		{"one key", "history: 1\n", one},
		{"all keys", all, want},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Load(writeConfig(t, tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	var c Config
	for _, s := range c.settings() {
		if !flagsOnly[s.key] && !strings.Contains("\n"+all, "\n"+s.key+":") && !strings.Contains(all, "\n  "+strings.TrimPrefix(s.key, "metrics.")+":") {
			t.Errorf("key %s is not in this test", s.key)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown key", "listen: localhost:1\nintervall: 5s\n", `line 2: unknown key "intervall" (the keys are in docs/config.md)`},
		{"unknown key of a section", "metrics:\n  pods: true\n", `line 2: unknown key "metrics.pods" (the keys are in docs/config.md)`},
		{"what runs as root", "interval: 5s\nhost_root: /proc/77/root\n", `line 2: host_root can only be set by a flag (--host-root), since it decides what runs as root`},
		{"a plugin", "kubeconfig: /k\n", `line 1: kubeconfig can only be set by a flag (--kubeconfig), since it decides what runs as root`},
		{"a key that was", "allow_remote: true\n", `line 1: there is no key allow_remote any more: metrics.allow_remote is for metrics; the API listens on this host alone (docs/security.md)`},
		{"twice", "history: 1\nhistory: 2\n", `line 2: key "history" is there twice`},
		{"no unit", "interval: 5\n", `line 1: interval: "5": want a duration with its unit, such as 5s`},
		{"no number", "max_flows: many\n", `line 1: max_flows: "many": want a whole number`},
		{"no bool", "\nloopback: maybe\n", `line 2: loopback: "maybe": want true or false`},
		{"list", "listen: [a, b]\n", `line 1: listen: want a single value`},
		{"no keys", "- a\n", `line 1: want keys with values, as in "interval: 5s"`},
		{"section without keys", "metrics: 5\n", `line 1: want keys with values, as in "interval: 5s"`},
		{"two documents", "history: 1\n---\nhistory: 2\n", `more than one YAML document`},
		{"no YAML", "a: b: c\n", `yaml: mapping values are not allowed in this context`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := writeConfig(t, tt.text)
			_, err := Load(path)
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff("configuration "+path+": "+tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); err == nil || !strings.HasPrefix(err.Error(), "read configuration: ") {
		t.Errorf("missing file: %v", err)
	}
}

func TestValidate(t *testing.T) {
	const remote = `can be reached from other machines, and the API has no access control: listen on localhost:9090, and reach it from elsewhere through ssh (ssh -L 9090:localhost:9090 HOST) or kubectl port-forward`
	const scraped = `can be reached from other machines, and there is no access control: listen on localhost:9091, set metrics.authentication (--metrics-authentication=kubernetes, with TLS), or metrics.allow_remote (--metrics-allow-remote) where the network keeps others out`
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"all interfaces", func(c *Config) { c.Listen = ":9090" }, `listen: ":9090" ` + remote},
		{"any address", func(c *Config) { c.MetricsListen = "0.0.0.0:9091" }, `metrics_listen: "0.0.0.0:9091" ` + scraped},
		{"any IPv6 address", func(c *Config) { c.Listen = "[::]:9090" }, `listen: "[::]:9090" ` + remote},
		{"another address", func(c *Config) { c.Listen = "192.0.2.1:9090" }, `listen: "192.0.2.1:9090" ` + remote},
		{"a name", func(c *Config) { c.Listen = "example.org:9090" }, `listen: "example.org:9090" ` + remote},
		{"the API where metrics are for all", func(c *Config) { c.Listen, c.MetricsAllowRemote = ":9090", true }, `listen: ":9090" ` + remote},
		{"no absolute path", func(c *Config) { c.Socket = "agent.sock" }, `socket: "agent.sock": want an absolute path, for instance /run/orb8/agent.sock`},
		{"no port", func(c *Config) { c.Listen = "localhost" }, `listen: "localhost": want HOST:PORT, for instance localhost:9090`},
		{"port", func(c *Config) { c.MetricsListen = "localhost:http" }, `metrics_listen: "localhost:http": want a port number from 0 to 65535 after the colon`},
		{"certificate alone", func(c *Config) { c.MetricsTLSCert = "tls.crt" }, `metrics.tls_cert: a certificate and its key belong together: set metrics.tls_cert and metrics.tls_key, or neither`},
		{"key alone", func(c *Config) { c.MetricsTLSKey = "tls.key" }, `metrics.tls_cert: a certificate and its key belong together: set metrics.tls_cert and metrics.tls_key, or neither`},
		{"authentication", func(c *Config) { c.MetricsAuthentication = "token" }, `metrics.authentication: "token": want one of ["none" "kubernetes"]`},
		{"tokens in the clear", func(c *Config) { c.MetricsAuthentication = AuthenticateByKubernetes }, `metrics.authentication: tokens are not to cross the network in the clear: set metrics.tls_cert and metrics.tls_key too`},
		{"interval", func(c *Config) { c.Interval = 5 }, `interval: 5ns: want at least 200ms`},
		{"idle timeout", func(c *Config) { c.IdleTimeout = 0 }, `idle_timeout: 0s: want at least 1s`},
		{"max flows", func(c *Config) { c.MaxFlows = 0 }, `max_flows: 0: want a number from 1 to 10000000`},
		{"mode", func(c *Config) { c.TCP = "true" }, `tcp: "true": want auto, on or off`},
		{"ring", func(c *Config) { c.TCPRingBytes = 5000 }, `tcp_ring_bytes: 5000: want a power of two from 4096 to 1073741824`},
		{"DNS ring", func(c *Config) { c.DNSRingBytes = 5000 }, `dns_ring_bytes: 5000: want a power of two from 4096 to 1073741824`},
		{"DNS ports", func(c *Config) { c.DNSPorts = "53,dns" }, `dns_ports: "53,dns": want ports from 1 to 65535 with commas between them, such as 53,5353`},
		{"too many DNS ports", func(c *Config) { c.DNSPorts = "1,2,3,4,5,6,7,8,9" }, `dns_ports: "1,2,3,4,5,6,7,8,9": want at most 8 ports`},
		{"DNS timeout", func(c *Config) { c.DNSTimeout = time.Hour }, `dns_timeout: 1h0m0s: want 100ms to 1m`},
		{"exec ring", func(c *Config) { c.ExecRingBytes = 1 }, `exec_ring_bytes: 1: want a power of two from 4096 to 1073741824`},
		{"arguments", func(c *Config) { c.ProcessArgs = 5000 }, `process_args: 5000: want a number from 0 to 4096`},
		{"alert events", func(c *Config) { c.AlertEvents = "bad" }, `alert_events: "bad": want critical, warning, notice or off`},
		{"redact", func(c *Config) { c.ProcessRedact = "(" }, "process_redact: want a regular expression (https://golang.org/s/re2syntax): error parsing regexp: missing closing ): `(`"},
		{"rule", func(c *Config) { c.RulesOff = []string{"mounts"} }, "rules_off: " + anomaly.CheckRules([]string{"mounts"}).Error()},
		{"exception", func(c *Config) { c.Exceptions = []anomaly.Exception{{}} }, "exceptions: exception 1: it names nothing, and would silence every alert; name a rule, namespace, workload, image, executable or parent"},
		{"history", func(c *Config) { c.History = -1 }, `history: -1: want a number from 0 to 1000000`},
		{"queue", func(c *Config) { c.SubscriberQueue = 0 }, `subscriber_queue: 0: want a number from 1 to 1000000`},
		{"log level", func(c *Config) { c.LogLevel = "loud" }, `log_level: "loud": want debug, info, warn or error`},
		{"log format", func(c *Config) { c.LogFormat = "xml" }, `log_format: "xml": want one of ["text" "json"]`},
		{"two faults", func(c *Config) { c.MaxFlows, c.History = 0, -1 }, "max_flows: 0: want a number from 1 to 10000000\nhistory: -1: want a number from 0 to 1000000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Default()
			tt.change(&c)
			err := c.Validate()
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	for _, ok := range []func(*Config){
		func(c *Config) { c.MetricsListen, c.MetricsAllowRemote = ":9091", true },
		func(c *Config) {
			c.MetricsListen, c.MetricsAuthentication = ":9091", AuthenticateByKubernetes
			c.MetricsTLSCert, c.MetricsTLSKey = "tls.crt", "tls.key"
		},
		func(c *Config) { c.Listen = "[::1]:0" },
		func(c *Config) { c.Listen = "127.5.5.5:80" },
		func(c *Config) { c.Listen = "[::ffff:127.0.0.1]:80" },
		func(c *Config) { c.Listen = "" },
	} {
		c := Default()
		ok(&c)
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestResolve(t *testing.T) {
	file := "interval: 2s\nloopback: true\npacket: off\nmetrics:\n  max_series: 5\n"
	tests := []struct {
		name string
		args []string
		file string
		want func(*Config)
	}{
		{"nothing", nil, "", func(*Config) {}},
		{"flags", []string{"--interval=3s", "--no-loopback", "--packet", "on", "--metrics-pod"}, "", func(c *Config) {
			c.Interval, c.Loopback, c.Packet, c.MetricsPod = 3*time.Second, false, ModeOn, true
		}},
		{"file", nil, file, func(c *Config) {
			c.Interval, c.Packet, c.MetricsMaxSeries = 2*time.Second, ModeOff, 5
		}},
		{"flags win over the file", []string{"--interval=3s", "--no-loopback"}, file, func(c *Config) {
			c.Interval, c.Loopback, c.Packet, c.MetricsMaxSeries = 3*time.Second, false, ModeOff, 5
		}},
		{"a flag given with the default wins too", []string{"--packet=auto", "--no-loopback=false"}, file, func(c *Config) {
			c.Interval, c.MetricsMaxSeries = 2*time.Second, 5
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
			flags := Default()
			BindFlags(fs, &flags)
			if err := fs.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			path := ""
			if tt.file != "" {
				path = writeConfig(t, tt.file)
			}
			got, err := Resolve(fs, flags, path)
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			tt.want(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestResolveErrors(t *testing.T) {
	fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	flags := Default()
	BindFlags(fs, &flags)
	if err := fs.Parse([]string{"--packet=maybe"}); err == nil || !strings.Contains(err.Error(), "want auto, on or off") {
		t.Errorf("bad mode: %v", err)
	}
	if _, err := Resolve(fs, flags, writeConfig(t, "max_flows: 0\n")); err == nil || err.Error() != "configuration: max_flows: 0: want a number from 1 to 10000000" {
		t.Errorf("bad file: %v", err)
	}
}

func TestReloadSplitsChanges(t *testing.T) {
	from, to := Default(), Default()
	to.Interval, to.Loopback, to.LogLevel = 2*time.Second, false, "debug"
	to.Listen, to.MetricsPod = "localhost:1", true
	next, taken, restart := from.Reload(to)
	want := Default()
	want.Interval, want.Loopback, want.LogLevel = 2*time.Second, false, "debug"
	if diff := cmp.Diff(want, next); diff != "" {
		t.Errorf("next (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"interval", "loopback", "log_level"}, taken); diff != "" {
		t.Errorf("taken (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"listen", "metrics.pod"}, restart); diff != "" {
		t.Errorf("restart (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(Default(), from); diff != "" {
		t.Errorf("the old configuration was changed\n%s", diff)
	}
}

func TestNewLogger(t *testing.T) {
	c := Default()
	c.LogLevel, c.LogFormat = "warn", "json"
	var out bytes.Buffer
	log, level := NewLogger(&out, &c)
	log.Info("no")
	log.Warn("yes", "k", 1)
	if got := out.String(); strings.Contains(got, "no") || !strings.Contains(got, `"msg":"yes","k":1`) {
		t.Errorf("logged %q", got)
	}
	level.Set(slog.LevelInfo)
	log.Info("now")
	if !strings.Contains(out.String(), "now") {
		t.Error("the level does not change")
	}
}

// TestConfigIsDescribed: docs/config.md has a row for every key, with its
// default, and names no other.
func TestConfigIsDescribed(t *testing.T) {
	b, err := os.ReadFile("../../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "| `") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	c := Default()
	var want []string
	for _, s := range c.settings() {
		value := "`" + s.text() + "`"
		if s.text() == "" {
			value = ""
		}
		reload := "restart"
		switch {
		case s.reloads:
			reload = "reload"
		case flagsOnly[s.key]:
			reload = "restart, flag only"
		}
		flag := ""
		if s.flag() != "" {
			flag = "`--" + s.flag() + "`"
		}
		want = append(want, strings.Join([]string{"| `" + s.key + "`", flag, value, reload, s.usage + " |"}, " | "))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/config.md (-want +got)\n%s", diff)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{"", "interval: 5s", "metrics: {pod: true}", "a: &x b\nlisten: *x", "<<: {history: 1}", "? [a]\n: b", "---\n---", "history: 0x10"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		if c, err := parseConfig(b); err == nil {
			_ = c.Validate()
		}
	})
}

// TestOnAndOffFromHelm: Helm writes on and off as true and false.
func TestOnAndOffFromHelm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "orb8.yaml")
	if err := os.WriteFile(path, []byte("tcp: false\npacket: true\nalert_events: false\nloopback: false\ndcgm_url: false\nnode_name: 'false'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.TCP != ModeOff || c.Packet != ModeOn || c.AlertEvents != "off" || c.Loopback || c.DCGMURL != "off" || c.NodeName != "false" {
		t.Errorf("%+v", c)
	}
}
