/* A stand-in libcuda.so.1 for machines without a GPU: no memory, no kernels, but every call is counted and every launch
   kept, with its parameters' bytes. STUB_CAPABILITY=87 sets the GPU, STUB_FAIL=cuLaunchKernel makes that call fail. */

#include "stub_driver.h"

#include <stdlib.h>
#include <string.h>

stub_record stub = {0};

static int answer(const char *name, int *counter) {
    const char *fails = getenv("STUB_FAIL");
    ++*counter;
    return fails && strcmp(fails, name) == 0 ? 700 : 0;
}

int cuInit(unsigned flags) { return answer("cuInit", &stub.calls) + (int)flags; }
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal > 0 ? 101 : 0;
}
int cuCtxGetDevice(int *device) {
    *device = 0;
    return answer("cuCtxGetDevice", &stub.calls);
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *text = getenv("STUB_CAPABILITY");
    int capability = text ? atoi(text) : 87;
    (void)device;
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : attribute == 16 ? 16 : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = &stub;
    return answer("cuDevicePrimaryCtxRetain", &stub.retained);
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return answer("cuDevicePrimaryCtxRelease", &stub.released);
}
int cuCtxPushCurrent_v2(void *context) { return context == &stub ? answer("cuCtxPushCurrent", &stub.pushed) : 201; }
int cuCtxPopCurrent_v2(void **context) {
    *context = &stub;
    return answer("cuCtxPopCurrent", &stub.popped);
}
int cuModuleLoadData(void **module, const void *image) {
    *module = stub.last_image = (void *)image;
    return answer("cuModuleLoadData", &stub.loaded);
}
int cuModuleUnload(void *module) { return module ? answer("cuModuleUnload", &stub.unloaded) : 400; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = module;
    strncpy(stub.last_entry, name, sizeof stub.last_entry - 1);
    return answer("cuModuleGetFunction", &stub.calls);
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    stub.opted_in = attribute == 8 && function ? value : -1;
    return answer("cuFuncSetAttribute", &stub.calls);
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    stub_launch *launch = &stub.launches[stub.launched % STUB_KEPT];
    if (stub.pushed != stub.popped + 1) return 201; /* no context is current */
    launch->image = function;
    launch->grid[0] = gx, launch->grid[1] = gy, launch->grid[2] = gz;
    launch->block[0] = bx, launch->block[1] = by, launch->block[2] = bz;
    launch->shared = shared;
    launch->stream = stream;
    launch->no_extra = extra == NULL;
    for (launch->count = 0; launch->count < STUB_PARAMETERS && parameters[launch->count]; ++launch->count)
        memcpy(&launch->parameters[launch->count], parameters[launch->count], sizeof(uint64_t));
    return answer("cuLaunchKernel", &stub.launched);
}
/* Memory of the stand-in device is the host's, so that uploads and downloads can be checked. */
int cuMemAlloc_v2(uint64_t *memory, size_t bytes) {
    void *block = NULL;
    if (posix_memalign(&block, 256, bytes ? bytes : 1)) return 2;
    *memory = (uint64_t)(uintptr_t)block;
    return answer("cuMemAlloc", &stub.allocated);
}
int cuMemFree_v2(uint64_t memory) {
    free((void *)(uintptr_t)memory);
    return answer("cuMemFree", &stub.freed);
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    memcpy((void *)(uintptr_t)to, from, bytes);
    return answer("cuMemcpyHtoD", &stub.calls);
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return answer("cuMemcpyDtoH", &stub.calls);
}
int cuMemsetD8Async(uint64_t memory, unsigned char byte, size_t bytes, void *stream) {
    (void)stream;
    stub.filled_at = memory, stub.filled_with = byte, stub.filled_bytes = bytes;
    return answer("cuMemsetD8Async", &stub.calls);
}
int cuStreamSynchronize(void *stream) {
    (void)stream;
    return answer("cuStreamSynchronize", &stub.calls);
}
int cuGetErrorString(int error, const char **text) {
    *text = error == 700 ? "an illegal memory access was encountered" : error == 101 ? "invalid device ordinal" : "error";
    return 0;
}
