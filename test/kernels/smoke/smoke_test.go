// SPDX-License-Identifier: Apache-2.0

//go:build linux

package smoke

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inMatrix skips on any machine but those that run.sh makes.
func inMatrix(t *testing.T) {
	t.Helper()
	if os.Getenv("ORB8_KERNEL_MATRIX") != "1" {
		t.Skip("checks the machine that test/kernels/run.sh makes")
	}
}

func TestKernelHasBTF(t *testing.T) {
	inMatrix(t)
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Error(err)
	}
}

func TestFileSystems(t *testing.T) {
	inMatrix(t)
	want := map[string]int64{
		"/sys/fs/cgroup":      unix.CGROUP2_SUPER_MAGIC,
		"/sys/fs/bpf":         unix.BPF_FS_MAGIC,
		"/sys/kernel/tracing": unix.TRACEFS_MAGIC,
		"/tmp":                unix.TMPFS_MAGIC,
		"/proc":               unix.PROC_SUPER_MAGIC,
	}
	for path, magic := range want {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			t.Errorf("statfs %s: %v", path, err)
		} else if st.Type != magic {
			t.Errorf("%s has type %#x, want %#x", path, st.Type, magic)
		}
	}
}

func TestLockedMemoryIsUnlimited(t *testing.T) {
	inMatrix(t)
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil {
		t.Fatal(err)
	}
	if lim.Cur != unix.RLIM_INFINITY {
		t.Errorf("RLIMIT_MEMLOCK is %d", lim.Cur)
	}
}

func TestLoopbackCarriesTraffic(t *testing.T) {
	inMatrix(t)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Error(err)
			continue
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Error(err)
		} else {
			_ = c.Close()
		}
		_ = l.Close()
	}
}

// TestNetworkTools uses what the tests of the probes build their networks with.
func TestNetworkTools(t *testing.T) {
	inMatrix(t)
	commands := []string{
		"ip netns add orb8smoke",
		"ip link add orb8a type veth peer name orb8b netns orb8smoke",
		"ip addr add 192.0.2.1/30 dev orb8a",
		"ip link set orb8a up",
		"ip -n orb8smoke addr add 192.0.2.2/30 dev orb8b",
		"ip -n orb8smoke link set orb8b up",
		"ping -q -c 1 -W 5 192.0.2.2",
		"nft add table inet orb8smoke",
		"nft add chain inet orb8smoke in { type filter hook input priority 0; }",
		"nft add rule inet orb8smoke in iifname orb8a numgen random mod 100 < 5 counter drop",
		"nft add rule inet orb8smoke in iifname orb8a tcp dport 9 reject with tcp reset",
		"nft add rule inet orb8smoke in iifname orb8a ct state invalid limit rate 1/second drop",
		"nft delete table inet orb8smoke",
		"ip link del orb8a",
		"ip netns del orb8smoke",
	}
	for _, c := range commands {
		argv := strings.Fields(c)
		if i := strings.IndexByte(c, '{'); i > 0 {
			argv = append(strings.Fields(c[:i]), c[i:])
		}
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", c, err, out)
		}
	}
}
