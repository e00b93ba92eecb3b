// SPDX-License-Identifier: Apache-2.0

//go:build linux

package smoke

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// A facility is something of the kernel that a probe may stand on. check uses
// it for real; its detail goes into docs/kernels.md.
type facility struct {
	name  string
	check func() (detail string, err error)
}

// TestFacilities reports what there is. Nothing is required here: what a probe
// can do without, and how, is for the tests of that probe.
func TestFacilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, f := range facilities() {
		detail, err := f.check()
		if err != nil {
			t.Logf("orb8-feature: %s: off: %s", f.name, reason(err))
			continue
		}
		if detail != "" {
			detail = ": " + detail
		}
		t.Logf("orb8-feature: %s: works%s", f.name, detail)
	}
}

func facilities() []facility {
	all := []facility{
		{"ring buffer map", mapType(ebpf.RingBuf, 0, 0, 4096)},
		{"socket storage map", func() (string, error) { return "", withStorage(func(*ebpf.Map) error { return nil }) }},
		{"socket storage from a BTF tracepoint", socketStorageInTracing},
		{"socket's tcp_sock from a BTF tracepoint", skHelper(asm.FnSkcToTcpSock)},
		{"socket cookie from a BTF tracepoint", skHelper(asm.FnGetSocketCookie)},
		{"boot clock from a BTF tracepoint", helper(asm.FnKtimeGetBootNs)},
		{"cgroup id of the current task from a BTF tracepoint", helper(asm.FnGetCurrentCgroupId)},
		{"iterator over socket storage", socketStorageIterator},
		{"iterator over files of tasks", iterator("task_file", nil)},
		{"socket of a file in that iterator", sockFromFile},
		{"iterator over TCP sockets", iterator("tcp", nil)},
		{"iterator over UDP sockets", iterator("udp", nil)},
		{"iterator over a hash map", mapIterator},
		{"cgroup_skb at the cgroup2 root, as a link", cgroupSkb},
		{"boot clock from cgroup_skb", cgroupSkbHelper(asm.FnKtimeGetBootNs)},
		{"cgroup id of a packet", cgroupSkbHelper(asm.FnSkbCgroupId)},
		{"ring buffer from cgroup_skb", cgroupSkbHelper(asm.FnRingbufQuery)},
		{"bpf_loop", func() (string, error) { return "", features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnLoop) }},
		{"atomic add that returns the old value", atomicFetch},
		{"batched look-up in a hash map", batchLookup(ebpf.Hash)},
		{"batched look-up in a per-CPU hash map", batchLookup(ebpf.PerCPUHash)},
		{"batched look-up and delete in a hash map", batchDelete},
		{"look-up and delete in a hash map", lookupAndDelete},
		{"task storage", mapType(ebpf.TaskStorage, 4, 8, 0)},
		{"cgroup storage that programs share", mapType(ebpf.CgroupStorage, 4, 8, 0)},
		{"maps outside the locked memory limit", memcgAccounting},
		{"run time statistics of programs", runStatistics},
		{"fentry", fentry},
		{"kprobe", kprobe},
		{"LSM hook", lsm},
		{"tcx", tcx},
	}
	for _, name := range []string{
		"inet_sock_set_state", "tcp_retransmit_skb", "tcp_send_reset", "tcp_receive_reset",
		"tcp_probe", "tcp_destroy_sock", "tcp_rcv_space_adjust", "kfree_skb",
		"sched_process_exec", "sched_process_exit", "task_newtask",
		"cap_capable", "io_uring_submit_req", "io_uring_submit_sqe", "sys_enter", "sys_exit",
	} {
		all = append(all, facility{"BTF tracepoint " + name, tracepoint(name)})
	}
	return all
}

var whyRejected = regexp.MustCompile(`unknown func \w+|invalid func \w+|unknown opcode \w+|BPF_\w+ uses reserved fields|cannot use helper \w+`)

// reason is the part of an error that says why, without what varies by run.
func reason(err error) string {
	if ve, ok := errors.AsType[*ebpf.VerifierError](err); ok {
		if m := whyRejected.FindString(strings.Join(ve.Log, "\n")); m != "" {
			return m
		}
		return ve.Cause.Error()
	}
	const ENOTSUPP = unix.Errno(524) // the kernel's own, without a name outside
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, ENOTSUPP) {
		return "not supported"
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}

var leave = asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}

// ret returns a program's end, with the value that the verifier asks for.
func ret(v int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, v), asm.Return()}
}

func rawTracepoint(name string, ins asm.Instructions) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "orb8_smoke", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp,
		AttachTo: name, Instructions: ins, License: "GPL",
	})
}

func tracepoint(name string) func() (string, error) {
	return func() (string, error) {
		p, err := rawTracepoint(name, leave)
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound) {
			return "", errors.New("no such tracepoint")
		}
		if err != nil {
			return "", err
		}
		defer p.Close()
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return "", err
		}
		return arguments(name), l.Close()
	}
}

// arguments lists the types of a tracepoint's arguments, which change between
// kernels.
func arguments(tracepoint string) string {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return ""
	}
	var def *btf.Typedef
	if err := spec.TypeByName("btf_trace_"+tracepoint, &def); err != nil {
		return ""
	}
	proto, ok := btf.UnderlyingType(def).(*btf.Pointer)
	if !ok {
		return ""
	}
	f, ok := proto.Target.(*btf.FuncProto)
	if !ok || len(f.Params) == 0 {
		return ""
	}
	var names []string
	for _, p := range f.Params[1:] { // the first is the attachment's own
		names = append(names, typeName(p.Type))
	}
	return strings.Join(names, ", ")
}

func typeName(t btf.Type) string {
	switch t := t.(type) {
	case *btf.Pointer:
		return strings.TrimSuffix(typeName(t.Target), " *") + " *"
	case *btf.Const:
		return typeName(t.Type)
	case *btf.Struct:
		return "struct " + t.Name
	case *btf.Enum:
		return "enum " + t.Name
	case *btf.Void:
		return "void"
	}
	return t.TypeName()
}

// helper calls a helper whose arguments, if it has any, are scalars.
func helper(fn asm.BuiltinFunc) func() (string, error) {
	return func() (string, error) {
		return load(rawTracepoint("inet_sock_set_state", append(asm.Instructions{fn.Call()}, leave...)))
	}
}

func load(p *ebpf.Program, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return "", p.Close()
}

// skHelper calls a helper that takes a socket.
func skHelper(fn asm.BuiltinFunc) func() (string, error) {
	return func() (string, error) {
		ins := asm.Instructions{asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord), fn.Call()}
		return load(rawTracepoint("inet_sock_set_state", append(ins, leave...)))
	}
}

// withStorage makes a socket storage map, which has to have BTF.
func withStorage(use func(*ebpf.Map) error) error {
	m, err := ebpf.NewMap(storageSpec())
	if err != nil {
		return err
	}
	return errors.Join(use(m), m.Close())
}

func storageSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "orb8_smoke", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: unix.BPF_F_NO_PREALLOC,
		Key:   &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
		Value: &btf.Int{Name: "unsigned long", Size: 8},
	}
}

func socketStorageInTracing() (string, error) {
	return "", withStorage(func(m *ebpf.Map) error {
		ins := asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.DWord),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.Mov.Imm(asm.R4, 1), // BPF_SK_STORAGE_GET_F_CREATE
			asm.FnSkStorageGet.Call(),
		}
		_, err := load(rawTracepoint("inet_sock_set_state", append(ins, leave...)))
		return err
	})
}

func iterProgram(target string, ins asm.Instructions) (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "orb8_smoke", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter,
		AttachTo: target, Instructions: ins, License: "GPL",
	})
	if errors.Is(err, btf.ErrNotFound) {
		return nil, errors.New("no such iterator")
	}
	return p, err
}

// iterator runs a program that does nothing over everything.
func iterator(target string, m *ebpf.Map) func() (string, error) {
	return func() (string, error) {
		p, err := iterProgram(target, leave)
		if err != nil {
			return "", err
		}
		defer p.Close()
		it, err := link.AttachIter(link.IterOptions{Program: p, Map: m})
		if err != nil {
			return "", err
		}
		defer it.Close()
		r, err := it.Open()
		if err != nil {
			return "", err
		}
		_, err = io.Copy(io.Discard, r)
		return "", errors.Join(err, r.Close())
	}
}

func socketStorageIterator() (string, error) {
	return "", withStorage(func(m *ebpf.Map) error {
		_, err := iterator("bpf_sk_storage_map", m)()
		return err
	})
}

func mapIterator() (detail string, err error) {
	err = withHash(ebpf.Hash, func(m *ebpf.Map) error {
		_, err := iterator("bpf_map_elem", m)()
		return err
	})
	return "", err
}

func sockFromFile() (string, error) {
	return load(iterProgram("task_file", append(asm.Instructions{
		asm.LoadMem(asm.R1, asm.R1, 24, asm.DWord), // bpf_iter__task_file.file
		asm.JNE.Imm(asm.R1, 0, "call"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
		asm.FnSockFromFile.Call().WithSymbol("call"),
	}, leave...)))
}

func cgroupProgram(ins asm.Instructions) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "orb8_smoke", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress,
		Instructions: ins, License: "GPL",
	})
}

func cgroupSkb() (string, error) {
	p, err := cgroupProgram(ret(1))
	if err != nil {
		return "", err
	}
	defer p.Close()
	root, err := cgroup2Root()
	if err != nil {
		return "", err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: root, Attach: ebpf.AttachCGroupInetEgress, Program: p,
	})
	if err != nil {
		return "", err
	}
	// Where there are no links, the library attaches in the older way.
	_, err = l.Info()
	return "", errors.Join(err, l.Close())
}

func cgroup2Root() (string, error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("cgroup2 is not mounted")
}

func cgroupSkbHelper(fn asm.BuiltinFunc) func() (string, error) {
	return func() (string, error) {
		if fn != asm.FnRingbufQuery {
			return load(cgroupProgram(append(asm.Instructions{fn.Call()}, ret(1)...)))
		}
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 4096})
		if err != nil {
			return "", err
		}
		defer m.Close()
		return load(cgroupProgram(append(asm.Instructions{
			asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Imm(asm.R2, 0), fn.Call(),
		}, ret(1)...)))
	}
}

// atomicFetch runs a program that adds one to 41 and returns what was there.
func atomicFetch() (string, error) {
	add := asm.FetchAdd.Mem(asm.RFP, asm.R1, asm.DWord, -8)
	add.Constant = 1 // BPF_FETCH, which cilium/ebpf v0.22 leaves out of hand-made instructions
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "orb8_smoke", Type: ebpf.SocketFilter, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, 41),
			asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R1, 1),
			add,
			asm.Mov.Reg(asm.R0, asm.R1),
			asm.Return(),
		},
	})
	if err != nil {
		return "", err
	}
	defer p.Close()
	old, _, err := p.Test(make([]byte, 64))
	if err == nil && old != 41 {
		err = fmt.Errorf("returned %d for 41", old)
	}
	return "", err
}

func mapType(typ ebpf.MapType, key, value, entries uint32) func() (string, error) {
	return func() (string, error) {
		spec := &ebpf.MapSpec{Type: typ, KeySize: key, ValueSize: value, MaxEntries: entries}
		if entries == 0 { // local storage: has to have BTF and no size
			spec = storageSpec()
			spec.Type = typ
		}
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return "", err
		}
		return "", m.Close()
	}
}

const entries = 16

// withHash fills a hash map of 4-byte keys and 8-byte values.
func withHash(typ ebpf.MapType, use func(*ebpf.Map) error) error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: typ, KeySize: 4, ValueSize: 8, MaxEntries: entries})
	if err != nil {
		return err
	}
	defer m.Close()
	for i := range uint32(entries) {
		var value any = uint64(i)
		if typ == ebpf.PerCPUHash {
			value = make([]uint64, ebpf.MustPossibleCPU())
		}
		if err := m.Put(i, value); err != nil {
			return err
		}
	}
	return use(m)
}

func batchLookup(typ ebpf.MapType) func() (string, error) {
	return func() (string, error) {
		return "", withHash(typ, func(m *ebpf.Map) error {
			n := entries
			if typ == ebpf.PerCPUHash {
				n *= ebpf.MustPossibleCPU()
			}
			var cursor ebpf.MapBatchCursor
			got, err := m.BatchLookup(&cursor, make([]uint32, entries), make([]uint64, n), nil)
			return complete(got, err)
		})
	}
}

func batchDelete() (string, error) {
	return "", withHash(ebpf.Hash, func(m *ebpf.Map) error {
		var cursor ebpf.MapBatchCursor
		got, err := m.BatchLookupAndDelete(&cursor, make([]uint32, entries), make([]uint64, entries), nil)
		return complete(got, err)
	})
}

// complete accepts the error that says that the map's end was reached.
func complete(got int, err error) error {
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	if got != entries {
		return fmt.Errorf("%d of %d entries", got, entries)
	}
	return nil
}

func lookupAndDelete() (string, error) {
	return "", withHash(ebpf.Hash, func(m *ebpf.Map) error {
		var v uint64
		return m.LookupAndDelete(uint32(0), &v)
	})
}

// memcgAccounting makes a map with the locked memory limit at zero.
func memcgAccounting() (string, error) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
		return "", err
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Max: old.Max}); err != nil {
		return "", err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 1 << 12})
	if err == nil {
		err = m.Close()
	}
	return "", errors.Join(err, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old))
}

func runStatistics() (string, error) {
	c, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return "", err
	}
	return "", c.Close()
}

func fentry() (string, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "orb8_smoke", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry,
		AttachTo: "tcp_close", Instructions: leave, License: "GPL",
	})
	if err != nil {
		return "", err
	}
	defer p.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err != nil {
		return "", err
	}
	return "", l.Close()
}

func kprobe() (string, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "orb8_smoke", Type: ebpf.Kprobe, Instructions: leave, License: "GPL"})
	if err != nil {
		return "", err
	}
	defer p.Close()
	l, err := link.Kprobe("tcp_close", p, nil)
	if err != nil {
		return "", err
	}
	return "", l.Close()
}

func lsm() (string, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "orb8_smoke", Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac,
		AttachTo: "file_open", Instructions: leave, License: "GPL",
	})
	if err != nil {
		return "", err
	}
	defer p.Close()
	l, err := link.AttachLSM(link.LSMOptions{Program: p})
	if err != nil {
		return "", err
	}
	if err := l.Close(); err != nil {
		return "", err
	}
	active, err := os.ReadFile("/sys/kernel/security/lsm")
	if err == nil && !strings.Contains(string(active), "bpf") {
		return "", errors.New("bpf is not among the active security modules")
	}
	return "", nil
}

func tcx() (string, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "orb8_smoke", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress,
		Instructions: ret(-1), License: "GPL", // TCX_NEXT
	})
	if err != nil {
		return "", err
	}
	defer p.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1, Program: p, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return "", err
	}
	return "", l.Close()
}
