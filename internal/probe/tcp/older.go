// SPDX-License-Identifier: Apache-2.0

package tcp

// older keeps account of the connections of which only a tracing program tells, since
// they are older than sock_ops. The kernel counts how often that program was left out,
// but mostly for connections that sock_ops has told of. One was lost if it is gone
// without its end having been told.
type older struct {
	there, ends uint64 // at the latest pass
	gone        int64  // without an end so far
	last        int64  // gone at the pass before
	skips       uint64 // not yet explained
}

// pass takes in what a pass found: how many are there, how many ends have been told in
// all, and how often the program was left out since the pass before. It returns how
// many connections were lost. One may end while the pass is under way, so that only
// what two passes have found gone is lost.
func (o *older) pass(there, ends, skips uint64) (lost uint64) {
	o.gone += int64(o.there) - int64(there) - int64(ends-o.ends)
	o.there, o.ends = there, ends
	o.skips += skips
	if o.gone <= 0 {
		// All ends have been told, or more have come than gone.
		o.gone, o.last = 0, 0
		if there == 0 {
			o.skips = 0
		}
		return 0
	}
	if sure := min(o.gone, o.last); sure > 0 {
		lost = min(uint64(sure), o.skips)
		o.gone -= sure
		o.skips -= lost
	}
	o.last = o.gone
	return lost
}
