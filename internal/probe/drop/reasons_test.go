// SPDX-License-Identifier: Apache-2.0

package drop

import (
	"bytes"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// types are those of a kernel whose tracepoint has so many arguments, and which has
// these reasons, numbered from 0.
func types(t *testing.T, args int, reasons ...string) *btf.Spec {
	t.Helper()
	proto := &btf.FuncProto{Return: (*btf.Void)(nil)}
	for range args + 1 {
		proto.Params = append(proto.Params, btf.FuncParam{Type: &btf.Pointer{Target: (*btf.Void)(nil)}})
	}
	all := []btf.Type{&btf.Typedef{Name: "btf_trace_kfree_skb", Type: &btf.Pointer{Target: proto}}}
	if len(reasons) > 0 {
		e := &btf.Enum{Name: "skb_drop_reason", Size: 4}
		for i, name := range reasons {
			e.Values = append(e.Values, btf.EnumValue{Name: name, Value: uint64(i)})
		}
		e.Values = append(e.Values, btf.EnumValue{Name: "SKB_DROP_REASON_SUBSYS_MASK", Value: 0xffff0000})
		all = append(all, e)
	}
	return spec(t, all)
}

func spec(t *testing.T, all []btf.Type) *btf.Spec {
	t.Helper()
	b, err := btf.NewBuilder(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// marked returns the names of the reasons with a flag.
func marked(k *kernel, flag bpfReasonFlag) (names []string) {
	for reason, known := range k.reasons {
		if known&uint8(flag) != 0 {
			names = append(names, k.name(uint32(reason)))
		}
	}
	return names
}

func TestReadKernel(t *testing.T) {
	const pre = "SKB_DROP_REASON_"
	for _, tc := range []struct {
		name              string
		types             *btf.Spec
		reason, rxSock    bool
		consumed, unasked []string
	}{
		{
			"as 5.10", types(t, 2), false, false,
			nil, []string{noReason},
		},
		{
			"as 6.1", types(t, 3, "SKB_NOT_DROPPED_YET", pre+"NOT_SPECIFIED", pre+"NO_SOCKET", pre+"TCP_OFOMERGE", pre+"TCP_INVALID_SEQUENCE"), true, false,
			[]string{"NOT_DROPPED_YET", "TCP_OFOMERGE", "TCP_INVALID_SEQUENCE"}, []string{noReason, "NO_SOCKET"},
		},
		{
			"as 6.12", types(t, 4, "SKB_NOT_DROPPED_YET", "SKB_CONSUMED", pre+"NOT_SPECIFIED", pre+"NO_SOCKET", pre+"TCP_OLD_SEQUENCE", pre+"TCP_INVALID_SEQUENCE"), true, true,
			[]string{"NOT_DROPPED_YET", "CONSUMED", "TCP_OLD_SEQUENCE"}, []string{noReason, "NO_SOCKET"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, err := readKernel(tc.types)
			if err != nil {
				t.Fatal(err)
			}
			if k.reason != tc.reason || k.rxSock != tc.rxSock {
				t.Errorf("reason %v, socket %v, want %v and %v", k.reason, k.rxSock, tc.reason, tc.rxSock)
			}
			if got := marked(k, bpfReasonFlagREASON_CONSUMED); !slices.Equal(got, tc.consumed) {
				t.Errorf("no losses: %v, want %v", got, tc.consumed)
			}
			if got := marked(k, bpfReasonFlagREASON_UNASKED); !slices.Equal(got, tc.unasked) {
				t.Errorf("no losses if unasked: %v, want %v", got, tc.unasked)
			}
			if got := marked(k, bpfReasonFlagREASON_UNSAID); !slices.Equal(got, []string{noReason}) {
				t.Errorf("no losses if taken: %v", got)
			}
		})
	}
}

func TestReadKernelFails(t *testing.T) {
	for name, s := range map[string]*btf.Spec{
		"no tracepoint":      spec(t, []btf.Type{&btf.Int{Name: "int", Size: 4}}),
		"not a function":     spec(t, []btf.Type{&btf.Typedef{Name: "btf_trace_kfree_skb", Type: &btf.Int{Name: "int", Size: 4}}}),
		"no list of reasons": types(t, 3),
	} {
		if k, err := readKernel(s); err == nil {
			t.Errorf("%s: %+v", name, k)
		}
	}
}

func TestReasonNames(t *testing.T) {
	k, err := readKernel(types(t, 3, "SKB_NOT_DROPPED_YET", "SKB_CONSUMED", "SKB_DROP_REASON_NOT_SPECIFIED", "SKB_DROP_REASON_NO_SOCKET"))
	if err != nil {
		t.Fatal(err)
	}
	for reason, want := range map[uint32]string{
		0: "NOT_DROPPED_YET", 1: "CONSUMED", 2: "NOT_SPECIFIED", 3: "NO_SOCKET",
		99: "REASON99", 0xffff: "REASON65535", 3<<16 | 7: "SUBSYS3_7", 0xffff0000: "SUBSYS65535_0",
	} {
		if got := k.name(reason); got != want {
			t.Errorf("%#x: %s, want %s", reason, got, want)
		}
	}
}
