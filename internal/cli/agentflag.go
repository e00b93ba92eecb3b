// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/pflag"

// agentFlag is --agent of the commands that ask one agent and nothing else.
type agentFlag struct{ value, byDefault string }

func (f *agentFlag) bind(fs *pflag.FlagSet, byDefault string) {
	f.byDefault = byDefault
	fs.StringVar(&f.value, "agent", byDefault, "ask the agent at `ADDR`, HOST or HOST:PORT")
}

func (f *agentFlag) given() bool { return f.value != f.byDefault }

func (f *agentFlag) addr() (string, error) {
	addr, err := agentAddress(f.value)
	if err != nil {
		return "", usagef("--agent %q: %w", f.value, err)
	}
	return addr, nil
}

// noAgent says that the agent at addr does not answer.
func noAgent(addr string, err error) error {
	return &failure{what: "no answer from the agent at " + addr, err: err, remedy: []string{
		"see that it runs: sudo orb8 agent",
		"and where: outside Kubernetes it listens on its own host only",
	}}
}
