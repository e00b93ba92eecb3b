// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/record"
)

var update = flag.Bool("update", false, "write the golden files anew")

// later is a clock of which boot was at Unix nanosecond 1000.
type later struct{}

func (later) Unix(boot uint64) int64 {
	if boot == 0 {
		return 0
	}
	return int64(boot) + 1000
}

// entry reads a key and its value as the kernel lays them out.
func entry(raw []byte) (k bpfPacketKey, f bpfPacketFlow, err error) {
	n, err := binary.Decode(raw, binary.LittleEndian, &k)
	if err != nil {
		return k, f, err
	}
	_, err = binary.Decode(raw[n:], binary.LittleEndian, &f)
	return k, f, err
}

const entrySize = 48 + 80

func addr(a string) (b [16]byte) { return record.AddrOf(netip.MustParseAddr(a)) }

func golden() map[string]struct {
	k bpfPacketKey
	f bpfPacketFlow
} {
	type e = struct {
		k bpfPacketKey
		f bpfPacketFlow
	}
	all := make(map[string]e)
	add := func(name, local, remote string, change func(*e)) {
		x := e{
			bpfPacketKey{CgroupId: 0x1122334455667788, LocalPort: 40000, RemotePort: 53, Protocol: 17},
			bpfPacketFlow{
				StartNs: 5, LastNs: 9, TxBytes: 1 << 40, TxPackets: 3, RxBytes: 1<<63 + 7, RxPackets: 4,
				Pid: 4711, Role: 1, Comm: [16]byte{'d', 'i', 'g'},
			},
		}
		x.k.Local.B, x.k.Remote.B = addr(local), addr(remote)
		change(&x)
		all[name] = x
	}
	add("udp4", "192.0.2.1", "198.51.100.2", func(*e) {})
	add("udp6", "2001:db8::1", "2001:db8::2", func(x *e) { x.f.Role = 2 })
	add("ping", "127.0.0.1", "127.0.0.1", func(x *e) {
		x.k.LocalPort, x.k.RemotePort, x.k.Protocol, x.k.Icmp, x.k.Flags = 77, 0, 1, 8<<8, 3
	})
	add("ping-answer", "::1", "::1", func(x *e) {
		x.k.LocalPort, x.k.RemotePort, x.k.Protocol, x.k.Icmp, x.k.Flags = 0, 0, 58, 128<<8, 5
		x.f.Role, x.f.Pid, x.f.Comm = 2, 0, [16]byte{}
	})
	add("sctp", "192.0.2.1", "198.51.100.2", func(x *e) {
		x.k.LocalPort, x.k.RemotePort, x.k.Protocol, x.f.Role = 0, 0, 132, 0
	})
	return all
}

func TestDecodeGolden(t *testing.T) {
	for name, e := range golden() {
		t.Run(name, func(t *testing.T) {
			raw := filepath.Join("testdata", name+".hex")
			want := filepath.Join("testdata", name+".golden")
			if *update {
				var b bytes.Buffer
				for _, v := range []any{&e.k, &e.f} {
					if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
						t.Fatal(err)
					}
				}
				writeFile(t, raw, hex.Dump(b.Bytes()))
			}
			b := readHex(t, raw)
			if len(b) != entrySize {
				t.Fatalf("%d bytes, want %d", len(b), entrySize)
			}
			k, f, err := entry(b)
			if err != nil {
				t.Fatal(err)
			}
			var s flow.Sample
			s.TCP.Valid, s.NetNS = true, 1 // left over from another record
			decode(&k, &f, flow.Counters{TxBytes: 1}, &s, later{})
			got := describe(&s)
			if *update {
				writeFile(t, want, got)
			}
			expected, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(expected), got); d != "" {
				t.Errorf("%s (-want +got):\n%s", want, d)
			}
		})
	}
}

func describe(s *flow.Sample) string {
	return fmt.Sprintf("%v %v:%d %v:%d icmp %#x role %d of echo %d id %d\ncgroup %#x netns %d instance %d first %d last %d\n"+
		"total %+v\nbase %+v\nunit %d loopback %v process %d %q tcp %v\n",
		s.Protocol, s.Local.IP(), s.LocalPort, s.Remote.IP(), s.RemotePort, s.ICMP, s.Role, s.ICMPRole, s.EchoID,
		s.CgroupID, s.NetNS, s.Instance, s.First, s.Last, s.Total, s.Base, s.Unit, s.Loopback, s.PID, s.Comm, s.TCP.Valid)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// readHex reads the output of hex.Dump.
func readHex(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for line := range strings.Lines(string(text)) {
		digits, _, _ := strings.Cut(line, "|")
		_, digits, _ = strings.Cut(digits, "  ")
		b, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, b...)
	}
	return all
}

func FuzzDecode(f *testing.F) {
	for name := range golden() {
		f.Add(readHex(f, filepath.Join("testdata", name+".hex")))
	}
	f.Add(make([]byte, entrySize))
	f.Add(bytes.Repeat([]byte{0xff}, entrySize))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, v, err := entry(raw)
		if err != nil {
			return
		}
		var s flow.Sample
		base := flow.Counters{TxBytes: 7}
		decode(&k, &v, base, &s, later{})
		if s.Total != counters(&v) || s.Base != base || s.Instance != v.StartNs || s.Unit != flow.BytesIP || s.TCP != (flow.TCPInfo{}) {
			t.Errorf("%+v from %+v", s, v)
		}
		if s.Role > record.RoleServer || s.ICMPRole > record.RoleServer || !s.Local.IP().IsValid() || !s.Remote.IP().IsValid() {
			t.Errorf("%+v from %+v", s, k)
		}
		_ = describe(&s)
		var again flow.Sample
		decode(&k, &v, base, &again, later{})
		if again != s {
			t.Errorf("decoded to %+v, then to %+v", s, again)
		}
	})
}

func TestDecodeAllocatesNothing(t *testing.T) {
	e := golden()["udp4"]
	var s flow.Sample
	if n := testing.AllocsPerRun(1000, func() { decode(&e.k, &e.f, flow.Counters{}, &s, later{}) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkDecode(b *testing.B) {
	e := golden()["udp4"]
	var s flow.Sample
	b.ReportAllocs()
	for b.Loop() {
		decode(&e.k, &e.f, flow.Counters{}, &s, later{})
	}
}
