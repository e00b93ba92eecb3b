// SPDX-License-Identifier: Apache-2.0

package syscalls

import "github.com/Ignoramuss/orb8/internal/process"

// Count returns how many arguments a call has at most, MaxArgs if that is not known.
func Count(abi process.ABI, nr int32) int {
	params, ok := paramsOf(abi, known(abi, nr))
	if !ok {
		return MaxArgs
	}
	return min(count(params), MaxArgs)
}

func count(params []param) (n int) {
	most := 0
	for i := range params {
		n += params[i].width()
		for _, more := range params[i].cases {
			most = max(most, count(more))
		}
	}
	return n + most
}
