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

enum { DPM_CURRENT_DEVICE = -1 };

/* Retain the primary context of CUDA device `device`, or of the current context's device. On DPM_OK, close *kernels with dpm_close. */
DPM_API dpm_status dpm_open(int device, dpm_kernels **kernels);
/* Unload the kernels and release the context; NULL is allowed. Work that uses them must have finished. */
DPM_API void dpm_close(dpm_kernels *kernels);
/* Compute capability of the device: 87 is 8.7. */
DPM_API int dpm_capability(const dpm_kernels *kernels);

/* Device memory, for programs that use no CUDA library of their own. Copies wait until they are done;
   dpm_fill is enqueued on the stream. */
DPM_API dpm_status dpm_allocate(dpm_kernels *kernels, size_t bytes, dpm_address *memory);
DPM_API dpm_status dpm_free(dpm_kernels *kernels, dpm_address memory);
DPM_API dpm_status dpm_upload(dpm_kernels *kernels, dpm_address to, const void *from, size_t bytes);
DPM_API dpm_status dpm_fill(dpm_kernels *kernels, dpm_address memory, unsigned char byte, size_t bytes, dpm_stream stream);
DPM_API dpm_status dpm_download(dpm_kernels *kernels, void *to, dpm_address from, size_t bytes);
DPM_API dpm_status dpm_synchronize(dpm_kernels *kernels, dpm_stream stream);

/* ---- Masked similarity of queries to targets ----
   s(q, m, t) = sum(q m t) / sqrt(sum(m^2 t^2)), q and t L2-normalised (DPM, ACM MM 2022, arXiv 2207.09046).
   0 where the mask, the query or what is left of the target is zero. */

typedef enum dpm_dtype { DPM_FLOAT32, DPM_FLOAT16, DPM_BFLOAT16, DPM_INT8 } dpm_dtype;

typedef struct dpm_targets {
    dpm_address rows;      /* count x width of dtype, 16-byte aligned */
    dpm_address row_scale; /* int8: count float32, row = scale * int8; else 0 */
    dpm_dtype dtype;
    int64_t count;         /* N, under 2^31 */
    int width;             /* D, a multiple of 128 */
} dpm_targets;

enum { DPM_MOST_RESULTS = 128 };

/* Bytes of scratch memory that the calls below need; 0 with the error set for a shape they cannot take. */
DPM_API size_t dpm_masked_similarity_workspace(const dpm_targets *targets, int batch);
DPM_API size_t dpm_masked_topk_workspace(const dpm_targets *targets, int batch, int k);

/* query, mask: batch x width float32; similarity: batch x count float32. All 16-byte aligned. */
DPM_API dpm_status dpm_masked_similarity(
    dpm_kernels *kernels, const dpm_targets *targets, dpm_address query, dpm_address mask, int batch,
    dpm_address workspace, dpm_address similarity, dpm_stream stream);

/* The k best targets of each query, best first, without ever writing batch x count similarities.
   keep: count bytes, non-zero for rows that may be found; 0 for all. scores: batch x k float32, -inf where fewer were
   kept; rows: batch x k int64, -1 beside -inf. k at most DPM_MOST_RESULTS and count. */
DPM_API dpm_status dpm_masked_topk(
    dpm_kernels *kernels, const dpm_targets *targets, dpm_address query, dpm_address mask, int batch, int k,
    dpm_address keep, dpm_address workspace, dpm_address scores, dpm_address rows, dpm_stream stream);

/* ---- Crops of one frame, ready for the network ----
   Bilinear with half-pixel centres, OpenCV's fixed point; a box is rounded outward and clipped, an unusable one gives
   zeros. One launch for all boxes. */

typedef struct dpm_frame {
    dpm_address plane;  /* BGR: height x width x 3 bytes; NV12: luma, height x width bytes */
    dpm_address chroma; /* NV12 (BT.601 limited range): U, V pairs of 2x2 pixels; 0 for BGR */
    int height, width;
    int plane_stride, chroma_stride; /* bytes from row to row */
} dpm_frame;

/* Six floats for `affine` below: out = grey * affine[c] + affine[3 + c] = (grey / 255 - mean[c]) / std[c], c = R, G, B. */
DPM_API void dpm_affine(const float mean[3], const float std[3], float affine[6]);

/* boxes: box_count x 4 float32 x0 y0 x1 y1 in pixels; affine: 6 float32 on the device;
   crops: box_count x 3 x crop_height x crop_width float16, channels R, G, B. All 16-byte aligned. */
DPM_API dpm_status dpm_crop_resize_normalize(
    dpm_kernels *kernels, const dpm_frame *frame, dpm_address boxes, int box_count, dpm_address affine,
    int crop_height, int crop_width, dpm_address crops, dpm_stream stream);

/* ---- Mask head: prototype mask from the tokens of four blocks (DPM, ACM MM 2022, arXiv 2207.09046), float16 ---- */

typedef struct dpm_mask_head_shape {
    int batch;         /* images, B */
    int height, width; /* grid of patches, each at least 4 */
    int channels;      /* width of the network, d; a multiple of 64 */
} dpm_mask_head_shape;

/* Bytes of scratch memory that dpm_mask_head needs on this device; 0 with the error set for a shape it cannot take. */
DPM_API size_t dpm_mask_head_workspace(const dpm_kernels *kernels, dpm_mask_head_shape shape);

/* tokens: four of B x (1 + height*width) x d, cls first; feature: B x d, L2-normalised.
   weights: eight packed tensors of the `paper` head, convolutions as implicit GEMM (dpm_edge.kernels.mask_head.pack).
   mask, masked_feature (feature times mask), squared_mask: B x d. All float16, 16-byte aligned. */
DPM_API dpm_status dpm_mask_head(
    dpm_kernels *kernels, dpm_mask_head_shape shape, const dpm_address tokens[4], const dpm_address weights[8],
    dpm_address feature, dpm_address workspace, dpm_address mask, dpm_address masked_feature, dpm_address squared_mask,
    dpm_stream stream);

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
