// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/cluster"
	"github.com/Ignoramuss/orb8/internal/doctor"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

var (
	// inline is a command within a sentence, line one that stands alone.
	inline = regexp.MustCompile("`(?:sudo )?(orb8 [^`]*)`")
	line   = regexp.MustCompile(`^(?: {2,4}|\t)(?:\$ )?(?:sudo )?(orb8(?: .*)?)$`)
	// rest is what the shell, and not orb8, makes of a line.
	rest = regexp.MustCompile(`\s+(?:#|\||&|>| {2,}).*$`)
)

// commandsIn finds the orb8 commands that a text shows.
func commandsIn(text string) []string {
	var all []string
	for l := range strings.Lines(text) {
		l = strings.TrimRight(l, "\n")
		if m := line.FindStringSubmatch(l); m != nil && !strings.HasPrefix(m[1], "orb8 runs") {
			all = append(all, strings.TrimSpace(rest.ReplaceAllString(m[1]+" ", "")))
		}
		for _, m := range inline.FindAllStringSubmatch(l, -1) {
			all = append(all, m[1])
		}
	}
	return all
}

// helpTexts are the examples and descriptions of all commands.
func helpTexts(cmd *cobra.Command) string {
	text := cmd.Long + "\n" + cmd.Example + "\n"
	for _, sub := range cmd.Commands() {
		text += helpTexts(sub)
	}
	return text
}

// words splits a command as a shell does, with single quotes.
func words(s string) []string {
	var all []string
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			all = append(all, part)
		} else {
			all = append(all, strings.Fields(part)...)
		}
	}
	return all
}

// Every command that the README, the documentation or the help shows is one that orb8
// takes, and that does something.
func TestExamples(t *testing.T) {
	c := Config{
		Version: "test", Getenv: func(string) string { return "" },
		MayProbe:     func() bool { return true },
		Connect:      func(cluster.Options) (*cluster.Cluster, error) { return nil, cluster.ErrNoConfig },
		PeerUser:     func(*net.UnixConn) (uint32, error) { return 0, nil },
		ListenerUser: func(uint16) (uint32, bool) { return 0, false },
		Doctor:       func(context.Context) []doctor.Finding { return nil },
		Agent: func(fs *pflag.FlagSet) func(context.Context, string, io.Writer) error {
			cfg := config.Default()
			config.BindFlags(fs, &cfg)
			fs.String("config", "", "")
			return func(ctx context.Context, _ string, _ io.Writer) error { <-ctx.Done(); return nil }
		},
		Local: fakeLocal(&fakeAgent{status: healthyStatus()}),
	}
	c.DefaultAgent = serve(t, &fakeAgent{status: healthyStatus()})
	texts := map[string]string{"help": helpTexts(newRoot(&c))}
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, "../../README.md") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		texts[f] = string(b)
	}
	least := map[string]int{"help": 20, "../../README.md": 12}
	for from, text := range texts {
		commands := commandsIn(text)
		if len(commands) < least[from] {
			t.Errorf("%s: only %d commands are found: %q", from, len(commands), commands)
		}
		for _, command := range commands {
			// What follows is ended as by Ctrl-C, which is no deadline.
			ctx, cancel := context.WithCancel(testwait.Context(t))
			time.AfterFunc(200*time.Millisecond, cancel)
			var stdout, stderr bytes.Buffer
			now := c
			now.Stdout, now.Stderr = &stdout, &stderr
			args := words(command)[1:]
			code := Run(ctx, now, args)
			cancel()
			// Another cluster's or host's agent is not here.
			elsewhere := strings.Contains(command, "--agent") || strings.Contains(command, "--node") || strings.Contains(command, "--context") ||
				strings.Contains(command, "--kubeconfig") || strings.Contains(command, "--orb8-namespace") || strings.Contains(command, "--config")
			if code == exitUsage || code != exitDone && !elsewhere {
				t.Errorf("%s: %s: exit code %d\n%s", from, command, code, &stderr)
			}
		}
	}
}

// The path of the published version's quick start leads to the same file.
func TestProtoPath(t *testing.T) {
	want, err := os.ReadFile("../../api/orb8/v1/orb8.proto")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile("../../orb8-proto/proto/orb8.proto"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("orb8-proto/proto/orb8.proto: %d bytes, %v, want %d", len(got), err, len(want))
	}
}
