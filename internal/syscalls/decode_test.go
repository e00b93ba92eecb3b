// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/Ignoramuss/orb8/internal/process"
)

// at is an argument that points at something, file one that is a file descriptor,
// and cut a text that was longer.
type (
	at   uint64
	cut  string
	file struct {
		fd   int32
		what string
	}
)

// call makes a call of arguments that are numbers, or strings and files that have
// been read.
func call(t *testing.T, abi process.ABI, name string, args ...any) *Call {
	t.Helper()
	nr, ok := Number(abi, name)
	if !ok {
		t.Fatalf("%s has no %s", abi, name)
	}
	c := &Call{ABI: abi, Number: nr}
	for i, a := range args {
		switch a := a.(type) {
		case int:
			c.Args[i] = uint64(a)
		case at:
			c.Args[i] = uint64(a)
		case string:
			c.Args[i], c.Strings[i] = 0x7ffd0010, a
			c.Read |= 1 << i
		case cut:
			c.Args[i], c.Strings[i] = 0x7ffd0010, string(a)
			c.Read, c.Cut = c.Read|1<<i, c.Cut|1<<i
		case OpenHow:
			c.Args[i], c.How = 0x7ffd0010, a
		case file:
			// What the upper half of the register has does not matter.
			c.Args[i], c.Files[i] = 0xdead<<32|uint64(uint32(a.fd)), a.what
		default:
			t.Fatalf("argument %d is a %T", i, a)
		}
	}
	return c
}

// text writes a call as a golden text does.
func text(c *Call) string {
	var args []string
	for _, a := range Decode(c) {
		args = append(args, a.Name+"="+a.Text)
	}
	return strings.Join(args, " ")
}

type golden struct {
	name string
	args []any
	want string
}

func check(t *testing.T, abi process.ABI, all []golden) {
	t.Helper()
	for _, g := range all {
		if got := text(call(t, abi, g.name, g.args...)); got != g.want {
			t.Errorf("%s on %s\n got %s\nwant %s", g.name, abi, got, g.want)
		}
	}
}

type args = []any

// The same numbers are other flags on Arm, and clone takes its arguments in another
// order.
func TestArchitectures(t *testing.T) {
	check(t, process.ARM64, []golden{
		{"openat", args{file{-100, ""}, "/", 0x84000, 0}, `dirfd=AT_FDCWD pathname="/" flags=O_RDONLY|O_DIRECTORY|O_CLOEXEC`},
		{"openat", args{file{-100, ""}, "/", 0x8000, 0}, `dirfd=AT_FDCWD pathname="/" flags=O_RDONLY|O_NOFOLLOW`},
		{"openat", args{file{-100, ""}, "/", 0x30000, 0}, `dirfd=AT_FDCWD pathname="/" flags=O_RDONLY|O_DIRECT|O_LARGEFILE`},
		{"openat", args{file{-100, ""}, "/", 0x404002, 0600}, `dirfd=AT_FDCWD pathname="/" flags=O_RDWR|O_TMPFILE mode=0600`},
		{"pipe2", args{at(0x5000), 0x10000}, `pipefd=0x5000 flags=O_DIRECT`},
		{"mmap", args{0, 4096, 0x11, 0x62, -1, 0}, `addr=NULL length=4096 prot=PROT_READ|PROT_BTI flags=MAP_PRIVATE|MAP_ANONYMOUS|0x40 fd=-1 offset=0`},
		{"clone", args{0x11, 0, 0, at(0x6000), at(0x5000)}, `flags=SIGCHLD stack=NULL`},
		{"clone", args{0x80011, 0, 0, at(0x6000), at(0xbad)}, `flags=CLONE_SETTLS|SIGCHLD stack=NULL parent_tid=NULL tls=0x6000`},
	})
	check(t, process.AMD64, []golden{
		{"openat", args{file{-100, ""}, "/", 0x90000, 0}, `dirfd=AT_FDCWD pathname="/" flags=O_RDONLY|O_DIRECTORY|O_CLOEXEC`},
		{"openat", args{file{-100, ""}, "/", 0xc000, 0}, `dirfd=AT_FDCWD pathname="/" flags=O_RDONLY|O_DIRECT|O_LARGEFILE`},
	})
}

// 32-bit programs pass 64-bit values in two registers, and have calls of their own.
func TestCompat(t *testing.T) {
	const low, high = 0x10, 0x1
	check(t, process.I386, []golden{
		{"open", args{"/etc", 0x10000, 0}, `pathname="/etc" flags=O_RDONLY|O_DIRECTORY`},
		{"read", args{file{3, ""}, at(0xffff0000), -1}, `fd=3 buf=0xffff0000 count=4294967295`},
		{"lseek", args{file{3, ""}, 0xfffffffb, 0}, `fd=3 offset=-5 whence=SEEK_SET`},
		{"_llseek", args{file{3, ""}, high, low, at(0x5000), 1}, `fd=3 offset=4294967312 result=0x5000 whence=SEEK_CUR`},
		{"pread64", args{file{3, ""}, at(0x5000), 8, low, high}, `fd=3 buf=0x5000 count=8 offset=4294967312`},
		{"truncate64", args{"f", low, high}, `path="f" length=4294967312`},
		{"fallocate", args{file{3, ""}, 1, low, 0, 4096, 0}, `fd=3 mode=FALLOC_FL_KEEP_SIZE offset=16 len=4096`},
		{"mmap", args{at(0x5000)}, `args=0x5000`},
		{"mmap2", args{0, 4096, 3, 0x22, -1, 0}, `addr=NULL length=4096 prot=PROT_READ|PROT_WRITE flags=MAP_PRIVATE|MAP_ANONYMOUS fd=-1 pgoffset=0`},
		{"socketcall", args{3, at(0x5000)}, `call=SYS_CONNECT args=0x5000`},
		{"setuid32", args{0}, `uid=0`},
		{"fcntl64", args{file{3, ""}, 1, 0}, `fd=3 op=F_GETFD`},
		{"stat64", args{"/", at(0x5000)}, `pathname="/" statbuf=0x5000`},
		{"fstatat64", args{file{-100, ""}, "/", at(0x5000), 0x100}, `dirfd=AT_FDCWD pathname="/" statbuf=0x5000 flags=AT_SYMLINK_NOFOLLOW`},
		{"futex_time64", args{at(0x5000), 1, 1}, `uaddr=0x5000 futex_op=FUTEX_WAKE val=1`},
		{"clock_settime64", args{0, at(0x5000)}, `clockid=CLOCK_REALTIME tp=0x5000`},
		{"umount", args{"/mnt"}, `target="/mnt"`},
		{"clone", args{0x11, 0, 0, 0, at(0x5000)}, `flags=SIGCHLD stack=NULL`},
		{"chown", args{"f", 0xffff, 0xffffffff}, `pathname="f" owner=-1 group=-1`},
		{"chown32", args{"f", 0xffff, 0xffffffff}, `pathname="f" owner=65535 group=-1`},
		{"setresuid", args{0xffff, 1000, 0}, `ruid=-1 euid=1000 suid=0`},
		{"fanotify_mark", args{file{3, ""}, 1, 0x20, 0x100, file{-100, ""}, "/"}, `fanotify_fd=3 flags=FAN_MARK_ADD mask=FAN_OPEN|0x10000000000 dirfd=AT_FDCWD pathname="/"`},
		{"waitpid", args{-1, 0, 1}, `pid=-1 wstatus=NULL options=WNOHANG`},
	})
	check(t, process.ARM, []golden{
		{"openat", args{file{-100, ""}, "/", 0x24000, 0}, `dirfd=AT_FDCWD pathname="/" flags=O_RDONLY|O_DIRECTORY|O_LARGEFILE`},
		{"pread64", args{file{3, ""}, at(0x5000), 8, 0xbad, low, high}, `fd=3 buf=0x5000 count=8 offset=4294967312`},
		{"ftruncate64", args{file{3, ""}, 0xbad, low, high}, `fd=3 length=4294967312`},
		{"arm_fadvise64_64", args{file{3, ""}, 4, low, high, 16, 0}, `fd=3 advice=POSIX_FADV_DONTNEED offset=4294967312 len=16`},
		{"recv", args{file{3, ""}, at(0x5000), 8, 2}, `sockfd=3 buf=0x5000 len=8 flags=MSG_PEEK`},
	})
}

func TestStrings(t *testing.T) {
	check(t, process.AMD64, []golden{
		{"chdir", args{0}, `path=NULL`},
		{"chdir", args{at(0x7ffd0010)}, `path=0x7ffd0010`},
		{"chdir", args{""}, `path=""`},
		{"chdir", args{cut("/very/lo")}, `path="/very/lo"...`},
		{"chdir", args{"a\"b\\c\n\t\r"}, `path="a\"b\\c\n\t\r"`},
		{"chdir", args{"\x1b[31m\x00\x7f"}, `path="\x1b[31m\x00\x7f"`},
		{"chdir", args{"größe\xff\xc3"}, `path="größe\xff\xc3"`},
		// Marks that turn the direction of a line, and C1 control characters.
		{"chdir", args{"a\u202eb\u009bc"}, `path="a\xe2\x80\xaeb\xc2\x9bc"`},
		{"close", args{file{3, "/tmp/\x1b[2J\"x\""}}, `fd=3</tmp/\x1b[2J"x">`},
	})
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		addr string
		golden
	}{
		{"10.0.0.1:80", golden{"connect", args{file{3, ""}, at(0x5000), 16}, `sockfd=3 addr=10.0.0.1:80 addrlen=16`}},
		{"unix:/run/x.sock", golden{"bind", args{file{3, ""}, at(0x5000), 110}, `sockfd=3 addr=unix:/run/x.sock addrlen=110`}},
		{"unix:@\x1bx", golden{"bind", args{file{3, ""}, at(0x5000), 110}, `sockfd=3 addr=unix:@\x1bx addrlen=110`}},
		{"[::1]:53", golden{"sendto", args{file{3, ""}, at(0x4000), 9, 0x4000, at(0x5000), 28}, `sockfd=3 buf=0x4000 len=9 flags=MSG_NOSIGNAL dest_addr=[::1]:53 addrlen=28`}},
		{"10.0.0.2:53", golden{"recvfrom", args{file{3, ""}, at(0x4000), 512, 0x40, at(0x5000), at(0x6000)}, `sockfd=3 buf=0x4000 len=512 flags=MSG_DONTWAIT src_addr=10.0.0.2:53 addrlen=0x6000`}},
		{"10.0.0.2:9", golden{"accept4", args{file{3, ""}, at(0x5000), at(0x6000), 0x800}, `sockfd=3 addr=10.0.0.2:9 addrlen=0x6000 flags=SOCK_NONBLOCK`}},
		{"10.0.0.2:9", golden{"accept", args{file{3, ""}, 0, 0}, `sockfd=3 addr=NULL addrlen=NULL`}},
		{"10.0.0.2:9", golden{"getpeername", args{file{3, ""}, at(0x5000), at(0x6000)}, `sockfd=3 addr=10.0.0.2:9 addrlen=0x6000`}},
		{"", golden{"getsockname", args{file{3, ""}, at(0x5000), at(0x6000)}, `sockfd=3 addr=0x5000 addrlen=0x6000`}},
		{"", golden{"connect", args{file{3, ""}, at(0x5000), 16}, `sockfd=3 addr=0x5000 addrlen=16`}},
	} {
		got := call(t, process.AMD64, c.name, c.args...)
		got.Addr = c.addr
		if got := text(got); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestUnknown(t *testing.T) {
	for want, c := range map[string]*Call{
		"":                         {Number: 500},
		"arg0=0 arg1=0x2a":         {Number: 500, Args: [6]uint64{0, 42}},
		"arg0=0xffffffff":          {ABI: process.ARM, Number: 500, Args: [6]uint64{1<<64 - 1, 1 << 32}},
		"arg0=0xffffffffffffffff":  {ABI: process.ABI(9), Number: -1, Args: [6]uint64{1<<64 - 1}},
		"arg0=0x1 arg1=0 arg2=0x3": call(t, process.AMD64, "modify_ldt", 1, 0, 3),
	} {
		if got := text(c); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestValues(t *testing.T) {
	c := call(t, process.I386, "pread64", -1, at(1<<32|0x5000), 8, 1, 2)
	var got []uint64
	for _, a := range Decode(c) {
		got = append(got, a.Value)
	}
	if want := []uint64{0xffffffff, 0x5000, 8, 2<<32 | 1}; !slices.Equal(got, want) {
		t.Errorf("got %#x, want %#x", got, want)
	}
}

// What the tables have is there, and fits into six registers.
func TestTables(t *testing.T) {
	all := Names()
	for _, tab := range []map[string][]param{table, table32, tableI386, tableARM} {
		for name, params := range tab {
			if _, ok := slices.BinarySearch(all, name); !ok {
				t.Errorf("%s is no system call", name)
			}
			if n := width(params); n > MaxArgs {
				t.Errorf("%s takes %d registers", name, n)
			}
		}
	}
	for _, name := range Privileged() {
		for abi := process.AMD64; abi <= process.ARM; abi++ {
			if _, ok := Number(abi, name); !ok {
				continue
			}
			if _, ok := paramsOf(abi, name); !ok {
				t.Errorf("the arguments of %s on %s are not known", name, abi)
			}
		}
	}
}

// width is how many arguments parameters take at most.
func width(params []param) int {
	n := 0
	for i := range params {
		most := 0
		for _, c := range params[i].cases {
			most = max(most, width(c))
		}
		n += params[i].width() + most
	}
	return n
}

func TestCases(t *testing.T) {
	for _, c := range []struct {
		cases map[uint64][]param
		names map[uint64]string
	}{
		{fcntlArgs, fcntls}, {fsconfigArgs, fsconfigs}, {ptraceArgs, ptraces}, {prctlArgs, prctls},
		{keyctlArgs, keyctls}, {protocols, families}, {gettingOptions, levels}, {settingOptions, levels},
		{futexArgs, futexes}, {ambientArgs, ambients},
	} {
		for v := range c.cases {
			if v != otherwise && c.names[v] == "" {
				t.Errorf("a case has the value %d, which has no name", v)
			}
		}
		if _, ok := c.cases[otherwise]; !ok {
			t.Error("cases lack the one for all other values")
		}
	}
}

func TestReadsOf(t *testing.T) {
	none := Reads{Addr: -1, AddrLen: -1}
	with := func(strings, files uint8) Reads { return Reads{Strings: strings, Files: files, Addr: -1, AddrLen: -1} }
	for _, c := range []struct {
		abi  process.ABI
		name string
		want Reads
	}{
		{process.AMD64, "getpid", none},
		{process.AMD64, "modify_ldt", none},
		{process.AMD64, "execve", with(1, 0)},
		{process.AMD64, "openat", with(2, 1)},
		{process.AMD64, "renameat2", with(0b1010, 0b101)},
		{process.AMD64, "mount", with(0b111, 0)},
		{process.AMD64, "mmap", with(0, 1<<4)},
		{process.AMD64, "write", with(0, 1)},
		{process.AMD64, "fanotify_mark", with(1<<4, 1|1<<3)},
		{process.I386, "fanotify_mark", with(1<<5, 1|1<<4)},
		{process.ARM, "fanotify_mark", with(1<<5, 1|1<<4)},
		{process.I386, "stat64", with(1, 0)},
		{process.ARM, "truncate64", with(1, 0)},
		{process.I386, "socketcall", none},
		// The name that PR_SET_NAME has.
		{process.ARM64, "prctl", with(2, 0)},
		{process.ARM64, "fsconfig", with(0b1100, 1|1<<4)},
		{process.ARM64, "connect", Reads{Files: 1, Addr: 1, AddrLen: 2}},
		{process.ARM64, "sendto", Reads{Files: 1, Addr: 4, AddrLen: 5}},
		{process.ARM64, "recvfrom", Reads{Files: 1, Addr: 4, AddrLen: 5, AddrAtEnd: true}},
		{process.ARM64, "accept4", Reads{Files: 1, Addr: 1, AddrLen: 2, AddrAtEnd: true}},
	} {
		nr, ok := Number(c.abi, c.name)
		if !ok {
			t.Fatalf("%s has no %s", c.abi, c.name)
		}
		if got := ReadsOf(c.abi, nr); got != c.want {
			t.Errorf("%s on %s: got %+v, want %+v", c.name, c.abi, got, c.want)
		}
	}
	if got := ReadsOf(process.ABI(9), -1); got != none {
		t.Errorf("a call that is not known: %+v", got)
	}
}

// Each number and ABI gives texts that a terminal only shows.
func TestEveryCall(t *testing.T) {
	for abi := process.AMD64; abi <= process.ARM; abi++ {
		for nr := range int32(MaxNumber) {
			c := &Call{ABI: abi, Number: nr, Read: 0x3f, Cut: 0x15, Addr: "\x1b]0;x\a"}
			for i := range MaxArgs {
				c.Args[i], c.Strings[i], c.Files[i] = 1<<64-1, "\x1b[2J\u202e", "/\x1b\u0085"
			}
			shown(t, c)
		}
	}
}

// shown fails a test if a call's texts have what is not printed.
func shown(t *testing.T, c *Call) {
	args := Decode(c)
	if len(args) > MaxArgs {
		t.Errorf("%s: %d arguments", Name(c.ABI, c.Number), len(args))
	}
	texts := []string{Name(c.ABI, c.Number), Return(c)}
	for _, a := range args {
		texts = append(texts, a.Name, a.Text)
		if a.Name == "" || a.Text == "" {
			t.Errorf("%s: an argument is %q=%q", texts[0], a.Name, a.Text)
		}
	}
	for _, s := range texts {
		if i := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%s: %q has something at %d that is not printed", texts[0], s, i)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint8(0), int32(257), uint64(1<<64-100), uint64(0x7ffd), uint64(0x80000), uint64(0), "/etc/passwd", "/srv", "", uint8(2), uint8(0), int64(3))
	f.Add(uint8(1), int32(102), uint64(3), uint64(0x7ffd), uint64(0), uint64(0), "\x1b[0m", "\xff", "unix:@\x00", uint8(63), uint8(63), int64(-13))
	f.Add(uint8(9), int32(-1), uint64(1), uint64(2), uint64(3), uint64(4), "", "", "", uint8(0), uint8(0), int64(-1<<63))
	f.Fuzz(func(t *testing.T, abi uint8, nr int32, a0, a1, a2, a3 uint64, str, what, addr string, read, cut uint8, ret int64) {
		c := &Call{
			ABI: process.ABI(abi), Number: nr, Args: [MaxArgs]uint64{a0, a1, a2, a3, a1 ^ a2, a0 + a3},
			Return: ret, Returned: true, Read: read, Cut: cut, Addr: addr,
		}
		for i := range MaxArgs {
			c.Strings[i], c.Files[i] = str, what
		}
		shown(t, c)
	})
}

// A call takes memory for its arguments and for their texts, no more.
func TestAllocations(t *testing.T) {
	for _, c := range benchCalls(t) {
		if n := testing.AllocsPerRun(100, func() { Decode(c) }); n > 2 {
			t.Errorf("%s takes memory %v times", Name(c.ABI, c.Number), n)
		}
	}
}

func benchCalls(tb testing.TB) []*Call {
	openat, _ := Number(process.AMD64, "openat")
	futex, _ := Number(process.ARM64, "futex")
	stat64, _ := Number(process.I386, "stat64")
	calls := []*Call{
		{Number: openat, Args: [6]uint64{1<<64 - 100, 0x7ffd0000, 0x80000}, Read: 2},
		{ABI: process.ARM64, Number: futex, Args: [6]uint64{0x5000, 0x81, 1}},
		{ABI: process.I386, Number: stat64, Args: [6]uint64{0x5000, 0x6000}, Read: 1},
		{Number: 500, Args: [6]uint64{1, 2, 3}},
	}
	calls[0].Strings[1], calls[0].Files[0] = "/usr/lib/x86_64-linux-gnu/libc.so.6", "/srv"
	calls[2].Strings[0] = "/etc/hosts"
	tb.Helper()
	return calls
}

func BenchmarkDecode(b *testing.B) {
	for _, c := range benchCalls(b) {
		b.Run(Name(c.ABI, c.Number), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Decode(c)
			}
		})
	}
}
