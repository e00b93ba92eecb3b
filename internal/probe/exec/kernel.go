// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"github.com/cilium/ebpf/btf"
)

// saysLast reports whether the tracepoint of a task's end says whether it was the
// process's last one, as it does since Linux 6.16.
func saysLast() (bool, error) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return false, err
	}
	return arguments(types, "sched_process_exit") > 1, nil
}

// arguments is how many a tracepoint hands to a program, 0 if there is no such one.
func arguments(types *btf.Spec, tracepoint string) int {
	var def *btf.Typedef
	if err := types.TypeByName("btf_trace_"+tracepoint, &def); err != nil {
		return 0
	}
	p, ok := btf.UnderlyingType(def).(*btf.Pointer)
	if !ok {
		return 0
	}
	f, ok := btf.UnderlyingType(p.Target).(*btf.FuncProto)
	if !ok {
		return 0
	}
	return max(0, len(f.Params)-1) // the first is the kernel's own
}
