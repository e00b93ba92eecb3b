// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"cmp"
	"slices"
	"time"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// Holder was given a device, whether it uses it or not.
type Holder struct {
	Owner *workload.Identity
	// Container of the pod.
	Container string
	// Resource as asked for, for instance nvidia.com/gpu, or the name of a claim.
	Resource string
	// Shared: others may be given the same device.
	Shared bool
	// Source is device_plugin or dra.
	Source string
}

// Idle is why a device that is held does nothing for its holder.
type Idle string

// Reasons of idleness.
const (
	Busy Idle = ""
	// NoProcess: the holder has no process on the device.
	NoProcess Idle = "no_process"
	// ContextOnly: it has one, which keeps memory and runs nothing.
	ContextOnly Idle = "context_only"
	// LowUtil: it runs something less than lowUtil of the time.
	LowUtil Idle = "low_util"
)

// IdleReasons lists the reasons.
func IdleReasons() []Idle { return []Idle{NoProcess, ContextOnly, LowUtil} }

// lowUtil is the utilization below which a device counts as held in vain.
const lowUtil = 0.05

// Share is what one owner has of a device: a pod, whatever the number of its
// containers and processes there, or a workload outside Kubernetes.
type Share struct {
	// Owner is nil for what cannot be attributed to anybody: the driver's own
	// memory, processes that have gone or cannot be seen.
	Owner *workload.Identity
	// Held: the device was given to the owner. One that is used and not held is
	// used past the scheduler.
	Held   bool
	Shared bool
	// Containers, Resource and Source of the holders.
	Containers       []string
	Resource, Source string
	// Processes are the owner's.
	Processes []Process
	// Values has what of the device's gauges is the owner's. Those of all shares
	// add up to the device's.
	Values Values
	// Part of the device's activity, 0 to 1; absent if that is not known.
	Part Value
	// Idle is why a held device does nothing.
	Idle Idle
}

// Report is a sample with its shares, owners first, by name, and what is nobody's
// last.
type Report struct {
	Sample
	Shares []Share
	// HoldersAt is when it was last asked who holds which device; zero where that is not
	// known.
	HoldersAt time.Time
}

// Attribute divides a sample among the holders of its device and the owners of
// the processes on it. owner names a process's workload; nil if it is not known.
//
// Where one owner has the device to itself, every value is its own. Where several
// have it, memory and utilization go by process, and power by utilization, which
// is an estimate; all else stays nobody's. What is left over is a share without
// owner, so that the parts add up to the whole; nothing is told twice.
func Attribute(s Sample, holders []Holder, owner func(pid uint32) *workload.Identity) Report {
	d := division{sample: &s, byOwner: make(map[ownerKey]int)}
	if s.Device.Divided {
		return Report{Sample: s}
	}
	for i := range holders {
		d.hold(&holders[i])
	}
	for _, p := range s.Processes {
		d.use(p, owner(p.PID))
	}
	slices.SortFunc(d.shares, func(a, b Share) int { return compareOwners(a.Owner, b.Owner) })
	d.mean()
	if d.alone() {
		d.giveAll()
	} else {
		d.divide()
	}
	d.idle()
	return Report{Sample: s, Shares: d.finish()}
}

// mean has what the processes did, over the window, take the place of a moment of the device,
// where that of each is known.
func (d *division) mean() {
	s := d.sample
	if !s.Momentary || !s.ProcessesKnown || len(s.Processes) == 0 {
		return
	}
	total, known := sum(s.Processes, func(p *Process) Value { return p.Utilization })
	if known == len(s.Processes) {
		s.Values[Utilization], s.Momentary = Of(min(total, 1), PerProcess), false
	}
}

// ownerKey tells owners apart: pods by name, all else by what they are called.
type ownerKey struct{ namespace, pod, kind, name, container string }

func keyOf(id *workload.Identity) ownerKey {
	if id.Pod != "" {
		return ownerKey{namespace: id.Namespace, pod: id.Pod}
	}
	return ownerKey{kind: id.Kind, name: id.Name, container: id.ContainerID}
}

// compareOwners orders by name, nobody last.
func compareOwners(a, b *workload.Identity) int {
	if a == nil || b == nil {
		switch {
		case a == b:
			return 0
		case a == nil:
			return 1
		}
		return -1
	}
	return cmp.Or(
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Name, b.Name), cmp.Compare(a.ContainerID, b.ContainerID),
	)
}

// division is the work on one sample.
type division struct {
	sample  *Sample
	byOwner map[ownerKey]int
	shares  []Share
	// nobody has the processes whose owner is not known.
	nobody Share
}

func (d *division) share(id *workload.Identity) *Share {
	key := keyOf(id)
	i, ok := d.byOwner[key]
	if !ok {
		i = len(d.shares)
		d.byOwner[key] = i
		d.shares = append(d.shares, Share{Owner: id})
	}
	return &d.shares[i]
}

func (d *division) hold(h *Holder) {
	s := d.share(h.Owner)
	s.Held, s.Shared = true, s.Shared || h.Shared
	s.Resource, s.Source = cmp.Or(s.Resource, h.Resource), cmp.Or(s.Source, h.Source)
	if h.Container != "" && !slices.Contains(s.Containers, h.Container) {
		s.Containers = append(s.Containers, h.Container)
	}
}

func (d *division) use(p Process, id *workload.Identity) {
	s := &d.nobody
	if id != nil {
		s = d.share(id)
	}
	s.Processes = append(s.Processes, p)
}

// alone reports whether the whole device is one owner's: the only holder's, who
// does not share it, or the only user's.
func (d *division) alone() bool {
	if len(d.shares) != 1 || d.sample.ProcessesKnown && len(d.nobody.Processes) > 0 {
		return false
	}
	s := &d.shares[0]
	return s.Held && !s.Shared || len(s.Processes) > 0 && d.sample.ProcessesKnown
}

// owned are the metrics of a device that are its user's where there is one only.
// Counters are not among them: what they counted before was somebody else's. A
// Ledger adds up what they gain.
var owned = [...]Metric{
	Utilization, SMActive, SMOccupancy, TensorActive, FP64Active, FP32Active, FP16Active, IntActive, DRAMActive,
	CopyUtilization, EncoderUtilization, DecoderUtilization, PowerUsage,
}

func (d *division) giveAll() {
	s := &d.shares[0]
	for _, m := range owned {
		if v := d.sample.Values[m]; v.Known() {
			s.Values[m] = Of(v.V, Exclusive)
		}
	}
	s.Part = Of(1, Exclusive)
	d.divideMemory()
	// Without processes to go by, all memory in use is the holder's, but for the driver's.
	if used := d.sample.Values[MemoryUsed]; used.Known() && !s.Values[MemoryUsed].Known() {
		s.Values[MemoryUsed] = Of(max(used.V-d.sample.Values[MemoryReserved].V, 0), Exclusive)
	}
}

func (d *division) divide() {
	d.divideMemory()
	d.divideActivity()
}

// all are the shares with an owner, and that without.
func (d *division) all(yield func(*Share) bool) {
	for i := range d.shares {
		if !yield(&d.shares[i]) {
			return
		}
	}
	yield(&d.nobody)
}

// sum adds up a value of processes. known is how many of them have it.
func sum(processes []Process, of func(*Process) Value) (total float64, known int) {
	for i := range processes {
		if v := of(&processes[i]); v.Known() {
			total, known = total+v.V, known+1
		}
	}
	return total, known
}

func (d *division) divideMemory() {
	used := d.sample.Values[MemoryUsed]
	whole := 0.0
	for s := range d.all {
		v, known := sum(s.Processes, func(p *Process) Value { return p.Memory })
		// The sum of some of its processes is not what it has.
		if known == len(s.Processes) && (known > 0 || d.sample.ProcessesKnown) {
			s.Values[MemoryUsed] = Of(v, PerProcess)
			whole += v
		}
	}
	// The list of processes and the sum are read one after the other.
	if used.Known() && whole > used.V {
		for s := range d.all {
			s.Values[MemoryUsed].V *= used.V / whole
		}
	}
}

func (d *division) divideActivity() {
	util, power := d.sample.Values[Utilization], d.sample.Values[PowerUsage]
	whole, some := 0.0, false
	for s := range d.all {
		v, known := sum(s.Processes, func(p *Process) Value { return p.Utilization })
		if known == len(s.Processes) && (known > 0 || d.sample.ProcessesKnown) {
			s.Values[Utilization] = Of(v, PerProcess)
			whole, some = whole+v, some || known > 0
		}
	}
	if !some && (!util.Known() || util.V > 0 || d.sample.Momentary) {
		// Nobody's activity is known: it stays nobody's. Who has no process there
		// has none. That nothing runs at a moment says nothing of the time before.
		d.nobody.Values[Utilization] = Value{}
		return
	}
	// What processes did is a mean over the window, of which a moment is no measure; it is
	// no less than what is known of some of them.
	if d.sample.Momentary && util.Known() && whole > util.V {
		util.V = min(whole, 1)
		d.sample.Values[Utilization] = util
	}
	limit := util.Or(Of(1, PerProcess)).V
	scale := 1.0
	if whole > limit {
		scale = limit / whole
	}
	for s := range d.all {
		v := &s.Values[Utilization]
		if !v.Known() && util.Known() && util.V == 0 && !d.sample.Momentary {
			*v = Of(0, PerProcess)
		}
		if !v.Known() {
			continue
		}
		v.V *= scale
		if util.Known() && util.V > 0 && !d.sample.Momentary {
			s.Part = Of(v.V/util.V, Estimated)
		}
		if s.Part.Known() && power.Known() {
			s.Values[PowerUsage] = Of(power.V*s.Part.V, Estimated)
		}
	}
}

func (d *division) idle() {
	for i := range d.shares {
		s := &d.shares[i]
		util := s.Values[Utilization]
		if sm := s.Values[SMActive]; d.sample.Momentary && sm.Known() {
			util.V = max(util.V, sm.V) // the mean is that at least
		}
		switch {
		case !s.Held:
		case d.sample.ProcessesKnown && len(s.Processes) == 0:
			s.Idle = NoProcess
		case !util.Known():
		case util.V == 0 && d.sample.ProcessesKnown:
			s.Idle = ContextOnly
		case util.V < lowUtil:
			s.Idle = LowUtil
		}
	}
}

// finish returns the shares, with what is left of the device as the last one.
func (d *division) finish() []Share {
	rest := d.nobody
	something := len(rest.Processes) > 0
	for _, m := range owned {
		rest.Values[m] = d.left(m)
		something = something || rest.Values[m].Known() && rest.Values[m].V > 0
	}
	rest.Values[MemoryUsed] = d.left(MemoryUsed)
	something = something || rest.Values[MemoryUsed].Known() && rest.Values[MemoryUsed].V > 0
	if !something {
		return d.shares
	}
	if util := d.sample.Values[Utilization]; util.Known() && util.V > 0 && !d.sample.Momentary && rest.Values[Utilization].Known() {
		rest.Part = Of(rest.Values[Utilization].V/util.V, Remainder)
	}
	return append(d.shares, rest)
}

// left is what of a device's value no owner has.
func (d *division) left(m Metric) Value {
	v := d.sample.Values[m]
	if !v.Known() {
		return Value{}
	}
	taken := 0.0
	for i := range d.shares {
		if own := d.shares[i].Values[m]; own.Known() {
			taken += own.V
		}
	}
	return Of(max(v.V-taken, 0), Remainder)
}
