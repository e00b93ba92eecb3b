// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/test/cluster/trouble/cases"
)

// host has on the disk what containers are made of.
type host struct {
	runc, image, tools, dirs string
}

// newHost makes an image like that of test/cluster/lab/build.sh, of trouble and busybox.
func newHost(t *testing.T) *host {
	t.Helper()
	base := t.TempDir()
	// It has setuid programs, which are for the containers only.
	if err := os.Chmod(base, 0o700); err != nil {
		t.Fatal(err)
	}
	h := &host{
		runc: filepath.Join(base, "runc"), image: filepath.Join(base, "image"),
		tools: filepath.Join(base, "tools"), dirs: filepath.Join(base, "containers"),
	}
	for _, dir := range []string{"bin", "dev", "lib", "proc", "sys", "suid", "tmp"} {
		must(t, os.MkdirAll(filepath.Join(h.image, dir), 0o755))
	}
	must(t, os.Chmod(filepath.Join(h.image, "tmp"), 0o777|os.ModeSticky))
	must(t, os.Mkdir(h.tools, 0o755))
	must(t, os.Mkdir(h.dirs, 0o755))

	program := filepath.Join(h.image, cases.Self)
	copyFile(t, buildTrouble(t, base), program, 0o755)
	copyFile(t, "/proc/self/exe", h.runc, 0o755)
	for _, name := range []string{"tool", "removed"} {
		copyFile(t, program, filepath.Join(h.tools, name), 0o755)
	}
	suid := filepath.Join(h.image, "suid/trouble")
	copyFile(t, program, suid, 0o755|os.ModeSetuid)
	must(t, os.Link(suid, filepath.Join(h.image, "suid/su")))
	must(t, os.Link(program, filepath.Join(h.image, "lib/ld-trouble.so.1")))
	addBusybox(t, h.image)
	return h
}

// buildTrouble returns where the program of the containers is, which a machine of
// test/kernels/run.sh has.
func buildTrouble(t *testing.T, dir string) string {
	t.Helper()
	if inMatrix() {
		return "/bin/trouble"
	}
	path := filepath.Join(dir, "trouble")
	cmd := exec.Command("go", "build", "-o", path, "../../cluster/trouble")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("SKIP: needs go, to build test/cluster/trouble")
	}
	if err != nil {
		t.Fatalf("build test/cluster/trouble: %v: %s", err, out)
	}
	return path
}

// inMatrix reports whether this is a machine of test/kernels/run.sh.
func inMatrix() bool { return os.Getenv("ORB8_KERNEL_MATRIX") != "" }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()
	must(t, os.MkdirAll(filepath.Dir(to), 0o755))
	out, err := os.Create(to)
	must(t, err)
	_, err = io.Copy(out, in)
	must(t, err)
	must(t, out.Close())
	must(t, os.Chmod(to, mode))
}

func addBusybox(t *testing.T, image string) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("SKIP: needs busybox")
	}
	if interpreter(t, path) != "" {
		t.Skip("SKIP: needs a busybox that is linked statically")
	}
	copyFile(t, path, filepath.Join(image, cases.Busybox), 0o755)
	copyFile(t, path, filepath.Join(image, "suid/sh"), 0o755|os.ModeSetuid)
	for _, name := range []string{"sh", "ls"} {
		must(t, os.Symlink("busybox", filepath.Join(image, "bin", name)))
	}
}

// interpreter is the loader that a program asks for, empty for none.
func interpreter(t *testing.T, path string) string {
	t.Helper()
	f, err := elf.Open(path)
	must(t, err)
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name, err := io.ReadAll(p.Open())
			must(t, err)
			return string(bytes.TrimRight(name, "\x00"))
		}
	}
	return ""
}

// kind is a container that the cases name.
type kind struct {
	name    string
	hostPID bool
	spec
}

func (h *host) kinds(t *testing.T) []kind {
	t.Helper()
	memory := func(path string) volume { return volume{Path: path} }
	return []kind{
		{name: "plain", spec: spec{Capabilities: ordinary(), Volumes: []volume{memory("/data")}}},
		{name: "able", spec: spec{Capabilities: append(ordinary(), unix.CAP_SYS_ADMIN)}},
		{name: "user", spec: spec{Capabilities: ordinary(), UID: 1000}},
		{name: "host", hostPID: true},
		{name: "cgroups", spec: spec{Volumes: []volume{{probetest.CgroupRoot(t), "/cgroups"}}}},
		{name: "calm", spec: spec{Capabilities: ordinary(), Volumes: []volume{{h.tools, "/tools"}}}},
		{name: "calm-user", spec: spec{Capabilities: ordinary(), UID: 1000, NoNewPrivileges: true}},
		{name: "calm-host", hostPID: true, spec: spec{Capabilities: ordinary()}},
		{name: "calm-volumes", spec: spec{Capabilities: ordinary(), Volumes: []volume{
			memory("/data"), memory("/memory"), {h.tools, "/tools"}, {h.tools, "/tmp/one"},
		}}},
	}
}

// container is one that runs.
type container struct {
	kind
	// cgroup is the folder of its own.
	cgroup string
	pid    int
	// asked is where it takes deeds, ends where it ends shells.
	asked, ends string
}

// runtime is a process of the runtime's, in the container's cgroup.
func (c *container) runtime(t *testing.T, h *host, s *spec) *exec.Cmd {
	t.Helper()
	config, err := json.Marshal(s)
	must(t, err)
	cmd := exec.Command(h.runc, string(config))
	cmd.Env = append(os.Environ(), runtimeEnv+"=1")
	cmd.Stderr = new(strings.Builder)
	probetest.InCgroup(t, cmd, c.cgroup)
	return cmd
}

// run starts a container, until the test ends, whose cgroup there is already.
func (h *host) run(t *testing.T, k *kind, cgroup string) *container {
	t.Helper()
	c := &container{kind: *k, cgroup: cgroup}
	c.Lower, c.Dir = h.image, filepath.Join(h.dirs, k.name)
	must(t, os.Mkdir(c.Dir, 0o755))
	c.Args = []string{cases.Self, "serve", "127.0.0.1:0", "127.0.0.1:0"}
	cmd := c.runtime(t, h, &c.spec)
	if !k.hostPID {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID
	}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		cannotRun(t, fmt.Sprintf("container %s does not start: %s", k.name, cmd.Stderr))
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c.pid = cmd.Process.Pid
	if n, err := fmt.Sscan(line, &c.asked, &c.ends); n != 2 {
		t.Fatalf("container %s says %q: %v", k.name, line, err)
	}
	return c
}

// cannotRun skips the test where this machine has no overlays, as one of the matrix has.
func cannotRun(t *testing.T, why string) {
	t.Helper()
	if strings.Contains(why, `mount "overlay"`) && !inMatrix() {
		t.Skipf("SKIP: %s", why)
	}
	t.Fatal(why)
}

// do has the container's first process start a deed, and waits for its end.
func (c *container) do(deed string) (r cases.Outcome, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	query := url.Values{"arg": strings.Fields(deed)}
	resp, err := client.Get("http://" + c.asked + "/run?" + query.Encode())
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	return r, json.NewDecoder(resp.Body).Decode(&r)
}

// exec starts a program in the running container from outside, on a terminal if there is
// one, and waits for its end.
func (c *container) exec(t *testing.T, h *host, terminal *os.File, args ...string) error {
	t.Helper()
	s := c.spec
	s.Enter, s.Args = c.pid, args
	cmd := c.runtime(t, h, &s)
	if terminal != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- startInPIDs(cmd, c.pid)
	}()
	if err := <-done; err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, cmd.Stderr)
	}
	return nil
}

// startInPIDs starts a child in the pid namespace of a process. The calling thread goes
// on starting its children there.
func startInPIDs(cmd *exec.Cmd, pid int) error {
	pids, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return err
	}
	defer pids.Close()
	if err := unix.Setns(int(pids.Fd()), unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return cmd.Start()
}

// terminal is a new one.
func terminal(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { _ = master.Close() })
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave := os.NewFile(fd, "terminal")
	t.Cleanup(func() { _ = slave.Close() })
	return slave
}
