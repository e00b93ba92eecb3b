// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/Ignoramuss/orb8/internal/agent/metrics"
)

var (
	metricName = regexp.MustCompile(`\borb8_[a-z0-9_]+`)
	histogram  = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// Dashboards are JSON, ask for metrics and labels that there are, and no panel lies on
// another.
func TestDashboards(t *testing.T) {
	files, err := filepath.Glob("grafana/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no dashboards", err)
	}
	families := make(map[string]metrics.Family)
	for _, f := range metrics.Families(true) {
		families[f.Name] = f
	}
	labels := regexp.MustCompile(`[{,(]\s*([a-z_]+)\s*(?:=|!=|=~|!~)"`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			Title, UID string
			Panels     []struct {
				Title   string
				Type    string
				GridPos struct{ X, Y, W, H int }
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(text, &board); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		taken := make(map[[2]int]string)
		for _, p := range board.Panels {
			if p.GridPos.X+p.GridPos.W > 24 {
				t.Errorf("%s: panel %q is too wide", file, p.Title)
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if on := taken[[2]int{x, y}]; on != "" {
						t.Fatalf("%s: panel %q lies on %q", file, p.Title, on)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: panel %q asks for nothing", file, p.Title)
			}
			for _, target := range p.Targets {
				names := metricName.FindAllString(target.Expr, -1)
				if len(names) == 0 {
					t.Errorf("%s: panel %q has no metric: %s", file, p.Title, target.Expr)
				}
				known := []string{"instance"}
				for _, name := range names {
					f, ok := families[name]
					if base := histogram.ReplaceAllString(name, ""); !ok && families[base].Type == "histogram" {
						f, ok = families[base], true
						known = append(known, "le")
					}
					if !ok {
						t.Errorf("%s: panel %q: there is no metric %s", file, p.Title, name)
					}
					known = append(known, f.Labels...)
				}
				for _, m := range labels.FindAllStringSubmatch(target.Expr, -1) {
					if !slices.Contains(known, m[1]) {
						t.Errorf("%s: panel %q: %s has no label %s", file, p.Title, strings.Join(names, ", "), m[1])
					}
				}
			}
		}
	}
}
