// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// kernel is what the running kernel's tracepoints hand over.
type kernel struct {
	// groupDead: that of a task's end says whether it was the process's last.
	groupDead bool
	// capable: there is one of checks for capabilities.
	capable bool
	// modules: there is one of modules.
	modules bool
	// ioUring is the name of the one of io_uring operations, empty for none;
	// ioUringOpcode is the argument that has the opcode, 0 if the first one is a
	// request that has it.
	ioUring       string
	ioUringOpcode int
}

// readKernel reads the kernel's types.
func readKernel() (*kernel, error) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, err
	}
	return learn(types), nil
}

func learn(types *btf.Spec) *kernel {
	k := &kernel{
		groupDead: len(tracepoint(types, "sched_process_exit")) > 1,
		capable:   tracepoint(types, "cap_capable") != nil,
		modules:   tracepoint(types, "module_load") != nil,
	}
	for _, name := range []string{"io_uring_submit_req", "io_uring_submit_sqe"} {
		if args := tracepoint(types, name); args != nil {
			k.ioUring, k.ioUringOpcode = name, opcodeArg(args)
			break
		}
	}
	return k
}

// tracepoint returns what a tracepoint hands to a program, nil if there is no such
// tracepoint.
func tracepoint(types *btf.Spec, name string) []btf.FuncParam {
	var def *btf.Typedef
	if err := types.TypeByName("btf_trace_"+name, &def); err != nil {
		return nil
	}
	p, ok := btf.UnderlyingType(def).(*btf.Pointer)
	if !ok {
		return nil
	}
	f, ok := btf.UnderlyingType(p.Target).(*btf.FuncProto)
	if !ok || len(f.Params) == 0 {
		return nil
	}
	return f.Params[1:] // the first is the kernel's own
}

// opcodeArg finds the argument that is an opcode: io_uring_submit_sqe is called with
// (context, opcode, ...) up to 5.13, with (context, request, opcode, ...) up to 5.19
// and in later 5.10s, and with (request, ...) since.
func opcodeArg(args []btf.FuncParam) int {
	for i := 1; i < len(args) && i <= 2; i++ {
		if n, ok := btf.UnderlyingType(args[i].Type).(*btf.Int); ok && n.Size == 1 && n.Encoding != btf.Bool {
			return i
		}
	}
	return 0
}

// part is a program, with what is not told without it.
type part struct {
	prog, hook, effect string
	missing            error // why it is not tried, or not loaded
	loaded             *ebpf.Program
}

var errNoTracepoint = errors.New("the kernel has no such tracepoint")

// optional lists the optional programs that are of use on this kernel.
func optional(k *kernel, proc string) []part {
	parts := []part{
		{prog: bpfProgProcessMoved, hook: "tp_btf/cgroup_attach_task",
			effect: "a process that moves to another cgroup counts as one of the old one until it starts an executable"},
		capablePart(k),
		{prog: bpfProgPtraceAccess, hook: "fexit/security_ptrace_access_check",
			effect: "a process that reads or changes another one of the same user is not told of"},
	}
	uring := part{prog: bpfProgIoUringSubmit, hook: "tp_btf/" + k.ioUring, effect: "what io_uring does is not told of"}
	if k.ioUring == "" {
		uring.hook, uring.missing = "tp_btf/io_uring_submit_req", errNoTracepoint
	}
	parts = append(parts, uring)
	if !k.modules {
		if _, err := os.Stat(filepath.Join(proc, "modules")); err != nil {
			return parts // a kernel without modules
		}
	}
	module := part{prog: bpfProgModuleLoaded, hook: "tp_btf/module_load", effect: "kernel modules that are loaded are not told of"}
	if !k.modules {
		module.missing = errNoTracepoint
	}
	return append(parts, module)
}

// capablePart prefers the tracepoint, which recent kernels have, to the function.
func capablePart(k *kernel) part {
	const effect = "what processes ask a capability for is not told of"
	if k.capable {
		return part{prog: bpfProgCapable, hook: "tp_btf/cap_capable", effect: effect}
	}
	return part{prog: bpfProgCapableExit, hook: "fexit/cap_capable", effect: effect}
}

// String names what was found, for tests and logs.
func (k *kernel) String() string {
	return fmt.Sprintf("group_dead %v, cap_capable %v, modules %v, io_uring %s argument %d",
		k.groupDead, k.capable, k.modules, k.ioUring, k.ioUringOpcode)
}
