/* The part of the CUDA driver API that is used, opened at run time: the library links to nothing of CUDA. Internal. */

#ifndef DPM_DRIVER_H
#define DPM_DRIVER_H

#include <stddef.h>

#include "dpm_kernels.h"

/* Values of cuda.h's enumerations, fixed by the driver's ABI. */
enum {
    DPM_CU_MULTIPROCESSORS = 16,         /* CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT */
    DPM_CU_CAPABILITY_MAJOR = 75,        /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR */
    DPM_CU_CAPABILITY_MINOR = 76,        /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR */
    DPM_CU_MAX_DYNAMIC_SHARED_BYTES = 8  /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
};

typedef void *dpm_context, *dpm_module, *dpm_function;

/* name in libcuda, arguments; every one returns a CUresult, 0 for success */
#define DPM_DRIVER_CALLS(CALL)                                                                                         \
    CALL(cuInit, unsigned)                                                                                             \
    CALL(cuDeviceGet, int *, int)                                                                                      \
    CALL(cuCtxGetDevice, int *)                                                                                        \
    CALL(cuDeviceGetAttribute, int *, int, int)                                                                        \
    CALL(cuDevicePrimaryCtxRetain, dpm_context *, int)                                                                 \
    CALL(cuDevicePrimaryCtxRelease_v2, int)                                                                            \
    CALL(cuCtxPushCurrent_v2, dpm_context)                                                                             \
    CALL(cuCtxPopCurrent_v2, dpm_context *)                                                                            \
    CALL(cuModuleLoadData, dpm_module *, const void *)                                                                 \
    CALL(cuModuleUnload, dpm_module)                                                                                   \
    CALL(cuModuleGetFunction, dpm_function *, dpm_module, const char *)                                                \
    CALL(cuFuncSetAttribute, dpm_function, int, int)                                                                   \
    CALL(cuLaunchKernel, dpm_function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,           \
         dpm_stream, void **, void **)                                                                                 \
    CALL(cuMemAlloc_v2, dpm_address *, size_t)                                                                         \
    CALL(cuMemFree_v2, dpm_address)                                                                                    \
    CALL(cuMemcpyHtoD_v2, dpm_address, const void *, size_t)                                                           \
    CALL(cuMemcpyDtoH_v2, void *, dpm_address, size_t)                                                                 \
    CALL(cuMemsetD8Async, dpm_address, unsigned char, size_t, dpm_stream)                                              \
    CALL(cuStreamSynchronize, dpm_stream)                                                                              \
    CALL(cuGetErrorString, int, const char **)

typedef struct dpm_driver {
#define DPM_MEMBER(name, ...) int (*name)(__VA_ARGS__);
    DPM_DRIVER_CALLS(DPM_MEMBER)
#undef DPM_MEMBER
} dpm_driver;

/* The driver's functions; NULL with the error set where libcuda.so.1 is missing or lacks one. Opened once. */
const dpm_driver *dpm_driver_get(void);

/* Set this thread's error text and return `status`. */
dpm_status dpm_fail(dpm_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* DPM_OK, or DPM_CUDA_ERROR with the driver's own words for what `call` returned. */
dpm_status dpm_check(const dpm_driver *driver, int result, const char *call);

#endif
