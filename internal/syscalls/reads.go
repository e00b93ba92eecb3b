// SPDX-License-Identifier: Apache-2.0

package syscalls

import "github.com/Ignoramuss/orb8/internal/process"

// ReadsOf returns what is to be read of a system call's arguments. Where that depends
// on the value of another argument, it is all that may be.
func ReadsOf(abi process.ABI, nr int32) Reads {
	r := Reads{Addr: -1, AddrLen: -1}
	if params, ok := paramsOf(abi, known(abi, nr)); ok {
		r.add(params, 0)
	}
	return r
}

// add adds what parameters from argument i on need.
func (r *Reads) add(params []param, i int) {
	for k := range params {
		p := &params[k]
		if i >= MaxArgs {
			return
		}
		switch p.kind {
		case kindStr:
			r.Strings |= 1 << i
		case kindFD:
			r.Files |= 1 << i
		case kindAddr, kindAddrOut:
			r.Addr, r.AddrLen, r.AddrAtEnd = int8(i), int8(i+1), p.kind == kindAddrOut
		case kindHow:
			r.How = int8(i)
		case kindCases:
			for _, some := range p.cases {
				r.add(some, i)
			}
		}
		i += p.width()
	}
}
