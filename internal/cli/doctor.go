// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
	"github.com/Ignoramuss/orb8/internal/doctor"
)

// Doctor checks the host and says what it found, each with its remedy.
type Doctor func(ctx context.Context) []doctor.Finding

const doctorLong = `Check whether this host has what orb8 needs: kernel, BTF, privileges, cgroups. Each
finding is ok, info, warn (orb8 does less than it could) or fail (orb8 does not
run), with what to do about it. Some checks need root: they say so.

Also whether an agent runs here, and how its probes are.

Exit code 1 if anything failed.`

func newDoctor(c *Config) *cobra.Command {
	var agent agentFlag
	var output outputFlags
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Check whether this host has what orb8 needs",
		Long:    doctorLong,
		Example: "  orb8 doctor\n  sudo orb8 doctor        # checks that need root as well\n  orb8 doctor -o json | jq 'select(.status == \"fail\")'",
		GroupID: groupRun,
		Args:    noArguments,
	}
	cmd.RunE = running(func(cmd *cobra.Command) error { return c.doctor(cmd, &agent, &output) })
	fs := newFlagSet()
	agent.bind(fs, c.DefaultAgent)
	output.bind(fs)
	groupFlags(cmd, flagGroup{"Flags", fs})
	completeValues(cmd)
	return cmd
}

func (c *Config) doctor(cmd *cobra.Command, agent *agentFlag, output *outputFlags) error {
	options, err := output.options(c, c.Stdout)
	if err != nil {
		return err
	}
	addr, err := agent.addr()
	if err != nil {
		return err
	}
	findings := c.Doctor(cmd.Context())
	findings = append(findings, c.agentFindings(cmd.Context(), addr, agent.given())...)
	if err := render.Findings(c.Stdout, options, findings); err != nil {
		return err
	}
	for _, f := range findings {
		if f.Status == doctor.Fail {
			return errSilent
		}
	}
	return nil
}

// agentFindings says whether an agent answers at addr and how its probes are.
// Only an agent that was asked for must be there.
func (c *Config) agentFindings(ctx context.Context, addr string, asked bool) []doctor.Finding {
	find := c.dialHost
	if asked {
		find = func(ctx context.Context) (*source, error) { return dial(ctx, addr, dialTimeout) }
	}
	src, err := find(ctx)
	if err != nil {
		f := doctor.Finding{Name: "agent", Status: doctor.Info, Detail: "none at " + addr + ": " + err.Error(),
			Remedy: "to keep one running: sudo orb8 agent"}
		if asked {
			f.Status = doctor.Fail
			f.Remedy = "check the address; outside Kubernetes an agent listens on its own host only, unless its setting listen says where"
		}
		return []doctor.Finding{f}
	}
	defer func() { _ = src.close() }() // its answer is here
	s := src.status
	f := doctor.Finding{Name: "agent", Status: doctor.OK, Detail: fmt.Sprintf("version %s at %s, up for %ds, %d flows",
		s.GetVersion(), strings.TrimPrefix(src.name, "agent "), s.GetUptimeSeconds(), s.GetActiveFlows())}
	if !s.GetHealthy() {
		f.Status, f.Detail = doctor.Fail, f.Detail+", not healthy: "+s.GetHealthMessage()
	}
	return append([]doctor.Finding{f}, probeFindings(s.GetProbes())...)
}

func probeFindings(probes []*orb8v1.ProbeStatus) []doctor.Finding {
	var findings []doctor.Finding
	for _, p := range probes {
		f := doctor.Finding{Name: "agent-probe-" + p.GetName(), Status: doctor.OK, Detail: "running", Remedy: p.GetRemedy()}
		switch p.GetState() {
		case orb8v1.ProbeState_PROBE_STATE_RUNNING:
		case orb8v1.ProbeState_PROBE_STATE_OFF:
			f.Status, f.Detail = doctor.Warn, "off"
		case orb8v1.ProbeState_PROBE_STATE_IDLE:
			f.Detail = "idle"
		default:
			f.Status, f.Detail = doctor.Warn, "fallback"
		}
		if p.GetReason() != "" {
			f.Detail += ": " + p.GetReason()
		}
		if d := p.GetDegraded(); len(d) > 0 {
			f.Status = doctor.Warn
			f.Detail += "; without: " + strings.Join(d, "; ")
		}
		findings = append(findings, f)
	}
	return findings
}
