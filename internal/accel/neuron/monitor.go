// SPDX-License-Identifier: Apache-2.0

package neuron

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Ignoramuss/orb8/internal/accel"
)

// report is what neuron-monitor prints once per period, as far as it is used. Every
// group of values has an error of its own, which makes its values void.
type report struct {
	Runtimes []struct {
		PID    uint32 `json:"pid"`
		Error  string `json:"error"`
		Report struct {
			Cores struct {
				Period float64          `json:"period"`
				InUse  map[string]*core `json:"neuroncores_in_use"`
				Error  string           `json:"error"`
			} `json:"neuroncore_counters"`
			Memory struct {
				Used struct {
					Breakdown struct {
						Cores map[string]map[string]float64 `json:"neuroncore_memory_usage"`
					} `json:"usage_breakdown"`
				} `json:"neuron_runtime_used_bytes"`
				Error string `json:"error"`
			} `json:"memory_used"`
		} `json:"report"`
	} `json:"neuron_runtime_data"`
	System struct {
		Counters struct {
			Devices []struct {
				Index             int     `json:"neuron_device_index"`
				MemoryCorrected   float64 `json:"mem_ecc_corrected"`
				MemoryUncorrected float64 `json:"mem_ecc_uncorrected"`
				SRAMCorrected     float64 `json:"sram_ecc_corrected"`
				SRAMUncorrected   float64 `json:"sram_ecc_uncorrected"`
			} `json:"neuron_devices"`
			Error string `json:"error"`
		} `json:"neuron_hw_counters"`
	} `json:"system_data"`
	Instance struct {
		Type string `json:"instance_type"`
	} `json:"instance_info"`
	Hardware struct {
		Type           string  `json:"neuron_device_type"`
		Devices        int     `json:"neuron_device_count"`
		Memory         float64 `json:"neuron_device_memory_size"`
		CoresPerDevice int     `json:"neuroncore_per_device_count"`
		Error          string  `json:"error"`
	} `json:"neuron_hardware_info"`
}

type core struct {
	// Utilization in percent.
	Utilization *float64 `json:"neuroncore_utilization"`
}

const (
	// maxDevices and maxCores bound what is believed: a trn2.48xlarge has 16 with 8
	// each.
	maxDevices = 64
	maxCores   = 64
)

func parse(line []byte) (*report, error) {
	r := new(report)
	if err := json.Unmarshal(line, r); err != nil {
		return nil, fmt.Errorf("parse a report: %w", err)
	}
	h := &r.Hardware
	if h.Error != "" {
		return nil, errors.New("neuron_hardware_info: " + h.Error)
	}
	if h.Devices < 0 || h.Devices > maxDevices || h.CoresPerDevice < 0 || h.CoresPerDevice > maxCores {
		return nil, fmt.Errorf("parse a report: %d devices with %d cores", h.Devices, h.CoresPerDevice)
	}
	return r, nil
}

// models by the family of an instance.
func model(deviceType, instance string) string {
	if deviceType != "" {
		return "AWS " + strings.ToUpper(deviceType[:1]) + deviceType[1:]
	}
	family, _, _ := strings.Cut(instance, ".")
	for prefix, name := range map[string]string{"inf1": "Inferentia", "inf2": "Inferentia2", "trn1": "Trainium", "trn2": "Trainium2"} {
		if strings.HasPrefix(family, prefix) {
			return "AWS " + name
		}
	}
	return "AWS Neuron device"
}

// unknown says what of a device is not known, since a runtime did not tell its part.
type unknown struct{ utilization, memory, processes bool }

// samples makes a sample of every device.
func (r *report) samples(at time.Time) []accel.Sample {
	h := &r.Hardware
	if h.CoresPerDevice == 0 {
		return nil
	}
	all := make([]accel.Sample, h.Devices)
	void := make([]unknown, h.Devices)
	for i := range all {
		s := &all[i]
		s.Device, s.Time, s.ProcessesKnown = newDevice(i), at, true
		s.Device.Model = model(h.Type, r.Instance.Type)
		s.Values[accel.Utilization], s.Values[accel.MemoryUsed] = accel.Of(0, accel.Runtime), accel.Of(0, accel.Runtime)
		if h.Memory > 0 {
			s.Values[accel.MemoryTotal] = accel.Of(h.Memory, accel.Driver)
		}
	}
	for i := range r.Runtimes {
		r.runtime(i, all, void)
	}
	for i := range all {
		s := &all[i]
		if void[i].utilization {
			s.Values[accel.Utilization] = accel.Value{}
		}
		if void[i].memory {
			s.Values[accel.MemoryUsed] = accel.Value{}
		}
		s.ProcessesKnown = !void[i].processes
		slices.SortFunc(s.Processes, func(a, b accel.Process) int { return cmp.Compare(a.PID, b.PID) })
	}
	c := &r.System.Counters
	for _, d := range c.Devices {
		if c.Error == "" && d.Index >= 0 && d.Index < len(all) {
			all[d.Index].Values[accel.ECCCorrected] = count(d.MemoryCorrected + d.SRAMCorrected)
			all[d.Index].Values[accel.ECCUncorrected] = count(d.MemoryUncorrected + d.SRAMUncorrected)
		}
	}
	return all
}

func count(n float64) accel.Value {
	if !(n >= 0) {
		return accel.Value{}
	}
	return accel.Of(n, accel.Driver)
}

// runtime adds what one process says of the devices that it uses. It names every core
// that it has, whether anything runs there or not.
func (r *report) runtime(i int, all []accel.Sample, void []unknown) {
	run := &r.Runtimes[i]
	cores, memory := &run.Report.Cores, &run.Report.Memory
	used := make(map[int]*accel.Process) // by device
	process := func(coreIndex string) (d int, p *accel.Process) {
		n, err := strconv.Atoi(coreIndex)
		d = n / r.Hardware.CoresPerDevice
		if err != nil || n < 0 || d >= len(all) {
			return 0, nil
		}
		if used[d] == nil {
			used[d] = &accel.Process{PID: run.PID}
		}
		return d, used[d]
	}
	for index, c := range cores.InUse {
		d, p := process(index)
		if p == nil {
			continue
		}
		if c == nil || c.Utilization == nil || !(*c.Utilization >= 0) || run.Error != "" || cores.Error != "" {
			void[d].utilization = true
			continue
		}
		// The mean over the cores of a device.
		part := min(*c.Utilization/100, 1) / float64(r.Hardware.CoresPerDevice)
		p.Utilization = accel.Of(p.Utilization.V+part, accel.Runtime)
		all[d].Values[accel.Utilization].V = min(all[d].Values[accel.Utilization].V+part, 1)
		if cores.Period > 0 && cores.Period < 3600 {
			all[d].Window = time.Duration(cores.Period * float64(time.Second))
		}
	}
	for index, kinds := range memory.Used.Breakdown.Cores {
		d, p := process(index)
		if p == nil || run.Error != "" || memory.Error != "" {
			continue
		}
		for _, bytes := range kinds {
			if bytes >= 0 {
				p.Memory = accel.Of(p.Memory.V+bytes, accel.Runtime)
				all[d].Values[accel.MemoryUsed].V += bytes
			}
		}
	}
	for d, p := range used {
		all[d].Processes = append(all[d].Processes, *p)
	}
	// What it has beyond that, and where, nobody knows.
	for d := range void {
		here := used[d] != nil
		void[d].utilization = void[d].utilization || (run.Error != "" || cores.Error != "") && (here || len(used) == 0)
		void[d].memory = void[d].memory || (run.Error != "" || memory.Error != "") && (here || len(used) == 0)
		void[d].processes = void[d].processes || len(used) == 0 && (run.Error != "" || cores.Error != "")
	}
}
