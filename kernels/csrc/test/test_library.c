/* libdpm_kernels against the stand-in driver, with three made-up kernels: choice by capability, parameters, errors. */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../dpm_kernels.h"
#include "../images.h"
#include "stub_driver.h"

static int failures = 0;
#define CHECK(condition)                                                                                               \
    if (!(condition)) {                                                                                                \
        ++failures;                                                                                                    \
        fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, dpm_last_error());     \
    }
#define HAS(words) (strstr(dpm_last_error(), words) != NULL)

static const unsigned char cubin_80[] = "cubin 80", ptx_80[] = "ptx 80", cubin_87[] = "cubin 87", cubin_90[] = "cubin 90";
static const dpm_parameter parameters[] = {{"X", DPM_POINTER, 1}, {"FACTOR", DPM_FP32, 0}, {"N", DPM_I32, 0}};
static const char *const sizes[] = {"N", "ROWS"};
static void grid(const int64_t *size, int64_t blocks[3]) {
    blocks[0] = (size[0] + 127) / 128;
    blocks[1] = size[1];
    blocks[2] = 1;
}
#define IMAGE(name, sm, cubin, ptx, shared)                                                                            \
    {name, sm, "entry_" #sm, cubin, ptx, 128, shared, parameters, 3, sizes, 2, grid, NULL, 0}
const dpm_image dpm_images[] = {
    IMAGE("scale", 80, cubin_80, ptx_80, 1024),
    IMAGE("scale", 87, cubin_87, NULL, 100000),
    IMAGE("scale", 90, cubin_90, NULL, 1024),
    IMAGE("orin_only", 87, cubin_87, NULL, 0),
};
const size_t dpm_image_count = 4;

static stub_record *record;

static const unsigned char *image_on(const char *capability, const char *variant) {
    dpm_kernels *kernels;
    dpm_value values[] = {{"X", 0x1000, 0}, {"FACTOR", 0, 0.5f}, {"N", 1000, 0}, {"ROWS", 3, 0}};
    const unsigned char *image = NULL;
    setenv("STUB_CAPABILITY", capability, 1);
    CHECK(dpm_open(0, &kernels) == DPM_OK);
    CHECK(dpm_capability(kernels) == atoi(capability));
    if (dpm_launch(kernels, variant, values, 4, NULL) == DPM_OK) image = record->last_image;
    dpm_close(kernels);
    return image;
}

static void choice(void) {
    CHECK(image_on("80", "scale") == cubin_80);
    CHECK(image_on("86", "scale") == cubin_80);
    CHECK(image_on("87", "scale") == cubin_87);
    CHECK(image_on("89", "scale") == cubin_80); /* never Jetson's */
    CHECK(image_on("90", "scale") == cubin_90);
    CHECK(image_on("100", "scale") == ptx_80);
    CHECK(image_on("120", "scale") == ptx_80);
    CHECK(image_on("75", "scale") == NULL && HAS("not compiled for compute capability 7.5") && HAS("DPM_KERNELS_ARCH=75"));
    CHECK(image_on("89", "orin_only") == NULL && HAS("8.9"));
    CHECK(image_on("87", "unknown") == NULL && HAS("no kernel is named unknown"));
}

static void one_launch(void) {
    dpm_kernels *kernels;
    dpm_value values[] = {{"ROWS", 3, 0}, {"N", 1000, 0}, {"FACTOR", 0, 0.5f}, {"X", 0x1230, 0}}; /* any order */
    stub_launch *launch = &record->launches[record->launched % STUB_KEPT];
    float factor;
    int loaded = record->loaded;
    setenv("STUB_CAPABILITY", "87", 1);
    CHECK(dpm_open(0, &kernels) == DPM_OK);
    CHECK(dpm_launch(kernels, "scale", values, 4, (dpm_stream)0x77) == DPM_OK);
    CHECK(launch->grid[0] == 8 && launch->grid[1] == 3 && launch->grid[2] == 1);
    CHECK(launch->block[0] == 128 && launch->block[1] == 1 && launch->block[2] == 1);
    CHECK(launch->shared == 100000 && record->opted_in == 100000 && launch->stream == (void *)0x77 && launch->no_extra);
    CHECK(strcmp(record->last_entry, "entry_87") == 0);
    memcpy(&factor, &launch->parameters[1], sizeof factor);
    CHECK(launch->parameters[0] == 0x1230 && factor == 0.5f && (int32_t)launch->parameters[2] == 1000);
    CHECK(launch->count == 5 && launch->parameters[3] == 0 && launch->parameters[4] == 0); /* the two hidden pointers */
    CHECK(dpm_launch(kernels, "scale", values, 4, NULL) == DPM_OK);
    CHECK(record->loaded == loaded + 1); /* loaded once, launched twice */
    dpm_close(kernels);
}

static void bad_values(void) {
    dpm_kernels *kernels;
    dpm_value good[] = {{"X", 0x1000, 0}, {"FACTOR", 0, 0.5f}, {"N", 1000, 0}, {"ROWS", 3, 0}};
    dpm_value extra[] = {{"X", 0x1000, 0}, {"FACTOR", 0, 0.5f}, {"N", 1000, 0}, {"ROWS", 3, 0}, {"M", 3, 0}};
    int launched = record->launched;
    CHECK(dpm_open(0, &kernels) == DPM_OK);
    CHECK(dpm_launch(kernels, "scale", good, 3, NULL) == DPM_BAD_VALUE && HAS("ROWS"));
    CHECK(dpm_launch(kernels, "scale", good + 1, 3, NULL) == DPM_BAD_VALUE && HAS("scale: expected a value for X"));
    CHECK(dpm_launch(kernels, "scale", extra, 5, NULL) == DPM_BAD_VALUE && HAS("got M"));
    good[0].number = 0x1008;
    CHECK(dpm_launch(kernels, "scale", good, 4, NULL) == DPM_BAD_VALUE && HAS("expected X to be a multiple of 16, got 4104"));
    good[0].number = 0x1000, good[2].number = 0;
    CHECK(dpm_launch(kernels, "scale", good, 4, NULL) == DPM_BAD_VALUE && HAS("N of at least 1, got 0"));
    good[2].number = 1ll << 40;
    CHECK(dpm_launch(kernels, "scale", good, 4, NULL) == DPM_BAD_VALUE && HAS("to fit 32 bits"));
    good[2].number = 1000, good[3].number = 70000;
    CHECK(dpm_launch(kernels, "scale", good, 4, NULL) == DPM_BAD_VALUE && HAS("8 x 70000 x 1"));
    CHECK(record->launched == launched);
    dpm_close(kernels);
}

static void driver_errors(void) {
    dpm_kernels *kernels;
    dpm_value values[] = {{"X", 0x1000, 0}, {"FACTOR", 0, 0.5f}, {"N", 1000, 0}, {"ROWS", 3, 0}};
    CHECK(dpm_open(1, &kernels) == DPM_CUDA_ERROR && kernels == NULL && HAS("cuDeviceGet: invalid device ordinal"));
    CHECK(dpm_open(0, &kernels) == DPM_OK);
    setenv("STUB_FAIL", "cuLaunchKernel", 1);
    CHECK(dpm_launch(kernels, "scale", values, 4, NULL) == DPM_CUDA_ERROR && HAS("illegal memory access") && HAS("700"));
    setenv("STUB_FAIL", "cuModuleGetFunction", 1);
    dpm_close(kernels);
    CHECK(dpm_open(0, &kernels) == DPM_OK);
    CHECK(dpm_launch(kernels, "scale", values, 4, NULL) == DPM_CUDA_ERROR);
    unsetenv("STUB_FAIL");
    CHECK(dpm_launch(kernels, "scale", values, 4, NULL) == DPM_OK); /* a failed load is tried again */
    dpm_close(kernels);
    dpm_close(NULL);
}

static void memory(void) {
    dpm_kernels *kernels;
    dpm_address block;
    char text[6] = "hello", back[6] = "";
    CHECK(dpm_open(0, &kernels) == DPM_OK);
    CHECK(dpm_allocate(kernels, 6, &block) == DPM_OK && block % 16 == 0);
    CHECK(dpm_upload(kernels, block, text, 6) == DPM_OK && dpm_download(kernels, back, block, 6) == DPM_OK);
    CHECK(strcmp(back, "hello") == 0);
    CHECK(dpm_synchronize(kernels, NULL) == DPM_OK && dpm_free(kernels, block) == DPM_OK);
    dpm_close(kernels);
}

int main(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    record = driver ? dlsym(driver, "stub") : NULL;
    if (!record) return fprintf(stderr, "the stand-in driver is not libcuda.so.1 here: %s\n", dlerror()), 2;
    choice();
    one_launch();
    bad_values();
    driver_errors();
    memory();
    CHECK(strcmp(dpm_variant(0), "scale") == 0 && strcmp(dpm_variant(1), "orin_only") == 0 && dpm_variant(2) == NULL);
    CHECK(record->retained == record->released && record->pushed == record->popped);
    CHECK(record->loaded == record->unloaded && record->allocated == record->freed);
    if (!failures) printf("all as it should be: %d launches\n", record->launched);
    return failures != 0;
}
