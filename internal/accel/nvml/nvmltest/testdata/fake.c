/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stands in for libnvidia-ml.so.1 in tests. What it says is in the file that
 * ORB8_FAKE_NVML names, one "KEY VALUE" a line, read anew at every call:
 *
 *     count N                     GPUs
 *     gpuI.KEY VALUE              of GPU I; a missing key is "not supported"
 *     gpuI.procJ PID MEMORY [UTIL AGE]  a process that computes, with a sample of its
 *                                 utilization; -1 for a MEMORY that is not told
 *     gpuI.gfxJ PID MEMORY        one that draws; gpuI.mpsJ: a client of MPS
 *     gpuI.sampleJ PID UTIL AGE   one more sample of a process
 *     gpuI.utilsampleJ UTIL AGE   a sample of the GPU
 *     gpuI.fieldN VALUE           with a type behind it: double, uint, int, ulong, llong
 *     gpuI.lost 1                 all calls say so
 *     gpuI.error FUNCTION CODE    what that call returns; FUNCTION without its version
 *     gpuI.migJ.KEY VALUE         of its MIG instance J: also proc, gfx, mps, error, gpm
 *     gpuI.migJ.gi N              its GPU instance, else 7 - J; gpuI.migJ.ci N: compute instance
 *     hang FUNCTION               waits in FUNCTION until the line is gone
 *     xid GPU CODE [GI [CI]]      an event, delivered once per line number
 *     module VERSION              of the driver's modules: another one than the library's
 *                                 (-DVERSION) fails to begin
 *
 * AGE is in seconds, and may be a fraction or, after the clock was set back, negative.
 *
 * With -DOLD it lacks what older drivers lack.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <nvml.h>

#undef nvmlInit
#undef nvmlDeviceGetCount
#undef nvmlDeviceGetHandleByIndex
#undef nvmlDeviceGetPciInfo
#undef nvmlDeviceGetComputeRunningProcesses
#undef nvmlDeviceGetGraphicsRunningProcesses
#undef nvmlDeviceGetMPSComputeRunningProcesses
#undef nvmlEventSetWait

#define EXPORT __attribute__((visibility("default")))
#ifndef VERSION
#define VERSION "570.124.06"
#endif
#define MAX_GPUS 16
#define MAX_PARTS 8

struct nvmlDevice_st {
	int gpu, part; /* part is -1 for the whole device */
};
struct nvmlEventSet_st {
	int next;
};
struct nvmlGpmSample_st {
	struct timespec at;
	nvmlDevice_t of;
};

static struct nvmlDevice_st devices[MAX_GPUS][MAX_PARTS + 1];
static struct nvmlEventSet_st events;
/* What is open. It is written beside the state whenever it changes. */
static int inits, samples, sets;

static void opened(int *what, int by)
{
	const char *path = getenv("ORB8_FAKE_NVML");
	char name[4096];
	FILE *f;

	*what += by;
	snprintf(name, sizeof(name), "%s.open", path ? path : "");
	f = fopen(name, "w");
	if (f) {
		fprintf(f, "%d", inits * 10000 + samples * 100 + sets);
		fclose(f);
	}
}

/* note_init adds a byte to a file beside the state, each time that the library is begun with. */
static void note_init(void)
{
	const char *path = getenv("ORB8_FAKE_NVML");
	char name[4096];
	FILE *f;

	snprintf(name, sizeof(name), "%s.inits", path ? path : "");
	f = fopen(name, "a");
	if (f) {
		fputc('.', f);
		fclose(f);
	}
}

/* state is a copy of the file's text; with ORB8_FAKE_NVML_ONCE it is read once only. */
static char *state(void)
{
	static char once[65536];
	static size_t length;
	static __thread char text[65536];
	const char *path = getenv("ORB8_FAKE_NVML");
	int keep = getenv("ORB8_FAKE_NVML_ONCE") != NULL;
	FILE *f = path && !(keep && length) ? fopen(path, "r") : NULL;
	size_t n = 0;

	if (keep && length) {
		memcpy(text, once, length + 1);
		return text;
	}
	if (f) {
		n = fread(text, 1, sizeof(text) - 1, f);
		fclose(f);
	}
	text[n] = 0;
	if (keep) {
		memcpy(once, text, n + 1);
		length = n;
	}
	return text;
}

/* find copies the value of the nth line with that key. */
static int find(const char *key, int nth, char *value, size_t size)
{
	char *line, *rest = state();
	size_t len = strlen(key);

	while ((line = strsep(&rest, "\n"))) {
		if (strncmp(line, key, len) || line[len] != ' ' || nth-- > 0)
			continue;
		snprintf(value, size, "%s", line + len + 1);
		return 1;
	}
	return 0;
}

static void hang(const char *function)
{
	char value[128];

	for (;;) {
		int waits = find("hang", 0, value, sizeof(value)) && !strcmp(value, function);

		if (!waits)
			return;
		usleep(10000);
	}
}

static int text_of(nvmlDevice_t d, const char *name, char *value, size_t size)
{
	char key[128];

	if (d.handle->part < 0)
		snprintf(key, sizeof(key), "gpu%d.%s", d.handle->gpu, name);
	else
		snprintf(key, sizeof(key), "gpu%d.mig%d.%s", d.handle->gpu, d.handle->part, name);
	return find(key, 0, value, size);
}

static nvmlReturn_t lost(nvmlDevice_t d)
{
	struct nvmlDevice_st first = { d.handle->gpu, -1 };
	nvmlDevice_t whole = { &first };
	char value[32];

	return text_of(whole, "lost", value, sizeof(value)) ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

/* refused is what a call returns whatever it asks: the device is lost, or a line says so. */
static nvmlReturn_t refused(nvmlDevice_t d, const char *symbol)
{
	char key[64], value[128], function[96];
	size_t length = strcspn(symbol, "_");
	int code;

	if (lost(d) != NVML_SUCCESS)
		return NVML_ERROR_GPU_IS_LOST;
	if (d.handle->part < 0)
		snprintf(key, sizeof(key), "gpu%d.error", d.handle->gpu);
	else
		snprintf(key, sizeof(key), "gpu%d.mig%d.error", d.handle->gpu, d.handle->part);
	for (int i = 0; find(key, i, value, sizeof(value)); i++)
		if (sscanf(value, "%95s %d", function, &code) == 2 && strlen(function) == length &&
		    !strncmp(function, symbol, length))
			return (nvmlReturn_t)code;
	return NVML_SUCCESS;
}
#define CHECK(d) do { nvmlReturn_t no = refused(d, __func__); if (no != NVML_SUCCESS) return no; } while (0)

/* mig says whether MIG is on, where utilization, samples and processes' utilization are not
 * supported, neither of the device nor of its parts. */
static int mig(nvmlDevice_t d)
{
	struct nvmlDevice_st first = { d.handle->gpu, -1 };
	nvmlDevice_t whole = { &first };
	char value[32];

	return d.handle->part >= 0 || (text_of(whole, "mig", value, sizeof(value)) && atoi(value));
}

static nvmlReturn_t number_of(nvmlDevice_t d, const char *name, unsigned long long *n)
{
	char value[64];

	if (lost(d) != NVML_SUCCESS)
		return NVML_ERROR_GPU_IS_LOST;
	if (!text_of(d, name, value, sizeof(value)))
		return NVML_ERROR_NOT_SUPPORTED;
	*n = strtoull(value, NULL, 0);
	return NVML_SUCCESS;
}

static nvmlReturn_t u32_of(nvmlDevice_t d, const char *name, unsigned int *out)
{
	unsigned long long n;
	nvmlReturn_t ret = number_of(d, name, &n);

	if (ret == NVML_SUCCESS)
		*out = (unsigned int)n;
	return ret;
}

static nvmlReturn_t string_of(nvmlDevice_t d, const char *name, char *out, unsigned int size)
{
	if (lost(d) != NVML_SUCCESS)
		return NVML_ERROR_GPU_IS_LOST;
	return text_of(d, name, out, size) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
	char value[32];

	if (find("init", 0, value, sizeof(value)))
		return (nvmlReturn_t)atoi(value);
	if (find("module", 0, value, sizeof(value)) && strcmp(value, VERSION))
		return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
	opened(&inits, 1);
	note_init();
	return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
EXPORT nvmlReturn_t nvmlShutdown(void) { opened(&inits, -1); return NVML_SUCCESS; }
EXPORT const char *nvmlErrorString(nvmlReturn_t ret) { (void)ret; return "fake"; }

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned int size)
{
	return find("driver", 0, out, size) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *n)
{
	char value[32];

	hang("nvmlDeviceGetCount");
	*n = find("count", 0, value, sizeof(value)) ? (unsigned int)atoi(value) : 0;
	return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int i, nvmlDevice_t *d)
{
	unsigned int n;

	nvmlDeviceGetCount_v2(&n);
	if (i >= MAX_GPUS || i >= n)
		return NVML_ERROR_INVALID_ARGUMENT;
	devices[i][0].gpu = (int)i;
	devices[i][0].part = -1;
	d->handle = &devices[i][0];
	return NVML_SUCCESS;
}

/* A device is found by its UUID also if it is not among those that are counted: its handle says
 * that it is lost. */
EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *d)
{
	char key[32], value[128];

	for (int i = 0; i < MAX_GPUS; i++) {
		snprintf(key, sizeof(key), "gpu%d.uuid", i);
		if (!find(key, 0, value, sizeof(value)) || strcmp(value, uuid))
			continue;
		devices[i][0].gpu = i;
		devices[i][0].part = -1;
		d->handle = &devices[i][0];
		return refused(*d, __func__);
	}
	return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *out, unsigned int size) { CHECK(d); return string_of(d, "uuid", out, size); }
EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *out, unsigned int size) { CHECK(d); return string_of(d, "name", out, size); }
EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t d, unsigned int *n) { CHECK(d); return u32_of(d, "minor", n); }

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, nvmlPciInfo_t *pci)
{
	unsigned int bus = 0;
	nvmlReturn_t ret;

	CHECK(d);
	ret = u32_of(d, "bus", &bus);
	memset(pci, 0, sizeof(*pci));
	pci->bus = bus;
	return ret;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u)
{
	nvmlReturn_t ret;

	hang("nvmlDeviceGetUtilizationRates");
	CHECK(d);
	if (mig(d))
		return NVML_ERROR_NOT_SUPPORTED;
	ret = u32_of(d, "util", &u->gpu);
	u->memory = 0;
	if (ret == NVML_SUCCESS)
		u32_of(d, "memutil", &u->memory);
	return ret;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m)
{
	nvmlReturn_t ret;

	CHECK(d);
	ret = number_of(d, "mem.used", &m->used);
	if (ret == NVML_SUCCESS)
		ret = number_of(d, "mem.total", &m->total);
	m->free = m->total - m->used;
	return ret;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned int *mw) { CHECK(d); return u32_of(d, "power", mw); }
EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t d, unsigned int *mw) { CHECK(d); return u32_of(d, "powerlimit", mw); }
EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t d, unsigned long long *mj) { CHECK(d); return number_of(d, "energy", mj); }
EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t d, nvmlTemperatureSensors_t sensor, unsigned int *t)
{
	(void)sensor;
	CHECK(d);
	return u32_of(d, "temp", t);
}
EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t d, nvmlClockType_t type, unsigned int *mhz)
{
	CHECK(d);
	return u32_of(d, type == NVML_CLOCK_MEM ? "memclock" : "smclock", mhz);
}
EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned int *current, unsigned int *pending)
{
	nvmlReturn_t ret;

	CHECK(d);
	ret = u32_of(d, "mig", current);
	*pending = *current;
	return ret;
}
EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t d, unsigned int *n)
{
	CHECK(d);
	*n = MAX_PARTS;
	return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t d, unsigned int i, nvmlDevice_t *part)
{
	char value[128];

	CHECK(d);
	if (i >= MAX_PARTS)
		return NVML_ERROR_INVALID_ARGUMENT;
	part->handle = &devices[d.handle->gpu][i + 1];
	part->handle->gpu = d.handle->gpu;
	part->handle->part = (int)i;
	return text_of(*part, "uuid", value, sizeof(value)) ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
/* instance_of is the GPU instance of a part, which is not its index. */
static unsigned int instance_of(nvmlDevice_t d)
{
	char value[32];

	return text_of(d, "gi", value, sizeof(value)) ? (unsigned int)atoi(value) : (unsigned int)(MAX_PARTS - 1 - d.handle->part);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t d, unsigned int *id)
{
	CHECK(d);
	if (d.handle->part < 0)
		return NVML_ERROR_INVALID_ARGUMENT;
	*id = instance_of(d);
	return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t d, unsigned int *id)
{
	char value[32];

	CHECK(d);
	if (d.handle->part < 0)
		return NVML_ERROR_INVALID_ARGUMENT;
	*id = text_of(d, "ci", value, sizeof(value)) ? (unsigned int)atoi(value) : 0;
	return NVML_SUCCESS;
}

/* The processes of one list of a device, with the two calls that NVML wants: one for how many. */
static nvmlReturn_t list(nvmlDevice_t d, const char *kind, unsigned int *n, nvmlProcessInfo_t *out)
{
	unsigned int room = *n, found = 0;
	char name[32], value[128];

	for (int j = 0; j < 32; j++) {
		long long memory;
		unsigned int pid;

		snprintf(name, sizeof(name), "%s%d", kind, j);
		if (!text_of(d, name, value, sizeof(value)))
			continue;
		if (sscanf(value, "%u %lld", &pid, &memory) == 2 && found < room) {
			memset(&out[found], 0, sizeof(out[found]));
			out[found].pid = pid;
			out[found].usedGpuMemory = (unsigned long long)memory;
			out[found].gpuInstanceId = out[found].computeInstanceId = 0xFFFFFFFF;
		}
		found++;
	}
	*n = found;
	return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *out)
{
	CHECK(d);
	return list(d, "proc", n, out);
}
EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *out)
{
	CHECK(d);
	return list(d, "gfx", n, out);
}
EXPORT nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *out)
{
	CHECK(d);
	return list(d, "mps", n, out);
}

/* stamp is the time of a sample, in the driver's microseconds of the wall clock. */
static unsigned long long stamp(double age)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (unsigned long long)((double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3 - age * 1e6);
}

/* Only samples that are newer than since, and NOT_FOUND if there is none. A process that did not
 * run in the sample's time has none. */
EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t d, nvmlProcessUtilizationSample_t *out, unsigned int *n,
						    unsigned long long since)
{
	unsigned int room = out ? *n : 0, found = 0;
	char name[32], value[128];

	CHECK(d);
	if (mig(d))
		return NVML_ERROR_NOT_SUPPORTED;
	for (int j = 0; j < 64; j++) {
		unsigned int pid, util;
		long long memory;
		double age;

		snprintf(name, sizeof(name), j < 32 ? "proc%d" : "sample%d", j % 32);
		if (!text_of(d, name, value, sizeof(value)))
			continue;
		if (j < 32 ? sscanf(value, "%u %lld %u %lf", &pid, &memory, &util, &age) != 4 :
			     sscanf(value, "%u %u %lf", &pid, &util, &age) != 3)
			continue;
		if (stamp(age) <= since)
			continue;
		if (found < room) {
			memset(&out[found], 0, sizeof(out[found]));
			out[found].pid = pid;
			out[found].smUtil = util;
			out[found].timeStamp = stamp(age);
		}
		found++;
	}
	*n = found;
	if (!found)
		return NVML_ERROR_NOT_FOUND;
	return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
	events.next = 0;
	set->handle = &events;
	opened(&sets, 1);
	return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) { (void)set; opened(&sets, -1); return NVML_SUCCESS; }
EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, nvmlEventSet_t set)
{
	(void)types; (void)set;
	CHECK(d);
	return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int ms)
{
	char value[64];
	/* 0xFFFFFFFF stands for an event of the whole device. */
	unsigned int gpu, gi = 0xFFFFFFFF, ci = 0xFFFFFFFF;
	unsigned long long code;

	(void)ms;
	if (!find("xid", set.handle->next, value, sizeof(value)) || sscanf(value, "%u %llu %u %u", &gpu, &code, &gi, &ci) < 2)
		return NVML_ERROR_TIMEOUT;
	set.handle->next++;
	memset(data, 0, sizeof(*data));
	data->device.handle = &devices[gpu][0];
	data->eventType = nvmlEventTypeXidCriticalError;
	data->eventData = code;
	data->gpuInstanceId = gi;
	data->computeInstanceId = ci;
	return NVML_SUCCESS;
}

#ifndef OLD
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, nvmlMemory_v2_t *m)
{
	nvmlReturn_t ret;

	CHECK(d);
	ret = number_of(d, "mem.used", &m->used);
	if (ret == NVML_SUCCESS)
		ret = number_of(d, "mem.total", &m->total);
	if (number_of(d, "mem.reserved", &m->reserved) != NVML_SUCCESS)
		m->reserved = 0;
	m->free = m->total - m->used - m->reserved;
	return ret;
}
EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t d, unsigned long long *bits)
{
	CHECK(d);
	return number_of(d, "clockevents", bits);
}
EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t d, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter,
						unsigned long long *n)
{
	const char *kind = type == NVML_MEMORY_ERROR_TYPE_CORRECTED ? "corrected" : "uncorrected";
	char key[64];
	nvmlReturn_t ret;

	CHECK(d);
	snprintf(key, sizeof(key), "ecc.%s", kind);
	ret = number_of(d, key, n);
	if (ret != NVML_SUCCESS || counter == NVML_AGGREGATE_ECC)
		return ret;
	snprintf(key, sizeof(key), "ecc.volatile.%s", kind);
	if (number_of(d, key, n) != NVML_SUCCESS)
		*n = 0;
	return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t d, unsigned int *corrected, unsigned int *uncorrected,
					      unsigned int *pending, unsigned int *failed)
{
	nvmlReturn_t ret;

	CHECK(d);
	ret = u32_of(d, "remap.corrected", corrected);
	*uncorrected = *pending = *failed = 0;
	if (ret == NVML_SUCCESS) {
		u32_of(d, "remap.uncorrected", uncorrected);
		u32_of(d, "remap.pending", pending);
		u32_of(d, "remap.failed", failed);
	}
	return ret;
}
EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int n, nvmlFieldValue_t *values)
{
	CHECK(d);
	for (int i = 0; i < n; i++) {
		char name[32], text[64], type[16] = "";

		snprintf(name, sizeof(name), "field%u", values[i].fieldId);
		values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
		if (!text_of(d, name, text, sizeof(text)))
			continue;
		sscanf(text, "%*s %15s", type);
		values[i].nvmlReturn = NVML_SUCCESS;
		memset(&values[i].value, 0xff, sizeof(values[i].value)); /* what is not the value's is anything */
		values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
		if (!strcmp(type, "double")) {
			values[i].valueType = NVML_VALUE_TYPE_DOUBLE;
			values[i].value.dVal = strtod(text, NULL);
		} else if (!strcmp(type, "uint")) {
			values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
			values[i].value.uiVal = (unsigned int)strtoul(text, NULL, 0);
		} else if (!strcmp(type, "int")) {
			values[i].valueType = NVML_VALUE_TYPE_SIGNED_INT;
			values[i].value.siVal = (int)strtol(text, NULL, 0);
		} else if (!strcmp(type, "llong")) {
			values[i].valueType = NVML_VALUE_TYPE_SIGNED_LONG_LONG;
			values[i].value.sllVal = strtoll(text, NULL, 0);
		} else if (!strcmp(type, "ulong")) {
			values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG;
			values[i].value.ulVal = strtoul(text, NULL, 0);
		} else {
			values[i].value.ullVal = strtoull(text, NULL, 0);
		}
	}
	return NVML_SUCCESS;
}

/* The samples of the GPU's utilization that are newer than since; without a buffer how many. */
EXPORT nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t d, nvmlSamplingType_t type, unsigned long long since,
					 nvmlValueType_t *value_type, unsigned int *n, nvmlSample_t *out)
{
	unsigned int room = out ? *n : 64, found = 0, any = 0;
	char name[32], value[128];

	CHECK(d);
	if (mig(d) || type != NVML_GPU_UTILIZATION_SAMPLES)
		return NVML_ERROR_NOT_SUPPORTED;
	*value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
	for (int j = 0; j < 64 && found < room; j++) {
		unsigned int util;
		double age;

		snprintf(name, sizeof(name), "utilsample%d", j);
		if (!text_of(d, name, value, sizeof(value)) || sscanf(value, "%u %lf", &util, &age) != 2)
			continue;
		any = 1;
		if (stamp(age) <= since)
			continue;
		if (out) {
			memset(&out[found], 0xff, sizeof(out[found]));
			out[found].timeStamp = stamp(age);
			out[found].sampleValue.uiVal = util;
		}
		found++;
	}
	*n = found;
	if (!any)
		return NVML_ERROR_NOT_SUPPORTED;
	return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t d, nvmlGpmSupport_t *s)
{
	unsigned int yes = 0;

	u32_of(d, "gpm", &yes);
	s->isSupportedDevice = yes;
	return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *s)
{
	s->handle = calloc(1, sizeof(*s->handle));
	opened(&samples, 1);
	return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t s) { free(s.handle); opened(&samples, -1); return NVML_SUCCESS; }

EXPORT nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t d, nvmlGpmSample_t s)
{
	s.handle->of = d;
	clock_gettime(CLOCK_MONOTONIC, &s.handle->at);
	return lost(d);
}
EXPORT nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t d, unsigned int instance, nvmlGpmSample_t s)
{
	nvmlDevice_t part;

	clock_gettime(CLOCK_MONOTONIC, &s.handle->at);
	for (unsigned int i = 0; i < MAX_PARTS; i++)
		if (nvmlDeviceGetMigDeviceHandleByIndex(d, i, &part) == NVML_SUCCESS && instance_of(part) == instance) {
			s.handle->of = part;
			return lost(d);
		}
	return NVML_ERROR_INVALID_ARGUMENT;
}
EXPORT nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get)
{
	double apart;

	if (get->version != NVML_GPM_METRICS_GET_VERSION || !get->sample1.handle || !get->sample2.handle)
		return NVML_ERROR_INVALID_ARGUMENT;
	apart = (double)(get->sample2.handle->at.tv_sec - get->sample1.handle->at.tv_sec) +
		       (double)(get->sample2.handle->at.tv_nsec - get->sample1.handle->at.tv_nsec) / 1e9;

	if (apart < 0.1)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (unsigned int i = 0; i < get->numMetrics; i++) {
		nvmlGpmMetric_t *m = &get->metrics[i];
		char name[32], value[64];

		snprintf(name, sizeof(name), "gpm%u", m->metricId);
		m->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
		if (text_of(get->sample2.handle->of, name, value, sizeof(value))) {
			m->nvmlReturn = NVML_SUCCESS;
			m->value = strtod(value, NULL);
		}
	}
	return NVML_SUCCESS;
}
#endif
