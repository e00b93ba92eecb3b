// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/testwait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testCgroup makes a directory of cgroups for one test; skips where it cannot.
func testCgroup(t testing.TB) (mount CgroupMount, rel string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: making cgroups needs root")
	}
	mount, err := FindCgroupMount("/proc", "")
	if err != nil {
		t.Skipf("SKIP: no cgroup2 hierarchy: %v", err)
	}
	rel = fmt.Sprintf("/orb8-test-%d-%s", os.Getpid(), filepath.Base(t.Name()))
	makeCgroup(t, mount.Path+rel)
	return mount, rel
}

// makeCgroup makes the cgroup and removes it after the test if it is still
// there; returns its id.
func makeCgroup(t testing.TB, dir string) uint64 {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("SKIP: cannot make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	})
	return inode(t, dir)
}

func inode(t testing.TB, p string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func newTestResolver(t testing.TB, cfg Config) *Resolver {
	t.Helper()
	r, err := NewResolver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// tree returns the resolver's cgroupfs; with noHandles set it behaves as without
// CAP_DAC_READ_SEARCH.
func tree(t testing.TB, r *Resolver, noHandles error) *cgroupfs {
	t.Helper()
	c, ok := r.tree.(*cgroupfs)
	if !ok {
		t.Fatalf("hierarchy is a %T", r.tree)
	}
	if c.noHandles != nil && noHandles == nil {
		t.Skipf("SKIP: file handles: %v", c.noHandles)
	}
	c.noHandles = noHandles
	return c
}

// Both ways of finding a cgroup name it alike, from its birth to 60 s after its
// end.
func TestResolveRealCgroup(t *testing.T) {
	for _, tt := range []struct {
		name      string
		noHandles error
	}{{"handles", nil}, {"walk", unix.EPERM}} {
		t.Run(tt.name, func(t *testing.T) {
			mount, rel := testCgroup(t)
			rel += "/docker-" + id1 + ".scope"
			outer := makeCgroup(t, mount.Path+rel)
			inner := makeCgroup(t, mount.Path+rel+"/init.scope")
			r := newTestResolver(t, Config{})
			tree(t, r, tt.noHandles)
			want := func(id uint64, p string) *Identity {
				return &Identity{
					Kind: KindContainer, Name: id1[:12], ContainerID: id1, ContainerRuntime: RuntimeDocker,
					CgroupID: id, CgroupPath: p,
				}
			}
			for id, p := range map[uint64]string{outer: rel, inner: rel + "/init.scope"} {
				if diff := cmp.Diff(want(id, p), r.Local(id, 0, "sh", netip.Addr{})); diff != "" {
					t.Errorf("identity (-want +got):\n%s", diff)
				}
				if !r.Alive(id) {
					t.Errorf("cgroup %d is said to be gone", id)
				}
			}
			removeAndSweep(t, r, inner, mount.Path+rel+"/init.scope")
			if !r.Alive(outer) {
				t.Error("the outer cgroup is said to be gone")
			}
		})
	}
}

// removeAndSweep removes the container's cgroup and checks how its name fades.
func removeAndSweep(t *testing.T, r *Resolver, id uint64, dir string) {
	t.Helper()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if r.Alive(id) {
		t.Error("a removed cgroup is said to be alive")
	}
	now := time.Now()
	r.Sweep(now)
	r.Sweep(now.Add(linger - 1))
	if got := r.Local(id, 0, "sh", netip.Addr{}); got.Kind != KindContainer {
		t.Errorf("shortly after its removal: %+v", got)
	}
	r.Sweep(now.Add(linger))
	if got := r.Local(id, 0, "sh", netip.Addr{}); got.Kind != KindProcess || got.CgroupPath != "" {
		t.Errorf("long after its removal: %+v", got)
	}
}

func TestRootCgroup(t *testing.T) {
	mount, err := FindCgroupMount("/proc", "")
	if err != nil {
		t.Skipf("SKIP: no cgroup2 hierarchy: %v", err)
	}
	if ns, err := os.Readlink("/proc/self/ns/cgroup"); mount.Root != "/" || err != nil || ns != "cgroup:[4026531835]" {
		t.Skip("SKIP: not in the initial cgroup namespace")
	}
	if got := inode(t, mount.Path); got != rootCgroup {
		t.Errorf("the root's id is %d, want %d", got, rootCgroup)
	}
	r := newTestResolver(t, Config{})
	if got := r.Local(rootCgroup, 1, "init", netip.Addr{}); got.CgroupPath != "/" || got.Name != "init" {
		t.Errorf("got %+v", got)
	}
}

// A short-lived cgroup is found again through a process that outlived it, as a
// zombie does.
func TestResolveByProcess(t *testing.T) {
	mount, rel := testCgroup(t)
	r := newTestResolver(t, Config{})
	handles := tree(t, r, nil)
	dir := mount.Path + rel + "/job"
	id := makeCgroup(t, dir)
	cmd, stdin := startIn(t, dir)
	pid := uint32(cmd.Process.Pid)
	if p, ok := handles.byProcess(id, pid); !ok || p != rel+"/job" {
		t.Errorf("running process: %q, %v", p, ok)
	}
	if p, ok := handles.byProcess(id+1, pid); ok {
		t.Errorf("process of another cgroup: %q", p)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	waitForZombie(t, pid)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if p, ok := r.tree.find(id, pid); !ok || p != rel+"/job" {
		t.Errorf("zombie: %q, %v", p, ok)
	}
	if p, ok := r.tree.find(id, 0); ok {
		t.Errorf("removed cgroup without process: %q", p)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// startIn starts a process in a cgroup that ends when its input does.
func startIn(t *testing.T, dir string) (*exec.Cmd, *os.File) {
	t.Helper()
	cg, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile(t, cg)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile(t, in)
	cmd := exec.CommandContext(testwait.Context(t), "cat")
	cmd.Stdin = in
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func closeFile(t *testing.T, f *os.File) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func waitForZombie(t *testing.T, pid uint32) {
	t.Helper()
	testwait.Until(t, "the end of the process", func() error {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(stat), ") Z ") {
			return fmt.Errorf("it is %s", stat)
		}
		return nil
	})
}

func TestWalkIsRateLimited(t *testing.T) {
	mount, rel := testCgroup(t)
	r := newTestResolver(t, Config{})
	c := tree(t, r, unix.EPERM)
	if _, ok := c.byWalk(1 << 60); ok {
		t.Fatal("found a cgroup that is not there")
	}
	id := makeCgroup(t, mount.Path+rel+"/later")
	if _, ok := c.byWalk(id); ok {
		t.Error("walked again at once")
	}
	c.walked = time.Now().Add(-walkEvery)
	if p, ok := c.byWalk(id); !ok || p != rel+"/later" {
		t.Errorf("after some time: %q, %v", p, ok)
	}
}

func TestWalkIsBounded(t *testing.T) {
	mount, rel := testCgroup(t)
	for i := range 5 {
		makeCgroup(t, fmt.Sprintf("%s%s/%d", mount.Path, rel, i))
	}
	if got := len(walk(mount.Path+rel, 3)); got != 3 {
		t.Errorf("index has %d cgroups, want 3", got)
	}
	if got := len(walk(mount.Path+rel, 100)); got != 6 {
		t.Errorf("index has %d cgroups, want 6", got)
	}
}

// TestPartOfTheTree runs in a mount namespace of its own, where only a
// part of the hierarchy is mounted: cgroups outside of it have a name only by
// their processes.
func TestPartOfTheTree(t *testing.T) {
	const inside, outside = "ORB8_TEST_INSIDE", "ORB8_TEST_OUTSIDE"
	if os.Getenv(inside) != "" {
		lookFromInside(t, os.Getenv(inside), os.Getenv(outside))
		return
	}
	mount, rel := testCgroup(t)
	makeCgroup(t, mount.Path+rel+"/inside")
	makeCgroup(t, mount.Path+rel+"/outside")
	cmd := exec.Command(os.Args[0], "-test.run=^TestPartOfTheTree$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+rel+"/inside", outside+"="+rel+"/outside")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// learnsFromInside: the kernel tells whole paths, of which only the end is seen.
func learnsFromInside(t *testing.T, c *cgroupfs, id uint64, inside string) {
	const above = "/machine.slice/node.scope"
	if got := c.place(id, above+inside); got != inside {
		t.Errorf("learned path is placed at %q, want %q", got, inside)
	}
	if got := c.place(1<<60, above+"/gone"); got != above+"/gone" {
		t.Errorf("path of a cgroup that is gone is placed at %q", got)
	}
	c.mount.Root, c.noHandles = "/", errors.New("no handles") // as in a cgroup namespace
	defer func() { c.mount.Root, c.noHandles = inside, nil }()
	if !c.exists(id, c.place(id, above+inside)) {
		t.Error("a cgroup whose path was learned is said to be gone")
	}
	if c.exists(1<<60, above+"/gone") {
		t.Error("a cgroup that is gone is said to be there")
	}
}

func lookFromInside(t *testing.T, inside, outside string) {
	mount, err := FindCgroupMount("/proc", "")
	if err != nil {
		t.Fatal(err)
	}
	outsideID := inode(t, mount.Path+outside)
	part := t.TempDir()
	if err := unix.Mount(mount.Path+inside, part, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("SKIP: bind mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(part, 0); err != nil {
			t.Error(err)
		}
	})
	r := newTestResolver(t, Config{Root: part})
	if diff := cmp.Diff(CgroupMount{Path: part, Root: inside, Hybrid: mount.Hybrid}, r.Mount()); diff != "" {
		t.Errorf("mount (-want +got):\n%s", diff)
	}
	c := tree(t, r, nil)
	cmd, stdin := startIn(t, mount.Path+outside)
	pid := uint32(cmd.Process.Pid)
	for _, tt := range []struct {
		id   uint64
		pid  uint32
		want string
	}{{inode(t, part), 0, inside}, {outsideID, 0, ""}, {outsideID, pid, outside}, {1 << 60, pid, ""}} {
		got, ok := c.find(tt.id, tt.pid)
		if ok != (tt.want != "") || (ok && got != tt.want) {
			t.Errorf("cgroup %d, pid %d: path %q, want %q", tt.id, tt.pid, got, tt.want)
		}
	}
	if !r.Alive(outsideID) {
		t.Error("the cgroup outside is said to be gone")
	}
	learnsFromInside(t, c, inode(t, part), inside)
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

func TestNewResolverErrors(t *testing.T) {
	for _, root := range []string{t.TempDir(), "/does/not/exist"} {
		if r, err := NewResolver(Config{Root: root}); err == nil {
			t.Errorf("root %s: no error", root)
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestResolverLeavesNoDescriptors(t *testing.T) {
	mount, rel := testCgroup(t)
	ids := []uint64{inode(t, mount.Path+rel), 1 << 60}
	before := descriptors(t)
	for range 3 {
		r, err := NewResolver(Config{})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			r.Local(id, uint32(os.Getpid()), "test", netip.Addr{})
			r.Alive(id)
		}
		r.Sweep(time.Now())
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, were %d", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// BenchmarkResolve measures what the first record of a cgroup costs.
func BenchmarkResolve(b *testing.B) {
	mount, rel := testCgroup(b)
	id := inode(b, mount.Path+rel)
	r := newTestResolver(b, Config{})
	for _, bb := range []struct {
		name      string
		noHandles error
	}{{"handle", nil}, {"index", unix.EPERM}} {
		b.Run(bb.name, func(b *testing.B) {
			tree(b, r, bb.noHandles)
			b.ReportAllocs()
			for b.Loop() {
				if e := r.resolve(id, 0); e.id.CgroupPath != rel {
					b.Fatal(e.id)
				}
			}
		})
	}
}

// A process is named by its cgroup, and by its command.
func TestProcess(t *testing.T) {
	mount, rel := testCgroup(t)
	dir := mount.Path + rel + "/" + id1
	makeCgroup(t, dir)
	cmd, stdin := startIn(t, dir)
	r := newTestResolver(t, Config{})
	id, command := r.Process(uint32(cmd.Process.Pid))
	if id == nil || id.ContainerID != id1 || command == "" {
		t.Errorf("%+v, %q", id, command)
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
	if id, command := r.Process(uint32(cmd.Process.Pid)); id != nil || command != "" {
		t.Errorf("a process that has ended: %+v, %q", id, command)
	}
}
