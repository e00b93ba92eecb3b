// SPDX-License-Identifier: Apache-2.0

// Package holders tells which containers were given which accelerators, as the
// kubelet of this node has it.
package holders

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/Ignoramuss/orb8/internal/accel"
)

// Device names an accelerator in one of the ways in which device plugins and DRA
// drivers do. A number is -1 where it is not told.
type Device struct {
	// Vendor, if the name or the resource tells.
	Vendor string
	// UUID of the device or part.
	UUID string
	// PCI address as in sysfs.
	PCI string
	// Minor is the number of the device file, Index the vendor's.
	Minor, Index int
	// Instance is NVIDIA's number of a GPU instance on the device.
	Instance int
	// Raw is the name as it was.
	Raw string
}

// Is reports whether d is the device that is meant. Where the name does not tell
// one device from another it is none.
func (r Device) Is(d *accel.Device) bool {
	if r.Vendor != "" && r.Vendor != d.Vendor {
		return false
	}
	if r.Instance >= 0 {
		return d.Parent != "" && d.Instance == r.Instance &&
			(r.UUID != "" && strings.EqualFold(r.UUID, d.Parent) || r.UUID == "" && r.Minor >= 0 && r.Minor == d.Minor)
	}
	switch {
	case r.UUID != "":
		return strings.EqualFold(r.UUID, d.ID)
	case d.Parent != "":
		return false
	case r.PCI != "":
		return r.PCI == d.PCI
	case r.Minor >= 0:
		return r.Minor == d.Minor
	case r.Index >= 0:
		return r.Vendor != "" && strconv.Itoa(r.Index) == d.Index
	}
	return false
}

const uuid = `[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`

// form is one way to name a device, as a whole.
type form struct {
	pattern *regexp.Regexp
	// read takes the pattern's groups; shared: others may be given the same device.
	read func(d *Device, groups []string) (shared bool)
}

var forms = []form{
	// NVIDIA's plugin; behind the UUID HAMi and Volcano count shares.
	{regexp.MustCompile(`^((?:GPU|MIG)-` + uuid + `)([-_]\d+)?$`), func(d *Device, g []string) bool {
		d.Vendor, d.UUID = accel.NVIDIA, g[1]
		return g[2] != ""
	}},
	// MIG before driver 470: GPU instance and compute instance.
	{regexp.MustCompile(`^MIG-(GPU-` + uuid + `)/(\d+)/\d+$`), func(d *Device, g []string) bool {
		d.Vendor, d.UUID, d.Instance = accel.NVIDIA, g[1], number(g[2])
		return false
	}},
	// GKE.
	{regexp.MustCompile(`^nvidia(\d+)(?:/gi(\d+))?(/vgpu\d+)?$`), func(d *Device, g []string) bool {
		d.Vendor, d.Minor = accel.NVIDIA, number(g[1])
		if g[2] != "" {
			d.Instance = number(g[2])
		}
		return g[3] != ""
	}},
	// AMD's plugin.
	{regexp.MustCompile(`^[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$`), func(d *Device, g []string) bool {
		d.PCI = strings.ToLower(g[0])
		return false
	}},
	// Google's and AWS's plugins.
	{regexp.MustCompile(`^(?:accel|neuron)?(\d+)$`), func(d *Device, g []string) bool {
		d.Index = number(g[1])
		if strings.HasPrefix(g[0], "neuron") {
			d.Vendor = accel.AWS
		}
		return false
	}},
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return -1 // too large for any device
	}
	return n
}

// vendors by the domain of their resources.
func vendorOf(resource string) string {
	domain, name, _ := strings.Cut(resource, "/")
	switch {
	case domain == "nvidia.com" || strings.HasSuffix(domain, ".nvidia.com"):
		return accel.NVIDIA
	case domain == "amd.com" || strings.HasSuffix(domain, ".amd.com"):
		return accel.AMD
	case domain == "google.com" && name == "tpu", domain == "tpu.google.com", domain == "cloud-tpus.google.com":
		return accel.Google
	case domain == "aws.amazon.com" && strings.HasPrefix(name, "neuron"):
		return accel.AWS
	}
	return ""
}

// numbersDevices reports whether a resource's plain numbers are the devices' own. Those of
// others may be anything: IOMMU groups, cores of which a device has several.
func numbersDevices(resource string) bool {
	switch strings.TrimSuffix(resource, ".shared") {
	case "nvidia.com/gpu", "amd.com/gpu", "google.com/tpu", "aws.amazon.com/neuron", "aws.amazon.com/neurondevice":
		return true
	}
	return false
}

// Parse reads the id that a device plugin gave a device of a resource, for
// instance nvidia.com/gpu. replica is the number of a time-sliced share, empty if
// there is none; shared reports whether others may be given the same device. What
// is of no known form has nothing but Vendor and Raw.
func Parse(resource, id string) (d Device, replica string, shared bool) {
	d = Device{Vendor: vendorOf(resource), Minor: -1, Index: -1, Instance: -1, Raw: id}
	shared = strings.HasSuffix(resource, ".shared")
	whole, replica, sliced := strings.Cut(id, "::")
	shared = shared || sliced
	for _, f := range forms {
		if g := f.pattern.FindStringSubmatch(whole); g != nil {
			also := f.read(&d, g)
			if d.Index >= 0 && g[0] == g[1] && !numbersDevices(resource) {
				d.Index, d.Raw = -1, id
			}
			return d, replica, shared || also
		}
	}
	return d, replica, shared
}

// FromAttributes returns the device that a DRA driver describes in a ResourceSlice;
// false if the attributes name none. Drivers are known by their domain, as
// resources of device plugins are.
func FromAttributes(driver string, attributes map[string]string) (Device, bool) {
	d := Device{Vendor: vendorOf(driver), Minor: -1, Index: -1, Instance: -1}
	d.UUID = attributes["uuid"]
	for _, name := range []string{"pciBusID", "pciAddr", "pciAddress"} {
		if address := strings.ToLower(attributes[name]); d.PCI == "" && pciForm.MatchString(address) {
			d.PCI = address[len(address)-len("0000:00:00.0"):]
		}
	}
	if attributes["type"] == "mig" && d.UUID == "" {
		// Made when it is handed out: the address is that of the whole device, which is not
		// what was given.
		return Device{Vendor: d.Vendor, Minor: -1, Index: -1, Instance: -1}, false
	}
	if n, err := strconv.Atoi(attributes["minor"]); err == nil {
		d.Minor = n
	}
	if n, err := strconv.Atoi(attributes["index"]); err == nil {
		d.Index = n
	}
	d.Raw = d.UUID
	return d, d.UUID != "" || d.PCI != "" || d.Minor >= 0 || d.Index >= 0
}

// pciForm takes NVML's way to write a domain, with eight digits, too.
var pciForm = regexp.MustCompile(`^(?:0000)?[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
