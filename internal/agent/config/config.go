// SPDX-License-Identifier: Apache-2.0

// Package config is what an agent can be told: by flags, by a YAML file, by both.
package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/process"
)

// Mode turns a probe on or off. ModeAuto runs it where the kernel can.
type Mode string

// The modes of a probe.
const (
	ModeAuto Mode = "auto"
	ModeOn   Mode = "on"
	ModeOff  Mode = "off"
)

// Config is what an agent can be told by flags and file. Each setting is
// described once, in settings; docs/config.md repeats it for users.
type Config struct {
	Listen        string
	MetricsListen string
	Socket        string

	Interval    time.Duration
	IdleTimeout time.Duration
	MaxFlows    int
	Loopback    bool
	IncludeSelf bool

	TCP              Mode
	Packet           Mode
	PacketMapEntries int
	TCPRingBytes     int
	CgroupRoot       string

	DNS          Mode
	DNSPorts     string
	DNSTimeout   time.Duration
	DNSRingBytes int

	Exec          Mode
	Syscall       Mode
	ExecRingBytes int
	ProcessArgs   int
	// AlertEvents is how severe alerts are that become Events of Kubernetes, or off.
	AlertEvents   string
	ProcessRedact string
	RulesOff      []string
	Exceptions    []anomaly.Exception

	GPU           Mode
	GPUInterval   time.Duration
	HostRoot      string
	Kubelet       string
	DCGMURL       string
	DCGMNamespace string

	History         int
	SubscriberQueue int

	MetricsAllowRemote    bool
	MetricsTLSCert        string
	MetricsTLSKey         string
	MetricsAuthentication string
	MetricsMaxSeries      int
	MetricsKeep           time.Duration
	MetricsPod            bool
	MetricsDCGM           bool

	LogLevel  string
	LogFormat string
	NodeName  string

	Kubernetes Mode
	// KubernetesPeers is PeersAll or PeersOwn.
	KubernetesPeers string
	Kubeconfig      string
}

// Values of kubernetes_peers.
const (
	PeersAll = "all"
	PeersOwn = "own"
)

// Default suits a host outside Kubernetes.
func Default() Config {
	return Config{
		Listen:        "localhost:9090",
		Socket:        DefaultSocket,
		MetricsListen: "localhost:9091",

		Interval:    5 * time.Second,
		IdleTimeout: 30 * time.Second,
		MaxFlows:    100_000,
		Loopback:    true,

		TCP:              ModeAuto,
		Packet:           ModeAuto,
		PacketMapEntries: 65_536,
		TCPRingBytes:     4 << 20,

		DNS:          ModeAuto,
		DNSPorts:     "53",
		DNSTimeout:   5 * time.Second,
		DNSRingBytes: 2 << 20,

		Exec:          ModeAuto,
		Syscall:       ModeAuto,
		AlertEvents:   "off",
		ExecRingBytes: 2 << 20,
		ProcessArgs:   1024,

		GPU:           ModeAuto,
		GPUInterval:   5 * time.Second,
		DCGMNamespace: "gpu-operator",

		History:         8192,
		SubscriberQueue: 4096,

		MetricsAuthentication: "none",
		MetricsMaxSeries:      10_000,
		MetricsKeep:           time.Minute,

		LogLevel:  "info",
		LogFormat: "text",

		Kubernetes: ModeAuto, KubernetesPeers: PeersAll,
	}
}

// Local is Default for an agent that lives within a command of the
// CLI: it listens nowhere and samples every second.
func Local() Config {
	c := Default()
	c.Listen, c.Socket, c.MetricsListen = "", "", ""
	c.Interval = time.Second
	c.LogLevel = "warn"
	return c
}

// flagsOnly are keys that decide what the agent runs, as root: a library or a command from
// below host_root, a plugin that a kubeconfig names. Who may edit the file, a ConfigMap in
// Kubernetes, need not be who may do that.
var flagsOnly = map[string]bool{"host_root": true, "kubeconfig": true}

// moved has keys that are no more, and what is instead.
var moved = map[string]string{
	"allow_remote": "metrics.allow_remote is for metrics; the API listens on this host alone (docs/security.md)",
}

// setting is one key of the configuration.
type setting struct {
	// key is its name in the file, with a dot before a section's keys.
	key   string
	usage string
	// reloads tells that SIGHUP puts a change into effect.
	reloads bool
	// value points into the Config: *string, *bool, *int, *time.Duration, *Mode.
	value any
	check func() error
}

// settings describes every key, in the order of docs/config.md.
func (c *Config) settings() []setting {
	return []setting{
		{"listen", "address of the gRPC API, of this host alone; empty for none", false, &c.Listen, func() error { return checkAPIAddr(c.Listen) }},
		{"socket", "Unix socket of the gRPC API, in a directory of root's; empty for none", false, &c.Socket, func() error { return checkSocket(c.Socket) }},
		{"metrics_listen", "address of /metrics, /healthz and /readyz; empty for none", false, &c.MetricsListen, func() error { return checkMetricsAddr(c.MetricsListen, c.MetricsAllowRemote || c.Authenticated()) }},
		{"interval", "time between two samples; at most 1s while somebody follows", true, &c.Interval, c.checkInterval},
		{"idle_timeout", "how long a flow without traffic stays in the table", true, &c.IdleTimeout, c.checkIdleTimeout},
		{"max_flows", "bound of the flow table; when it is full the longest idle flow goes", false, &c.MaxFlows, between(&c.MaxFlows, 1, 10_000_000)},
		{"loopback", "show flows that stay on the loopback interface", true, &c.Loopback, nil},
		{"include_self", "show orb8's own traffic, also in metrics", true, &c.IncludeSelf, nil},
		{"tcp", "the tcp probe: auto, on or off", false, &c.TCP, c.TCP.check},
		{"packet", "the packet probe: auto, on or off", false, &c.Packet, c.Packet.check},
		{"packet_map_entries", "flows that the packet probe's kernel map holds", false, &c.PacketMapEntries, between(&c.PacketMapEntries, 1, 10_000_000)},
		{"tcp_ring_bytes", "size of the tcp probe's ring buffer; a power of two", false, &c.TCPRingBytes, checkRing(&c.TCPRingBytes)},
		{"dns", "the dns probe: auto, on or off", false, &c.DNS, c.DNS.check},
		{"dns_ports", "up to 8 ports on which DNS is spoken, with commas between them; add 5353,5355 for mDNS and LLMNR", false, &c.DNSPorts, c.checkDNSPorts},
		{"dns_timeout", "how long a DNS query waits for its answer before it is told of as unanswered", true, &c.DNSTimeout, c.checkDNSTimeout},
		{"dns_ring_bytes", "size of the dns probe's ring buffer; a power of two", false, &c.DNSRingBytes, checkRing(&c.DNSRingBytes)},
		{"exec", "the exec probe, which tells of processes and of what they ask of the kernel: auto, on or off", false, &c.Exec, c.Exec.check},
		{"syscall", "whether clients may trace system calls, which slows all processes of the node down while they do: auto or off", false, &c.Syscall, c.checkSyscall},
		{"exec_ring_bytes", "size of the exec probe's ring buffer; a power of two", false, &c.ExecRingBytes, checkRing(&c.ExecRingBytes)},
		{"process_args", "bytes of a program's arguments that are read; 0 for none", false, &c.ProcessArgs, between(&c.ProcessArgs, 0, process.MaxArgBytes)},
		{"alert_events", "alerts at least this severe are also written as Events of their pods: critical, warning, notice or off; the agent needs the right to create events", true, &c.AlertEvents, c.checkAlertEvents},
		{"process_redact", "regular expression of what is hidden in arguments (its groups, or all that it matches if it has none), beside what looks like a secret", false, &c.ProcessRedact, c.checkRedact},
		{"rules_off", "rules that raise no alerts; docs/rules.md has all", true, &c.RulesOff, func() error { return anomaly.CheckRules(c.RulesOff) }},
		{"exceptions", "what raises no alerts although a rule finds it; only in the file", true, &c.Exceptions, func() error { return anomaly.CheckExceptions(c.Exceptions) }},
		{"cgroup_root", "where the cgroup2 hierarchy is mounted, or a cgroup in it to see only that part; found by itself if empty", false, &c.CgroupRoot, nil},
		{"gpu", "accelerators: auto, on or off", false, &c.GPU, c.GPU.check},
		{"gpu_interval", "time between two samples of accelerators; at most 1s while somebody follows", true, &c.GPUInterval, c.checkGPUInterval},
		{"host_root", "where the host's root is mounted, in which drivers' libraries and the kubelet are looked for; found by itself if empty", false, &c.HostRoot, nil},
		{"kubelet_socket", "socket of the kubelet's PodResources API, for one with another directory than /var/lib/kubelet", false, &c.Kubelet, nil},
		{"dcgm_url", "page of a dcgm-exporter whose values complete what NVML gives; off for none, the node's own is looked for if empty", false, &c.DCGMURL, c.checkDCGMURL},
		{"dcgm_namespace", "namespace whose pods are believed to be dcgm-exporters; none is if empty", false, &c.DCGMNamespace, nil},
		{"history", "past events that are kept for --since and --last", false, &c.History, between(&c.History, 0, 1_000_000)},
		{"subscriber_queue", "events that wait for a slow client before it loses some", true, &c.SubscriberQueue, between(&c.SubscriberQueue, 1, 1_000_000)},
		{"metrics.allow_remote", "let metrics_listen be an address that other machines can reach: there is no access control", false, &c.MetricsAllowRemote, nil},
		{"metrics.tls_cert", "file with the certificate, in PEM, by which metrics are served over TLS, and of those that sign it; read anew when it changes", false, &c.MetricsTLSCert, c.checkTLS},
		{"metrics.tls_key", "file with the certificate's key, in PEM", false, &c.MetricsTLSKey, nil},
		{"metrics.authentication", "none, or kubernetes: who reads metrics sends a bearer token whose holder may get /metrics by the API server's word; /healthz and /readyz stay open; needs TLS", false, &c.MetricsAuthentication, c.checkAuthentication},
		{"metrics.max_series", "bound on the time series by workload; what is beyond counts under \"other\"", true, &c.MetricsMaxSeries, between(&c.MetricsMaxSeries, 0, 10_000_000)},
		{"metrics.keep", "how long the series of a workload that has gone stay, at best two scrapes or more", true, &c.MetricsKeep, c.checkKeep},
		{"metrics.pod", "add the label pod to the time series by workload", false, &c.MetricsPod, nil},
		{"metrics.dcgm", "serve NVIDIA GPUs at /metrics/dcgm too, under the names of dcgm-exporter", false, &c.MetricsDCGM, nil},
		{"log_level", "debug, info, warn or error", true, &c.LogLevel, c.checkLogLevel},
		{"log_format", "text or json", false, &c.LogFormat, oneOf(&c.LogFormat, "text", "json")},
		{"node_name", "name of this node; the host's name if empty", false, &c.NodeName, nil},
		{"kubernetes", "name pods and Services by the API server: on, off, or auto for on within a cluster", false, &c.Kubernetes, c.Kubernetes.check},
		{"kubernetes_peers", "of whom remote ends have names: all, or own for pods of this node, Services and the node alone, which costs the API server less", false, &c.KubernetesPeers, oneOf(&c.KubernetesPeers, PeersAll, PeersOwn)},
		{"kubeconfig", "kubeconfig file by which the API server is reached; the pod's service account if empty", false, &c.Kubeconfig, nil},
	}
}

// Validate checks every setting and returns all that is wrong.
func (c *Config) Validate() error {
	var errs []error
	for _, s := range c.settings() {
		if s.check == nil {
			continue
		}
		if err := s.check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.key, err))
		}
	}
	return errors.Join(errs...)
}

// MinInterval is the least time between two samples: passes over the probes are that far
// apart, whoever asks for them.
const MinInterval = 200 * time.Millisecond

func (c *Config) checkInterval() error {
	if c.Interval < MinInterval {
		return fmt.Errorf("%v: want at least %v", c.Interval, MinInterval)
	}
	return nil
}

func (c *Config) checkKeep() error {
	if c.MetricsKeep < time.Second || c.MetricsKeep > 24*time.Hour {
		return fmt.Errorf("%v: want 1s to 24h", c.MetricsKeep)
	}
	return nil
}

// MinGPUInterval is what a driver's own counters need between two readings; a gap
// of more than maxGPUInterval is not accounted for.
const (
	MinGPUInterval = 100 * time.Millisecond
	maxGPUInterval = 20 * time.Second
)

func (c *Config) checkGPUInterval() error {
	if c.GPUInterval < MinGPUInterval || c.GPUInterval > maxGPUInterval {
		return fmt.Errorf("%v: want %v to %v", c.GPUInterval, MinGPUInterval, maxGPUInterval)
	}
	return nil
}

func (c *Config) checkDCGMURL() error {
	if c.DCGMURL == "" || c.DCGMURL == "off" {
		return nil
	}
	u, err := url.Parse(c.DCGMURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q: want off, or a URL such as http://localhost:9400/metrics", c.DCGMURL)
	}
	return nil
}

func (c *Config) checkIdleTimeout() error {
	if c.IdleTimeout < time.Second {
		return fmt.Errorf("%v: want at least 1s", c.IdleTimeout)
	}
	return nil
}

// checkRing checks the size of a ring buffer.
func checkRing(n *int) func() error {
	return func() error {
		if *n < 4096 || *n > 1<<30 || bits.OnesCount(uint(*n)) != 1 {
			return fmt.Errorf("%d: want a power of two from 4096 to %d", *n, 1<<30)
		}
		return nil
	}
}

func (c *Config) checkDNSPorts() error {
	_, err := c.dnsPorts()
	return err
}

// dnsPorts reads the list of ports.
func (c *Config) dnsPorts() ([]uint16, error) {
	words := strings.Split(c.DNSPorts, ",")
	if len(words) > dns.MaxPorts {
		return nil, fmt.Errorf("%q: want at most %d ports", c.DNSPorts, dns.MaxPorts)
	}
	ports := make([]uint16, 0, len(words))
	for _, w := range words {
		n, err := strconv.ParseUint(strings.TrimSpace(w), 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q: want ports from 1 to 65535 with commas between them, such as 53,5353", c.DNSPorts)
		}
		ports = append(ports, uint16(n))
	}
	return ports, nil
}

// CopiedPorts are those whose messages are copied for the dns probe; the list has
// been validated.
func (c *Config) CopiedPorts() []uint16 {
	if c.DNS == ModeOff {
		return nil
	}
	ports, _ := c.dnsPorts()
	return ports
}

func (c *Config) checkDNSTimeout() error {
	if c.DNSTimeout < 100*time.Millisecond || c.DNSTimeout > time.Minute {
		return fmt.Errorf("%v: want 100ms to 1m", c.DNSTimeout)
	}
	return nil
}

func (c *Config) checkRedact() error {
	if _, err := regexp.Compile(c.ProcessRedact); err != nil {
		return fmt.Errorf("want a regular expression (https://golang.org/s/re2syntax): %w", err)
	}
	return nil
}

func (c *Config) checkLogLevel() error {
	var l slog.Level
	if l.UnmarshalText([]byte(c.LogLevel)) != nil {
		return fmt.Errorf("%q: want debug, info, warn or error", c.LogLevel)
	}
	return nil
}

// Mode returns how the named probe is configured; auto for one without a key.
func (c *Config) Mode(name string) Mode {
	switch name {
	case "tcp":
		return c.TCP
	case "packet":
		return c.Packet
	case "dns":
		return c.DNS
	case "exec":
		return c.Exec
	}
	return ModeAuto
}

func (c *Config) checkAlertEvents() error {
	if c.AlertEvents != "off" && c.AlertSeverity() == 0 {
		return fmt.Errorf("%q: want critical, warning, notice or off", c.AlertEvents)
	}
	return nil
}

// AlertSeverity is from which on alerts become Events of Kubernetes, 0 for none.
func (c *Config) AlertSeverity() anomaly.Severity {
	for s := anomaly.Notice; s <= anomaly.Critical; s++ {
		if c.AlertEvents == s.String() {
			return s
		}
	}
	return 0
}

// checkSyscall: there is nothing to run at the start.
func (c *Config) checkSyscall() error {
	if c.Syscall == ModeOn {
		return fmt.Errorf("%q: want auto or off", string(c.Syscall))
	}
	return c.Syscall.check()
}

func (m Mode) check() error {
	switch m {
	case ModeAuto, ModeOn, ModeOff:
		return nil
	}
	return fmt.Errorf("%q: want auto, on or off", string(m))
}

func between(v *int, lowest, highest int) func() error {
	return func() error {
		if *v < lowest || *v > highest {
			return fmt.Errorf("%d: want a number from %d to %d", *v, lowest, highest)
		}
		return nil
	}
}

func oneOf(v *string, accepted ...string) func() error {
	return func() error {
		for _, a := range accepted {
			if *v == a {
				return nil
			}
		}
		return fmt.Errorf("%q: want one of %q", *v, accepted)
	}
}

// NewLogger returns the logger that c asks for, and its level, by which a
// reload changes it. c must be valid.
func NewLogger(w io.Writer, c *Config) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	SetLevel(level, c.LogLevel)
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)), level
	}
	return slog.New(slog.NewTextHandler(w, opts)), level
}

// SetLevel sets v to the level of that name, if there is one.
func SetLevel(v *slog.LevelVar, name string) {
	var l slog.Level
	if l.UnmarshalText([]byte(name)) == nil {
		v.Set(l)
	}
}
