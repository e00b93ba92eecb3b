// SPDX-License-Identifier: Apache-2.0

// Package dcgm reads NVIDIA devices from a dcgm-exporter that runs already. It
// knows the names that the exporter has had since DCGM 2 and those of DCGM 4.6 and
// later. It has been tested with pages written after the exporter's documentation,
// not with a running one.
package dcgm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/Ignoramuss/orb8/internal/accel"
)

const (
	// LocalURL is where an exporter on this host listens by default.
	LocalURL = "http://localhost:9400/metrics"
	// LocalPort is the port of LocalURL.
	LocalPort = 9400
	// maxPage bounds a page: 16 devices with 200 fields of 1 KiB each.
	maxPage = 4 << 20
	// maxDevices bounds the devices of a page: 16 GPUs, each with 7 parts.
	maxDevices = 16 * 8
	timeout    = 5 * time.Second
)

// Config of the backend.
type Config struct {
	// URL of the exporter's page; if empty, those that Find returns are tried. It also
	// says which it passes over, and why.
	URL  string
	Find func() (urls, passed []string)
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Backend implements accel.Backend.
type Backend struct {
	cfg    Config
	client *http.Client
	// found is the URL that answered last.
	found string
	// percent has the families with RATIO in their names that are percentages:
	// field 203 was called so in some versions. Once seen above 1 they stay that.
	percent map[string]bool
	xids    map[string]float64
	// counts are those of the page before, by device and XID; nil before the first.
	counts map[string]float64
}

// New returns a backend that has not asked anything yet.
func New(cfg Config) *Backend {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Backend{
		cfg: cfg, percent: make(map[string]bool), xids: make(map[string]float64),
		client: &http.Client{
			Transport: &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
			// The agent asks whom it was told to ask.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Name returns "dcgm".
func (b *Backend) Name() string { return "dcgm" }

// Close gives up connections, and what the next reading would be compared with.
func (b *Backend) Close() error {
	b.client.CloseIdleConnections()
	b.found = ""
	clear(b.xids)
	b.counts = nil
	return nil
}

// Read implements accel.Backend.
func (b *Backend) Read(ctx context.Context) ([]accel.Sample, error) {
	urls, passed := []string{b.cfg.URL}, []string(nil)
	if b.cfg.URL == "" {
		urls, passed = b.cfg.Find()
		if i := slices.Index(urls, b.found); i > 0 {
			urls[0], urls[i] = urls[i], urls[0]
		}
	}
	var errs []error
	for _, u := range urls {
		families, err := b.scrape(ctx, u)
		var all []accel.Sample
		if err == nil {
			all, err = b.samples(families)
		}
		if err == nil {
			b.found = u
			return all, nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if b.cfg.URL != "" || b.found != "" { // there is, or was, one
		return nil, err
	}
	reason := "no dcgm-exporter"
	if len(urls) > 0 {
		reason += ": tried " + strings.Join(urls, ", ")
	}
	if len(passed) > 0 {
		reason += "; " + strings.Join(passed, ", ")
	}
	return nil, &accel.Unsupported{Reason: reason}
}

func (b *Backend) scrape(ctx context.Context, url string) (map[string]*dto.MetricFamily, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("scrape dcgm-exporter: %w", err)
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("scrape dcgm-exporter: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		// The number, not the text, which is the server's.
		return nil, fmt.Errorf("scrape dcgm-exporter: %s answers %d %s", url, resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	families, err := parse(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return nil, fmt.Errorf("scrape dcgm-exporter at %s: %w", url, err)
	}
	return families, nil
}

// parse reads a page in which there are GPUs.
func parse(r io.Reader) (map[string]*dto.MetricFamily, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		return nil, fmt.Errorf("read page: %w", err)
	}
	for name := range families {
		if strings.HasPrefix(name, "DCGM_FI_") {
			return families, nil
		}
	}
	return nil, errors.New("the page has no metrics named DCGM_FI_*: it is not a dcgm-exporter's, or that has no GPU")
}

// field is one name of a value.
type field struct {
	name   string
	metric accel.Metric
	// times makes our unit of it.
	times float64
}

const (
	fromPercent = 0.01
	fromMiB     = 1 << 20
	fromMHz     = 1e6
	fromMilli   = 1e-3
)

// fields are all names, the better ones first where two give the same value. Rates
// of PCIe and NVLink are not among them: some versions call them counters.
func fields() []field {
	return []field{
		// Of the two only the profiled one is a mean.
		{"DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO", accel.Utilization, 1},
		{"DCGM_FI_PROF_GR_ENGINE_ACTIVE", accel.Utilization, 1},
		{"DCGM_FI_DEV_GPU_UTIL_RATIO", accel.Utilization, 1},
		{"DCGM_FI_DEV_GPU_UTIL", accel.Utilization, fromPercent},
		{"DCGM_FI_DEV_MEMORY_UTIL_RATIO", accel.CopyUtilization, 1},
		{"DCGM_FI_DEV_MEM_COPY_UTIL", accel.CopyUtilization, fromPercent},
		{"DCGM_FI_DEV_ENC_UTIL_RATIO", accel.EncoderUtilization, 1},
		{"DCGM_FI_DEV_ENC_UTIL", accel.EncoderUtilization, fromPercent},
		{"DCGM_FI_DEV_DEC_UTIL_RATIO", accel.DecoderUtilization, 1},
		{"DCGM_FI_DEV_DEC_UTIL", accel.DecoderUtilization, fromPercent},
		{"DCGM_FI_PROF_SM_UTIL_RATIO", accel.SMActive, 1},
		{"DCGM_FI_PROF_SM_ACTIVE", accel.SMActive, 1},
		{"DCGM_FI_PROF_SM_OCCUPANCY_RATIO", accel.SMOccupancy, 1},
		{"DCGM_FI_PROF_SM_OCCUPANCY", accel.SMOccupancy, 1},
		{"DCGM_FI_PROF_TENSOR_UTIL_RATIO", accel.TensorActive, 1},
		{"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", accel.TensorActive, 1},
		{"DCGM_FI_PROF_DRAM_UTIL_RATIO", accel.DRAMActive, 1},
		{"DCGM_FI_PROF_DRAM_ACTIVE", accel.DRAMActive, 1},
		{"DCGM_FI_PROF_FP64_UTIL_RATIO", accel.FP64Active, 1},
		{"DCGM_FI_PROF_PIPE_FP64_ACTIVE", accel.FP64Active, 1},
		{"DCGM_FI_PROF_FP32_UTIL_RATIO", accel.FP32Active, 1},
		{"DCGM_FI_PROF_PIPE_FP32_ACTIVE", accel.FP32Active, 1},
		{"DCGM_FI_PROF_FP16_UTIL_RATIO", accel.FP16Active, 1},
		{"DCGM_FI_PROF_PIPE_FP16_ACTIVE", accel.FP16Active, 1},
		{"DCGM_FI_DEV_BOARD_POWER_WATTS", accel.PowerUsage, 1},
		{"DCGM_FI_DEV_POWER_USAGE", accel.PowerUsage, 1},
		{"DCGM_FI_DEV_POWER_MGMT_LIMIT", accel.PowerLimit, 1},
		{"DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL", accel.Energy, 1},
		{"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", accel.Energy, fromMilli},
		{"DCGM_FI_DEV_GPU_TEMP_CELSIUS", accel.Temperature, 1},
		{"DCGM_FI_DEV_GPU_TEMP", accel.Temperature, 1},
		{"DCGM_FI_DEV_MEMORY_TEMP_CELSIUS", accel.MemoryTemperature, 1},
		{"DCGM_FI_DEV_MEMORY_TEMP", accel.MemoryTemperature, 1},
		{"DCGM_FI_DEV_SM_CLOCK_HERTZ", accel.SMClock, 1},
		{"DCGM_FI_DEV_SM_CLOCK", accel.SMClock, fromMHz},
		{"DCGM_FI_DEV_MEMORY_CLOCK_HERTZ", accel.MemoryClock, 1},
		{"DCGM_FI_DEV_MEM_CLOCK", accel.MemoryClock, fromMHz},
		{"DCGM_FI_DEV_PCIE_REPLAY_TOTAL", accel.PCIeReplays, 1},
		{"DCGM_FI_DEV_PCIE_REPLAY_COUNTER", accel.PCIeReplays, 1},
		{"DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", accel.ECCCorrected, 1},
		{"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", accel.ECCUncorrected, 1},
		{"DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", accel.ECCCorrectedLifetime, 1},
		{"DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", accel.ECCUncorrectedLifetime, 1},
		{"DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", accel.RowsRemappedCorrectable, 1},
		{"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", accel.RowsRemappedUncorrectable, 1},
		{"DCGM_FI_DEV_ROW_REMAP_CORRECTABLE_TOTAL", accel.RowsRemappedCorrectable, 1},
		{"DCGM_FI_DEV_ROW_REMAP_UNCORRECTABLE_TOTAL", accel.RowsRemappedUncorrectable, 1},
		{"DCGM_FI_DEV_ROW_REMAP_PENDING", accel.RowRemapPending, 1},
		{"DCGM_FI_DEV_ROW_REMAP_FAILURE", accel.RowRemapFailure, 1},
		{"DCGM_FI_DEV_ROW_REMAP_FAILED", accel.RowRemapFailure, 1},
	}
}

// blank is the least of the numbers that DCGM gives for "there is none", in whole
// or real numbers.
const blank = 0x7ffffff0

// device gathers what a page has of one device.
type device struct {
	accel.Sample
	// memory in bytes: used, free, reserved, total.
	used, free, reserved, total accel.Value
	xid                         float64
}

// samples makes a sample of every device, parts after their device.
func (b *Backend) samples(families map[string]*dto.MetricFamily) ([]accel.Sample, error) {
	devices := make(map[string]*device)
	now := b.cfg.Now()
	each := func(name string, take func(*device, float64)) {
		all := make(map[*device]*lines)
		for _, m := range families[name].GetMetric() {
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
			if !(v >= 0) || v >= blank && isBlank(v) {
				continue
			}
			if d := deviceOf(m, devices); d != nil {
				if all[d] == nil {
					all[d] = &lines{first: v}
				}
				all[d].add(m, v)
			}
		}
		for d, l := range all {
			if v, ok := l.value(); ok {
				take(d, v)
			}
		}
	}
	for _, f := range fields() {
		times := f.times
		if b.isPercent(f, families[f.name]) {
			times = fromPercent
		}
		each(f.name, func(d *device, v float64) {
			v *= times
			if f.metric.About().Unit == accel.Ratio {
				v = min(v, 1)
			}
			if f.metric == accel.Utilization && !d.Values[f.metric].Known() {
				d.Momentary = strings.HasPrefix(f.name, "DCGM_FI_DEV_")
			}
			d.Values[f.metric] = d.Values[f.metric].Or(accel.Of(v, accel.DCGM))
		})
	}
	for _, f := range []struct {
		name  string
		times float64
		of    func(*device) *accel.Value
	}{
		{"DCGM_FI_DEV_FB_USED_BYTES", 1, func(d *device) *accel.Value { return &d.used }},
		{"DCGM_FI_DEV_FB_USED", fromMiB, func(d *device) *accel.Value { return &d.used }},
		{"DCGM_FI_DEV_FB_FREE_BYTES", 1, func(d *device) *accel.Value { return &d.free }},
		{"DCGM_FI_DEV_FB_FREE", fromMiB, func(d *device) *accel.Value { return &d.free }},
		{"DCGM_FI_DEV_FB_RESERVED_BYTES", 1, func(d *device) *accel.Value { return &d.reserved }},
		{"DCGM_FI_DEV_FB_RESERVED", fromMiB, func(d *device) *accel.Value { return &d.reserved }},
		{"DCGM_FI_DEV_FB_CAPACITY_BYTES", 1, func(d *device) *accel.Value { return &d.total }},
		{"DCGM_FI_DEV_FB_TOTAL", fromMiB, func(d *device) *accel.Value { return &d.total }},
	} {
		each(f.name, func(d *device, v float64) { *f.of(d) = f.of(d).Or(accel.Of(v*f.times, accel.DCGM)) })
	}
	for _, name := range []string{"DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR"} {
		each(name, func(d *device, v float64) { d.xid = v })
	}
	counted := b.countXIDs(families, devices)
	if len(devices) > maxDevices {
		return nil, fmt.Errorf("read dcgm-exporter: %d devices, at most %d are believed", len(devices), maxDevices)
	}
	all := make([]accel.Sample, 0, len(devices))
	divided := make(map[string]bool)
	for _, d := range devices {
		divided[d.Device.Parent] = true
	}
	for id, d := range devices {
		d.Time = now
		d.Device.Divided = divided[id]
		d.memory()
		b.latest(d, counted)
		all = append(all, d.Sample)
	}
	for id := range b.xids {
		if devices[id] == nil {
			delete(b.xids, id)
		}
	}
	slices.SortFunc(all, func(a, b accel.Sample) int { return accel.CompareDevices(a.Device, b.Device) })
	return all, nil
}

// lines are those of one device in one family: one, or one for each pod that shares it.
type lines struct {
	first, sum float64
	n, vgpu    int
	differ     bool
}

func (l *lines) add(m *dto.Metric, v float64) {
	l.n++
	l.sum += v
	l.differ = l.differ || v != l.first
	for _, label := range m.GetLabel() {
		if label.GetName() == "vgpu" && label.GetValue() != "" {
			l.vgpu++
		}
	}
}

// value is the device's. Exporters give each pod the device's value, newer ones each pod what is
// its own; what differs otherwise says nothing of the device.
func (l *lines) value() (float64, bool) {
	if l.differ && l.vgpu == l.n {
		return l.sum, true
	}
	return l.first, !l.differ
}

// isBlank reports whether v is one of DCGM's marks for no value: 0x7ffffff0 to f in
// 32 or, with the same last digits, 64 bits, and 2^47 for real numbers.
func isBlank(v float64) bool {
	return v <= 0x7fffffff || v >= 140737488355328 && v <= 140737488355343 || v >= 9.22e18
}

// isPercent reports whether a family that is called a ratio has percentages.
func (b *Backend) isPercent(f field, family *dto.MetricFamily) bool {
	if f.times != 1 || !strings.HasPrefix(f.name, "DCGM_FI_DEV_") || !strings.HasSuffix(f.name, "_RATIO") || family == nil {
		return false
	}
	help := strings.ToLower(family.GetHelp())
	percent := b.percent[f.name] || strings.Contains(help, "%") || strings.Contains(help, "percent")
	for _, m := range family.GetMetric() {
		percent = percent || m.GetGauge().GetValue()+m.GetCounter().GetValue()+m.GetUntyped().GetValue() > 1
	}
	b.percent[f.name] = percent
	return percent
}

// deviceOf finds, or makes, the device that a metric is about; nil if it is about
// something else, such as a CPU or a switch.
func deviceOf(m *dto.Metric, devices map[string]*device) *device {
	labels := make(map[string]string, len(m.GetLabel()))
	for _, l := range m.GetLabel() {
		// UUID, uuid or gpu_uuid; modelName or model_name.
		labels[strings.ReplaceAll(strings.ToLower(l.GetName()), "_", "")] = l.GetValue()
	}
	uuid := cmp.Or(labels["uuid"], labels["gpuuuid"])
	if !strings.HasPrefix(uuid, "GPU-") && !strings.HasPrefix(uuid, "MIG-") {
		return nil
	}
	key, instance := uuid, -1
	if n := labels["gpuiid"]; n != "" {
		if _, err := fmt.Sscanf(n, "%d", &instance); err != nil {
			return nil
		}
		key = fmt.Sprintf("%s/gi%d", uuid, instance)
	}
	of := devices[key]
	if of == nil {
		of = &device{Sample: accel.Sample{Device: &accel.Device{
			Vendor: accel.NVIDIA, ID: key, Index: labels["gpu"], Minor: -1, Instance: instance, Profile: labels["gpuiprofile"],
		}}}
		if instance >= 0 {
			of.Device.Parent, of.Device.Index = uuid, fmt.Sprintf("%s:%d", of.Device.Index, instance)
			of.Device.Limits = append(of.Device.Limits, "read from a dcgm-exporter, which does not tell the UUIDs of MIG instances: their holders are not known")
		}
		devices[key] = of
	}
	// Not every line has every label.
	d := of.Device
	d.Model, d.PCI = cmp.Or(d.Model, labels["modelname"]), cmp.Or(d.PCI, pciAddress(labels["pcibusid"]))
	d.Driver = cmp.Or(d.Driver, labels["dcgmfidriverversion"], labels["dcgmfisystemdriverversion"], labels["driverversion"])
	if n := -1; d.Minor < 0 {
		if _, err := fmt.Sscanf(labels["device"], "nvidia%d", &n); err == nil {
			d.Minor = n
		}
	}
	return of
}

// pciAddress is that of sysfs: 0000:3b:00.0 for 00000000:3B:00.0.
func pciAddress(s string) string {
	s = strings.ToLower(s)
	if domain, rest, ok := strings.Cut(s, ":"); ok && len(domain) == 8 {
		return domain[4:] + ":" + rest
	}
	return s
}

// memory in use includes what the driver reserves, as that of NVML does.
func (d *device) memory() {
	if d.used.Known() {
		d.Values[accel.MemoryUsed] = accel.Of(d.used.V+d.reserved.V, accel.DCGM)
	}
	if !d.total.Known() && d.used.Known() && d.free.Known() {
		d.total = accel.Of(d.used.V+d.free.V+d.reserved.V, accel.DCGM)
	}
	d.Values[accel.MemoryTotal], d.Values[accel.MemoryReserved] = d.total, d.reserved
}

// maxErrors bounds the errors of one device that one page tells of.
const maxErrors = 64

// countXIDs makes errors of the exporter's counters of XIDs, which tell of the same one twice;
// false if the page has none. What they show at first may be of any age. One of them counts
// for ever, the other what was within some minutes.
func (b *Backend) countXIDs(families map[string]*dto.MetricFamily, devices map[string]*device) bool {
	now, first := make(map[xidKey]float64), b.counts == nil
	there := false
	for _, name := range []string{"DCGM_EXP_XID_ERRORS_TOTAL", "DCGM_EXP_XID_ERRORS_COUNT"} {
		if families[name] == nil || there {
			continue
		}
		there = true
		for _, m := range families[name].GetMetric() {
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
			d := deviceOf(m, devices)
			code, err := strconv.ParseUint(labelOf(m, "xid"), 10, 32)
			if d == nil || err != nil || code == 0 || !(v >= 0) {
				continue
			}
			if at := (xidKey{d, code}); v > now[at] { // once for each pod that shares the device
				now[at] = v
			}
		}
	}
	before := b.counts
	b.counts = make(map[string]float64, len(now))
	for at, v := range now {
		id := fmt.Sprintf("%s %d", at.device.Device.ID, at.code)
		b.counts[id] = v
		for n := v - before[id]; !first && n >= 1 && len(at.device.Errors) < maxErrors; n-- {
			at.device.Errors = append(at.device.Errors, accel.DeviceError{Time: b.cfg.Now(), Code: at.code})
		}
	}
	return there
}

// xidKey is an XID of a device.
type xidKey struct {
	device *device
	code   uint64
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// latest makes an error of a latest XID that has changed, unless they are counted: the exporter
// keeps it shown, so that the first one may be of any age.
func (b *Backend) latest(d *device, counted bool) {
	before, known := b.xids[d.Device.ID]
	b.xids[d.Device.ID] = d.xid
	if !counted && known && d.xid != before && d.xid > 0 {
		d.Errors = []accel.DeviceError{{Time: d.Time, Code: uint64(d.xid)}}
	}
}
