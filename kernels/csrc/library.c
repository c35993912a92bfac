#include "library.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

enum { DEFAULT_SHARED_BYTES = 48 * 1024, TEGRA = 87, MOST_BLOCKS_YZ = 65535 };

typedef struct loaded {
    dpm_module module;
    dpm_function function;
} loaded;

struct dpm_kernels {
    const dpm_driver *driver;
    int device, capability, multiprocessors;
    dpm_context context;
    pthread_mutex_t loading;
    loaded *entries; /* one per image, filled at its first launch */
};

static dpm_status enter(const dpm_kernels *kernels) {
    return dpm_check(kernels->driver, kernels->driver->cuCtxPushCurrent_v2(kernels->context), "cuCtxPushCurrent");
}

static dpm_status leave(const dpm_kernels *kernels, dpm_status status) {
    dpm_context ours;
    kernels->driver->cuCtxPopCurrent_v2(&ours);
    return status;
}

dpm_status dpm_open(int device, dpm_kernels **out) {
    const dpm_driver *driver = dpm_driver_get();
    int handle, major = 0, minor = 0, multiprocessors = 0;
    dpm_context context;
    dpm_kernels *kernels;
    dpm_status status;
    *out = NULL;
    if (!driver) return DPM_NO_DRIVER;
    if ((status = dpm_check(driver, driver->cuInit(0), "cuInit"))) return status;
    if (device == DPM_CURRENT_DEVICE)
        status = dpm_check(driver, driver->cuCtxGetDevice(&handle), "cuCtxGetDevice");
    else
        status = dpm_check(driver, driver->cuDeviceGet(&handle, device), "cuDeviceGet");
    if (status) return status;
    status = dpm_check(driver, driver->cuDeviceGetAttribute(&major, DPM_CU_CAPABILITY_MAJOR, handle), "compute capability");
    if (status) return status;
    status = dpm_check(driver, driver->cuDeviceGetAttribute(&minor, DPM_CU_CAPABILITY_MINOR, handle), "compute capability");
    if (status) return status;
    status = dpm_check(driver, driver->cuDeviceGetAttribute(&multiprocessors, DPM_CU_MULTIPROCESSORS, handle),
                       "multiprocessors");
    if (status) return status;
    kernels = calloc(1, sizeof *kernels);
    if (kernels) kernels->entries = calloc(dpm_image_count + 1, sizeof *kernels->entries);
    if (!kernels || !kernels->entries) {
        free(kernels);
        return dpm_fail(DPM_BAD_VALUE, "out of host memory");
    }
    status = dpm_check(driver, driver->cuDevicePrimaryCtxRetain(&context, handle), "cuDevicePrimaryCtxRetain");
    if (status) {
        free(kernels->entries);
        free(kernels);
        return status;
    }
    kernels->driver = driver;
    kernels->device = handle;
    kernels->capability = 10 * major + minor;
    kernels->multiprocessors = multiprocessors > 0 ? multiprocessors : 1;
    kernels->context = context;
    pthread_mutex_init(&kernels->loading, NULL);
    *out = kernels;
    return DPM_OK;
}

void dpm_close(dpm_kernels *kernels) {
    if (!kernels) return;
    if (enter(kernels) == DPM_OK) {
        for (size_t i = 0; i < dpm_image_count; ++i)
            if (kernels->entries[i].module) kernels->driver->cuModuleUnload(kernels->entries[i].module);
        leave(kernels, DPM_OK);
    }
    kernels->driver->cuDevicePrimaryCtxRelease_v2(kernels->device);
    pthread_mutex_destroy(&kernels->loading);
    free(kernels->entries);
    free(kernels);
}

int dpm_capability(const dpm_kernels *kernels) { return kernels->capability; }

int dpm_multiprocessors(const dpm_kernels *kernels) { return kernels->multiprocessors; }

const char *dpm_variant(size_t index) {
    const char *previous = "";
    for (size_t i = 0; i < dpm_image_count; ++i) { /* images of one variant stand together */
        if (strcmp(previous, dpm_images[i].variant) == 0) continue;
        if (index-- == 0) return dpm_images[i].variant;
        previous = dpm_images[i].variant;
    }
    return NULL;
}

/* 2 for the device's own machine code, 1 for an older one of major version 8 (later ones are for exactly their GPU,
   and Jetson's for Jetson only), 0 for neither. */
static int fit(int capability, int sm) {
    if (sm == capability) return 2;
    return capability / 10 == 8 && sm / 10 == 8 && sm < capability && sm != TEGRA && capability != TEGRA;
}

const dpm_image *dpm_choose(const dpm_kernels *kernels, const char *variant, int *jit) {
    const dpm_image *best = NULL, *portable = NULL;
    int known = 0;
    for (size_t i = 0; i < dpm_image_count; ++i) {
        const dpm_image *image = &dpm_images[i];
        if (strcmp(image->variant, variant) != 0) continue;
        known = 1;
        if (image->ptx && kernels->capability > image->sm) portable = image;
        if (!fit(kernels->capability, image->sm)) continue;
        if (!best || fit(kernels->capability, image->sm) > fit(kernels->capability, best->sm) || image->sm > best->sm)
            best = image;
        if (best->sm == kernels->capability) break;
    }
    *jit = !best && portable;
    if (best || portable) return best ? best : portable;
    if (known)
        dpm_fail(DPM_NO_KERNEL, "%s was not compiled for compute capability %d.%d; build the library with DPM_KERNELS_ARCH=%d",
                 variant, kernels->capability / 10, kernels->capability % 10, kernels->capability);
    else
        dpm_fail(DPM_NO_KERNEL, "no kernel is named %s; see dpm_variant()", variant);
    return NULL;
}

int64_t dpm_constant_of(const dpm_image *image, const char *name, int64_t otherwise) {
    for (int i = 0; i < image->constant_count; ++i)
        if (strcmp(image->constants[i].name, name) == 0) return image->constants[i].value;
    return otherwise;
}

static dpm_status load(dpm_kernels *kernels, const dpm_image *image, int jit, dpm_function *function) {
    const dpm_driver *driver = kernels->driver;
    loaded *entry = &kernels->entries[image - dpm_images], fresh = {0};
    dpm_status status = DPM_OK;
    pthread_mutex_lock(&kernels->loading);
    if (!entry->function) {
        status = dpm_check(driver, driver->cuModuleLoadData(&fresh.module, jit ? image->ptx : image->cubin), image->variant);
        if (!status)
            status = dpm_check(driver, driver->cuModuleGetFunction(&fresh.function, fresh.module, image->entry), image->entry);
        if (!status && image->shared_bytes > DEFAULT_SHARED_BYTES)
            status = dpm_check(
                driver,
                driver->cuFuncSetAttribute(fresh.function, DPM_CU_MAX_DYNAMIC_SHARED_BYTES, (int)image->shared_bytes),
                "opting in to more shared memory");
        if (!status) *entry = fresh;
        else if (fresh.module) driver->cuModuleUnload(fresh.module);
    }
    *function = entry->function;
    pthread_mutex_unlock(&kernels->loading);
    return status;
}

static const dpm_value *find(const dpm_value *values, size_t count, const char *name) {
    for (size_t i = 0; i < count; ++i)
        if (strcmp(values[i].name, name) == 0) return &values[i];
    return NULL;
}

static int takes(const dpm_image *image, const char *name) {
    for (int i = 0; i < image->parameter_count; ++i)
        if (strcmp(image->parameters[i].name, name) == 0) return 1;
    for (int i = 0; i < image->size_count; ++i)
        if (strcmp(image->sizes[i], name) == 0) return 1;
    return 0;
}

static dpm_status blocks_of(const dpm_image *image, const dpm_value *values, size_t count, int64_t blocks[3]) {
    int64_t sizes[DPM_MOST_PARAMETERS];
    for (int i = 0; i < image->size_count; ++i) {
        const dpm_value *value = find(values, count, image->sizes[i]);
        if (!value) return dpm_fail(DPM_BAD_VALUE, "%s: expected the size %s for its grid, got none", image->variant, image->sizes[i]);
        if (value->number < 1)
            return dpm_fail(DPM_BAD_VALUE, "%s: expected %s of at least 1, got %lld", image->variant, image->sizes[i],
                            (long long)value->number);
        sizes[i] = value->number;
    }
    image->grid(sizes, blocks);
    if (blocks[0] < 1 || blocks[1] < 1 || blocks[2] < 1 || blocks[0] > INT32_MAX || blocks[1] > MOST_BLOCKS_YZ ||
        blocks[2] > MOST_BLOCKS_YZ)
        return dpm_fail(DPM_BAD_VALUE, "%s: a grid of %lld x %lld x %lld blocks cannot be launched", image->variant,
                        (long long)blocks[0], (long long)blocks[1], (long long)blocks[2]);
    return DPM_OK;
}

dpm_status dpm_launch(
    dpm_kernels *kernels, const char *variant, const dpm_value *values, size_t count, dpm_stream stream) {
    int jit;
    const dpm_image *image = dpm_choose(kernels, variant, &jit);
    union { uint64_t u64; int32_t i32; int64_t i64; float fp32; } held[DPM_MOST_PARAMETERS + 2];
    void *pointers[DPM_MOST_PARAMETERS + 3] = {0}; /* ends with NULL, by which the tests count */
    int64_t blocks[3];
    dpm_function function;
    dpm_status status;
    int n;
    if (!image) return DPM_NO_KERNEL;
    for (size_t i = 0; i < count; ++i)
        if (!takes(image, values[i].name))
            return dpm_fail(DPM_BAD_VALUE, "%s: expected values that it takes, got %s", variant, values[i].name);
    for (n = 0; n < image->parameter_count; ++n) {
        const dpm_parameter *parameter = &image->parameters[n];
        const dpm_value *value = find(values, count, parameter->name);
        if (!value) return dpm_fail(DPM_BAD_VALUE, "%s: expected a value for %s, got none", variant, parameter->name);
        if (parameter->multiple_of_16 && value->number % 16)
            return dpm_fail(DPM_BAD_VALUE, "%s: expected %s to be a multiple of 16, got %lld. Align the buffer or pad the dimension",
                            variant, parameter->name, (long long)value->number);
        if (parameter->kind == DPM_I32 && (value->number > INT32_MAX || value->number < INT32_MIN))
            return dpm_fail(DPM_BAD_VALUE, "%s: expected %s to fit 32 bits, got %lld", variant, parameter->name,
                            (long long)value->number);
        if (parameter->kind == DPM_I32) held[n].i32 = (int32_t)value->number;
        else if (parameter->kind == DPM_FP32) held[n].fp32 = value->real;
        else held[n].i64 = value->number;
        pointers[n] = &held[n];
    }
    for (int end = n + 2; n < end; ++n) { /* Triton's scratch pointers, which these kernels do not use */
        held[n].u64 = 0;
        pointers[n] = &held[n];
    }
    if ((status = blocks_of(image, values, count, blocks))) return status;
    if ((status = enter(kernels))) return status;
    status = load(kernels, image, jit, &function);
    if (!status)
        status = dpm_check(kernels->driver,
                           kernels->driver->cuLaunchKernel(function, (unsigned)blocks[0], (unsigned)blocks[1],
                                                           (unsigned)blocks[2], image->threads, 1, 1,
                                                           image->shared_bytes, stream, pointers, NULL),
                           variant);
    return leave(kernels, status);
}

#define IN_CONTEXT(call)                                                                                               \
    dpm_status status = enter(kernels);                                                                                \
    return status ? status : leave(kernels, dpm_check(kernels->driver, kernels->driver->call, __func__))

dpm_status dpm_allocate(dpm_kernels *kernels, size_t bytes, dpm_address *memory) {
    IN_CONTEXT(cuMemAlloc_v2(memory, bytes));
}
dpm_status dpm_free(dpm_kernels *kernels, dpm_address memory) { IN_CONTEXT(cuMemFree_v2(memory)); }
dpm_status dpm_upload(dpm_kernels *kernels, dpm_address to, const void *from, size_t bytes) {
    IN_CONTEXT(cuMemcpyHtoD_v2(to, from, bytes));
}
dpm_status dpm_download(dpm_kernels *kernels, void *to, dpm_address from, size_t bytes) {
    IN_CONTEXT(cuMemcpyDtoH_v2(to, from, bytes));
}
dpm_status dpm_fill(dpm_kernels *kernels, dpm_address memory, unsigned char byte, size_t bytes, dpm_stream stream) {
    IN_CONTEXT(cuMemsetD8Async(memory, byte, bytes, stream));
}
dpm_status dpm_synchronize(dpm_kernels *kernels, dpm_stream stream) { IN_CONTEXT(cuStreamSynchronize(stream)); }
