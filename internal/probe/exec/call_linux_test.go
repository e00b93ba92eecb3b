// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/process"
)

// privileged is a system call that asks for one of these capabilities, and does no
// harm where it has it.
type privileged struct {
	name string
	nr   int32
	caps []uint8
	args []uint64 // the first ones, as far as they are known
	do   func(dir string) error
}

const (
	aFlag     = unix.CLONE_NEWUTS
	otherUser = 4711
)

// privilegedCalls lists what the child does, in this order.
func privilegedCalls() []privileged {
	raw := func(nr uintptr, args ...uintptr) func(string) error {
		return func(string) error {
			var a [6]uintptr
			copy(a[:], args)
			if _, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
				return errno
			}
			return nil
		}
	}
	admin := []uint8{unix.CAP_SYS_ADMIN}
	return []privileged{
		{"mount", unix.SYS_MOUNT, admin, nil, func(dir string) error { return unix.Mount("none", dir, "no such type", 0, "") }},
		{"umount2", unix.SYS_UMOUNT2, admin, nil, func(dir string) error { return unix.Unmount(dir, 0) }},
		{"unshare", unix.SYS_UNSHARE, admin, []uint64{aFlag}, raw(unix.SYS_UNSHARE, aFlag)},
		{"setns", unix.SYS_SETNS, admin, nil, func(string) error {
			fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return unix.Setns(fd, aFlag)
		}},
		{"chroot", unix.SYS_CHROOT, []uint8{unix.CAP_SYS_CHROOT}, nil, func(string) error { return unix.Chroot("/") }},
		{"mknodat", unix.SYS_MKNODAT, []uint8{unix.CAP_MKNOD}, nil, func(dir string) error {
			return unix.Mknodat(unix.AT_FDCWD, filepath.Join(dir, fmt.Sprint("device", os.Getpid())), unix.S_IFCHR, int(unix.Mkdev(1, 3)))
		}},
		{"pivot_root", unix.SYS_PIVOT_ROOT, admin, nil, func(string) error { return unix.PivotRoot("/no such", "/no such") }},
		{"bpf", unix.SYS_BPF, []uint8{unix.CAP_BPF, unix.CAP_SYS_ADMIN, unix.CAP_PERFMON}, []uint64{bpfNextID}, func(string) error {
			var attr [120]byte
			return raw(unix.SYS_BPF, bpfNextID, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))("")
		}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, []uint8{unix.CAP_PERFMON, unix.CAP_SYS_ADMIN}, nil, func(string) error {
			_, err := unix.PerfEventOpen(&unix.PerfEventAttr{
				Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
			}, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
			return err
		}},
		{"init_module", unix.SYS_INIT_MODULE, []uint8{unix.CAP_SYS_MODULE}, []uint64{0, 0}, raw(unix.SYS_INIT_MODULE)},
		{"ptrace", unix.SYS_PTRACE, []uint8{unix.CAP_SYS_PTRACE}, []uint64{unix.PTRACE_SEIZE, uint64(victim())},
			raw(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(victim()))},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, []uint8{unix.CAP_DAC_READ_SEARCH}, nil, func(string) error {
			fd, err := unix.Open("/", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			_, err = unix.OpenByHandleAt(fd, unix.NewFileHandle(1, make([]byte, 8)), unix.O_RDONLY)
			return err
		}},
		{"socket", unix.SYS_SOCKET, []uint8{unix.CAP_NET_RAW}, []uint64{unix.AF_PACKET, unix.SOCK_RAW}, raw(unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW)},
		{"setuid", unix.SYS_SETUID, []uint8{unix.CAP_SETUID}, []uint64{otherUser}, raw(unix.SYS_SETUID, otherUser)},
	}
}

// bpfNextID is BPF_PROG_GET_NEXT_ID.
const bpfNextID = 11

// victimEnv has the pid of a process of a third user's.
const victimEnv = "ORB8_EXEC_TEST_VICTIM"

func victim() int {
	if v := os.Getenv(victimEnv); v != "" {
		return number(v)
	}
	return 0
}

// watchAll has the probe watch what privilegedCalls does.
func watchAll(c *Config) {
	for _, p := range privilegedCalls() {
		c.Watched = append(c.Watched, p.nr)
	}
	c.Watched = append(c.Watched, unix.SYS_PROCESS_VM_READV)
	c.WatchedCompat = []int32{i386Setuid}
}

const i386Setuid = 213 // setuid32

// childCall is what a child does that asks for capabilities.
func childCall(f []string) {
	switch f[0] {
	case "calls":
		for _, p := range privilegedCalls() {
			fmt.Println(p.name, report(p.do(f[1])))
		}
	case "repeat":
		root := []byte("/\x00")
		for range number(f[1]) {
			_, _, _ = unix.Syscall(unix.SYS_CHROOT, uintptr(unsafe.Pointer(&root[0])), 0, 0)
		}
	case "chroot":
		fmt.Println(report(unix.Chroot("/")))
	case "devices":
		devices(f[1])
	case "chroot-twice": // once more at each line of the input
		root := []byte("/\x00")
		for range 2 {
			_, _, _ = unix.Syscall(unix.SYS_CHROOT, uintptr(unsafe.Pointer(&root[0])), 0, 0)
			fmt.Println("done")
			_, _ = os.Stdin.Read(make([]byte, 1))
		}
	case "vm-read":
		b := make([]byte, 8)
		local := []unix.Iovec{{Base: &b[0], Len: 8}}
		remote := []unix.RemoteIovec{{Base: uintptr(number(f[2])), Len: 8}}
		_, err := unix.ProcessVMReadv(number(f[1]), local, remote, 0)
		fmt.Println(report(err))
	case "ordinary":
		ordinary(f[1])
	case "io_uring":
		fmt.Println(report(submitNops(number(f[1]))))
	default:
		panic("no such child: " + f[0])
	}
}

// report is an errno as a number.
func report(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return fmt.Sprint(int(errno))
	}
	if err != nil {
		return "-1 " + err.Error()
	}
	return "0"
}

func asNobody(cmd *osexec.Cmd) *osexec.Cmd {
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	return cmd
}

// startVictim starts a process of a third user's and returns its pid.
func startVictim(t *testing.T) int {
	t.Helper()
	dir, _ := probetest.NewCgroup(t)
	cmd := again(t, dir, "wait")
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 12345, Gid: 12345}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestPrivileged(t *testing.T) {
	const name = "system calls that ask for a capability"
	r := shared(t)
	if !r.has(t, "cap_capable", name) {
		t.Skip("SKIP: no hook on capabilities")
	}
	t.Setenv(victimEnv, fmt.Sprint(startVictim(t)))
	scratch := folder(t)
	if err := os.Chmod(scratch, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, denied := range []bool{false, true} {
		t.Run(fmt.Sprintf("denied %v", denied), func(t *testing.T) {
			dir, id := probetest.NewCgroup(t)
			cmd := again(t, dir, "calls %s", scratch)
			if denied {
				asNobody(cmd)
			}
			out := output(t, cmd)
			r.wait(t, 1, id, process.Exit)
			all := r.of(t, id, process.Privileged)
			for _, p := range privilegedCalls() {
				checkPrivileged(t, &p, all, denied, out, uint32(cmd.Process.Pid))
			}
		})
	}
	for _, h := range r.Hooks() {
		if strings.HasSuffix(h, "/cap_capable") {
			probetest.Works(t, name+" ("+h+")")
		}
	}
}

// checkPrivileged wants a call among the events. out is what the child says.
func checkPrivileged(t *testing.T, p *privileged, all []process.Event, denied bool, out string, pid uint32) {
	t.Helper()
	if result := said(out, p.name); result == fmt.Sprint(int(unix.ENOSYS)) || result == fmt.Sprint(int(unix.EAFNOSUPPORT)) {
		t.Logf("this kernel has no %s", p.name)
		return
	}
	if p.name == "perf_event_open" && !denied && !asksForPerf() {
		t.Log("this host lets everybody open performance events")
		return
	}
	i := slices.IndexFunc(all, func(e process.Event) bool {
		return e.Privilege.Call == p.nr && e.Privilege.Denied == denied && slices.Contains(p.caps, e.Privilege.Capability) &&
			slices.Equal(e.Privilege.Args[:len(p.args)], p.args)
	})
	if i < 0 {
		t.Errorf("no %s (%d), the child says %q; have:\n%s", p.name, p.nr, out, list(all))
		return
	}
	e := all[i]
	if e.Process.PID != pid || e.Privilege.OwnUserNS || e.Privilege.ABI != abi(false) {
		t.Errorf("%s: %+v %+v", p.name, e.Process, e.Privilege)
	}
}

// said returns what the child says of a call.
func said(out, name string) string {
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func asksForPerf() bool {
	b, err := os.ReadFile("/proc/sys/kernel/perf_event_paranoid")
	return err == nil && !strings.HasPrefix(string(b), "-") && !strings.HasPrefix(string(b), "0")
}

// TestRepeated: the same call of the same process is told of once a second.
func TestRepeated(t *testing.T) {
	for _, every := range []time.Duration{time.Hour, 1} {
		t.Run(every.String(), func(t *testing.T) {
			r := newRig(watchAll)
			r.repeatEvery = every
			probetest.Start(t, r, "exec probe: off")
			r.run(t)
			if !r.has(t, "cap_capable", "system calls that ask for a capability") {
				t.Skip("SKIP: no hook on capabilities")
			}
			dir, id := probetest.NewCgroup(t)
			output(t, again(t, dir, "repeat 5"))
			r.wait(t, 1, id, process.Exit)
			want, repeated := 1, uint64(4)
			if every == 1 {
				want, repeated = 5, 0
			}
			all := ofCall(r, t, id, unix.SYS_CHROOT)
			if got := r.losses.Get(loss.ExecRepeated); len(all) != want || got < repeated || repeated == 0 && got != 0 {
				t.Errorf("told of %d times, want %d; %d repeats, want %d:\n%s", len(all), want, got, repeated, list(all))
			}
		})
	}
}

// devices makes two devices under one name, with what a call does not take in the
// registers for more arguments.
func devices(dir string) {
	name := append([]byte(filepath.Join(dir, "device")), 0)
	atCWD := unix.AT_FDCWD
	for range 2 {
		for _, mode := range []uintptr{unix.S_IFCHR, unix.S_IFBLK} {
			_, _, _ = unix.Syscall6(unix.SYS_MKNODAT, uintptr(atCWD), uintptr(unsafe.Pointer(&name[0])), mode, 0x103, uintptr(rand.Int()), uintptr(rand.Int()))
			_ = os.Remove(filepath.Join(dir, "device"))
		}
	}
}

// TestRepeatedWithOtherArguments: it is the same call if all of its arguments are, and
// no other register counts.
func TestRepeatedWithOtherArguments(t *testing.T) {
	r := newRig(watchAll)
	r.repeatEvery = time.Hour
	probetest.Start(t, r, "exec probe: off")
	r.run(t)
	if !r.has(t, "cap_capable", "system calls that ask for a capability") {
		t.Skip("SKIP: no hook on capabilities")
	}
	dir, id := probetest.NewCgroup(t)
	output(t, again(t, dir, "devices %s", folder(t)))
	r.wait(t, 1, id, process.Exit)
	var modes []uint64
	for _, e := range ofCall(r, t, id, unix.SYS_MKNODAT) {
		modes = append(modes, e.Privilege.Args[2])
	}
	if !slices.Equal(modes, []uint64{unix.S_IFCHR, unix.S_IFBLK}) {
		t.Errorf("devices of modes %o, want each once", modes)
	}
}

// TestRepeatedAfterLoss: a call that the ring had no room for does not keep the next
// one from being told of.
func TestRepeatedAfterLoss(t *testing.T) {
	dir, id := probetest.NewCgroup(t)
	r := newRig(func(c *Config) { watchAll(c); c.RingBytes, c.CgroupID = uint32(os.Getpagesize()), id })
	r.repeatEvery = time.Hour
	probetest.Start(t, r, "exec probe: off")
	if !r.has(t, "cap_capable", "system calls that ask for a capability") {
		t.Skip("SKIP: no hook on capabilities")
	}
	for range 10 {
		output(t, again(t, dir, "exit 0"))
	}
	cmd := again(t, dir, "chroot-twice")
	in, out := probetest.Pipes(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 16)
	_, _ = out.Read(line)
	if all := ofCall(r, t, id, unix.SYS_CHROOT); len(all) > 0 {
		t.Fatalf("the ring had room:\n%s", list(all))
	}
	_, _ = in.Write([]byte("\n"))
	_, _ = out.Read(line)
	if all := ofCall(r, t, id, unix.SYS_CHROOT); len(all) != 1 {
		t.Errorf("the call after one that was lost is told of %d times", len(all))
	}
	_ = in.Close()
	_ = cmd.Wait()
}

// ofCall returns the privileged calls of this number in a cgroup.
func ofCall(r *rig, t *testing.T, cgroup uint64, nr int32) []process.Event {
	t.Helper()
	return slices.DeleteFunc(r.of(t, cgroup, process.Privileged), func(e process.Event) bool { return e.Privilege.Call != nr })
}

func TestOwnUserNamespace(t *testing.T) {
	r := shared(t)
	if !r.has(t, "cap_capable", "system calls that ask for a capability") {
		t.Skip("SKIP: no hook on capabilities")
	}
	dir, id := probetest.NewCgroup(t)
	cmd := again(t, dir, "chroot")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: 0, Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: 0, Size: 1}}
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("SKIP: start a process in a user namespace: %v", err)
	}
	if strings.TrimSpace(string(out)) != "0" {
		t.Fatalf("chroot: %s", out)
	}
	r.wait(t, 1, id, process.Exit)
	own := r.of(t, id, process.Exec)[0].Process.UserNS
	all := r.of(t, id, process.Privileged)
	if len(all) == 0 {
		t.Fatal("no event")
	}
	for _, e := range all {
		if e.Privilege.Call == unix.SYS_CHROOT && (!e.Privilege.OwnUserNS || e.Privilege.Denied || e.Process.UserNS != own ||
			own == inode(t, "/proc/self/ns/user")) {
			t.Errorf("%+v %+v", e.Process, e.Privilege)
		}
	}
}

// TestCompat: a 32-bit call has other numbers and other registers.
func TestCompat(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIP: the program for it is one of amd64")
	}
	r := shared(t)
	if !r.has(t, "cap_capable", "system calls that ask for a capability") {
		t.Skip("SKIP: no hook on capabilities")
	}
	code := []byte{
		0xb8, i386Setuid, 0, 0, 0, // mov eax, setuid32
		0xbb, 0x67, 0x12, 0, 0, // mov ebx, 4711
		0xcd, 0x80, // int 0x80
	}
	code = append(code, exits(5)...)
	cmd := osexec.Command(write(t, filepath.Join(folder(t), "compat"), program(code), 0o755))
	dir, id := probetest.NewCgroup(t)
	probetest.InCgroup(t, cmd, dir)
	_ = cmd.Run()
	if cmd.ProcessState.ExitCode() != 5 {
		t.Skipf("SKIP: this kernel has no 32-bit calls: %v", cmd.ProcessState)
	}
	all := r.wait(t, 1, id, process.Privileged)
	if p := all[0].Privilege; p.ABI != process.I386 || p.Call != i386Setuid || p.Args[0] != otherUser || p.Capability != unix.CAP_SETUID {
		t.Errorf("%+v", p)
	}
}

// ordinary does what every program does.
func ordinary(path string) {
	for range 20 {
		b, err := unix.Mmap(-1, 0, 8<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			panic(err)
		}
		b[0] = 1
		if err := unix.Munmap(b); err != nil {
			panic(err)
		}
		if err := osexec.Command(path).Run(); err != nil {
			panic(err)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		if _, err := os.ReadFile("/proc/self/status"); err != nil {
			panic(err)
		}
	}
}

// TestOrdinary: what asks for no capability of interest is not told of.
func TestOrdinary(t *testing.T) {
	r := shared(t)
	path := write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755)
	dir, id := probetest.NewCgroup(t)
	output(t, again(t, dir, "ordinary %s", path))
	r.wait(t, 21, id, process.Exec)
	all := r.of(t, id, process.Privileged, process.Moved, process.IOUring, process.Module)
	all = slices.DeleteFunc(all, func(e process.Event) bool {
		// A library of this binary makes such calls when it begins.
		return e.What == process.Privileged && e.Privilege.Call == unix.SYS_BPF
	})
	if len(all) > 0 {
		t.Errorf("events:\n%s", list(all))
	}
}

// TestPtrace: to look into a process of the same user needs no capability.
func TestPtrace(t *testing.T) {
	const name = "looks into other processes of the same user"
	r := shared(t)
	if !r.has(t, "security_ptrace_access_check", name) {
		t.Skip("SKIP: no hook on it")
	}
	dir, id := probetest.NewCgroup(t)
	var there uint64 = 42
	if got := output(t, again(t, dir, "vm-read %d %d", os.Getpid(), uintptr(unsafe.Pointer(&there)))); got != "0" {
		t.Fatalf("process_vm_readv: %s", got)
	}
	r.wait(t, 1, id, process.Exit)
	var looked []*process.Privilege
	for _, e := range r.of(t, id, process.Privileged) { // forks ask for a capability too
		if e.Privilege.Call == unix.SYS_PROCESS_VM_READV {
			looked = append(looked, e.Privilege)
		}
	}
	if len(looked) != 1 || looked[0].Capability != unix.CAP_SYS_PTRACE || looked[0].Denied || looked[0].Args[0] != uint64(os.Getpid()) {
		t.Errorf("%+v", looked)
	}
	probetest.Works(t, name)
}

func TestModule(t *testing.T) {
	const name = "kernel modules"
	r := shared(t)
	if !r.has(t, "module_load", name) {
		t.Skip("SKIP: no hook on modules")
	}
	if os.Getenv("ORB8_KERNEL_MATRIX") == "" {
		t.Skip("SKIP: loads a module, so only on a machine of its own")
	}
	_ = osexec.Command("rmmod", "overlay").Run()
	if out, err := osexec.Command("modprobe", "overlay").CombinedOutput(); err != nil {
		t.Fatalf("modprobe: %v: %s", err, out)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		if err := r.Collect(); err != nil {
			t.Fatal(err)
		}
		r.mu.Lock()
		i := slices.IndexFunc(r.events, func(e process.Event) bool { return e.What == process.Module })
		var e process.Event
		if i >= 0 {
			e = r.events[i]
		}
		r.mu.Unlock()
		if i >= 0 {
			if e.Module != "overlay" || e.Process.Comm != "modprobe" {
				t.Errorf("%+v", e)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the module was not told of")
		}
		time.Sleep(20 * time.Millisecond)
	}
	probetest.Works(t, name)
}

// TestIOUring: an operation is told of once per process and kind, whoever in its cgroup
// did the same before.
func TestIOUring(t *testing.T) {
	const name = "io_uring operations"
	r := shared(t)
	if !r.has(t, "io_uring_submit", name) {
		t.Skip("SKIP: no hook on io_uring")
	}
	for range 2 {
		dir, id := probetest.NewCgroup(t)
		for range 2 {
			if got := output(t, again(t, dir, "io_uring 3")); got != "0" {
				t.Logf("orb8-feature: %s: off: io_uring says errno %s", name, got)
				t.Skipf("SKIP: io_uring says errno %s", got)
			}
		}
		r.wait(t, 2, id, process.Exit)
		all := r.of(t, id, process.IOUring)
		if len(all) != 2 || all[0].Opcode != 0 || all[0].Process.Comm == "" || all[1].Process.ID == all[0].Process.ID {
			t.Errorf("want one operation of kind 0 of each process:\n%s", list(all))
		}
	}
	probetest.Works(t, name)
}

// submitNops makes a ring and submits n operations that do nothing (IORING_OP_NOP).
func submitNops(n int) error {
	const (
		sqesAt      = 0x10000000 // IORING_OFF_SQES
		sqeBytes    = 64
		entries     = 8
		setupCall   = 425
		enterCall   = 426
		getEvents   = 1
		sqRingBytes = 4096
	)
	// struct io_uring_params, as 32-bit words: flags and sizes, then the offsets of
	// the submission ring: head, tail, mask, entries, flags, dropped, array.
	var params [30]uint32
	fd, _, errno := unix.Syscall(setupCall, entries, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return errno
	}
	ring, err := unix.Mmap(int(fd), 0, sqRingBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	if _, err := unix.Mmap(int(fd), sqesAt, entries*sqeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return err
	}
	tail, array := params[11], params[16]
	word := func(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&ring[at])) }
	for i := range uint32(n) {
		*word(array + 4*i) = i // an entry of zeros is IORING_OP_NOP
	}
	*word(tail) = uint32(n)
	if _, _, errno := unix.Syscall6(enterCall, fd, uintptr(n), uintptr(n), getEvents, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
