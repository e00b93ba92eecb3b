// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// CgroupMount is where the cgroup2 hierarchy can be seen.
type CgroupMount struct {
	// Path of the mount point.
	Path string
	// Root is the cgroup at the mount point, seen from this process's cgroup
	// namespace: / is that namespace's root, /.. lies above it.
	Root string
	// Hybrid is true where cgroup v1 controllers are mounted as well.
	Hybrid bool
}

// FindCgroupMount looks for the cgroup2 mount in the mount table of this
// process; proc is where procfs is mounted, usually /proc. With path it takes
// the mount at that point; else, of several, the one that shows most of the
// hierarchy, the first of equals. The error wraps os.ErrNotExist where there is
// none.
func FindCgroupMount(proc, path string) (CgroupMount, error) {
	table := filepath.Join(proc, "self/mountinfo")
	text, err := os.ReadFile(table)
	if err != nil {
		return CgroupMount{}, fmt.Errorf("read mount table: %w", err)
	}
	mounts := parseMountinfo(string(text))
	if path != "" {
		mounts = slices.DeleteFunc(mounts, func(m CgroupMount) bool { return m.Path != path })
	}
	if len(mounts) == 0 {
		return CgroupMount{}, fmt.Errorf("find a cgroup2 mount %s in %s: %w", path, table, os.ErrNotExist)
	}
	return slices.MinFunc(mounts, func(a, b CgroupMount) int { return depth(a.Root) - depth(b.Root) }), nil
}

// parseMountinfo reads the cgroup2 mounts from the text of
// /proc/<pid>/mountinfo, see proc(5); lines that it cannot read are skipped. Of
// mounts on top of each other it takes the upper one.
func parseMountinfo(text string) []CgroupMount {
	var mounts []CgroupMount
	hybrid := false
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 6 {
			continue
		}
		switch fstype, _, _ := strings.Cut(right, " "); fstype {
		case "cgroup":
			hybrid = true
		case "cgroup2":
			m := CgroupMount{Root: unescapeMount(fields[3]), Path: unescapeMount(fields[4])}
			mounts = slices.DeleteFunc(mounts, func(o CgroupMount) bool { return o.Path == m.Path })
			mounts = append(mounts, m)
		}
	}
	for i := range mounts {
		mounts[i].Hybrid = hybrid
	}
	return mounts
}

// depth is how far below its namespace's root a cgroup lies, negative above it.
func depth(root string) int {
	n := 0
	for elem := range strings.SplitSeq(root, "/") {
		switch elem {
		case "":
		case "..":
			n--
		default:
			n++
		}
	}
	return n
}

// unescapeMount undoes the octal escapes \ooo of the mount table.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// isOctal reports whether three digits are the octal form of a byte.
func isOctal(s string) bool {
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' && s[2] <= '7'
}

// procCgroup is a process's cgroup in the cgroup2 hierarchy.
type procCgroup struct {
	// path begins with a slash; it is seen from the reader's cgroup namespace.
	path string
	// deleted is true for a process that outlived its cgroup.
	deleted bool
}

// parseProcCgroup finds the cgroup2 line, 0::PATH, in the text of
// /proc/<pid>/cgroup, which on hybrid hosts has lines for v1 too.
func parseProcCgroup(text string) (procCgroup, bool) {
	for line := range strings.Lines(text) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok || !strings.HasPrefix(path, "/") {
			continue
		}
		var c procCgroup
		c.path, c.deleted = strings.CutSuffix(path, " (deleted)")
		return c, true
	}
	return procCgroup{}, false
}

// below returns path, seen from a cgroup namespace, as a path below the mount
// whose root is seen from the same namespace. ok is false where the mount does
// not show it, and where the way down to it has no names, as from a root of /..
// to the namespace's own root.
func (m CgroupMount) below(path string) (rel string, ok bool) {
	root := strings.TrimSuffix(m.Root, "/")
	rel, ok = strings.CutPrefix(path, root)
	if !ok || (rel != "" && rel[0] != '/') {
		return "", false
	}
	if rel == "" {
		return "/", true
	}
	if rel == "/.." || strings.HasPrefix(rel, "/../") {
		return "", false
	}
	return rel, true
}
