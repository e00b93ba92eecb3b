// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// clearFlags attaches a program that takes all callback flags from the sockets with a
// local port, as one that sets its own and does not keep those of others.
func clearFlags(t *testing.T, port int) {
	t.Helper()
	const localPort = 68 // in struct bpf_sock_ops
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SockOps, License: "GPL", Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, localPort, asm.Word),
			asm.JNE.Imm(asm.R2, int32(port), "exit"),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnSockOpsCbFlagsSet.Call(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("exit"),
			asm.Return(),
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	l, err := link.AttachCgroup(link.CgroupOptions{Path: probetest.CgroupRoot(t), Attach: ebpf.AttachCGroupSockOps, Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// Where another program takes the flags away by which sock_ops is called, a connection
// still ends, and once.
func TestCallbackFlagsTakenAway(t *testing.T) {
	w := start(t, Config{})
	w.needOlder(t) // the same program
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	clearFlags(t, l.Addr().(*net.TCPAddr).Port)
	client, server := dialTo(t, l, "tcp4", l.Addr().String())
	local, remote := addrOf(client.LocalAddr()), addrOf(client.RemoteAddr())
	exchange(t, client, server, 1000, 3000)
	closeBoth(t, client, server)
	checkBytes(t, w.only(t, local, remote), 1000, 3000)
	checkBytes(t, w.only(t, remote, local), 3000, 1000)
}
