// SPDX-License-Identifier: Apache-2.0

// Package accel is what orb8 knows of accelerators: the devices of this node,
// what they do, who holds them and who uses them. Backends (the packages below)
// read devices; attribution divides what a device did among its users. The
// package knows nothing of any vendor's library, of Kubernetes' API or of the
// agent.
package accel

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// Vendors of devices, as in the label vendor.
const (
	NVIDIA = "nvidia"
	AMD    = "amd"
	Google = "google" // TPU
	AWS    = "aws"    // Trainium, Inferentia
)

// Device is one accelerator, or one part of it that is scheduled by itself (a
// MIG instance, a NeuronCore). It is immutable once published.
type Device struct {
	Vendor string
	// ID is unique and stays over restarts: for NVIDIA the UUID, "GPU-..." or
	// "MIG-...".
	ID string
	// Index is the vendor's number, as its own tools show it; that of a part is
	// "device:part".
	Index string
	Model string
	// PCI is the bus address as in /sys/bus/pci/devices, for instance
	// 0000:3b:00.0; empty where there is none.
	PCI    string
	Driver string
	// Minor is the number in the device file's name, as in /dev/nvidia3; -1 where
	// it is not known.
	Minor int
	// Parent is the ID of the device that this is a part of, or empty.
	Parent string
	// Instance is the vendor's number of a part on its device (NVIDIA's GPU
	// instance); -1 where there is none.
	Instance int
	// Profile of a part, for instance 1g.10gb.
	Profile string
	// Divided: the device is handed out in parts only, which are devices of their
	// own.
	Divided bool
	// Limits are sentences on what cannot be measured here, and why.
	Limits []string
}

// Method says how a value came about.
type Method uint8

// Methods. The zero Method means that there is no value.
const (
	// Absent: not measured. Never to be shown as 0.
	Absent Method = iota
	// Driver: the driver's own value of the device.
	Driver
	// GPM: NVIDIA's GPU performance monitoring, hardware counters.
	GPM
	// PerProcess: the driver's samples of the processes.
	PerProcess
	// DCGM: scraped from a dcgm-exporter.
	DCGM
	// Exclusive: the device's value, all of which is the only holder's.
	Exclusive
	// Estimated: divided by another quantity; energy by activity.
	Estimated
	// Remainder: what is left of the device's value.
	Remainder
	// Runtime: what the workload's own accelerator runtime says.
	Runtime
	numMethods
)

// String returns the method as in the label method and in the API.
func (m Method) String() string {
	return [numMethods]string{"absent", "driver", "gpm", "process", "dcgm", "exclusive", "estimated", "remainder", "runtime"}[m]
}

// Value is a measured number, or that there is none.
type Value struct {
	V      float64
	Method Method
}

// Of returns a value measured by m.
func Of(v float64, m Method) Value { return Value{v, m} }

// Known reports whether there is a value.
func (v Value) Known() bool { return v.Method != Absent }

// Or returns v, or other where v is absent.
func (v Value) Or(other Value) Value {
	if v.Known() {
		return v
	}
	return other
}

// String returns the value for debugging.
func (v Value) String() string {
	if !v.Known() {
		return "-"
	}
	return fmt.Sprintf("%g (%s)", v.V, v.Method)
}

// Sample is what one device did, up to Time.
type Sample struct {
	Device *Device
	Time   time.Time
	// Window is the time before Time that ratios are means over; 0 where the
	// driver does not say.
	Window time.Duration
	Values Values
	// Momentary: Utilization is as at Time, or a little before, and no mean over Window.
	Momentary bool
	// ClockEvents are the reasons for which the clocks are held back now.
	ClockEvents []string
	// Processes that have the device open. ProcessesKnown: these are all, and whose
	// they are can be found out.
	Processes      []Process
	ProcessesKnown bool
	// Errors since the previous sample.
	Errors []DeviceError
	// Lost: the device was there and does not answer any more; it has no values.
	Lost bool
	// Recovery is what the driver asks for; ResetRequired: it answers nothing else.
	Recovery      Recovery
	ResetRequired bool
}

// Process uses a device.
type Process struct {
	// PID in the host's pid namespace.
	PID uint32
	// Command, if it is known.
	Command string
	// Executable is the path of the file that it runs, if it is known.
	Executable string
	// Graphics: it draws, and does not (only) compute.
	Graphics bool
	// Memory on the device, in bytes.
	Memory Value
	// Utilization is the part of the window in which its kernels ran, 0 to 1.
	Utilization Value
}

// DeviceError is an error that the driver reported: an XID for NVIDIA.
type DeviceError struct {
	Time time.Time
	// Code is the vendor's number of the error.
	Code uint64
	// PID of the process that it is about, or 0.
	PID uint32
	// Message is the driver's text, or empty.
	Message string
	// Owner is whom it is about; nil until a Ledger has looked for it, and where it is not
	// known.
	Owner *workload.Identity
}

// Backend reads the devices of one kind. Its methods are called by one goroutine
// at a time.
type Backend interface {
	// Name is short, lower-case and stable: nvml, dcgm, amd, tpu, neuron.
	Name() string
	// Read returns a sample of every device, parts after their device. It begins
	// by itself with whatever it needs, and begins anew after an error. It
	// returns an *Unsupported error where there are no such devices. It may hang
	// in a driver: whoever calls it keeps a deadline.
	Read(ctx context.Context) ([]Sample, error)
	// Close gives back every handle, so that the driver can be unloaded. Read may
	// be called again afterwards, and then begins anew.
	Close() error
}

// Unsupported says that a backend cannot run here, why, and what would help.
type Unsupported struct {
	// Reason, for instance "no libnvidia-ml.so.1 in /usr/lib64, ...".
	Reason string
	// Remedy is an instruction to the user, or empty where there is nothing to
	// mend: the host has no such device.
	Remedy string
	// Err is the cause, or nil.
	Err error
}

func (e *Unsupported) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Reason, e.Err)
	}
	return e.Reason
}

func (e *Unsupported) Unwrap() error { return e.Err }

// CompareDevices orders devices by vendor and index, parts after their device.
func CompareDevices(a, b *Device) int {
	if c := cmp.Compare(a.Vendor, b.Vendor); c != 0 {
		return c
	}
	aDevice, aPart := splitIndex(a.Index)
	bDevice, bPart := splitIndex(b.Index)
	return cmp.Or(cmp.Compare(aDevice, bDevice), cmp.Compare(aPart, bPart), cmp.Compare(a.Index, b.Index), cmp.Compare(a.ID, b.ID))
}

// splitIndex returns the numbers of a device and its part; the part is -1 where
// there is none.
func splitIndex(index string) (device, part int) {
	head, tail, divided := strings.Cut(index, ":")
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			return math.MaxInt
		}
		return n
	}
	if !divided {
		return number(head), -1
	}
	return number(head), number(tail)
}
