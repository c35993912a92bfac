/* dpm_mask_head: three convolutions, each to fp32 partial sums that add_and_pool ends, then the gates.
   See dpm_kernels.h and kernels/mask_head/{contract,launch}.py, whose choices of tile and split these are. */

#include <string.h>

#include "driver.h"
#include "library.h"

enum { ALIGNMENT = 256, MOST_PARTS = 32, START_UP_STEPS = 6, LARGE_FILLS = 4 };

typedef struct convolution {
    const char *large, *small;
    int sources, channels, out_channels; /* channels of one source */
    int height, width, pool;
    int64_t rows, groups, group_rows; /* rows of the product; output rows; rows behind one output row */
} convolution;

typedef struct plan {
    convolution layers[3];
    const char *variants[3];
    int parts[3];
    size_t partial_bytes, map_bytes; /* one partial buffer, two maps */
} plan;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static size_t aligned(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* How often the sum over `steps` is cut so that `tiles` output tiles fill the multiprocessors evenly. */
static int split(int multiprocessors, int64_t tiles, int64_t steps) {
    int best = 1;
    int64_t least = INT64_MAX;
    for (int parts = 1; parts <= MOST_PARTS && (parts == 1 || parts <= steps / 4); ++parts) {
        int64_t waves = ceil_div(tiles * parts, multiprocessors);
        int64_t cost = waves * (ceil_div(steps, parts) + START_UP_STEPS) + (parts == 1 ? 0 : 8 + parts * tiles / 10);
        if (cost < least) least = cost, best = parts;
    }
    return best;
}

static dpm_status plan_layer(const dpm_kernels *kernels, plan *p, int i) {
    convolution *layer = &p->layers[i];
    int jit, taps = 9;
    const dpm_image *image = dpm_choose(kernels, layer->large, &jit);
    if (!image) return DPM_NO_KERNEL;
    p->variants[i] = layer->large;
    if (layer->rows < LARGE_FILLS * dpm_constant_of(image, "BLOCK_M", 128)) {
        p->variants[i] = layer->small;
        if (!(image = dpm_choose(kernels, layer->small, &jit))) return DPM_NO_KERNEL;
    }
    int64_t tiles = ceil_div(layer->rows, dpm_constant_of(image, "BLOCK_M", 128)) *
                    ceil_div(layer->out_channels, dpm_constant_of(image, "BLOCK_N", 128));
    int64_t steps = (int64_t)taps * layer->sources * ceil_div(layer->channels, dpm_constant_of(image, "BLOCK_K", 64));
    p->parts[i] = split(dpm_multiprocessors(kernels), tiles, steps);
    size_t partial = aligned((size_t)p->parts[i] * (size_t)layer->rows * (size_t)layer->out_channels * sizeof(float));
    size_t map = aligned((size_t)layer->groups * (size_t)layer->out_channels * 2);
    if (partial > p->partial_bytes) p->partial_bytes = partial;
    if (map > p->map_bytes) p->map_bytes = map;
    return DPM_OK;
}

static dpm_status make_plan(const dpm_kernels *kernels, dpm_mask_head_shape shape, plan *p) {
    const int d = shape.channels, h = shape.height, w = shape.width, b = shape.batch;
    dpm_status status = DPM_OK;
    memset(p, 0, sizeof *p);
    if (b < 1 || h < 4 || w < 4 || d < 64 || d % 64)
        return dpm_fail(DPM_BAD_VALUE, "expected at least 1 image, a grid of 4 x 4 and a width that is a multiple of 64, got %d images, %d x %d and %d",
                        b, h, w, d);
    p->layers[0] = (convolution){"mask_head_first_convolution_large_fp16", "mask_head_first_convolution_small_fp16",
                                 4, d, 2 * d, h, w, 2, 0, 0, 0};
    p->layers[1] = (convolution){"mask_head_pooled_convolution_large_fp16", "mask_head_pooled_convolution_small_fp16",
                                 1, 2 * d, d, h / 2, w / 2, 2, 0, 0, 0};
    p->layers[2] = (convolution){"mask_head_last_convolution_large_fp16", "mask_head_last_convolution_small_fp16",
                                 1, d, d, h / 4, w / 4, 1, 0, 0, 0};
    for (int i = 0; i < 3 && !status; ++i) {
        convolution *layer = &p->layers[i];
        int64_t windows = (int64_t)(layer->height / layer->pool) * (layer->width / layer->pool);
        layer->rows = b * windows * layer->pool * layer->pool;
        layer->groups = i == 2 ? b : b * windows; /* the last takes the maximum over the whole grid */
        layer->group_rows = layer->rows / layer->groups;
        status = plan_layer(kernels, p, i);
    }
    return status;
}

size_t dpm_mask_head_workspace(const dpm_kernels *kernels, dpm_mask_head_shape shape) {
    plan p;
    return make_plan(kernels, shape, &p) ? 0 : p.partial_bytes + 2 * p.map_bytes;
}

static dpm_status convolve(dpm_kernels *kernels, const plan *p, int i, int batch, const dpm_address sources[4],
                           const dpm_address *weights, dpm_address partial, dpm_address out, dpm_stream stream) {
    const convolution *layer = &p->layers[i];
    const dpm_value product[] = {
        {"token_0", (int64_t)sources[0], 0}, {"token_1", (int64_t)sources[1], 0},
        {"token_2", (int64_t)sources[2], 0}, {"token_3", (int64_t)sources[3], 0},
        {"weight", (int64_t)weights[0], 0},  {"bias", (int64_t)weights[1], 0},
        {"batch", batch, 0},                 {"height", layer->height, 0},
        {"width", layer->width, 0},          {"channels", layer->channels, 0},
        {"out_channels", layer->out_channels, 0}, {"splits", p->parts[i], 0},
        {"out", (int64_t)partial, 0},        {"rows", layer->rows, 0},
    };
    const dpm_value sum[] = {
        {"partial", (int64_t)partial, 0},         {"bias", (int64_t)weights[1], 0},
        {"groups", layer->groups, 0},             {"group_rows", layer->group_rows, 0},
        {"out_channels", layer->out_channels, 0}, {"splits", p->parts[i], 0},
        {"out", (int64_t)out, 0},
    };
    dpm_status status = dpm_launch(kernels, p->variants[i], product, sizeof product / sizeof *product, stream);
    return status ? status : dpm_launch(kernels, "mask_head_add_and_pool_fp16", sum, sizeof sum / sizeof *sum, stream);
}

dpm_status dpm_mask_head(
    dpm_kernels *kernels, dpm_mask_head_shape shape, const dpm_address tokens[4], const dpm_address weights[8],
    dpm_address feature, dpm_address workspace, dpm_address mask, dpm_address masked_feature, dpm_address squared_mask,
    dpm_stream stream) {
    plan p;
    dpm_status status = make_plan(kernels, shape, &p);
    if (status) return status;
    const dpm_address maps[2] = {workspace + p.partial_bytes, workspace + p.partial_bytes + p.map_bytes};
    for (int i = 0; i < 3; ++i) {
        dpm_address sources[4];
        for (int s = 0; s < 4; ++s) sources[s] = i == 0 ? tokens[s] : maps[(i + 1) % 2];
        status = convolve(kernels, &p, i, shape.batch, sources, weights + 2 * i, workspace, maps[i % 2], stream);
        if (status) return status;
    }
    const dpm_value gates[] = {
        {"pooled", (int64_t)maps[0], 0},   {"weight", (int64_t)weights[6], 0},
        {"bias", (int64_t)weights[7], 0},  {"feature", (int64_t)feature, 0},
        {"batch", shape.batch, 0},         {"channels", shape.channels, 0},
        {"mask", (int64_t)mask, 0},        {"masked_feature", (int64_t)masked_feature, 0},
        {"squared_mask", (int64_t)squared_mask, 0},
    };
    return dpm_launch(kernels, "mask_head_gates_fp16", gates, sizeof gates / sizeof *gates, stream);
}
