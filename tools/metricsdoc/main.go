// SPDX-License-Identifier: Apache-2.0

// Command metricsdoc prints docs/metrics.md from the list of metric families in
// the code:
//
//	go run ./tools/metricsdoc > docs/metrics.md
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/Ignoramuss/orb8/internal/agent/metrics"
	"github.com/Ignoramuss/orb8/internal/loss"
)

const intro = `<!-- Made by "go run ./tools/metricsdoc > docs/metrics.md"; do not edit. -->
# Metrics

The agent serves these at ` + "`/metrics`" + ` on port 9091, along with those of the Go runtime (` + "`go_*`" + `) and of the process (` + "`process_*`" + `). ` + "`/healthz`" + ` answers 200 as long as the process does; ` + "`/readyz`" + ` answers 200 while at least one probe runs, and else 503 with the reason.

## Labels

| label | meaning |
|---|---|
| ` + "`namespace`, `workload`, `workload_kind`" + ` | who: in Kubernetes the pod's owner, for instance a Deployment; else a Container, systemd Unit, Process (named by its command) or the Kernel, with an empty namespace |
| ` + "`pod`" + ` | the pod; only with the setting ` + "`metrics.pod`" + ` |
| ` + "`direction`" + ` | ` + "`egress` or `ingress`" + `, seen from the workload |
| ` + "`protocol`" + ` | ` + "`TCP`, `UDP`, `ICMP`, `ICMPv6` or `other`" + ` |

The time series by workload are bounded by the setting ` + "`metrics.max_series`" + `, of which commands outside of containers and units have a quarter at most. What is beyond counts under the workload ` + "`other`" + ` of the kind ` + "`Other`" + `, so that sums stay right. The series of a workload go a minute (` + "`metrics.keep`" + `) after its last record once it no longer exists; those of a Process a minute after its last record. When it comes back its counters go on from where they were (of the 2,048 workloads that went last, a quarter of them commands), so that ` + "`increase()`" + ` of a job that runs every few minutes misses only what was before its first sample. orb8 restarted is a reset of all counters, as ` + "`rate()`" + ` knows them. Those of accelerators are not among the bounded ones: each device has a fixed number, and each workload on it. orb8's own traffic is not counted unless ` + "`include_self`" + ` is set.

What is known of accelerators by device and by workload stands under different names, so that neither is added to the other: for each device the series ` + "`orb8_gpu_workload_*`" + ` add up to ` + "`orb8_gpu_*`" + ` of the same name, with the workload ` + "`unattributed`" + ` for what is nobody's (counters since the agent saw the device first). The label ` + "`method`" + ` says how a value came about, see [gpu.md](gpu.md). What was not measured has no series. Gauges go 30 s after a driver stopped answering, and the counters of a pod a minute (` + "`metrics.keep`" + `) after it was last on the device.
`

func main() {
	if _, err := os.Stdout.WriteString(page()); err != nil {
		fmt.Fprintln(os.Stderr, "metricsdoc: write:", err)
		os.Exit(1)
	}
}

func page() string {
	w := new(strings.Builder)
	w.WriteString(intro)
	group := ""
	for _, f := range metrics.Families(false) {
		if f.Group != group {
			group = f.Group
			fmt.Fprintf(w, "\n## %s\n\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n", group)
		}
		fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s |\n", f.Name, f.Type, f.Unit, code(f.Labels), f.Help)
	}
	w.WriteString("\n## Stages of orb8_lost_events_total\n\n| stage | one count stands for |\n|---|---|\n")
	for _, s := range loss.Stages() {
		fmt.Fprintf(w, "| `%s` | %s |\n", s, s.Meaning())
	}
	return w.String()
}

func code(labels []string) string {
	if len(labels) == 0 {
		return ""
	}
	return "`" + strings.Join(labels, "`, `") + "`"
}
