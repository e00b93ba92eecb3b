/* SPDX-License-Identifier: Apache-2.0
 *
 * Keeps an NVIDIA GPU busy in a known way, with the driver's own library only:
 *
 *     load context|compute|memory SECONDS MIB [PERCENT]
 *
 * context allocates MIB and runs nothing; compute multiplies and adds in registers;
 * memory copies between two halves of MIB. PERCENT of the time it works, by turns of
 * 50 ms; the default is 100. It prints "ready" when the memory is allocated.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* As much of the CUDA driver API as is used. */
typedef int CUresult;
typedef int CUdevice;
typedef void *CUcontext, *CUmodule, *CUfunction, *CUstream;
typedef unsigned long long CUdeviceptr;

static void *library;

static void *symbol(const char *name)
{
	void *p = dlsym(library, name);

	if (!p) {
		fprintf(stderr, "load: libcuda.so.1 has no %s\n", name);
		exit(1);
	}
	return p;
}

#define CALL(name, types, ...) \
	do { \
		CUresult r = ((CUresult(*) types)symbol(name))(__VA_ARGS__); \
		if (r) { \
			fprintf(stderr, "load: %s: CUDA error %d\n", name, r); \
			exit(1); \
		} \
	} while (0)

/* Both kernels: ARGUMENT is the number of turns of the inner loop. */
static const char ptx[] =
	".version 6.0\n.target sm_50\n.address_size 64\n"
	".visible .entry compute(.param .u64 out, .param .u32 turns)\n{\n"
	"  .reg .f32 %f<4>;\n  .reg .u32 %r<3>;\n  .reg .u64 %d<2>;\n  .reg .pred %p;\n"
	"  ld.param.u64 %d0, [out];\n  ld.param.u32 %r0, [turns];\n"
	"  mov.f32 %f0, 0f3F800000;\n  mov.f32 %f1, 0f3F800001;\n  mov.f32 %f2, 0f3F800000;\n  mov.f32 %f3, 0f3F800002;\n"
	"LOOP:\n  fma.rn.f32 %f0, %f0, %f1, %f3;\n  fma.rn.f32 %f2, %f2, %f3, %f1;\n"
	"  sub.u32 %r0, %r0, 1;\n  setp.ne.u32 %p, %r0, 0;\n  @%p bra LOOP;\n"
	"  add.f32 %f0, %f0, %f2;\n  setp.eq.f32 %p, %f0, 0f00000000;\n"
	"  @%p st.global.f32 [%d0], %f0;\n  ret;\n}\n";

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void sleep_for(double seconds)
{
	struct timespec t = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };

	nanosleep(&t, NULL);
}

int main(int argc, char **argv)
{
	CUdevice device = 0;
	CUcontext context;
	CUmodule module;
	CUfunction kernel;
	CUdeviceptr memory;
	double seconds, share, end;
	size_t bytes;

	if (argc < 4 || (strcmp(argv[1], "context") && strcmp(argv[1], "compute") && strcmp(argv[1], "memory"))) {
		fprintf(stderr, "usage: load context|compute|memory SECONDS MIB [PERCENT]\n");
		return 2;
	}
	seconds = atof(argv[2]);
	bytes = (size_t)atol(argv[3]) << 20;
	share = argc > 4 ? atof(argv[4]) / 100 : 1;
	library = dlopen("libcuda.so.1", RTLD_NOW);
	if (!library) {
		fprintf(stderr, "load: %s\n", dlerror());
		return 1;
	}
	CALL("cuInit", (unsigned int), 0);
	CALL("cuDeviceGet", (CUdevice *, int), &device, 0);
	CALL("cuCtxCreate_v2", (CUcontext *, unsigned int, CUdevice), &context, 0, device);
	CALL("cuMemAlloc_v2", (CUdeviceptr *, size_t), &memory, bytes);
	CALL("cuModuleLoadData", (CUmodule *, const void *), &module, ptx);
	CALL("cuModuleGetFunction", (CUfunction *, CUmodule, const char *), &kernel, module, "compute");
	puts("ready");
	fflush(stdout);

	end = now() + seconds;
	while (now() < end) {
		double turn = now();

		if (!strcmp(argv[1], "context")) {
			sleep_for(0.05);
			continue;
		}
		while (now() - turn < 0.05 * share) {
			if (!strcmp(argv[1], "memory")) {
				CALL("cuMemcpyDtoD_v2", (CUdeviceptr, CUdeviceptr, size_t), memory, memory + bytes / 2, bytes / 2);
			} else {
				unsigned int turns = 20000;
				void *arguments[] = { &memory, &turns };

				CALL("cuLaunchKernel",
				     (CUfunction, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
				      unsigned int, CUstream, void **, void **),
				     kernel, 4096, 1, 1, 256, 1, 1, 0, NULL, arguments, NULL);
			}
			CALL("cuCtxSynchronize", (void));
		}
		if (share < 1)
			sleep_for(0.05 * (1 - share));
	}
	CALL("cuMemFree_v2", (CUdeviceptr), memory);
	CALL("cuCtxDestroy_v2", (CUcontext), context);
	return 0;
}
