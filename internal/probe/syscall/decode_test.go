// SPDX-License-Identifier: Apache-2.0

//go:build linux

package syscall

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// ahead is a clock that is 1000 s ahead of boot time.
type ahead struct{}

func (ahead) Unix(boot uint64) int64 { return int64(boot) + 1000e9 }

// The golden records were written by the kernel on amd64: openat of "plain" in /dev,
// which fails, and connect to 127.0.0.1:9 by UDP.
func TestDecodeGolden(t *testing.T) {
	for name, want := range map[string]Event{
		"openat": {Call: syscalls.Call{
			Number: unix.SYS_OPENAT, Return: -2, Returned: true,
			Strings: [6]string{1: "plain"}, Read: 2, Files: [6]string{0: "/dev"},
		}},
		"connect": {Call: syscalls.Call{
			Number: unix.SYS_CONNECT, Returned: true,
			Files: [6]string{0: "UDP 0.0.0.0:0"}, Addr: "127.0.0.1:9",
		}},
	} {
		b, err := os.ReadFile(filepath.Join("testdata", name+".bin"))
		if err != nil {
			t.Fatal(err)
		}
		var got Event
		if err := decode(b, &got, ahead{}); err != nil {
			t.Fatal(err)
		}
		if got.Time <= 1000e9 || got.PID == 0 || got.TID == 0 || got.Parent == 0 || got.CgroupID == 0 || got.Latency <= 0 || got.Comm[0] == 0 {
			t.Errorf("%s: %s", name, show(&got))
		}
		want.Call.ABI, want.Call.Number = abis()[0], got.Number
		want.Time, want.PID, want.TID, want.Parent, want.CgroupID = got.Time, got.PID, got.TID, got.Parent, got.CgroupID
		want.Traces = 1
		want.Latency, want.Comm, want.Call.Args = got.Latency, got.Comm, got.Args
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// record is a call as in the ring, with texts by argument.
func rawCall(flags bpfCallFlag, kinds map[int]bpfKind, texts map[int]string) []byte {
	c := bpfCall{NowNs: 7, LatencyNs: 5, CgroupId: 3, Ret: -13, Pid: 1, Tid: 2, Parent: 9, Nr: 42, Flags: uint8(flags)}
	for i := range c.Args {
		c.Args[i] = uint64(i) << 40
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&c.Comm[0])), 16), "command")
	text := unsafe.Slice((*byte)(unsafe.Pointer(&c.Text[0])), len(c.Text))
	for i, k := range kinds {
		c.Kind[i], c.At[i], c.Len[i] = uint8(k), uint16(c.Used), uint16(len(texts[i]))
		c.Used += uint32(copy(text[c.Used:], texts[i]))
	}
	return bytes.Clone(bytesOf(&c))
}

func TestDecode(t *testing.T) {
	plain := Event{
		Time: 7 + 1000e9, Latency: 5, CgroupID: 3, PID: 1, TID: 2, Parent: 9, Comm: [16]byte{'c', 'o', 'm', 'm', 'a', 'n', 'd'},
		Call: syscalls.Call{ABI: abis()[0], Number: 42, Args: [6]uint64{0, 1 << 40, 2 << 40, 3 << 40, 4 << 40, 5 << 40}, Return: -13},
	}
	for _, tc := range []struct {
		name  string
		flags bpfCallFlag
		kinds map[int]bpfKind
		texts map[int]string
		want  func(*Event)
	}{
		{"plain", 0, nil, nil, func(*Event) {}},
		{"returned", bpfCallFlagFLAG_RETURNED, nil, nil, func(e *Event) { e.Returned = true }},
		{"unfinished", bpfCallFlagFLAG_UNFINISHED, nil, nil, func(e *Event) { e.Unfinished = true }},
		{"refused compat", bpfCallFlagFLAG_REFUSED | bpfCallFlagFLAG_COMPAT, nil, nil, func(e *Event) {
			e.Refused, e.ABI = true, abis()[1]
		}},
		{
			"texts", 0,
			map[int]bpfKind{0: bpfKindKIND_STRING, 3: bpfKindKIND_PATH, 5: bpfKindKIND_STRING},
			map[int]string{0: "first", 3: "/a/path", 5: ""},
			func(e *Event) { e.Strings[0], e.Files[3], e.Read = "first", "/a/path", 1|1<<5 },
		},
		{
			"how to open", 0, map[int]bpfKind{2: bpfKindKIND_HOW}, map[int]string{2: "\x42\x00\x00\x00\x00\x00\x00\x00\xa0\x01\x00\x00\x00\x00\x00\x00"},
			func(e *Event) { e.How = syscalls.OpenHow{Given: true, Flags: 0x42, Mode: 0o640} },
		},
	} {
		want := plain
		tc.want(&want)
		got := Event{PID: 9, Call: syscalls.Call{Addr: "left over"}}
		if err := decode(rawCall(tc.flags, tc.kinds, tc.texts), &got, ahead{}); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}

func TestDecodeBad(t *testing.T) {
	good := rawCall(0, map[int]bpfKind{1: bpfKindKIND_STRING}, map[int]string{1: "text"})
	for name, raw := range map[string][]byte{"nothing": nil, "short": good[:headSize-1], "text cut off": good[:len(good)-1]} {
		if err := decode(raw, new(Event), ahead{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFileTexts(t *testing.T) {
	inode := "\x39\x30\x00\x00\x00\x00\x00\x00"
	v4 := func(last byte) string {
		return "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00" + string(last)
	}
	v6 := "\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
	none := string(make([]byte, 16))
	for _, tc := range []struct {
		kind bpfKind
		text string
		cut  bool
		want string
	}{
		{bpfKindKIND_PATH, "/x", false, "/x"},
		{bpfKindKIND_PATH, "/x", true, "/x..."},
		{bpfKindKIND_PATH_END, "/x", false, ".../x"},
		{bpfKindKIND_DELETED, "/x", false, "/x (deleted)"},
		{bpfKindKIND_NAME, "memfd:x", false, "memfd:x"},
		{bpfKindKIND_ANON, "[eventfd]", false, "anon_inode:[eventfd]"},
		{bpfKindKIND_PIPE, inode, false, "pipe:[12345]"},
		{bpfKindKIND_PIPE, "", false, "pipe"},
		{bpfKindKIND_NAMESPACE, inode, false, "ns:[12345]"},
		{bpfKindKIND_PIDFD, "", false, "anon_inode:[pidfd]"},
		{bpfKindKIND_INET, v4(1) + v4(2) + "\x50\x00\x92\x10\x06\x00\x00\x00", false, "TCP 10.0.0.1:80->10.0.0.2:4242"},
		{bpfKindKIND_INET, v6 + none + "\x35\x00\x00\x00\x11\x00\x00\x00", false, "UDP [fd00::1]:53"},
		{bpfKindKIND_INET, v4(1) + v4(2) + "\x50\x00\x92\x10\x06\x01\x00\x00", false, "MPTCP 10.0.0.1:80->10.0.0.2:4242"},
		{bpfKindKIND_INET, "x", false, ""},
		{bpfKindKIND_UNIX, "\x01\x00/run/s\x00", false, "unix:/run/s"},
		{bpfKindKIND_UNIX, "", false, "unix:"},
		{bpfKindKIND_UNIX_PEER, "\x01\x00\x00abstract", false, "unix:->@abstract"},
		{bpfKindKIND_SOCKET, "\x11\x00\x03\x00", false, "packet protocol 3"},
		{bpfKindKIND_SOCKET, "\xff\x00\x03\x00", false, "family 255 protocol 3"},
		{bpfKindKIND_SOCKET, "\x11", false, ""},
		{99, "x", false, ""},
	} {
		if got := file(tc.kind, []byte(tc.text), tc.cut); got != tc.want {
			t.Errorf("kind %d %q: %q, want %q", tc.kind, tc.text, got, tc.want)
		}
	}
}

func TestSockaddr(t *testing.T) {
	for _, tc := range []struct{ raw, want string }{
		{"", ""},
		{"\x01", ""},
		{"\x00\x00xxxx", "unspecified"},
		{"\x02\x00\x00\x50\x0a\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", "10.0.0.1:80"},
		{"\x02\x00\x00\x50", "family 2"},
		{"\x0a\x00\x00\x35\x00\x00\x00\x00\xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02\x00\x00\x00", "[fe80::1%2]:53"},
		{"\x0a\x00\x00\x35\x00\x00\x00\x00\xfd\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", "[fd80::1]:53"},
		{"\x01\x00/run/x.sock\x00junk", "unix:/run/x.sock"},
		{"\x01\x00\x00name", "unix:@name"},
		{"\x01\x00\x00\x00\x00", "unix:"},
		{"\x01\x00", "unix:"},
		{"\x10\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00", "netlink:7 groups 0x3"},
		{"\x11\x00\x08\x00\x02\x00\x00\x00", "packet:interface 2 protocol 0x0800"},
		{"\x28\x00\x00\x00\x00\x04\x00\x00\x02\x00\x00\x00", "vsock:2:1024"},
		{"\xfe\x00", "family 254"},
	} {
		if got := sockaddr([]byte(tc.raw)); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.raw, got, tc.want)
		}
	}
}

func TestBitmap(t *testing.T) {
	only, err := bitmap([]Kind{{abis()[0], 0}, {abis()[0], 511}, {abis()[1], 65}, {foreign(), 3}})
	if err != nil {
		t.Fatal(err)
	}
	want := [2]syscalls.Set{{0: 1, 7: 1 << 63}, {1: 2}}
	if only != want {
		t.Errorf("%x, want %x", only, want)
	}
	for _, n := range []int32{-1, 512} {
		if _, err := bitmap([]Kind{{abis()[0], n}}); err == nil {
			t.Errorf("number %d: no error", n)
		}
	}
}

// foreign is an ABI that this host does not have.
func foreign() process.ABI {
	if abis()[0] == process.AMD64 {
		return process.ARM64
	}
	return process.AMD64
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, headSize))
	f.Add(bytes.Repeat([]byte{0xff}, headSize+300))
	all, texts := map[int]bpfKind{}, map[int]string{}
	for i := range 6 {
		all[i], texts[i] = bpfKind(i+5), "\x02\x00text of some length that is enough for all"
	}
	f.Add(rawCall(3, all, texts))
	f.Add(rawCall(12, map[int]bpfKind{2: bpfKindKIND_ADDR, 1: bpfKindKIND_STRING}, map[int]string{1: "s", 2: "\x01\x00\x00name"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Event
		if err := decode(b, &e, ahead{}); err != nil {
			return
		}
		if len(b) < headSize {
			t.Fatalf("%d bytes: no error", len(b))
		}
		for i := range syscalls.MaxArgs {
			if e.Strings[i] != "" && e.Read>>i&1 == 0 || e.Cut>>i&1 != 0 && e.Read>>i&1 == 0 {
				t.Errorf("argument %d: %s", i, show(&e))
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	in := rawCall(bpfCallFlagFLAG_RETURNED, map[int]bpfKind{1: bpfKindKIND_STRING}, map[int]string{1: "/etc/passwd"})
	var e Event
	b.ReportAllocs()
	for b.Loop() {
		if err := decode(in, &e, ahead{}); err != nil {
			b.Fatal(err)
		}
	}
}
