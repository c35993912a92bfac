/* What the ops need of the library. Internal. */

#ifndef DPM_LIBRARY_H
#define DPM_LIBRARY_H

#include "dpm_kernels.h"
#include "images.h"

/* The image of `variant` for this device; NULL with the error set where there is none. `*jit`: take its PTX. */
const dpm_image *dpm_choose(const dpm_kernels *kernels, const char *variant, int *jit);

/* A compile-time integer of an image, or `otherwise`. */
int64_t dpm_constant_of(const dpm_image *image, const char *name, int64_t otherwise);

/* Multiprocessors of the device. */
int dpm_multiprocessors(const dpm_kernels *kernels);

#endif
