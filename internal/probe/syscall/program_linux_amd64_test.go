// SPDX-License-Identifier: Apache-2.0

package syscall

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// assembler writes a program of machine code, so that no runtime makes calls of its own.
type assembler struct {
	code, data []byte
	fixups     []fixup
}

// fixup is a place in the code that needs the address of a place in the data.
type fixup struct{ at, data int }

const (
	codeBase = 0x400000
	headers  = 64 + 56 // of an ELF file with one segment
)

// Registers as in the opcode of a move.
const (
	eax = iota
	ecx
	edx
	ebx
	_
	ebp
	esi
	edi
)

func (a *assembler) set(reg int, value uint32) {
	a.code = binary.LittleEndian.AppendUint32(append(a.code, 0xb8+byte(reg)), value)
}

// point sets a register to the address of some data.
func (a *assembler) point(reg int, data []byte) {
	a.set(reg, 0)
	a.fixups = append(a.fixups, fixup{len(a.code) - 4, len(a.data)})
	a.data = append(a.data, data...)
}

func (a *assembler) syscall() { a.code = append(a.code, 0x0f, 0x05) }
func (a *assembler) int80()   { a.code = append(a.code, 0xcd, 0x80) }

// address is where data at an offset will be, once all code is there.
func (a *assembler) address(code, data int) uint64 { return codeBase + headers + uint64(code+data) }

// write writes the program and returns its path.
func (a *assembler) write(t *testing.T) string {
	t.Helper()
	for _, f := range a.fixups {
		binary.LittleEndian.PutUint32(a.code[f.at:], uint32(a.address(len(a.code), f.data)))
	}
	size := uint64(headers + len(a.code) + len(a.data))
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(codeBase + headers), uint64(64), uint64(0), // executable, amd64
		uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(7), uint64(0), uint64(codeBase), uint64(codeBase), size, size, uint64(4096), // one segment
	} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	b.Write(a.code)
	b.Write(a.data)
	name := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(name, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// 32-bit calls have other numbers and registers.
func TestCompat(t *testing.T) {
	var a assembler
	a.set(eax, 5) // open
	a.point(ebx, []byte("/nowhere/compat\x00"))
	for i, reg := range []int{ecx, edx, esi, edi, ebp} {
		a.set(reg, 0xf0000011*uint32(i+1))
	}
	a.int80()
	a.set(eax, 1) // exit
	a.set(ebx, 9)
	a.int80()
	r := start(t, nil)
	cmd := exec.Command(a.write(t))
	probetest.InCgroup(t, cmd, r.dir)
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 9 {
		t.Skipf("SKIP: no 32-bit calls on this kernel: %v", err)
	}
	compat := func(number int32) *Event {
		return &r.wait(t, 1, func(e *Event) bool { return e.ABI == process.I386 && e.Number == number })[0]
	}
	e := compat(5)
	if e.Strings[0] != "/nowhere/compat" || e.Return != -int64(unix.ENOENT) && e.Return != -int64(unix.EINVAL) || !e.Returned {
		t.Errorf("open: %s", show(e))
	}
	for i, v := range e.Args[1:] {
		if want := uint64(0xf0000011 * uint32(i+1)); v != want {
			t.Errorf("argument %d is %#x, want %#x", i+1, v, want)
		}
	}
	if e := compat(1); !e.Unfinished || e.Args[0] != 9 {
		t.Errorf("exit: %s", show(e))
	}
	counts := r.summary(t)
	if c := counts[Kind{process.I386, 5}]; c.Calls != 1 || c.Errors != 1 {
		t.Errorf("open counted: %+v", c)
	}
	probetest.Works(t, "syscall compat calls")
}

// launcher is a program that waits for a byte and becomes another program.
func launcher(t *testing.T, program string) string {
	t.Helper()
	var a assembler
	argv := make([]byte, 16)
	a.set(eax, unix.SYS_READ)
	a.set(edi, 0)
	a.point(esi, make([]byte, 8))
	a.set(edx, 1)
	a.syscall()
	a.set(eax, unix.SYS_EXECVE)
	path := len(a.data)
	a.point(edi, append([]byte(program), 0))
	at := len(a.data)
	a.point(esi, argv)
	a.point(edx, make([]byte, 8))
	a.syscall()
	binary.LittleEndian.PutUint64(a.data[at:], a.address(len(a.code), path))
	return a.write(t)
}

// The counts are those of strace, of the same run: of a program in C with threads and
// children, of a shell's pipelines, of threads and processes of Python, of a program in Go, and of
// redis-benchmark with its server. It says nothing of exit and exit_group, which never return to it, nor of what a
// thread does while another one ends the process.
func TestStrace(t *testing.T) {
	for _, tool := range []string{"strace", "cc", "python3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: %v", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "calls")
	if out, err := exec.Command("cc", "-O1", "-w", "-pthread", "-o", program, "testdata/calls.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	script := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name, program string
		least         uint64
	}{
		{"C", program, 700},
		{"shell", script("pipelines", "#!/bin/sh\nfor i in 1 2 3; do ls / /nonexistent | sort | tr a-z A-Z | wc -l; done\n"), 700},
		{"python", script("threads", pythonThreads), 700},
		{"go", script("go", "#!/bin/sh\n"+childEnv+"=1 exec "+self+" golden\n"), 100},
	} {
		t.Run(tt.name, func(t *testing.T) { againstStrace(t, tt.program, tt.least) })
	}
	t.Run("redis", func(t *testing.T) {
		for _, tool := range []string{"redis-server", "redis-cli", "redis-benchmark"} {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("SKIP: %v", err)
			}
		}
		againstStrace(t, script("redis", redisLoad), 10_000)
	})
}

const redisLoad = `#!/bin/sh
socket=$(mktemp -u)
redis-server --port 0 --unixsocket $socket --save '' --appendonly no >/dev/null &
server=$!
until redis-cli -s $socket ping; do sleep 0.1; done >/dev/null 2>&1
redis-benchmark -s $socket -n 2000 -c 20 -q -t set,get,lpush >/dev/null
redis-cli -s $socket shutdown nosave
wait $server
`

const pythonThreads = `#!/usr/bin/env python3
import os, subprocess, tempfile, threading
def work():
    for _ in range(20):
        with tempfile.TemporaryFile() as f:
            f.write(b"x" * 1000)
            f.seek(0)
            f.read()
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
subprocess.run(["ls", "/nonexistent"], capture_output=True)
`

func againstStrace(t *testing.T, program string, least uint64) {
	t.Helper()
	r := start(t, nil)
	if err := r.selection.Remove(r.cgroup); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(launcher(t, program))
	probetest.InCgroup(t, cmd, r.dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitInRead(t, cmd.Process.Pid)
	table := filepath.Join(t.TempDir(), "table")
	strace := exec.Command("strace", "-f", "-c", "-o", table, "-p", strconv.Itoa(cmd.Process.Pid))
	said, err := strace.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := strace.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := said.Read(make([]byte, 1)); err != nil { // that it is attached
		t.Skipf("SKIP: strace: %v", err)
	}
	waitTraced(t, cmd.Process.Pid)
	waitInRead(t, cmd.Process.Pid)
	if err := r.selection.Add(r.cgroup, testBit); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte{'x'}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, said)
	if err := strace.Wait(); err != nil {
		t.Fatal(err)
	}
	r.stop(t)
	theirs := straceTable(t, table)
	mine := func(e *Event) bool { // of the launcher
		return e.Number == unix.SYS_READ && e.Args[1] < codeBase+4096 && e.Args[1] > codeBase
	}
	if n := theirs["read"]; len(r.of(mine)) == 0 && n.calls > 0 { // begun before the trace
		n.calls--
		theirs["read"] = n
	}
	last := map[uint32]Event{} // by thread
	for _, e := range r.of(nil) {
		last[e.TID] = e
	}
	unsure := map[string]tally{}
	for _, e := range last {
		n := unsure[syscalls.Name(e.ABI, e.Number)]
		n.calls++
		if e.Return < 0 {
			n.errors++
		}
		unsure[syscalls.Name(e.ABI, e.Number)] = n
	}
	compareStrace(t, r.summary(t), theirs, unsure, least)
	// A thread that is killed while strace looks at the beginning of its call does not begin it.
	for _, e := range r.of(func(e *Event) bool { return e.Refused && e.Time != last[e.TID].Time }) {
		t.Errorf("refused: %s", show(&e))
	}
}

// waitInRead waits until a process waits in read.
func waitInRead(t *testing.T, pid int) {
	t.Helper()
	var b []byte
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if b, _ = os.ReadFile("/proc/" + strconv.Itoa(pid) + "/syscall"); bytes.HasPrefix(b, []byte("0 ")) {
			return
		}
	}
	t.Fatalf("process %d is not in read: %s", pid, b)
}

// waitTraced waits until a process has a tracer.
func waitTraced(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if _, rest, ok := strings.Cut(string(b), "TracerPid:\t"); ok && !strings.HasPrefix(rest, "0\n") {
			return
		}
	}
	t.Fatalf("process %d is not traced", pid)
}

type tally struct{ calls, errors uint64 }

// compareStrace: the last calls of threads may be missing in what strace has.
func compareStrace(t *testing.T, counted map[Kind]Count, theirs, unsure map[string]tally, least uint64) {
	t.Helper()
	mine := map[string]tally{}
	for k, c := range counted {
		if name := syscalls.Name(k.ABI, k.Number); c.Calls > 0 && name != "exit" && name != "exit_group" {
			mine[name] = tally{c.Calls, c.Errors}
		}
	}
	var calls uint64
	for name, want := range theirs {
		got, less := mine[name], unsure[name]
		if got.calls < want.calls || got.calls-less.calls > want.calls || got.errors < want.errors || got.errors-less.errors > want.errors {
			t.Errorf("%s: %+v, strace has %+v; %+v may be missing there", name, got, want, less)
		}
		calls += want.calls
		delete(mine, name)
	}
	for name, got := range mine {
		if got.calls > unsure[name].calls {
			t.Errorf("%s: %+v, strace has none", name, got)
		}
	}
	t.Logf("%d calls of %d kinds", calls, len(theirs))
	if calls < least {
		t.Error("the program did not do all that it does")
	}
}

// straceTable reads what strace -c writes: share, seconds, microseconds per call, calls,
// errors if there are any, name.
func straceTable(t *testing.T, file string) map[string]tally {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]tally{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 || len(f) > 6 || f[len(f)-1] == "total" || f[len(f)-1] == "syscall" || strings.HasPrefix(f[0], "-") {
			continue
		}
		var n tally
		if n.calls, err = strconv.ParseUint(f[3], 10, 64); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if len(f) == 6 {
			if n.errors, err = strconv.ParseUint(f[4], 10, 64); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		all[f[len(f)-1]] = n
	}
	return all
}
