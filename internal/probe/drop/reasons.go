// SPDX-License-Identifier: Apache-2.0

package drop

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

const (
	// maxReasons is as in the program: the kernel's core has fewer.
	maxReasons = 256
	// otherSlot is the place of all reasons that have none of their own.
	otherSlot = maxReasons - 1
)

// consumed are the reasons that stand for no loss, by the kernels' names: the kernel
// ends a packet that has done its work in the same way as one that is lost.
//
//   - NOT_DROPPED_YET: a segment that the TCP stack is done with, and since it knows
//     it CONSUMED instead
//   - QUEUE_PURGE: what a closed socket had received and nobody read
//   - TCP_OFOMERGE: a segment whose bytes are in another one
//   - TCP_OLD_SEQUENCE, TCP_OLD_DATA, TCP_OLD_ACK: what has come before, such as
//     every keepalive
//   - OTHERHOST: a bridge or a sniffer gets what is addressed to others
func consumed() []string {
	return []string{
		"NOT_DROPPED_YET", "CONSUMED", "QUEUE_PURGE", "TCP_OFOMERGE",
		"TCP_OLD_SEQUENCE", "TCP_OLD_DATA", "TCP_OLD_ACK", "OTHERHOST",
	}
}

// unasked are the reasons that stand for no loss if nobody here has asked for the
// packet: for a multicast that no one has joined, or the answer of a ping, which
// those who wait for it have got as a copy.
func unasked() []string {
	return []string{noReason, "NO_SOCKET", "IP_INNOROUTES", "IP_INADDRERRORS"}
}

// kernel is what the running kernel says of the packets that it drops.
type kernel struct {
	// reason and rxSock: the tracepoint has these arguments.
	reason, rxSock bool
	// names of the reasons, without what all have in common.
	names map[uint32]string
	// reasons has what the program must know of them.
	reasons [maxReasons]uint8
}

// noReason is what kernels without reasons give, see name.
const noReason = "NOT_SPECIFIED"

// readKernel reads the tracepoint's arguments and the reasons from the kernel's types.
func readKernel(types *btf.Spec) (*kernel, error) {
	n, err := tracepointArgs(types, "kfree_skb")
	if err != nil {
		return nil, err
	}
	k := &kernel{reason: n > 2, rxSock: n > 3, names: make(map[uint32]string)}
	if !k.reason {
		k.names[0] = noReason
		k.markAll()
		return k, nil
	}
	var reasons *btf.Enum
	if err := types.TypeByName("skb_drop_reason", &reasons); err != nil {
		return nil, fmt.Errorf("find the reasons for drops: %w", err)
	}
	for _, v := range reasons.Values {
		if v.Value >= 1<<16 { // a mask
			continue
		}
		k.names[uint32(v.Value)] = strings.TrimPrefix(strings.TrimPrefix(v.Name, "SKB_"), "DROP_REASON_")
	}
	k.markAll()
	return k, nil
}

func (k *kernel) markAll() {
	k.mark(bpfReasonFlagREASON_CONSUMED, consumed())
	k.mark(bpfReasonFlagREASON_UNASKED, unasked())
	k.mark(bpfReasonFlagREASON_UNSAID, []string{noReason})
	if !k.has("TCP_OLD_SEQUENCE") { // since 6.3; before, a keepalive is no other than that
		k.mark(bpfReasonFlagREASON_CONSUMED, []string{"TCP_INVALID_SEQUENCE"})
	}
}

func (k *kernel) has(name string) bool {
	for _, n := range k.names {
		if n == name {
			return true
		}
	}
	return false
}

func (k *kernel) mark(flag bpfReasonFlag, names []string) {
	for reason, name := range k.names {
		if reason < otherSlot && slices.Contains(names, name) {
			k.reasons[reason] |= uint8(flag)
		}
	}
}

// tracepointArgs counts what a tracepoint hands to a program.
func tracepointArgs(types *btf.Spec, name string) (int, error) {
	var def *btf.Typedef
	if err := types.TypeByName("btf_trace_"+name, &def); err != nil {
		return 0, fmt.Errorf("find the tracepoint %s: %w", name, err)
	}
	if p, ok := btf.UnderlyingType(def).(*btf.Pointer); ok {
		if f, ok := btf.UnderlyingType(p.Target).(*btf.FuncProto); ok && len(f.Params) > 0 {
			return len(f.Params) - 1, nil // the first is the kernel's own
		}
	}
	return 0, errors.New("the tracepoint " + name + " is no function")
}

// name returns the kernel's name of a reason.
func (k *kernel) name(reason uint32) string {
	if n, ok := k.names[reason]; ok {
		return n
	}
	if subsystem := reason >> 16; subsystem != 0 {
		return fmt.Sprintf("SUBSYS%d_%d", subsystem, reason&0xffff)
	}
	return fmt.Sprintf("REASON%d", reason)
}

// degraded says what this kernel does not tell of drops.
func (k *kernel) degraded() (all []string) {
	if !k.reason {
		all = append(all, "every drop's reason is "+noReason+" (the kernel gives reasons since Linux 5.17)")
	}
	if !k.has("TCP_LISTEN_OVERFLOW") {
		all = append(all, "what TCP drops without a reason does not count, such as the last segment of a handshake that finds the listener's queue full: nothing tells it from what TCP is done with (newer kernels do)")
	}
	if !k.rxSock {
		all = append(all, "what is dropped on its way to a socket mostly counts by its addresses, not by the socket's cgroup (the kernel names that socket since Linux 6.11)")
	}
	return all
}
