// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// partDepth bounds how deep pods are looked for.
const partDepth = 12

// findRoot returns the mount at or around root, and the way from the mount to
// root. Without root it is the best mount there is.
func findRoot(root string) (CgroupMount, string, error) {
	if root == "" {
		m, err := FindCgroupMount("/proc", "")
		return m, "", err
	}
	resolved, err := filepath.EvalSymlinks(root)
	if err != nil {
		return CgroupMount{}, "", fmt.Errorf("find cgroup root: %w", err)
	}
	for at := resolved; ; at = path.Dir(at) {
		m, err := FindCgroupMount("/proc", at)
		if err == nil {
			return m, strings.TrimSuffix(strings.TrimPrefix(resolved, at), "/"), nil
		}
		if !errors.Is(err, os.ErrNotExist) || at == "/" || at == "." {
			return CgroupMount{}, "", fmt.Errorf("%s is not in a cgroup2 mount: %w", root, err)
		}
	}
}

// newPart returns the part whose root is at rel below the mount.
func newPart(mount CgroupMount, rel string) (Part, error) {
	if rel == "" {
		return Part{}, nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(mount.Path+rel, &st); err != nil {
		return Part{}, fmt.Errorf("find this node's cgroup: %w", &os.PathError{Op: "lstat", Path: mount.Path + rel, Err: err})
	}
	return Part{Path: rel, CgroupID: st.Ino}, nil
}

// ownPart finds the part that the pod with that UID is in. It is all of the
// hierarchy, unless other nodes are seen to have a part of it too, or the pod's
// node has an init process of its own in its part. visible is false if the pod is
// not found, so that what is mounted is not the host's hierarchy.
func ownPart(root, podUID string) (part string, visible bool) {
	own, nodes := nodeRoots(root, podUID)
	if own == "" || own == "/" {
		return "", own != ""
	}
	if len(nodes) > 1 || holdsInit(root+own) {
		return own, true
	}
	return "", true
}

// nodeRoots returns the roots of all nodes that have pods below root, and that of
// the pod with podUID, empty if it is not found.
func nodeRoots(root, podUID string) (own string, nodes []string) {
	depth := 0
	// The function returns no errors of its own, so neither does WalkDir.
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		rel := strings.TrimPrefix(p, root)
		if strings.Count(rel, "/") > partDepth {
			return fs.SkipDir
		}
		if parsePod(path.Base(rel)) == "" {
			return nil
		}
		node := nodeRoot(rel)
		if !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
		// The least deep: within a container anybody may make another.
		if d := strings.Count(rel, "/"); parsePod(path.Base(rel)) == podUID && (own == "" || d < depth) {
			own, depth = node, d
		}
		return nil
	})
	return own, nodes
}

// nodeRoot returns the part of a pod's path above what its kubelet has made.
func nodeRoot(pod string) string {
	elems := strings.Split(pod, "/")
	// The innermost: nodes themselves may be pods.
	at := len(elems) - 1
	for at > 0 && !strings.Contains(elems[at-1], "kubepods") {
		at--
	}
	for at > 0 && (strings.Contains(elems[at-1], "kubepods") || elems[at-1] == "kubelet" || elems[at-1] == "kubelet.slice") {
		at--
	}
	return "/" + strings.Trim(strings.Join(elems[:at], "/"), "/")
}

// holdsInit reports whether process 1, as this process sees it, is in a cgroup at
// or below dir that belongs to no pod.
func holdsInit(dir string) bool {
	found := false
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if strings.Contains(d.Name(), "kubepods") {
			return fs.SkipDir
		}
		text, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err == nil && slices.Contains(strings.Fields(string(text)), "1") {
			found = true
			return fs.SkipAll
		}
		return nil
	})
	return found
}
