// SPDX-License-Identifier: Apache-2.0

package drop

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

const someSymbols = `0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81e0a3c0 t tcp_v4_rcv
ffffffff81e0a3c0 T tcp_v4_rcv_alias
ffffffff81e0b000 T udp_queue_rcv_one_skb.isra.0
ffffffff82000000 D some_data
ffffffffc0001000 t nft_do_chain	[nf_tables]
ffffffffc0002000 t bpf_prog_12_drop_skb	[bpf]
nonsense
ffffffffc0003000 t
`

func symbolFile(t *testing.T, text string) *symbols {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kallsyms")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return &symbols{path: path}
}

func TestSymbols(t *testing.T) {
	s := symbolFile(t, someSymbols)
	if err := s.readable(); err != nil {
		t.Error(err)
	}
	for addr, want := range map[uint64]string{
		0:                  "",
		0xffffffff80ffffff: "",
		0xffffffff81000000: "_stext",
		0xffffffff81000010: "_stext",
		0xffffffff81010001: "", // no function is that long
		0xffffffff81e0a3c0: "tcp_v4_rcv",
		0xffffffff81e0b123: "udp_queue_rcv_one_skb",
		0xffffffff82000000: "",
		0xffffffffc0001234: "nft_do_chain",
		0xffffffffc0002234: "nft_do_chain",
		^uint64(0):         "",
	} {
		for range 2 {
			if got := s.name(addr); got != want && !(want == "tcp_v4_rcv" && got == "tcp_v4_rcv_alias") {
				t.Errorf("%#x: %q, want %q", addr, got, want)
			}
		}
	}
}

// A module may be loaded later.
func TestSymbolsAreReadAgain(t *testing.T) {
	s := symbolFile(t, someSymbols)
	const addr = 0xffffffffc0100010
	if got := s.name(addr); got != "" {
		t.Fatal(got)
	}
	if err := os.WriteFile(s.path, []byte(someSymbols+"ffffffffc0100000 t ovs_vport_receive\t[openvswitch]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.name(addr); got != "" {
		t.Errorf("%q: the symbols were read again at once", got)
	}
	s.places[addr] = place{asked: time.Now().Add(-rereadEvery)}
	if got := s.name(addr); got != "ovs_vport_receive" {
		t.Errorf("%q", got)
	}
}

func TestSymbolsUnreadable(t *testing.T) {
	for name, s := range map[string]*symbols{
		"hidden": symbolFile(t, "0000000000000000 T _stext\n0000000000000000 t tcp_v4_rcv\n"),
		"empty":  symbolFile(t, ""),
		"none":   {path: filepath.Join(t.TempDir(), "none")},
	} {
		if err := s.readable(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got := s.name(0xffffffff81000000); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
