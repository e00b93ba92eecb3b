// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	unified = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	hybrid  = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
		"32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
		"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	private = "50 40 0:28 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
	host    = "51 40 0:28 /../../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
)

func TestFindCgroupMount(t *testing.T) {
	for _, tt := range []struct {
		name, table, path string
		want              CgroupMount
	}{
		{"unified", unified, "", CgroupMount{"/sys/fs/cgroup", "/", false}},
		{"hybrid", hybrid, "", CgroupMount{"/sys/fs/cgroup/unified", "/", true}},
		{"the host's beside the container's", private + host, "", CgroupMount{"/host/sys/fs/cgroup", "/../../..", false}},
		{"the one asked for", private + host, "/sys/fs/cgroup", CgroupMount{"/sys/fs/cgroup", "/", false}},
		{"part of the tree", "50 40 0:28 /a /mnt rw - cgroup2 x rw\n" + unified, "", CgroupMount{"/sys/fs/cgroup", "/", false}},
		{"one on top of the other", unified + "50 31 0:28 /a /sys/fs/cgroup rw - cgroup2 x rw\n", "", CgroupMount{"/sys/fs/cgroup", "/a", false}},
		{"escaped", `31 23 0:28 /a\134b /my\040mnt\09 rw - cgroup2 x rw`, "", CgroupMount{`/my mnt\09`, `/a\b`, false}},
		{"none", "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\nnonsense\n", "", CgroupMount{}},
		{"none at that point", unified, "/other", CgroupMount{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proc := t.TempDir()
			writeFile(t, filepath.Join(proc, "self/mountinfo"), tt.table)
			got, err := FindCgroupMount(proc, tt.path)
			if (err != nil) != (tt.want.Path == "") || (err != nil && !errors.Is(err, os.ErrNotExist)) {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("mount (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindCgroupMountWithoutProc(t *testing.T) {
	if _, err := FindCgroupMount(t.TempDir(), ""); err == nil {
		t.Error("no error without a mount table")
	}
}

func TestParseProcCgroup(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       procCgroup
		ok         bool
	}{
		{"unified", "0::/system.slice/a.service\n", procCgroup{path: "/system.slice/a.service"}, true},
		{"hybrid", "5:memory:/m\n1:name=systemd:/s\n0::/u\n", procCgroup{path: "/u"}, true},
		{"no line end", "0::/", procCgroup{path: "/"}, true},
		{"deleted", "0::/a/b (deleted)\n", procCgroup{path: "/a/b", deleted: true}, true},
		{"outside of the namespace", "0::/../x\n", procCgroup{path: "/../x"}, true},
		{"v1 only", "5:memory:/m\n", procCgroup{}, false},
		{"no path", "0::\n", procCgroup{}, false},
		{"empty", "", procCgroup{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseProcCgroup(tt.text)
			if got != tt.want || ok != tt.ok {
				t.Errorf("parseProcCgroup(%q) = %+v, %v; want %+v, %v", tt.text, got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestBelow(t *testing.T) {
	for _, tt := range []struct {
		root, path, want string
		ok               bool
	}{
		{"/", "/a/b", "/a/b", true},
		{"/", "/", "/", true},
		{"/", "/..", "", false},
		{"/", "/../a", "", false},
		{"/", "/..a", "/..a", true},
		{"/../..", "/../../a/b", "/a/b", true},
		{"/../..", "/../..", "/", true},
		{"/../..", "/../a", "", false},
		{"/../..", "/../../../a", "", false},
		{"/..", "/a", "", false},
		{"/a", "/a/b", "/b", true},
		{"/a", "/ab", "", false},
	} {
		got, ok := CgroupMount{Root: tt.root}.below(tt.path)
		if got != tt.want || ok != tt.ok {
			t.Errorf("mount of %s: below(%s) = %q, %v; want %q, %v", tt.root, tt.path, got, ok, tt.want, tt.ok)
		}
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add(unified + hybrid + private + host)
	f.Add(`1 2 3 /a\04 /b\777\134 rw - cgroup2 x rw`)
	f.Fuzz(func(t *testing.T, text string) {
		for _, m := range parseMountinfo(text) {
			if m.Path == "" || m.Root == "" {
				t.Errorf("empty mount %+v", m)
			}
		}
	})
}

func FuzzParseProcCgroup(f *testing.F) {
	f.Add("5:memory:/m\n0::/a (deleted)\n", "/..")
	f.Fuzz(func(t *testing.T, text, root string) {
		cg, ok := parseProcCgroup(text)
		if ok && !strings.HasPrefix(cg.path, "/") {
			t.Errorf("path %q", cg.path)
		}
		if rel, ok := (CgroupMount{Root: root}).below(cg.path); ok && !strings.HasPrefix(rel, "/") {
			t.Errorf("%q below %q is %q", cg.path, root, rel)
		}
	})
}

// writeFile makes a file with its directories.
func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
