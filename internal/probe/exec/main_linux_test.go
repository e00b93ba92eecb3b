// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/process"
)

// childEnv has what this binary, run a second time, is to do.
const childEnv = "ORB8_EXEC_TEST_CHILD"

// The child's main goroutine stays on the process's first thread.
func init() { //nolint:gochecknoinits // it is too late for that in TestMain
	if os.Getenv(childEnv) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		child(strings.Fields(what))
		return
	}
	goleak.VerifyTestMain(tests{m})
}

// tests closes what they share at their end.
type tests struct{ *testing.M }

func (m tests) Run() int {
	code := m.M.Run()
	if one.stop != nil {
		one.stop()
	}
	return code
}

// one is the probe that most tests share: an emulated machine takes seconds to load
// it.
var one struct {
	once sync.Once
	rig  *rig
	err  error
	stop func()
}

// shared returns a running probe that watches all calls that tests are about.
func shared(t *testing.T) *rig {
	t.Helper()
	probetest.NeedRoot(t)
	one.once.Do(func() {
		one.rig = newRig(func(c *Config) {
			c.RingBytes = 16 << 20
			watchAll(c)
		})
		if one.err = one.rig.Start(); one.err != nil {
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- one.rig.Run(ctx) }()
		one.stop = func() {
			cancel()
			if err := errors.Join(<-done, one.rig.Close()); err != nil {
				panic(err)
			}
		}
	})
	if u, ok := errors.AsType[*probe.Unsupported](one.err); ok {
		t.Logf("orb8-feature: exec probe: off: %v", u)
		t.Skipf("SKIP: %v", u)
	}
	if one.err != nil {
		t.Fatal(one.err)
	}
	return one.rig
}

// firstPIDNS is the inode of the host's pid namespace (PROC_PID_INIT_INO).
const firstPIDNS = 0xeffffffc

// rig is a probe with what it has said.
type rig struct {
	*Probe
	losses loss.Counters

	mu     sync.Mutex
	events []process.Event
}

// start runs a probe for the time of the test.
func start(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := load(t, change)
	r.run(t)
	return r
}

func (r *rig) run(t *testing.T) {
	t.Helper()
	probetest.Run(t, r)
}

// load is start without Run.
func load(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := newRig(change)
	probetest.Start(t, r, "exec probe: off")
	return r
}

func newRig(change func(*Config)) *rig {
	r := new(rig)
	cfg := Config{Apply: r.apply, Losses: &r.losses, Clock: probe.NewClock(), ArgBytes: 1024}
	if change != nil {
		change(&cfg)
	}
	r.Probe = New(cfg)
	return r
}

func (r *rig) apply(e *process.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, *e)
}

// of returns the events in a cgroup, in the order in which they came: those of these
// kinds, or else all but what needs a capability, which a library of this binary does
// as well.
func (r *rig) of(t *testing.T, cgroup uint64, what ...process.What) (all []process.Event) {
	t.Helper()
	if err := r.Collect(); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Process.CgroupID == cgroup && (len(what) == 0 && e.What != process.Privileged || slices.Contains(what, e.What)) {
			all = append(all, e)
		}
	}
	return all
}

// wait waits for n events of these kinds in a cgroup.
func (r *rig) wait(t *testing.T, n int, cgroup uint64, what ...process.What) []process.Event {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		all := r.of(t, cgroup, what...)
		if len(all) >= n {
			if len(all) > n {
				t.Fatalf("%d events, want %d:\n%s", len(all), n, list(all))
			}
			return all
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events, want %d; all:\n%s", len(all), n, list(r.of(t, cgroup)))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func list(all []process.Event) string {
	var b strings.Builder
	for _, e := range all {
		fmt.Fprintf(&b, "%d %+v %+v %+v %+v\n", e.What, e.Process, e.Start, e.End, e.Privilege)
		if b.Len() > 6000 {
			break
		}
	}
	return b.String()
}

// has reports whether a hook is attached; without it the feature is noted as missing.
func (r *rig) has(t *testing.T, hook, feature string) bool {
	t.Helper()
	for _, h := range r.Hooks() {
		if strings.Contains(h, hook) {
			return true
		}
	}
	for _, d := range r.Degraded() {
		if strings.Contains(d, hook) {
			t.Logf("orb8-feature: %s: off: %s", feature, d)
			return false
		}
	}
	t.Logf("orb8-feature: %s: off: this kernel has none", feature)
	return false
}

// folder is one that every user may enter.
func folder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// write makes a file for the time of the test and returns its path.
func write(t testing.TB, path string, content []byte, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// program is an executable of no more than its headers and this code.
func program(code []byte) []byte {
	const base, head = 0x400000, 64 + 56
	machine := elf.EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = elf.EM_AARCH64
	}
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
			Entry: base + head, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base,
			Filesz: uint64(head + len(code)), Memsz: uint64(head + len(code)), Align: 0x10000,
		},
		code,
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// exits is code that ends the process with this status.
func exits(status byte) []byte {
	if runtime.GOARCH == "arm64" {
		code := binary.LittleEndian.AppendUint32(nil, 0xd2800000|uint32(status)<<5) // mov x0, status
		code = binary.LittleEndian.AppendUint32(code, 0xd2800ba8)                   // mov x8, exit
		return binary.LittleEndian.AppendUint32(code, 0xd4000001)                   // svc 0
	}
	return []byte{0xbf, status, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05} // mov edi, status; mov eax, exit; syscall
}

// quick is an executable that ends at once with this status.
func quick(status byte) []byte { return program(exits(status)) }

// again is this binary, told to do something, in a cgroup.
func again(t *testing.T, cgroup, format string, args ...any) *osexec.Cmd {
	t.Helper()
	cmd := osexec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+fmt.Sprintf(format, args...))
	cmd.Stderr = os.Stderr
	probetest.InCgroup(t, cmd, cgroup)
	return cmd
}

// output runs a child to its end and returns what it says.
func output(t *testing.T, cmd *osexec.Cmd) string {
	t.Helper()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// inMountNS runs f on a thread with a mount namespace of its own, below which
// processes that f starts are as well.
func inMountNS(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, but for the first one
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			inner := make(chan error)
			go func() {
				runtime.LockOSThread()
				inner <- unshareMounts(f)
			}()
			done <- <-inner
			return
		}
		done <- unshareMounts(f)
	}()
	if err := <-done; err != nil {
		t.Skipf("SKIP: make a mount namespace: %v", err)
	}
}

func unshareMounts(f func()) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	f()
	return nil
}
