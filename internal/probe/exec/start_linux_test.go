// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
)

// lives runs cmd in a cgroup of its own and returns its fork, start and end.
func (r *rig) lives(t *testing.T, cmd *osexec.Cmd) (fork, started, ended process.Event) {
	t.Helper()
	dir, id := probetest.NewCgroup(t)
	attr := cmd.SysProcAttr
	probetest.InCgroup(t, cmd, dir)
	if attr != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, cmd.SysProcAttr.CgroupFD
		cmd.SysProcAttr = attr
	}
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("run %s: %v", cmd.Path, err)
	}
	all := r.wait(t, 3, id, process.Fork, process.Exec, process.Exit)
	for i, what := range []process.What{process.Fork, process.Exec, process.Exit} {
		if all[i].What != what {
			t.Fatalf("not in the order of a life:\n%s", list(all))
		}
		if all[i].Process.ID != all[0].Process.ID || int(all[i].Process.PID) != cmd.ProcessState.Pid() {
			t.Fatalf("of other processes, want pid %d:\n%s", cmd.ProcessState.Pid(), list(all))
		}
	}
	return all[0], all[1], all[2]
}

func inode(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
}

func changed(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ctim.Nano()
}

func TestLife(t *testing.T) {
	r := shared(t)
	path := write(t, filepath.Join(folder(t), "quick"), quick(7), 0o755)
	before := time.Now().Add(-time.Second).UnixNano()
	fork, started, ended := r.lives(t, osexec.Command(path, "one", "", "two words"))
	p := &started.Process
	if p.Exe.Path != path || p.Exe.Called != path || p.Exe.Changed != changed(t, path) || p.Comm != "quick" {
		t.Errorf("executable %+v of %q, changed %d", p.Exe, p.Comm, changed(t, path))
	}
	if d := cmp.Diff([]string{path, "one", "", "two words"}, p.Args); d != "" || p.ArgsTruncated {
		t.Errorf("arguments, truncated %v (-want +got):\n%s", p.ArgsTruncated, d)
	}
	for _, e := range []process.Event{fork, started, ended} {
		if e.Process.Parent.PID != uint32(os.Getpid()) || e.Process.Parent.Start == 0 || e.Process.Parent.Start >= e.Process.Start {
			t.Errorf("parent %+v of %+v", e.Process.Parent, e.Process.ID)
		}
		ns := process.Namespaces{
			Mount: inode(t, "/proc/self/ns/mnt"), PID: inode(t, "/proc/self/ns/pid"), Net: inode(t, "/proc/self/ns/net"),
		}
		if e.Process.NS != ns {
			t.Errorf("namespaces %+v, want %+v", e.Process.NS, ns)
		}
		now := time.Now().Add(time.Second).UnixNano()
		if e.Time < before || e.Time > now || e.Process.Started < before || e.Process.Started > e.Time {
			t.Errorf("at %d, started at %d, between %d and %d", e.Time, e.Process.Started, before, now)
		}
	}
	if p.Execed != started.Time || fork.Process.Execed != 0 {
		t.Errorf("executed at %d, want %d", p.Execed, started.Time)
	}
	if s := started.Start; s.TTY || s.NSPID != p.PID || s.HostPID != (p.NS.PID == firstPIDNS) {
		t.Errorf("start %+v", s)
	}
	var first unix.Stat_t
	if err := unix.Stat("/proc/1/ns/mnt", &first); err != nil {
		t.Logf("the first mount namespace is not known: %v", err)
	} else if started.Start.HostMount != (uint32(first.Ino) == p.NS.Mount) {
		t.Errorf("start %+v in %d, the first mount namespace is %d", started.Start, p.NS.Mount, first.Ino)
	}
	if d := cmp.Diff(&process.End{Code: 7}, ended.End); d != "" || !ended.Process.Exited {
		t.Errorf("end (-want +got):\n%s", d)
	}
	probetest.Works(t, "executable, arguments and end of a process")
}

func TestExecutable(t *testing.T) {
	r := shared(t)
	dir := folder(t)
	path := write(t, filepath.Join(dir, "quick"), quick(0), 0o755)
	check := func(t *testing.T, cmd *osexec.Cmd, want process.Executable) {
		t.Helper()
		_, e, _ := r.lives(t, cmd)
		if d := cmp.Diff(want, e.Process.Exe, cmpopts.IgnoreFields(process.Executable{}, "Changed", "Overlay", "Upper")); d != "" {
			t.Errorf("executable (-want +got):\n%s", d)
		}
	}
	t.Run("link", func(t *testing.T) {
		link := filepath.Join(dir, "link")
		if err := os.Symlink("quick", link); err != nil {
			t.Fatal(err)
		}
		check(t, osexec.Command(link), process.Executable{Path: path, Called: link})
	})
	t.Run("script", func(t *testing.T) {
		script := write(t, filepath.Join(dir, "script"), []byte("#!"+path+" -x\n"), 0o755)
		check(t, osexec.Command(script, "a"), process.Executable{Path: path, Called: script})
	})
	t.Run("relative", func(t *testing.T) {
		cmd := osexec.Command("./quick")
		cmd.Dir = dir
		check(t, cmd, process.Executable{Path: path, Called: "./quick"})
	})
	t.Run("deleted", func(t *testing.T) {
		gone := write(t, filepath.Join(dir, "gone"), quick(0), 0o755)
		f, err := os.Open(gone)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
		cmd := osexec.Command("/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{f}
		check(t, cmd, process.Executable{Path: gone, Called: "/proc/self/fd/3", Deleted: true})
	})
	t.Run("memfd", func(t *testing.T) {
		fd, err := unix.MemfdCreate("orb8-test", 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "memfd")
		if _, err := f.Write(quick(0)); err != nil {
			t.Fatal(err)
		}
		// One that is open for writing is not run.
		ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil {
			t.Fatal(err)
		}
		defer ro.Close()
		f.Close()
		cmd := osexec.Command("/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{ro}
		check(t, cmd, process.Executable{Path: "memfd:orb8-test", Called: "/proc/self/fd/3", Memfd: true})
	})
	t.Run("long name", func(t *testing.T) {
		long := write(t, filepath.Join(dir, strings.Repeat("n", 255)), quick(0), 0o755)
		check(t, osexec.Command(long), process.Executable{Path: long, Called: long})
	})
	t.Run("named like memfd", func(t *testing.T) {
		named := write(t, filepath.Join(dir, "memfd:x"), quick(0), 0o755)
		check(t, osexec.Command(named), process.Executable{Path: named, Called: named})
	})
	probetest.Works(t, "path of the executable")
}

func TestDeepPath(t *testing.T) {
	r := shared(t)
	dir := filepath.Join(folder(t), strings.Repeat("d/", 150))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := write(t, filepath.Join(dir, "quick"), quick(0), 0o755)
	_, e, _ := r.lives(t, osexec.Command(path))
	exe := e.Process.Exe
	if !exe.PathTruncated || !strings.HasSuffix(path, exe.Path) || !strings.HasSuffix(exe.Path, "/d/d/d/quick") || len(exe.Path) < 150 {
		t.Errorf("path %q, truncated %v", exe.Path, exe.PathTruncated)
	}
}

func TestLongArguments(t *testing.T) {
	path := write(t, filepath.Join(folder(t), "q"), quick(0), 0o755)
	for name, c := range map[string]struct {
		bytes, keep int
	}{"few": {len(path) + 1 + 5, len(path) + 1 + 5}, "most": {1 << 20, 4096}, "none": {-1, 0}} {
		t.Run(name, func(t *testing.T) {
			r := start(t, func(c2 *Config) { c2.ArgBytes = c.bytes })
			long := strings.Repeat("a", 5000)
			_, e, _ := r.lives(t, osexec.Command(path, long, "b"))
			want := []string{path, long[:max(0, c.keep-len(path)-1)]}
			if c.keep == 0 {
				want = nil
			}
			if d := cmp.Diff(want, e.Process.Args); d != "" || e.Process.ArgsTruncated != (c.keep > 0) {
				t.Errorf("truncated %v, arguments (-want +got):\n%s", e.Process.ArgsTruncated, d)
			}
			if e.Process.Exe.Called != path {
				t.Errorf("called %q", e.Process.Exe.Called)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	r := shared(t)
	dir := folder(t)
	src := filepath.Join(dir, "src", "bin")
	dst := filepath.Join(dir, "dst")
	for _, d := range []string{src, dst} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(src, "quick"), quick(0), 0o755)
	file := write(t, filepath.Join(dir, "file"), nil, 0o755)
	var byFolder, byFile process.Event
	inMountNS(t, func() {
		for from, to := range map[string]string{filepath.Dir(src): dst, filepath.Join(src, "quick"): file} {
			if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
				t.Errorf("bind %s: %v", from, err)
				return
			}
		}
		_, byFolder, _ = r.lives(t, osexec.Command(filepath.Join(dst, "bin", "quick")))
		_, byFile, _ = r.lives(t, osexec.Command(file))
	})
	if got := byFolder.Process.Exe.Path; got != dst+"/bin/quick" {
		t.Errorf("path %q below a mount on %s", got, dst)
	}
	if got := byFile.Process.Exe.Path; got != file {
		t.Errorf("path %q of a file mounted on %s", got, file)
	}
	if byFile.Start == nil || byFile.Start.HostMount || byFile.Process.NS.Mount == inode(t, "/proc/self/ns/mnt") {
		t.Errorf("in its own mount namespace: %+v %+v", byFile.Start, byFile.Process.NS)
	}
}

func TestOverlay(t *testing.T) {
	r := shared(t)
	base := folder(t)
	got := make(map[string]process.Executable)
	inMountNS(t, func() {
		root := overlay(t, base)
		if root == "" {
			return
		}
		write(t, filepath.Join(root, "upper"), quick(0), 0o755)
		if err := os.Chmod(filepath.Join(root, "copied"), 0o775); err != nil {
			t.Error(err)
			return
		}
		for _, name := range []string{"lower", "upper", "copied"} {
			_, e, _ := r.lives(t, osexec.Command(filepath.Join(root, name)))
			exe := e.Process.Exe
			if exe.Path != filepath.Join(root, name) || exe.Changed != changed(t, exe.Path) {
				t.Errorf("%s: %+v", name, exe)
			}
			got[name] = exe
		}
	})
	if len(got) == 0 {
		t.Skip("SKIP: no overlay")
	}
	for name, upper := range map[string]bool{"lower": false, "upper": true, "copied": true} {
		if exe := got[name]; !exe.Overlay || exe.Upper != upper {
			t.Errorf("%s: overlay %v, upper %v, want %v", name, exe.Overlay, exe.Upper, upper)
		}
	}
	probetest.Works(t, "overlay and its writable layer")
}

// overlay mounts one with the files lower and copied in the lower layer. It returns
// nothing where the kernel has no overlay.
func overlay(t *testing.T, base string) string {
	t.Helper()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Errorf("mount a tmpfs: %v", err)
		return ""
	}
	for _, d := range []string{"low", "up", "work", "root"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Error(err)
			return ""
		}
	}
	for _, name := range []string{"lower", "copied"} {
		write(t, filepath.Join(base, "low", name), quick(0), 0o755)
	}
	root := filepath.Join(base, "root")
	layers := fmt.Sprintf("lowerdir=%s/low,upperdir=%s/up,workdir=%s/work", base, base, base)
	if err := unix.Mount("overlay", root, "overlay", 0, layers); err != nil {
		t.Logf("orb8-feature: overlay and its writable layer: off: mount an overlay: %v", err)
		return ""
	}
	return root
}

func TestTTY(t *testing.T) {
	r := shared(t)
	path := write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		t.Skipf("SKIP: open the other end of a terminal: %v", errno)
	}
	slave := os.NewFile(fd, "tty")
	defer slave.Close()
	cmd := osexec.Command(path)
	cmd.Stdin = slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if _, e, _ := r.lives(t, cmd); !e.Start.TTY {
		t.Errorf("start %+v, want a terminal", e.Start)
	}
}

func TestPIDNamespace(t *testing.T) {
	r := shared(t)
	cmd := osexec.Command(write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	_, e, _ := r.lives(t, cmd)
	if e.Start.NSPID != 1 || e.Start.HostPID || e.Process.NS.PID == inode(t, "/proc/self/ns/pid") {
		t.Errorf("start %+v, namespaces %+v, want pid 1 of another namespace", e.Start, e.Process.NS)
	}
}

func TestStandardSockets(t *testing.T) {
	r := shared(t)
	path := write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Skipf("SKIP: %v", err)
			}
			defer l.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			u, err := net.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			tf, err := c.(*net.TCPConn).File()
			if err != nil {
				t.Fatal(err)
			}
			defer tf.Close()
			uf, err := u.(*net.UDPConn).File()
			if err != nil {
				t.Fatal(err)
			}
			defer uf.Close()
			cmd := osexec.Command(path)
			cmd.Stdin, cmd.Stdout = tf, uf
			_, e, _ := r.lives(t, cmd)
			parse := func(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }
			tcp := &process.Socket{Protocol: record.TCP, Local: parse(c.LocalAddr()), Remote: parse(c.RemoteAddr())}
			local := parse(u.LocalAddr())
			none := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
			if local.Addr().Is6() {
				none = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
			}
			udp := &process.Socket{Protocol: record.UDP, Local: local, Remote: none}
			same := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
			if d := cmp.Diff([]*process.Socket{tcp, udp, nil}, []*process.Socket{e.Start.Stdin, e.Start.Stdout, e.Start.Stderr}, same); d != "" {
				t.Errorf("standard files (-want +got):\n%s", d)
			}
		})
	}
	probetest.Works(t, "sockets as standard files")
}

func TestRights(t *testing.T) {
	r := shared(t)
	dir := folder(t)
	plain := write(t, filepath.Join(dir, "plain"), quick(0), 0o755)
	setuid := write(t, filepath.Join(dir, "setuid"), quick(0), 0o755|os.ModeSetuid)
	nobody := func(path string) *osexec.Cmd {
		cmd := osexec.Command(path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return cmd
	}
	own := ownRights(t)
	_, e, _ := r.lives(t, osexec.Command(plain))
	if d := cmp.Diff(own, e.Process.Creds); d != "" {
		t.Errorf("root (-want +got):\n%s", d)
	}
	fork, e, ended := r.lives(t, nobody(plain))
	want := process.Creds{UID: 65534, EUID: 65534, UserNS: own.UserNS}
	for _, e := range []process.Event{e, ended} {
		if d := cmp.Diff(want, e.Process.Creds); d != "" {
			t.Errorf("nobody (-want +got):\n%s", d)
		}
	}
	if d := cmp.Diff(own, fork.Process.Creds); d != "" {
		t.Errorf("a fork has its parent's rights (-want +got):\n%s", d)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Flags&unix.ST_NOSUID != 0 {
		t.Skipf("SKIP: programs in %s do not change the user", dir)
	}
	_, e, _ = r.lives(t, nobody(setuid))
	want = process.Creds{UID: 65534, Effective: own.Effective, UserNS: own.UserNS}
	if d := cmp.Diff(want, e.Process.Creds); d != "" {
		t.Errorf("setuid (-want +got):\n%s", d)
	}
}

// ownRights are those of this process, from procfs.
func ownRights(t *testing.T) process.Creds {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	c := process.Creds{UserNS: inode(t, "/proc/self/ns/user")}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if _, err := fmt.Sscanf(v, "%x", &c.Effective); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}
