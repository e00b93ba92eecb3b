// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package nvml

import (
	"errors"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/Ignoramuss/orb8/internal/accel"
)

const (
	// sameWithin is how far apart the driver's event and its line in the kernel's
	// log may be.
	sameWithin = 2 * time.Second
	// maxMessage bounds the text of an error.
	maxMessage = 256
	// maxLines bounds how much of the kernel's log one reading takes.
	maxLines = 1000
)

// errorLog gathers the driver's errors (XIDs) from its events and from the
// kernel's log, each once.
type errorLog struct {
	b      *Backend
	events nvml.EventSet // nil where there are none
	lately map[errorKey]*counted
}

// counted is how often each of the two has told of an error lately: it happened as often as
// the one that told of it more often says.
type counted struct {
	by        [numSources]int
	delivered int
	at        time.Time
}

type source int

const (
	byKernel source = iota
	byDriver
	numSources
)

type errorKey struct {
	pci  string
	code uint64
}

func newErrorLog(b *Backend) *errorLog {
	l := &errorLog{b: b, lately: make(map[errorKey]*counted)}
	if b.lookup("nvmlEventSetCreate") && b.lookup("nvmlDeviceRegisterEvents") && b.lookup("nvmlEventSetWait") {
		if set, ret := b.lib.EventSetCreate(); ret == nvml.SUCCESS {
			l.events = set
			for _, g := range b.gpus {
				l.register(g)
			}
		}
	}
	return l
}

func (l *errorLog) register(g *gpu) {
	if l.events != nil {
		_ = g.handle.RegisterEvents(nvml.EventTypeXidCriticalError, l.events) // the kernel's log has them too
	}
}

// openKmsg opens the kernel's log at its end, once: it is read on while NVML is begun anew, for
// what led to that is in it.
func (b *Backend) openKmsg() {
	if b.kmsg != nil || b.cfg.Kmsg == "-" {
		return
	}
	f, err := os.OpenFile(b.cfg.Kmsg, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err == nil {
		_, err = f.Seek(0, 2)
	}
	if err != nil {
		b.cfg.Log.Info("errors of GPUs come without the kernel's messages", "err", err)
		return
	}
	b.kmsg = f
}

func (l *errorLog) close() {
	if l == nil {
		return
	}
	if l.events != nil {
		_ = l.events.Free()
	}
}

// deliver adds what has happened to the samples of the devices. The kernel's log
// goes first: it says more.
func (l *errorLog) deliver(samples []accel.Sample) {
	now := l.b.cfg.Now()
	for key, c := range l.lately {
		if now.Sub(c.at) >= sameWithin {
			delete(l.lately, key)
		}
	}
	add := func(at place, e accel.DeviceError, by source) {
		key := errorKey{at.pci, e.Code}
		c := l.lately[key]
		if c == nil {
			c = new(counted)
			l.lately[key] = c
		}
		c.at = now
		if c.by[by]++; c.by[by] <= c.delivered {
			return // the other one has told of it
		}
		c.delivered++
		if s := at.in(samples); s != nil {
			e.Time = now
			s.Errors = append(s.Errors, e)
		}
	}
	for _, line := range l.b.kmsgLines() {
		if at, e, ok := parseXID(line); ok {
			add(at, e, byKernel)
		}
	}
	for range maxLines {
		e, ok := l.event()
		if !ok {
			return
		}
		for _, g := range l.b.gpus {
			if g.handle == e.Device {
				at := place{g.device.PCI, -1}
				if e.GpuInstanceId != noInstance {
					at.instance = int(e.GpuInstanceId)
				}
				add(at, accel.DeviceError{Code: e.EventData}, byDriver)
			}
		}
	}
}

// noInstance stands for an event of the whole device.
const noInstance = math.MaxUint32

// place is where an error was: a device, or the GPU instance on it, else -1.
type place struct {
	pci      string
	instance int
}

// in finds the sample of the part, or of the device where there is no such part.
func (at place) in(samples []accel.Sample) *accel.Sample {
	var found *accel.Sample
	for i := range samples {
		d := samples[i].Device
		switch {
		case d.PCI != at.pci:
		case d.Parent == "":
			if found == nil {
				found = &samples[i]
			}
		case at.instance >= 0 && d.Instance == at.instance:
			return &samples[i]
		}
	}
	return found
}

func (l *errorLog) event() (nvml.EventData, bool) {
	if l.events == nil {
		return nvml.EventData{}, false
	}
	e, ret := l.events.Wait(0)
	return e, ret == nvml.SUCCESS
}

// kmsgLines reads what the kernel's log has got.
func (b *Backend) kmsgLines() []string {
	if b.kmsg == nil {
		return nil
	}
	var all []string
	raw, err := b.kmsg.SyscallConn()
	if err != nil {
		return nil
	}
	buf := make([]byte, 8192)
	_ = raw.Control(func(fd uintptr) {
		for len(all) < maxLines {
			n, err := syscall.Read(int(fd), buf)
			if errors.Is(err, syscall.EPIPE) { // records were overwritten: go on with the next
				continue
			}
			if err != nil || n <= 0 {
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				if !strings.HasPrefix(line, " ") { // else it says more of the one before
					all = append(all, line)
				}
			}
		}
	})
	return all
}

// xidLine is what the driver writes for an XID: with the GPU instance and compute instance
// behind the address where MIG is on.
var xidLine = regexp.MustCompile(`NVRM: Xid \(PCI:([0-9a-fA-F]+):([0-9a-fA-F]+):([0-9a-fA-F]+)(?:\.[0-9a-fA-F]+)?([^()]*)\): (\d+)(?:, (.*))?`)

var xidInstance = regexp.MustCompile(`GPU-I:(\d+)`)

var xidPID = regexp.MustCompile(`pid='?(\d+)'?`)

// parseXID reads a record of the kernel's log.
func parseXID(record string) (at place, e accel.DeviceError, ok bool) {
	line, _, _ := strings.Cut(record, "\n")
	m := xidLine.FindStringSubmatch(line)
	if m == nil {
		return at, e, false
	}
	var pci [3]uint64
	for i := range pci {
		n, err := strconv.ParseUint(m[i+1], 16, 32)
		if err != nil {
			return at, e, false
		}
		pci[i] = n
	}
	at = place{pciAddress(pci[0], pci[1], pci[2]), -1}
	if instance := xidInstance.FindStringSubmatch(m[4]); instance != nil {
		n, err := strconv.ParseUint(instance[1], 10, 16)
		if err != nil {
			return at, e, false
		}
		at.instance = int(n)
	}
	code, err := strconv.ParseUint(m[5], 10, 32)
	if err != nil {
		return at, e, false
	}
	e.Code, e.Message = code, m[6]
	if pid := xidPID.FindStringSubmatch(e.Message); pid != nil {
		n, _ := strconv.ParseUint(pid[1], 10, 32) // 0 if it is none
		e.PID = uint32(n)
	}
	if len(e.Message) > maxMessage {
		e.Message = e.Message[:maxMessage]
	}
	if e.Message == "" {
		e.Message = "Xid " + m[5]
	}
	return at, e, true
}
