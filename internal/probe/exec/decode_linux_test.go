// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
)

// ahead is a clock that is 1,000 ns ahead of boot time.
type ahead struct{}

func (ahead) Unix(boot uint64) int64 { return int64(boot) + 1000 }

// raw is a record as it comes from the kernel, with what follows it.
func raw[T any](r T, tail string) []byte {
	return append(append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))...), tail...)
}

func head(what bpfWhat) bpfExecHead {
	h := bpfExecHead{NowNs: 50, What: uint32(what)}
	h.Task.StartNs, h.Task.ParentStartNs, h.Task.CgroupId, h.Task.CapEffective = 40, 30, 7, 1<<40|1
	h.Task.Pid, h.Task.ParentPid, h.Task.Uid, h.Task.Euid = 11, 10, 1000, 0
	h.Task.UserNs, h.Task.MntNs, h.Task.PidNs, h.Task.NetNs = 1, 2, 3, 4
	copy(h.Task.Comm[:], "name")
	return h
}

// headed is the event that head stands for.
func headed(what process.What) process.Event {
	return process.Event{What: what, Time: 1050, Process: process.Process{
		ID: process.ID{PID: 11, Start: 40}, Parent: process.ID{PID: 10, Start: 30}, Comm: "name",
		Creds: process.Creds{UID: 1000, Effective: 1<<40 | 1, UserNS: 1},
		NS:    process.Namespaces{Mount: 2, PID: 3, Net: 4}, CgroupID: 7, Started: 1040,
		Seeded: what == process.Seen, Exited: what == process.Exit,
	}}
}

func TestDecode(t *testing.T) {
	change := func(what process.What, f func(*process.Event)) process.Event {
		e := headed(what)
		f(&e)
		return e
	}
	exec := bpfExecStart{
		Head: head(bpfWhatWHAT_EXEC), ChangedNs: 99, NsPid: 1, PathLen: 4, CalledLen: 6, ArgsLen: 7,
		Flags: uint32(bpfStartFlagSTART_OVERLAY | bpfStartFlagSTART_UPPER | bpfStartFlagSTART_TTY | bpfStartFlagSTART_ARGS_TRUNCATED),
	}
	exec.Std[1].Protocol, exec.Std[1].LocalPort, exec.Std[1].RemotePort = 6, 80, 4242
	exec.Std[1].Local.B = [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 1}
	exec.Std[1].Remote.B = [16]byte{0: 0xfd, 15: 2}
	module := bpfExecModule{Head: head(bpfWhatWHAT_MODULE)}
	module.Name[0], module.Name[1] = 'm', 'x'
	native := process.AMD64
	if runtime.GOARCH == "arm64" {
		native = process.ARM64
	}
	for name, c := range map[string]struct {
		raw  []byte
		want process.Event
	}{
		"fork": {raw(head(bpfWhatWHAT_FORK), ""), headed(process.Fork)},
		"exec": {raw(exec, "/bin"+"/call\x00"+"a\x00\x00bcd!"), change(process.Exec, func(e *process.Event) {
			e.Process.Exe = process.Executable{Path: "/bin", Called: "/call", Overlay: true, Upper: true, Changed: 99}
			e.Process.Args, e.Process.ArgsTruncated = []string{"a", "", "bcd!"}, true
			e.Process.Execed = 1050
			e.Start = &process.Start{TTY: true, NSPID: 1, Stdout: &process.Socket{
				Protocol: record.TCP, Local: netip.MustParseAddrPort("10.0.0.1:80"), Remote: netip.MustParseAddrPort("[fd00::2]:4242"),
			}}
		})},
		"exit": {raw(bpfExecExit{Head: head(bpfWhatWHAT_EXIT), Status: 3<<8 | 0x80 | 11}, ""), change(process.Exit, func(e *process.Event) {
			e.End = &process.End{Code: 3, Signal: 11, CoreDumped: true}
		})},
		"moved": {raw(bpfExecMoved{Head: head(bpfWhatWHAT_MOVED), ByStartNs: 5, ByPid: 6}, ""), change(process.Moved, func(e *process.Event) {
			e.By = process.ID{PID: 6, Start: 5}
		})},
		"privileged": {raw(bpfExecCall{
			Head: head(bpfWhatWHAT_PRIVILEGED), Nr: 161, Capability: 18, Args: [6]uint64{1, 2, 3, 4, 5, 6},
			Flags: uint8(bpfCallFlagCALL_DENIED | bpfCallFlagCALL_OWN_USERNS),
		}, ""), change(process.Privileged, func(e *process.Event) {
			e.Privilege = &process.Privilege{
				Capability: 18, ABI: native, Call: 161, Args: [6]uint64{1, 2, 3, 4, 5, 6}, Denied: true, OwnUserNS: true,
			}
		})},
		"io_uring": {raw(bpfExecIoUring{Head: head(bpfWhatWHAT_IO_URING), Opcode: 9}, ""), change(process.IOUring, func(e *process.Event) { e.Opcode = 9 })},
		"module":   {raw(module, ""), change(process.Module, func(e *process.Event) { e.Module = "mx" })},
	} {
		t.Run(name, func(t *testing.T) {
			var got process.Event
			if err := decode(c.raw, &got, ahead{}); err != nil {
				t.Fatal(err)
			}
			same := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
			if d := cmp.Diff(c.want, got, same); d != "" {
				t.Errorf("event (-want +got):\n%s", d)
			}
			if name != "fork" {
				if err := decode(c.raw[:unsafe.Sizeof(bpfExecHead{})], &got, ahead{}); err == nil {
					t.Error("a record that is cut off is taken")
				}
			}
		})
	}
}

func TestDecodeWrong(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":          nil,
		"half a head":      raw(head(bpfWhatWHAT_FORK), "")[:50],
		"kind":             raw(head(200), ""),
		"path too long":    raw(bpfExecStart{Head: head(bpfWhatWHAT_EXEC), PathLen: 5}, "/bin"),
		"lengths wrap":     raw(bpfExecStart{Head: head(bpfWhatWHAT_EXEC), PathLen: 1 << 31, CalledLen: 1 << 31}, "/bin"),
		"arguments beyond": raw(bpfExecStart{Head: head(bpfWhatWHAT_SEEN), PathLen: 4, ArgsLen: ^uint32(0)}, "/bin"),
	} {
		var e process.Event
		if err := decode(b, &e, ahead{}); err == nil {
			t.Errorf("%s: taken as %+v", name, e)
		}
	}
}

// TestDecodeGolden decodes what a kernel wrote, see TestWriteGolden.
func TestDecodeGolden(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "exec.bin"))
	if err != nil {
		t.Fatal(err)
	}
	var e process.Event
	if err := decode(b, &e, ahead{}); err != nil {
		t.Fatal(err)
	}
	p := &e.Process
	if e.What != process.Exec || p.Exe.Path != "/tmp/orb8-golden/quick" || p.Exe.Called != "/tmp/orb8-golden/script" || p.Comm != "script" ||
		strings.Join(p.Args, "|") != "/tmp/orb8-golden/quick|-x|/tmp/orb8-golden/script|one" || p.PID == 0 || p.Parent.PID == 0 ||
		p.Start <= p.Parent.Start || p.Effective == 0 || p.NS.PID != firstPIDNS || !e.Start.HostPID || e.Start.NSPID != p.PID {
		t.Errorf("%+v %+v", p, e.Start)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	for what := range bpfWhat(9) {
		f.Add(raw(head(what), ""))
		f.Add(raw(bpfExecStart{Head: head(what), PathLen: 4, CalledLen: 1, ArgsLen: 2}, "/bin\x00a\x00"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var e process.Event
		if err := decode(b, &e, ahead{}); err != nil {
			return
		}
		all := append([]string{e.Process.Comm, e.Process.Exe.Path, e.Process.Exe.Called}, e.Process.Args...)
		for _, text := range all {
			if !utf8.ValidString(text) {
				t.Fatalf("%q is not UTF-8", text)
			}
		}
		if n := len(strings.Join(all, "")); n > 3*len(b) { // U+FFFD has three bytes
			t.Fatalf("%d bytes of text from %d", n, len(b))
		}
		if (e.What == process.Exec || e.What == process.Seen) != (e.Start != nil) || (e.What == process.Exit) != (e.End != nil) ||
			(e.What == process.Privileged) != (e.Privilege != nil) {
			t.Fatalf("%+v", e)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	in := raw(bpfExecStart{Head: head(bpfWhatWHAT_EXEC), PathLen: 8, CalledLen: 9, ArgsLen: 12}, "/bin/cat"+"/bin/cat\x00"+"cat\x00/dev/nul")
	var e process.Event
	b.ReportAllocs()
	for b.Loop() {
		if err := decode(in, &e, ahead{}); err != nil {
			b.Fatal(err)
		}
	}
}
