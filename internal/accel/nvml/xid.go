// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package nvml

import (
	"errors"
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
	kmsg   *os.File      // nil where it cannot be read
	// single has the errors that only one of the two has told of, so far.
	single map[errorKey]told
}

// told is by whom and when an error was told of.
type told struct {
	by source
	at time.Time
}

type source int

const (
	byKernel source = iota
	byDriver
)

type errorKey struct {
	pci  string
	code uint64
}

func newErrorLog(b *Backend) *errorLog {
	l := &errorLog{b: b, single: make(map[errorKey]told)}
	if b.lookup("nvmlEventSetCreate") && b.lookup("nvmlDeviceRegisterEvents") && b.lookup("nvmlEventSetWait") {
		if set, ret := b.lib.EventSetCreate(); ret == nvml.SUCCESS {
			l.events = set
			for _, g := range b.gpus {
				_ = g.handle.RegisterEvents(nvml.EventTypeXidCriticalError, set) // the kernel's log has them too
			}
		}
	}
	if b.cfg.Kmsg == "-" {
		return l
	}
	f, err := os.OpenFile(b.cfg.Kmsg, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err == nil {
		_, err = f.Seek(0, 2)
	}
	if err != nil {
		b.cfg.Log.Info("errors of GPUs come without the kernel's messages", "err", err)
		return l
	}
	l.kmsg = f
	return l
}

func (l *errorLog) close() {
	if l == nil {
		return
	}
	if l.events != nil {
		_ = l.events.Free()
	}
	if l.kmsg != nil {
		_ = l.kmsg.Close()
	}
}

// deliver adds what has happened to the samples of the devices. The kernel's log
// goes first: it says more.
func (l *errorLog) deliver(samples []accel.Sample) {
	byPCI := make(map[string]*accel.Sample)
	for i := range samples {
		if samples[i].Device.Parent == "" {
			byPCI[samples[i].Device.PCI] = &samples[i]
		}
	}
	now := l.b.cfg.Now()
	add := func(pci string, e accel.DeviceError, by source) {
		key := errorKey{pci, e.Code}
		if last, ok := l.single[key]; ok && last.by != by && now.Sub(last.at) < sameWithin {
			delete(l.single, key) // both have told of it now
			return
		}
		l.single[key] = told{by, now}
		if s := byPCI[pci]; s != nil {
			e.Time = now
			s.Errors = append(s.Errors, e)
		}
	}
	for _, line := range l.lines() {
		if pci, e, ok := parseXID(line); ok {
			add(pci, e, byKernel)
		}
	}
	for range maxLines {
		e, ok := l.event()
		if !ok {
			return
		}
		for _, g := range l.b.gpus {
			if g.handle == e.Device {
				add(g.device.PCI, accel.DeviceError{Code: e.EventData}, byDriver)
			}
		}
	}
}

func (l *errorLog) event() (nvml.EventData, bool) {
	if l.events == nil {
		return nvml.EventData{}, false
	}
	e, ret := l.events.Wait(0)
	return e, ret == nvml.SUCCESS
}

// lines reads what the kernel's log has got. Each read returns one record.
func (l *errorLog) lines() []string {
	if l.kmsg == nil {
		return nil
	}
	var all []string
	raw, err := l.kmsg.SyscallConn()
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
			all = append(all, string(buf[:n]))
		}
	})
	return all
}

// xidLine is what the driver writes for an XID.
var xidLine = regexp.MustCompile(`NVRM: Xid \(PCI:([0-9a-fA-F]+):([0-9a-fA-F]+):([0-9a-fA-F]+)(?:\.[0-9a-fA-F]+)?\): (\d+)(?:, (.*))?`)

var xidPID = regexp.MustCompile(`pid='?(\d+)'?`)

// parseXID reads a record of the kernel's log.
func parseXID(record string) (pci string, e accel.DeviceError, ok bool) {
	line, _, _ := strings.Cut(record, "\n")
	m := xidLine.FindStringSubmatch(line)
	if m == nil {
		return "", e, false
	}
	var at [3]uint64
	for i := range at {
		n, err := strconv.ParseUint(m[i+1], 16, 32)
		if err != nil {
			return "", e, false
		}
		at[i] = n
	}
	code, err := strconv.ParseUint(m[4], 10, 32)
	if err != nil {
		return "", e, false
	}
	e.Code, e.Message = code, m[5]
	if pid := xidPID.FindStringSubmatch(e.Message); pid != nil {
		n, _ := strconv.ParseUint(pid[1], 10, 32) // 0 if it is none
		e.PID = uint32(n)
	}
	if len(e.Message) > maxMessage {
		e.Message = e.Message[:maxMessage]
	}
	if e.Message == "" {
		e.Message = "Xid " + m[4]
	}
	return pciAddress(at[0], at[1], at[2]), e, true
}
