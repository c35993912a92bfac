/* libdpm_kernels: dpm-edge's GPU kernels for C and C++ programs. CUDA driver only: no cudart, no Python, no torch.

   The library holds one machine-code image per kernel and GPU architecture and picks by compute capability. It opens
   libcuda.so.1 in dpm_open, so a program linked with it starts on machines without a GPU too. Every function may be
   called from any thread; the device's primary context is made current inside and what was current is put back.

       dpm_kernels *kernels;
       if (dpm_open(0, &kernels) != DPM_OK) { fprintf(stderr, "%s\n", dpm_last_error()); return 1; }
       …
       dpm_close(kernels);

   Not yet run on a GPU: tested against a stand-in driver that counts and checks launches. */

#ifndef DPM_KERNELS_H
#define DPM_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#error "libdpm_kernels is for Linux"
#endif
#define DPM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dpm_status {
    DPM_OK = 0,
    DPM_NO_DRIVER = 1,   /* libcuda.so.1 is not there, or too old */
    DPM_NO_KERNEL = 2,   /* no such kernel, or none for this GPU */
    DPM_BAD_VALUE = 3,   /* an argument breaks the kernel's contract */
    DPM_CUDA_ERROR = 4   /* the driver reported an error */
} dpm_status;

typedef struct dpm_kernels dpm_kernels;      /* the kernels on one device */
typedef struct CUstream_st *dpm_stream;      /* a CUstream or cudaStream_t; NULL is the default stream */
typedef uint64_t dpm_address;                /* a CUdeviceptr: memory of the device */

/* What went wrong in this thread's last call that did not return DPM_OK; valid until its next call. */
DPM_API const char *dpm_last_error(void);

/* Retain the primary context of CUDA device `device`. On DPM_OK, close *kernels with dpm_close. */
DPM_API dpm_status dpm_open(int device, dpm_kernels **kernels);
/* Unload the kernels and release the context; NULL is allowed. Work that uses them must have finished. */
DPM_API void dpm_close(dpm_kernels *kernels);
/* Compute capability of the device: 87 is 8.7. */
DPM_API int dpm_capability(const dpm_kernels *kernels);

/* Device memory, for programs that use no CUDA library of their own. Copies wait until they are done. */
DPM_API dpm_status dpm_allocate(dpm_kernels *kernels, size_t bytes, dpm_address *memory);
DPM_API dpm_status dpm_free(dpm_kernels *kernels, dpm_address memory);
DPM_API dpm_status dpm_upload(dpm_kernels *kernels, dpm_address to, const void *from, size_t bytes);
DPM_API dpm_status dpm_download(dpm_kernels *kernels, void *to, dpm_address from, size_t bytes);
DPM_API dpm_status dpm_synchronize(dpm_kernels *kernels, dpm_stream stream);

/* ---- Any kernel by name ---- */

/* A named value: a parameter of the kernel, or a size that its grid needs. `number` holds addresses and integers. */
typedef struct dpm_value {
    const char *name;
    int64_t number;
    float real; /* for parameters of type fp32 */
} dpm_value;

/* Enqueue one kernel; the names are those of the launch JSON that ahead-of-time compilation writes. */
DPM_API dpm_status dpm_launch(
    dpm_kernels *kernels, const char *variant, const dpm_value *values, size_t count, dpm_stream stream);

/* Names of the embedded kernels, in order; NULL past the last. */
DPM_API const char *dpm_variant(size_t index);

#ifdef __cplusplus
}
#endif
#endif
