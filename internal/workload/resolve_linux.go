// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// fileidKernfs is the type of kernfs file handles: the file's 64-bit id
	// (FILEID_KERNFS, in the kernel since 5.5).
	fileidKernfs = 0xfe

	// A walk of the whole tree, for want of handles, is made once in walkEvery
	// and looks at no more than walkDirs cgroups.
	walkEvery = 5 * time.Second
	walkDirs  = 16384

	deletedSuffix = " (deleted)"
)

// NewResolver finds the cgroup2 hierarchy and returns a Resolver to be closed by
// the caller. A host without that hierarchy gets one too, which names workloads
// by their commands and says so in Degraded. Errors: cfg.Root is not in a cgroup2
// mount, or the mount cannot be opened.
func NewResolver(cfg Config) (*Resolver, error) {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	mount, rel, err := findRoot(cfg.Root)
	if cfg.Root == "" && errors.Is(err, os.ErrNotExist) {
		r := newResolver(cfg, noHierarchy{})
		r.reduced = "no cgroup2 hierarchy is mounted: workloads are named by their commands"
		if cfg.PodUID != "" {
			r.reduced = notVisible("no cgroup2 hierarchy is mounted in it")
		}
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	tree, err := openCgroupfs(mount, cfg.Proc)
	if err != nil {
		return nil, err
	}
	r := newResolver(cfg, tree)
	r.mount = mount
	visible := true
	if cfg.Root == "" && cfg.PodUID != "" {
		rel, visible = ownPart(mount.Path, cfg.PodUID)
	}
	if r.part, err = newPart(mount, rel); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	switch {
	case !visible:
		r.reduced = notVisible(mount.Path + " shows no cgroup of it")
	case tree.noHandles != nil:
		r.reduced = fmt.Sprintf("cgroups cannot be opened by their id (%v; needs CAP_DAC_READ_SEARCH): they are "+
			"looked up in /proc and by walking %s, and short-lived ones may be named by their commands",
			tree.noHandles, mount.Path)
	}
	return r, nil
}

// pidNamespace is the inode of the machine's first pid namespace
// (PROC_PID_INIT_INO in the kernel).
const pidNamespace = 0xeffffffc

// SeesPIDs reports whether this process sees the processes of the whole machine
// under their own numbers, as the kernel and drivers tell them.
func SeesPIDs() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == pidNamespace
}

// Process names the workload that a process of the host belongs to, and its
// command; nil if there is no such process.
func (r *Resolver) Process(pid uint32) (*Identity, string) {
	comm, err := os.ReadFile(filepath.Join(r.proc, strconv.FormatUint(uint64(pid), 10), "comm"))
	if err != nil {
		return nil, ""
	}
	command := strings.ToValidUTF8(strings.TrimSuffix(string(comm), "\n"), "\uFFFD")
	return r.Local(r.tree.ofProcess(pid), pid, command, netip.Addr{}), command
}

// cgroupfs finds cgroups in a cgroup2 mount. It may be used from any goroutine.
type cgroupfs struct {
	mount CgroupMount
	proc  string
	dir   *os.File
	// real is the mount point as the kernel names it, without symbolic links.
	real string
	// whole: the mount shows the root of the kernel's hierarchy.
	whole bool
	// noHandles is nil where cgroups can be opened by their ids.
	noHandles error

	walking sync.Mutex // held during a walk, not waited for
	mu      sync.Mutex
	index   map[uint64]string
	walked  time.Time
}

func openCgroupfs(mount CgroupMount, proc string) (*cgroupfs, error) {
	dir, err := os.Open(mount.Path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup2 mount: %w", err)
	}
	c := &cgroupfs{mount: mount, proc: proc, dir: dir}
	if err := c.probe(); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return c, nil
}

// probe checks that the mount is what it should be, and tries a handle.
func (c *cgroupfs) probe() error {
	fd := int(c.dir.Fd())
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return fmt.Errorf("stat %s: %w", c.mount.Path, err)
	}
	if sfs.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is not a cgroup2 mount", c.mount.Path)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", c.mount.Path, err)
	}
	c.whole = st.Ino == rootCgroup
	var err error
	if c.real, err = pathOf(fd); err != nil {
		return err
	}
	opened, err := c.open(st.Ino)
	if err != nil {
		c.noHandles = err
		return nil
	}
	return unix.Close(opened)
}

func (c *cgroupfs) close() error { return c.dir.Close() }

// open returns a descriptor of the cgroup with that id, to be closed by the
// caller. The error is ESTALE where there is no such cgroup.
func (c *cgroupfs) open(id uint64) (int, error) {
	var raw [8]byte
	binary.NativeEndian.PutUint64(raw[:], id)
	handle := unix.NewFileHandle(fileidKernfs, raw[:])
	for {
		fd, err := unix.OpenByHandleAt(int(c.dir.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// pathOf returns the path behind a descriptor, as this process would reach it.
func pathOf(fd int) (string, error) {
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", fmt.Errorf("read path of cgroup: %w", err)
	}
	return p, nil
}

func (c *cgroupfs) find(id uint64, pid uint32) (string, bool) {
	if c.noHandles == nil {
		if p, ok := c.byHandle(id); ok {
			return p, true
		}
		return c.byProcess(id, pid)
	}
	if p, ok := c.byProcess(id, pid); ok {
		return p, true
	}
	return c.byWalk(id)
}

// byHandle returns ok only for cgroups that can be seen under the mount point.
func (c *cgroupfs) byHandle(id uint64) (p string, ok bool) {
	fd, err := c.open(id)
	if err != nil {
		return "", false
	}
	p, err = pathOf(fd)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return "", false
	}
	return c.belowRoot(strings.TrimSuffix(p, deletedSuffix))
}

// belowRoot turns the path of an open cgroup into one below the hierarchy's
// root, as far up as it can be seen from here. ok is false for a cgroup in a
// part of the hierarchy that is not mounted here: the kernel shows / for those.
func (c *cgroupfs) belowRoot(p string) (below string, ok bool) {
	rel, ok := strings.CutPrefix(p, c.real)
	if !ok || (rel != "" && rel[0] != '/') {
		return "", false
	}
	if below = c.named() + rel; below == "" {
		below = "/"
	}
	return below, true
}

// named is the path of the mount's root as far as it has one: empty where the
// mount shows the root of the hierarchy or what lies above this namespace.
func (c *cgroupfs) named() string {
	if c.mount.Root == "/" || c.mount.Root == "/.." || strings.HasPrefix(c.mount.Root, "/../") {
		return ""
	}
	return c.mount.Root
}

// byProcess takes the cgroup of process pid if that is the one asked for: a
// socket may stem from another cgroup than its process is in now.
func (c *cgroupfs) byProcess(id uint64, pid uint32) (string, bool) {
	if pid == 0 {
		return "", false
	}
	text, err := os.ReadFile(filepath.Join(c.proc, strconv.FormatUint(uint64(pid), 10), "cgroup"))
	if err != nil {
		return "", false
	}
	cg, ok := parseProcCgroup(string(text))
	if !ok {
		return "", false
	}
	rel, visible := c.mount.below(cg.path)
	switch {
	case cg.deleted:
		// The process outlived its cgroup. So it may well be this one, unless
		// this one is still there.
		return cg.path, c.noHandles != nil || !c.exists(id, "")
	case visible:
		p, ok := c.belowRoot(c.real + strings.TrimSuffix(rel, "/"))
		return p, ok && c.inode(rel) == id
	}
	// Outside of what is mounted here nothing can be compared, but a cgroup that
	// is gone cannot be where the process is now.
	return cg.path, c.noHandles != nil || c.exists(id, "")
}

// inode returns the id of the cgroup at a path below the mount, 0 if none.
func (c *cgroupfs) inode(rel string) uint64 {
	var st unix.Stat_t
	if err := unix.Lstat(c.real+rel, &st); err != nil {
		return 0
	}
	return st.Ino
}

// ofProcess returns the cgroup that a process is in, 0 if it cannot be told.
func (c *cgroupfs) ofProcess(pid uint32) uint64 {
	text, err := os.ReadFile(filepath.Join(c.proc, strconv.FormatUint(uint64(pid), 10), "cgroup"))
	if err != nil {
		return 0
	}
	cg, ok := parseProcCgroup(string(text))
	if !ok || cg.deleted {
		return 0
	}
	rel, visible := c.mount.below(cg.path)
	if !visible {
		return 0
	}
	return c.inode(rel)
}

// byWalk looks for a cgroup in an index of the whole tree, renewed now and then.
// It does not wait for a walk that another goroutine makes.
func (c *cgroupfs) byWalk(id uint64) (string, bool) {
	if p, ok := c.indexed(id); ok {
		return p, true
	}
	if !c.walking.TryLock() {
		return "", false
	}
	defer c.walking.Unlock()
	c.mu.Lock()
	due := c.walked.IsZero() || time.Since(c.walked) >= walkEvery
	c.mu.Unlock()
	if !due {
		return "", false
	}
	index := walk(c.real, walkDirs)
	c.mu.Lock()
	c.index, c.walked = index, time.Now()
	c.mu.Unlock()
	return c.indexed(id)
}

// indexed returns the path that a cgroup had at the last walk and still has.
func (c *cgroupfs) indexed(id uint64) (string, bool) {
	c.mu.Lock()
	rel, ok := c.index[id]
	c.mu.Unlock()
	if !ok || c.inode(rel) != id {
		return "", false
	}
	return c.belowRoot(c.real + rel)
}

// walk returns the ids of at most limit directories below root with their paths
// relative to it. Directories that vanish or cannot be read are left out.
func walk(root string, limit int) map[uint64]string {
	index := make(map[uint64]string)
	// The function never returns an error, so neither does WalkDir.
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if len(index) >= limit {
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return fs.SkipDir
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			index[st.Ino] = strings.TrimPrefix(p, root)
		}
		return nil
	})
	return index
}

func (c *cgroupfs) exists(id uint64, p string) bool {
	if c.noHandles == nil {
		fd, err := c.open(id)
		if err == nil {
			// Nothing was written: closing cannot lose anything.
			_ = unix.Close(fd)
		}
		return err == nil
	}
	if p == "" {
		_, ok := c.byWalk(id)
		return ok
	}
	rel, ok := strings.CutPrefix(p, c.named())
	if !ok || (rel != "" && rel[0] != '/') || strings.HasPrefix(p, "/../") {
		return true // not visible from here
	}
	if c.inode(rel) == id {
		return true
	}
	if c.whole {
		return false
	}
	_, ok = c.byWalk(id) // a path that place could not turn
	return ok
}

// place: where only a part of the hierarchy is seen, what lies above it has no
// name here.
func (c *cgroupfs) place(id uint64, p string) string {
	if c.whole || c.noHandles != nil {
		return p
	}
	if seen, ok := c.byHandle(id); ok {
		return seen
	}
	return p
}

func (c *cgroupfs) all() map[uint64]string {
	paths := walk(c.real, walkDirs)
	for id, rel := range paths {
		if p, ok := c.belowRoot(c.real + rel); ok {
			paths[id] = p
		}
	}
	return paths
}

// notVisible says why a pod lacks its host's cgroups, and what to do.
func notVisible(why string) string {
	return "the host's cgroups are not visible in this pod (" + why + "): pods have no names, and only TCP is seen; " +
		"mount hostPath /sys/fs/cgroup at /host/sys/fs/cgroup, as deploy/orb8-daemonset.yaml does"
}

// noHierarchy stands in where no cgroup2 hierarchy is mounted.
type noHierarchy struct{}

func (noHierarchy) find(uint64, uint32) (string, bool) { return "", false }
func (noHierarchy) exists(uint64, string) bool         { return true }
func (noHierarchy) place(_ uint64, p string) string    { return p }
func (noHierarchy) ofProcess(uint32) uint64            { return 0 }
func (noHierarchy) all() map[uint64]string             { return nil }
func (noHierarchy) close() error                       { return nil }
