// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func parse(text string) ([]Exception, error) {
	var doc struct{ Exceptions yaml.Node }
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return nil, err
	}
	return ParseExceptions(&doc.Exceptions)
}

func TestParseExceptions(t *testing.T) {
	got, err := parse(`
exceptions:
- {rule: mount, namespace: storage, workload: DaemonSet/csi-node, executable: /usr/bin/mount}
- workload: tools
  parent: sshd
- rule: "memfd_*"
  namespace: ci
`)
	want := []Exception{
		{Rule: "mount", Namespace: "storage", Workload: "DaemonSet/csi-node", Executable: "/usr/bin/mount"},
		{Workload: "tools", Parent: "sshd"},
		{Rule: "memfd_*", Namespace: "ci"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	for text, want := range map[string]string{
		"exceptions:":                                   "",
		"exceptions: []":                                "",
		"exceptions: mount":                             "line 1: want a list",
		"exceptions:\n- mount":                          "line 2: an exception wants keys",
		"exceptions:\n- rule: mount\n  pod: web":        `line 3: exception: unknown key "pod" (the keys are rule, namespace, workload, image, executable, parent)`,
		"exceptions:\n- rule: [mount]":                  "line 2: exception: rule: want a single value",
		"exceptions:\n- rule: mount\n  parent:":         "line 3: exception: parent: want a single value",
		"exceptions:\n- rule: mounts":                   `line 2: exception: unknown rule "mounts": is mount meant?`,
		"exceptions:\n- rule: zzz*":                     `line 2: exception: unknown rule "zzz*"`,
		"exceptions:\n- {}":                             "line 2: exception: it names nothing",
		"exceptions:\n- {rule: '*'}":                    "line 2: exception: it names nothing",
		"exceptions:\n- executable: '*/mount'":          `line 2: exception: executable "*/mount": * may stand at the end only`,
		"exceptions:\n- {rule: bpf}\n- {namespace: ''}": "line 3: exception: namespace: want a single value",
	} {
		_, err := parse(text)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}

func TestExceptions(t *testing.T) {
	for _, tt := range []struct {
		name     string
		silenced bool
		x        Exception
	}{
		{"rule", true, Exception{Rule: "drifted_executable"}},
		{"rules", true, Exception{Rule: "drifted*"}},
		{"other rule", false, Exception{Rule: "mount"}},
		{"namespace", true, Exception{Namespace: "shop"}},
		{"namespaces", true, Exception{Namespace: "sh*"}},
		{"other namespace", false, Exception{Namespace: "sho"}},
		{"workload", true, Exception{Workload: "web"}},
		{"kind and workload", true, Exception{Workload: "deployment/w*"}},
		{"other kind", false, Exception{Workload: "StatefulSet/web"}},
		{"image without its tag", true, Exception{Image: "registry.test/team/web"}},
		{"image", true, Exception{Image: "registry.test/team/web:1.2"}},
		{"images", true, Exception{Image: "registry.test/team/*"}},
		{"image by its contents", true, Exception{Image: "registry.test/team/web@sha256:12ab"}},
		{"image with another tag", false, Exception{Image: "registry.test/team/web:1"}},
		{"last part of an image", false, Exception{Image: "web"}},
		{"beginning of an image", false, Exception{Image: "registry.test"}},
		{"executable", true, Exception{Executable: "/data/tool"}},
		{"executables", true, Exception{Executable: "/data/*"}},
		{"last part of the executable", true, Exception{Executable: "tool"}},
		{"beginning of its last part", true, Exception{Executable: "to*"}},
		{"what was called", true, Exception{Executable: "/usr/local/bin/link"}},
		{"other executable", false, Exception{Executable: "/tool"}},
		{"parent", true, Exception{Parent: "nginx"}},
		{"ancestor", true, Exception{Parent: "/usr/bin/containerd-shim*"}},
		{"itself is no parent", false, Exception{Parent: "tool"}},
		{"all of them", true, Exception{"drifted_executable", "shop", "web", "registry.test/team/web", "tool", "nginx"}},
		{"all but one", false, Exception{"drifted_executable", "shop", "web", "", "tool", "sh"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) {
				c.Exceptions = []Exception{{Rule: "bpf"}, tt.x}
				c.Images = func(*workload.Identity) [][]string {
					return [][]string{{"registry.test/team/web:1.2", "registry.test/team/web@sha256:12ab"}}
				}
			})
			alerts := w.run(w.init, process.Executable{Path: "/data/tool", Called: "/usr/local/bin/link", Overlay: true, Upper: true})
			if silenced := len(alerts) == 0; silenced != tt.silenced {
				t.Errorf("silenced: %v", silenced)
			}
		})
	}
}

// TestExceptionByImage: as long as it is not known which of a pod's images a container is made
// of, all have to match, and nothing matches what is not known.
func TestExceptionByImage(t *testing.T) {
	for _, tt := range []struct {
		images   [][]string
		silenced bool
	}{
		{nil, false},
		{[][]string{{"", ""}}, false},
		{[][]string{{"localhost:5000/web", ""}}, true},
		{[][]string{{"localhost:5000/web:2", ""}, {"localhost:5000/web:1", ""}}, true},
		{[][]string{{"localhost:5000/web:2", ""}, {"localhost:5000/other", ""}}, false},
	} {
		w := newWorld(t, func(c *Config) {
			c.Exceptions = []Exception{{Image: "localhost:5000/web"}}
			c.Images = func(*workload.Identity) [][]string { return tt.images }
		})
		alerts := w.run(w.init, process.Executable{Path: "/data/tool", Overlay: true, Upper: true})
		if silenced := len(alerts) == 0; silenced != tt.silenced {
			t.Errorf("images %q: silenced %v", tt.images, silenced)
		}
	}
	w := newWorld(t, func(c *Config) { c.Exceptions = []Exception{{Image: "localhost*"}} })
	if alerts := w.run(w.init, process.Executable{Path: "/data/tool", Overlay: true, Upper: true}); len(alerts) == 0 {
		t.Error("silenced where nobody knows images")
	}
}

// Each alert names an exception that silences it, and not what differs from it.
func TestExceptionOfAlert(t *testing.T) {
	for _, tt := range []struct {
		name string
		exe  process.Executable
		want string
	}{
		{"path", process.Executable{Path: "/data/tool", Overlay: true, Upper: true}, "executable: /data/tool"},
		{"script", process.Executable{Path: "/data/sh", Called: "/entrypoint.sh", Overlay: true, Upper: true}, "executable: /entrypoint.sh"},
		{"descriptor", process.Executable{Path: "memfd:x", Called: "/proc/self/fd/3", Memfd: true}, "executable: 'memfd:x'"},
		{"end of a path", process.Executable{Path: "ng/way/tool", PathTruncated: true, Overlay: true, Upper: true}, "executable: tool"},
		{"for YAML", process.Executable{Path: "/data/a: {b, 'c'} # d", Overlay: true, Upper: true}, `executable: '/data/a: {b, ''c''} # d'`},
		{"a line break", process.Executable{Path: "/data/a\nb", Overlay: true, Upper: true}, `executable: /data/a*`},
		{"no text", process.Executable{Path: "/data/a\xffb", Overlay: true, Upper: true}, `executable: /data/a*`},
		{"a star", process.Executable{Path: "/data/a*b", Overlay: true, Upper: true}, `executable: /data/a*`},
		{"a number", process.Executable{Path: "123", PathTruncated: true, Overlay: true, Upper: true}, `executable: "123"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			alerts := w.run(w.init, tt.exe)
			if len(alerts) != 1 {
				t.Fatalf("alerts:\n%s", summaries(alerts))
			}
			want := "- {rule: " + alerts[0].Rule.Name + ", namespace: shop, workload: Deployment/web, " + tt.want + "}"
			if alerts[0].Exception != want {
				t.Errorf("got  %s\nwant %s", alerts[0].Exception, want)
			}
			exceptions, err := parse("exceptions:\n" + alerts[0].Exception)
			if err != nil {
				t.Fatal(err)
			}
			silences(t, tt.exe, exceptions)
		})
	}
}

func silences(t *testing.T, exe process.Executable, exceptions []Exception) {
	t.Helper()
	for _, tt := range []struct {
		name   string
		alerts int
		change func(w *world, e *process.Executable)
	}{
		{"the same", 0, func(*world, *process.Executable) {}},
		{"another namespace", 1, func(w *world, _ *process.Executable) { w.web.Namespace = "other" }},
		{"another workload", 1, func(w *world, _ *process.Executable) { w.web.Name = "api" }},
		{"another kind", 1, func(w *world, _ *process.Executable) { w.web.Kind = "Job" }},
		{"another executable", 1, func(_ *world, e *process.Executable) { e.Path, e.Called = "/other", "/other" }},
		{"another rule", 1, func(_ *world, e *process.Executable) {
			e.Memfd, e.Overlay, e.Upper, e.Deleted = false, true, false, true
		}},
	} {
		w := newWorld(t, func(c *Config) { c.Exceptions = exceptions })
		e := exe
		tt.change(w, &e)
		if alerts := w.run(w.init, e); len(alerts) != tt.alerts {
			t.Errorf("%s: %d alerts, want %d:\n%s", tt.name, len(alerts), tt.alerts, summaries(alerts))
		}
	}
}

func TestExceptionOutsideKubernetes(t *testing.T) {
	w := newWorld(t)
	w.web.Namespace, w.web.Pod, w.web.Kind, w.web.Name = "", "", workload.KindContainer, containerID[:12]
	alerts := w.call(w.init, "mount", capSysAdmin)
	if want := "- {rule: mount, workload: Container/aaaaaaaaaaaa, executable: /usr/sbin/nginx}"; len(alerts) != 1 || alerts[0].Exception != want {
		t.Errorf("alerts %s, want the exception %s", summaries(alerts), want)
	}
}
