/* The typed functions on the embedded kernels against the stand-in driver: which kernels, what grids, which buffers. */

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

static stub_record *record;
static dpm_kernels *kernels;

static const dpm_image *image_of(const stub_launch *launch) {
    for (size_t i = 0; i < dpm_image_count; ++i)
        if (dpm_images[i].cubin == launch->image) return &dpm_images[i];
    return NULL;
}

/* The n-th launch since `first`: of `variant`, with this grid. */
static int is(int first, int n, const char *variant, unsigned x, unsigned y, unsigned z) {
    const stub_launch *launch = &record->launches[(first + n) % STUB_KEPT];
    const dpm_image *image = image_of(launch);
    if (first + n < record->launched && image && strcmp(image->variant, variant) == 0 && launch->grid[0] == x &&
        launch->grid[1] == y && launch->grid[2] == z)
        return 1;
    fprintf(stderr, "launch %d: %s, grid %u %u %u; wanted %s, %u %u %u\n", n, image ? image->variant : "none",
            launch->grid[0], launch->grid[1], launch->grid[2], variant, x, y, z);
    return 0;
}

/* A parameter's eight bytes in the n-th launch since `first`. */
static uint64_t parameter(int first, int n, const char *name) {
    const stub_launch *launch = &record->launches[(first + n) % STUB_KEPT];
    const dpm_image *image = image_of(launch);
    for (int i = 0; image && i < image->parameter_count; ++i)
        if (strcmp(image->parameters[i].name, name) == 0)
            return image->parameters[i].kind == DPM_I32 ? (uint32_t)launch->parameters[i] : launch->parameters[i];
    fprintf(stderr, "launch %d has no parameter %s\n", n, name);
    return (uint64_t)-1;
}

static int64_t constant(const char *variant, const char *name) {
    for (size_t i = 0; i < dpm_image_count; ++i)
        for (int c = 0; dpm_images[i].sm == 87 && c < dpm_images[i].constant_count; ++c)
            if (!strcmp(dpm_images[i].variant, variant) && !strcmp(dpm_images[i].constants[c].name, name))
                return dpm_images[i].constants[c].value;
    return 1;
}

static unsigned tiles(int64_t size, const char *variant, const char *block) {
    int64_t step = constant(variant, block);
    return (unsigned)((size + step - 1) / step);
}

static void crops(void) {
    dpm_frame frame = {0x10001, 0, 1080, 1920, 5760, 0}; /* frames may lie anywhere */
    const float mean[3] = {0.5f, 0.5f, 0.25f}, std[3] = {0.5f, 0.25f, 0.5f};
    float affine[6];
    int first = record->launched;
    CHECK(dpm_crop_resize_normalize(kernels, &frame, 0x2000, 32, 0x3000, 256, 128, 0x4000, NULL) == DPM_OK);
    CHECK(is(first, 0, "crop_resize_normalize_bgr_fp16", tiles(256 * 128, "crop_resize_normalize_bgr_fp16", "BLOCK"), 32, 1));
    CHECK(parameter(first, 0, "plane") == 0x10001 && parameter(first, 0, "boxes") == 0x2000);
    CHECK(parameter(first, 0, "frame_height") == 1080 && parameter(first, 0, "frame_width") == 1920);
    CHECK(parameter(first, 0, "out_height") == 256 && parameter(first, 0, "out") == 0x4000);
    frame.chroma = 0x20000, frame.plane_stride = 1920, frame.chroma_stride = 1920;
    CHECK(dpm_crop_resize_normalize(kernels, &frame, 0x2000, 3, 0x3000, 256, 128, 0x4000, NULL) == DPM_OK);
    CHECK(is(first, 1, "crop_resize_normalize_nv12_fp16", tiles(256 * 128, "crop_resize_normalize_nv12_fp16", "BLOCK"), 3, 1));
    CHECK(parameter(first, 1, "chroma") == 0x20000);
    CHECK(dpm_crop_resize_normalize(kernels, &frame, 0x2000, 0, 0x3000, 256, 128, 0x4000, NULL) == DPM_OK);
    frame.chroma_stride = 960;
    CHECK(dpm_crop_resize_normalize(kernels, &frame, 0x2000, 3, 0x3000, 256, 128, 0x4000, NULL) == DPM_BAD_VALUE);
    CHECK(strstr(dpm_last_error(), "960") && record->launched == first + 2);
    dpm_affine(mean, std, affine); /* grey 255 of R: (1 - 0.5) / 0.5 */
    CHECK(affine[0] * 255 + affine[3] > 0.9999f && affine[0] * 255 + affine[3] < 1.0001f);
    CHECK(affine[4] == -2.0f && affine[5] == -0.5f);
}

static void mask_head(void) {
    const dpm_mask_head_shape shape = {1, 16, 8, 768};
    const dpm_address tokens[4] = {0x1000, 0x2000, 0x3000, 0x4000}, work = 0x100000;
    const dpm_address weights[8] = {0x510, 0x520, 0x530, 0x540, 0x550, 0x560, 0x570, 0x580};
    const char *products[] = {"mask_head_first_convolution_small_fp16", "mask_head_pooled_convolution_small_fp16",
                              "mask_head_last_convolution_small_fp16"};
    const unsigned rows[] = {128, 32, 8}, columns[] = {1536, 768, 768}, groups[] = {32, 8, 1};
    const size_t bytes = dpm_mask_head_workspace(kernels, shape);
    int first = record->launched;
    CHECK(dpm_mask_head(kernels, shape, tokens, weights, 0x600, work, 0x700, 0x800, 0x900, NULL) == DPM_OK);
    CHECK(record->launched == first + 7);
    for (int i = 0; i < 3; ++i) {
        const int at = 2 * i;
        const unsigned parts = (unsigned)parameter(first, at, "splits");
        CHECK(is(first, at, products[i], tiles(rows[i], products[i], "BLOCK_M") * tiles(columns[i], products[i], "BLOCK_N"),
                 parts, 1));
        CHECK(is(first, at + 1, "mask_head_add_and_pool_fp16", groups[i],
                 tiles(columns[i], "mask_head_add_and_pool_fp16", "BLOCK_N"), 1));
        CHECK(parts >= 1 && parts <= 32 && parameter(first, at + 1, "splits") == parts);
        CHECK(parameter(first, at + 1, "group_rows") == rows[i] / groups[i]);
        CHECK(parameter(first, at, "weight") == weights[2 * i] && parameter(first, at + 1, "bias") == weights[2 * i + 1]);
        CHECK(parameter(first, at, "out") == work && parameter(first, at + 1, "partial") == work);
        CHECK(work + 4ull * parts * rows[i] * columns[i] <= parameter(first, at + 1, "out")); /* sums end before the map */
        CHECK(parameter(first, at + 1, "out") + 2ull * groups[i] * columns[i] <= work + bytes);
        /* each stage reads what the one before wrote, and does not overwrite it */
        CHECK(parameter(first, at, "token_0") == (i ? parameter(first, at - 1, "out") : tokens[0]));
        CHECK(parameter(first, at + 1, "out") != parameter(first, at, "token_0"));
    }
    CHECK(parameter(first, 0, "token_3") == tokens[3] && parameter(first, 0, "channels") == 768);
    CHECK(is(first, 6, "mask_head_gates_fp16", tiles(1, "mask_head_gates_fp16", "BLOCK_M"),
             tiles(768, "mask_head_gates_fp16", "BLOCK_N"), 1));
    CHECK(parameter(first, 6, "pooled") == parameter(first, 5, "out") && parameter(first, 6, "mask") == 0x700);
    first = record->launched;
    CHECK(dpm_mask_head(kernels, (dpm_mask_head_shape){64, 16, 8, 768}, tokens, weights, 0x600, work, 0x700, 0x800, 0x900,
                        NULL) == DPM_OK);
    const char *large = "mask_head_first_convolution_large_fp16";
    CHECK(is(first, 0, large, tiles(64 * 128, large, "BLOCK_M") * tiles(1536, large, "BLOCK_N"),
             (unsigned)parameter(first, 0, "splits"), 1));
    CHECK(dpm_mask_head_workspace(kernels, (dpm_mask_head_shape){1, 3, 8, 768}) == 0);
    CHECK(dpm_mask_head_workspace(kernels, (dpm_mask_head_shape){1, 16, 8, 100}) == 0 && strstr(dpm_last_error(), "100"));
}

static void similarity(void) {
    dpm_targets targets = {0x10000, 0, DPM_FLOAT16, 100001, 768};
    int first = record->launched;
    const char *small = "masked_similarity_small_fp16", *large = "masked_similarity_large_i8";
    CHECK(dpm_masked_similarity_workspace(&targets, 1) == 2 * 128 * 768 * 2 + 512);
    CHECK(dpm_masked_similarity(kernels, &targets, 0x2000, 0x3000, 16, 0x100000, 0x4000, NULL) == DPM_OK);
    CHECK(is(first, 0, "masked_prepare_fp16", 128, 1, 1));
    CHECK(is(first, 1, small, tiles(100001, small, "BLOCK_N") * tiles(16, small, "BLOCK_B"), 1, 1));
    CHECK(parameter(first, 0, "QM") == parameter(first, 1, "QM") && parameter(first, 0, "MM") == parameter(first, 1, "MM"));
    CHECK(parameter(first, 0, "GAIN") == parameter(first, 1, "GAIN") && parameter(first, 1, "OUT") == 0x4000);
    CHECK(parameter(first, 1, "N") == 100001 && parameter(first, 1, "T") == 0x10000);
    targets.dtype = DPM_INT8, targets.row_scale = 0x5000;
    CHECK(dpm_masked_similarity(kernels, &targets, 0x2000, 0x3000, 300, 0x100000, 0x4000, NULL) == DPM_OK);
    CHECK(is(first, 2, "masked_prepare_fp16", 384, 1, 1));
    CHECK(is(first, 3, large, tiles(100001, large, "BLOCK_N") * tiles(300, large, "BLOCK_B"), 1, 1));
    CHECK(parameter(first, 3, "ROW_SCALE") == 0x5000);
    targets.row_scale = 0;
    CHECK(dpm_masked_similarity(kernels, &targets, 0x2000, 0x3000, 300, 0x100000, 0x4000, NULL) == DPM_BAD_VALUE);
    targets.dtype = DPM_FLOAT32, targets.width = 700;
    CHECK(dpm_masked_similarity(kernels, &targets, 0x2000, 0x3000, 3, 0x100000, 0x4000, NULL) == DPM_BAD_VALUE);
    CHECK(strstr(dpm_last_error(), "700") && record->launched == first + 4);
}

static void topk(void) {
    dpm_targets targets = {0x10000, 0, DPM_FLOAT16, 1000003, 768};
    const dpm_address work = 0x1000000;
    const int64_t groups = (1000003 + 31) / 32; /* 31251 */
    const size_t bytes = dpm_masked_topk_workspace(&targets, 4, 100);
    int first = record->launched;
    CHECK(dpm_masked_topk(kernels, &targets, 0x2000, 0x3000, 4, 100, 0, work, 0x4000, 0x5000, NULL) == DPM_OK);
    CHECK(record->filled_with == 1 && record->filled_bytes == 1000003 && record->filled_at == parameter(first, 1, "FILTER"));
    CHECK(is(first, 0, "masked_prepare_fp16", 128, 1, 1));
    CHECK(is(first, 1, "masked_groups_small_fp16", tiles(1000003, "masked_groups_small_fp16", "BLOCK_N"), 1, 1));
    CHECK(is(first, 2, "masked_select_keys_128", 31, 4, 1)); /* 31251 groups in chunks of 1024 */
    CHECK(is(first, 3, "masked_select_keys_128", 4, 4, 1));  /* 31 x 100 keys */
    CHECK(is(first, 4, "masked_select_keys_128", 1, 4, 1));  /* 4 x 100 keys */
    CHECK(is(first, 5, "masked_rescore_fp16", 100, 4, 1));
    CHECK(is(first, 6, "masked_select_keys_128", 4, 4, 1));  /* 100 groups of 32 rows */
    CHECK(is(first, 7, "masked_select_keys_128", 1, 4, 1));
    CHECK(is(first, 8, "masked_select_rows_128", 1, 4, 1));
    CHECK(record->launched == first + 9);
    CHECK(parameter(first, 2, "KEYS") == parameter(first, 1, "OUT") && parameter(first, 2, "L") == (uint64_t)groups);
    for (int n = 3; n <= 4; ++n) {
        CHECK(parameter(first, n, "KEYS") == parameter(first, n - 1, "OUT"));
        CHECK(parameter(first, n, "OUT") != parameter(first, n, "KEYS"));
    }
    CHECK(parameter(first, 5, "GROUPS") == parameter(first, 4, "OUT") && parameter(first, 5, "K") == 100);
    CHECK(parameter(first, 6, "KEYS") == parameter(first, 5, "KEYS") && parameter(first, 6, "L") == 3200);
    CHECK(parameter(first, 8, "L") == 100 && parameter(first, 8, "SCORES") == 0x4000 && parameter(first, 8, "ROWS") == 0x5000);
    CHECK(parameter(first, 1, "OUT") + 8ull * 4 * groups <= parameter(first, 5, "KEYS"));
    CHECK(parameter(first, 2, "OUT") + 8ull * 4 * 31 * 100 <= work + bytes);
    first = record->launched;
    targets.count = 20;
    CHECK(dpm_masked_topk(kernels, &targets, 0x2000, 0x3000, 1, 5, 0x6000, work, 0x4000, 0x5000, NULL) == DPM_OK);
    CHECK(is(first, 3, "masked_rescore_fp16", 1, 1, 1) && is(first, 4, "masked_select_rows_16", 1, 1, 1));
    CHECK(parameter(first, 1, "FILTER") == 0x6000 && record->launched == first + 5);
    CHECK(dpm_masked_topk_workspace(&targets, 1, 21) == 0 && strstr(dpm_last_error(), "got 21 of 20"));
    CHECK(dpm_masked_topk_workspace(&targets, 1, 0) == 0);
}

int main(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    record = driver ? dlsym(driver, "stub") : NULL;
    if (!record) return fprintf(stderr, "the stand-in driver is not libcuda.so.1 here: %s\n", dlerror()), 2;
    setenv("STUB_CAPABILITY", "87", 1);
    if (dpm_open(DPM_CURRENT_DEVICE, &kernels)) return fprintf(stderr, "%s\n", dpm_last_error()), 2;
    crops();
    mask_head();
    similarity();
    topk();
    dpm_close(kernels);
    if (!failures) printf("all as it should be: %d launches\n", record->launched);
    return failures != 0;
}
