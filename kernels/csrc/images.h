/* The embedded kernels, as `python -m dpm_edge.kernels.embed` writes them. Internal. */

#ifndef DPM_IMAGES_H
#define DPM_IMAGES_H

#include <stddef.h>
#include <stdint.h>

typedef enum dpm_kind { DPM_POINTER, DPM_I32, DPM_I64, DPM_FP32 } dpm_kind;

typedef struct dpm_parameter {
    const char *name;
    dpm_kind kind;
    int multiple_of_16; /* the kernel was compiled for values that 16 divides */
} dpm_parameter;

typedef struct dpm_constant {
    const char *name;
    int64_t value;
} dpm_constant;

typedef struct dpm_image {
    const char *variant;
    int sm;
    const char *entry;
    const unsigned char *cubin, *ptx; /* ptx only where any later GPU's driver can compile it; ends with a zero byte */
    unsigned threads, shared_bytes;
    const dpm_parameter *parameters; /* without the two null pointers that every entry has at the end */
    int parameter_count;
    const char *const *sizes; /* names that the grid needs */
    int size_count;
    void (*grid)(const int64_t *sizes, int64_t blocks[3]);
    const dpm_constant *constants; /* tile sizes and other compile-time integers */
    int constant_count;
} dpm_image;

extern const dpm_image dpm_images[];
extern const size_t dpm_image_count;

#define DPM_MOST_PARAMETERS 64

#endif
