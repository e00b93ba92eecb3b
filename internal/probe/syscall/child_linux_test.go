// SPDX-License-Identifier: Apache-2.0

package syscall

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mark is a first argument that no other call has.
const mark = 0xfeedface12345678

// child does what it is told, in the traced cgroup.
func child(args []string) {
	runtime.LockOSThread()
	f, ok := map[string]func([]string) error{
		"true":     func([]string) error { return nil },
		"wait":     wait,
		"args":     sixArgs,
		"errno":    badClose,
		"open":     open,
		"strings":  longStrings,
		"unread":   unreadable,
		"files":    files,
		"sockets":  sockets,
		"sleep":    sleep,
		"block":    block,
		"exec":     execAway,
		"failed":   failedExec,
		"exit":     exitWith,
		"threads":  threads,
		"signal":   signals,
		"seccomp":  seccomp,
		"trap":     seccompTrap,
		"many":     many,
		"paths":    paths,
		"golden":   golden,
		"cost":     ownCost,
		"spawn":    spawn,
		"restart":  restart,
		"bytes":    readBytes,
		"computes": compute,
		"openat2":  openHow2,
		"flood":    flood,
		"chroots":  chroots,
	}[args[0]]
	if !ok {
		fmt.Fprintf(os.Stderr, "no command %q\n", args[0])
		os.Exit(2)
	}
	if err := f(args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n", args, err)
		os.Exit(1)
	}
}

// raw makes a call and gives back what it returned: as the kernel does, an error as a
// negative number.
func raw(nr uintptr, args ...uintptr) int64 {
	var a [6]uintptr
	copy(a[:], args)
	v, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return -int64(errno)
	}
	return int64(v)
}

// wait does something once it is told to by a line.
func wait(args []string) error {
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if len(args) > 0 {
		child(args)
	}
	return nil
}

func sixArgs([]string) error {
	raw(unix.SYS_PRCTL, mark&0xffffffff, 2, 3, 4, 5, 6)
	raw(unix.SYS_PREADV2, ^uintptr(6), 1<<63, 0, 1<<40|4, 1<<33|5, 1<<62|6)
	return nil
}

func badClose([]string) error {
	raw(unix.SYS_CLOSE, 0x7ffffff1)
	return nil
}

func open(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	return f.Close()
}

// longStrings opens files that are not there, with names of these lengths.
func longStrings([]string) error {
	for _, n := range []int{0, 254, 255, 256, 3000} {
		p, err := unix.BytePtrFromString(strings.Repeat("x", n))
		if err != nil {
			return err
		}
		raw(unix.SYS_OPENAT, 0x7fff0000+uintptr(n), uintptr(unsafe.Pointer(p)), unix.O_PATH)
	}
	return nil
}

// unreadable opens by a name that nobody can read and one on a page that nobody has
// touched: of a file, so that it takes the kernel to bring it in.
func unreadable(args []string) error {
	raw(unix.SYS_OPENAT, 0x7ffffff1, 4096, 0)
	name := filepath.Join(args[0], "names")
	if err := os.WriteFile(name, []byte("/dev/zero\x00"), 0o644); err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	raw(unix.SYS_OPENAT, 0x7ffffff2, uintptr(unsafe.Pointer(unsafe.SliceData(page))), unix.O_RDONLY)
	return nil
}

// paths reads files by descriptors and says which these are.
func paths(args []string) error {
	for _, name := range args {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		raw(unix.SYS_FSYNC, f.Fd())
		fmt.Println(f.Fd())
	}
	return nil
}

// files makes calls on files of all kinds and says which descriptor is which.
func files(args []string) error {
	dir := args[0]
	say := func(what string, fd uintptr) {
		raw(unix.SYS_FSYNC, fd)
		fmt.Println(what, fd)
	}
	f, err := os.Create(filepath.Join(dir, "plain"))
	if err != nil {
		return err
	}
	say("plain", f.Fd())
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	say("dir", d.Fd())
	gone, err := os.Create(filepath.Join(dir, "gone"))
	if err != nil {
		return err
	}
	if err := os.Remove(gone.Name()); err != nil {
		return err
	}
	say("gone", gone.Fd())
	r, _, err := os.Pipe()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(r.Fd()), &st); err != nil {
		return err
	}
	say(fmt.Sprintf("pipe:[%d]", st.Ino), r.Fd())
	e, err := unix.EpollCreate1(0)
	if err != nil {
		return err
	}
	say("epoll", uintptr(e))
	m, err := unix.MemfdCreate("some name", 0)
	if err != nil {
		return err
	}
	say("memfd", uintptr(m))
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return err
	}
	say(fmt.Sprintf("ns:[%d]", st.Ino), ns.Fd())
	if p, err := unix.PidfdOpen(os.Getpid(), 0); err == nil {
		say("pidfd", uintptr(p))
	}
	say("none", 0x7ffffff1)
	return nil
}

// sockets makes calls on sockets and says what they are.
func sockets(args []string) error {
	say := func(what string, fd uintptr) {
		raw(unix.SYS_FSYNC, fd)
		fmt.Println(fd, what)
	}
	fd := func(c interface{ File() (*os.File, error) }) uintptr {
		f, err := c.File()
		if err != nil {
			panic(err)
		}
		return f.Fd()
	}
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		l, err := net.Listen("tcp", ip+":0")
		if err != nil {
			return err
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		u, err := net.Dial("udp", l.Addr().String())
		if err != nil {
			return err
		}
		// Go may make listeners of the multipath kind.
		say("listening "+l.Addr().String(), fd(l.(*net.TCPListener)))
		say("TCP "+c.LocalAddr().String()+"->"+c.RemoteAddr().String(), fd(c.(*net.TCPConn)))
		say("UDP "+u.LocalAddr().String()+"->"+u.RemoteAddr().String(), fd(u.(*net.UDPConn)))
	}
	name := filepath.Join(args[0], "s")
	l, err := net.Listen("unix", name)
	if err != nil {
		return err
	}
	c, err := net.Dial("unix", name)
	if err != nil {
		return err
	}
	say("unix:"+name, fd(l.(*net.UnixListener)))
	say("unix:->"+name, fd(c.(*net.UnixConn)))
	a, err := net.Listen("unix", "@orb8-"+filepath.Base(args[0]))
	if err != nil {
		return err
	}
	say("unix:@orb8-"+filepath.Base(args[0]), fd(a.(*net.UnixListener)))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	say("unix:", uintptr(pair[0]))
	n, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	say("netlink protocol 0", uintptr(n))
	return nil
}

// golden makes the calls of the golden records.
func golden([]string) error {
	d, err := os.Open("/dev")
	if err != nil {
		return err
	}
	p, err := unix.BytePtrFromString("plain")
	if err != nil {
		return err
	}
	raw(unix.SYS_OPENAT, d.Fd(), uintptr(unsafe.Pointer(p)), 0)
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	return unix.Connect(s, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
}

// spawn starts a program, as Go does it: with CLONE_VFORK, in the same memory.
func spawn(args []string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = os.Environ()
	err := cmd.Run()
	fmt.Println(cmd.Process.Pid)
	return err
}

// restart sleeps and says of which thread.
func restart([]string) error {
	fmt.Println(unix.Gettid())
	ts := unix.NsecToTimespec(int64(time.Second))
	if got := raw(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, 0, uintptr(unsafe.Pointer(&ts))); got != 0 {
		return fmt.Errorf("clock_nanosleep returns %d", got)
	}
	return nil
}

func sleep([]string) error {
	ts := unix.NsecToTimespec(int64(200 * time.Millisecond))
	raw(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, 0, uintptr(unsafe.Pointer(&ts)), 0, mark&0xffff, 0)
	return nil
}

// block reads from a pipe that nobody writes to.
func block([]string) error {
	r, _, err := os.Pipe()
	if err != nil {
		return err
	}
	fd := r.Fd() // not of the poller any more
	fmt.Println(fd)
	_, err = unix.Read(int(fd), make([]byte, 77))
	return err
}

func execAway(args []string) error {
	return unix.Exec(args[0], args, os.Environ())
}

// readBytes reads its input byte by byte, and says that it is there for each.
func readBytes([]string) error {
	b := make([]byte, 1)
	for {
		fmt.Println("ready")
		n, err := unix.Read(0, b)
		if err != nil || n == 0 {
			return err
		}
	}
}

// compute makes no call for a long time after it has read something.
func compute([]string) error {
	fmt.Println("ready")
	var b [1]byte
	raw(unix.SYS_READ, 0, uintptr(unsafe.Pointer(&b)), 1)
	for range 1 << 36 { // the clock may be a call
		b[0]++
	}
	return nil
}

// openHow2 opens what is not there, and gives less than the whole of how.
func openHow2([]string) error {
	p, err := unix.BytePtrFromString("none")
	if err != nil {
		return err
	}
	how := unix.OpenHow{Flags: unix.O_CREAT | unix.O_EXCL | unix.O_RDWR, Mode: 0o640, Resolve: unix.RESOLVE_BENEATH}
	raw(unix.SYS_OPENAT2, 0x7ffffff1, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how))
	raw(unix.SYS_OPENAT2, 0x7ffffff2, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&how)), 8)
	raw(unix.SYS_OPENAT2, 0x7ffffff3, uintptr(unsafe.Pointer(p)), 4096, unsafe.Sizeof(how))
	return nil
}

func chroots(args []string) error {
	var n int
	if _, err := fmt.Sscan(args[0], &n); err != nil {
		return err
	}
	for range n {
		_ = unix.Chroot("/nowhere/at/all")
	}
	return nil
}

// flood makes calls until its input ends.
func flood([]string) error {
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	fmt.Println("ready")
	for {
		raw(unix.SYS_GETPPID)
	}
}

func failedExec(args []string) error {
	fmt.Println(unix.Exec(args[0], args, nil))
	return nil
}

func exitWith([]string) error {
	raw(unix.SYS_EXIT_GROUP, 42)
	return nil
}

// threads has 50 threads make 20 calls each.
func threads([]string) error {
	done := make(chan struct{})
	for i := range 50 {
		go func() {
			runtime.LockOSThread()
			for j := range 20 {
				raw(unix.SYS_CLOSE, 0x7f000000+uintptr(i*100+j))
			}
			done <- struct{}{}
		}()
	}
	for range 50 {
		<-done
	}
	return nil
}

// signals sends itself one, which the runtime handles and returns from.
func signals([]string) error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR2)
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGUSR2); err != nil {
		return err
	}
	<-c
	return nil
}

func many(args []string) error {
	var n int
	if _, err := fmt.Sscan(args[0], &n); err != nil {
		return err
	}
	for range n {
		raw(unix.SYS_CLOSE, 0x7ffffff1)
	}
	return nil
}

// filter makes a seccomp filter that answers one call and lets all others pass.
func filter(nr, answer uint32) error {
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: answer},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return errno
	}
	return nil
}

func seccomp([]string) error {
	if err := filter(unix.SYS_FSYNC, unix.SECCOMP_RET_ERRNO|uint32(unix.EACCES)); err != nil {
		return err
	}
	raw(unix.SYS_FSYNC, 1)
	fmt.Println(raw(unix.SYS_FSYNC, 0x7ffffff1, 0, 3))
	return nil
}

// seccompTrap makes a call that is answered by a signal, which ends the process.
func seccompTrap([]string) error {
	signal.Reset()
	if err := filter(unix.SYS_FSYNC, unix.SECCOMP_RET_TRAP); err != nil {
		return err
	}
	raw(unix.SYS_FSYNC, 0x7ffffff1)
	return nil
}
