/* dpm_masked_similarity and dpm_masked_topk: see dpm_kernels.h and kernels/masked_distance/{contract,launch}.py. */

#include <stdio.h>

#include "driver.h"
#include "library.h"

enum { ALIGNMENT = 256, QUERY_ROWS = 128, WIDTH_STEP = 128, SMALL_BATCH = 16, GROUP = 32, CHUNK = 1024, SMALL_K = 16 };

static const char *const names[] = {"fp32", "fp16", "bf16", "i8"};

/* Where each buffer lies in the workspace, in bytes. */
typedef struct layout {
    size_t qm, mm, gain, keep, groups, keys, half[2], end;
    int64_t group_count;
    int chosen; /* groups whose rows are scored again */
} layout;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static size_t take(size_t *end, int64_t bytes) {
    size_t at = *end;
    *end += (size_t)ceil_div(bytes, ALIGNMENT) * ALIGNMENT;
    return at;
}

static dpm_status check(const dpm_targets *targets, int batch) {
    if (targets->dtype < DPM_FLOAT32 || targets->dtype > DPM_INT8)
        return dpm_fail(DPM_BAD_VALUE, "expected one of dpm_dtype, got %d", (int)targets->dtype);
    if (targets->width < WIDTH_STEP || targets->width % WIDTH_STEP)
        return dpm_fail(DPM_BAD_VALUE, "expected targets of a width that is a multiple of %2$d, got %1$d. Pad queries, masks and targets with zeros",
                        targets->width, WIDTH_STEP);
    if (targets->count < 1 || targets->count > INT32_MAX - 1024 || batch < 1)
        return dpm_fail(DPM_BAD_VALUE, "expected at least 1 and fewer than 2^31 queries and targets, got %d queries and %lld targets", batch,
                        (long long)targets->count);
    if ((targets->dtype == DPM_INT8) != (targets->row_scale != 0))
        return dpm_fail(DPM_BAD_VALUE, "expected row_scale with int8 targets and with no others, got the other way round");
    return DPM_OK;
}

static void lay_out_queries(const dpm_targets *targets, int batch, layout *at) {
    int64_t rows = ceil_div(batch, QUERY_ROWS) * QUERY_ROWS;
    int64_t bytes = rows * targets->width * (targets->dtype == DPM_FLOAT32 ? 4 : 2);
    at->end = 0;
    at->qm = take(&at->end, bytes);
    at->mm = take(&at->end, bytes);
    at->gain = take(&at->end, rows * 4);
}

static dpm_status lay_out_topk(const dpm_targets *targets, int batch, int k, layout *at) {
    dpm_status status = check(targets, batch);
    if (status) return status;
    if (k < 1 || k > DPM_MOST_RESULTS || k > targets->count)
        return dpm_fail(DPM_BAD_VALUE, "expected k of 1 to %3$d and no more than there are targets, got %1$d of %2$lld targets", k,
                        (long long)targets->count, DPM_MOST_RESULTS);
    lay_out_queries(targets, batch, at);
    at->group_count = ceil_div(targets->count, GROUP);
    at->chosen = at->group_count < k ? (int)at->group_count : k;
    int64_t keys = (int64_t)at->chosen * GROUP;
    int64_t longest = at->group_count > keys ? at->group_count : keys;
    at->keep = take(&at->end, targets->count);
    at->groups = take(&at->end, batch * at->group_count * 8);
    at->keys = take(&at->end, batch * keys * 8);
    for (int i = 0; i < 2; ++i) at->half[i] = take(&at->end, batch * ceil_div(longest, CHUNK) * k * 8);
    return DPM_OK;
}

size_t dpm_masked_similarity_workspace(const dpm_targets *targets, int batch) {
    layout at = {0};
    if (check(targets, batch)) return 0;
    lay_out_queries(targets, batch, &at);
    return at.end;
}

size_t dpm_masked_topk_workspace(const dpm_targets *targets, int batch, int k) {
    layout at = {0};
    return lay_out_topk(targets, batch, k, &at) ? 0 : at.end;
}

#define LAUNCH(variant, values) dpm_launch(kernels, variant, values, sizeof values / sizeof *values, stream)

static dpm_status prepare(dpm_kernels *kernels, const dpm_targets *targets, dpm_address query, dpm_address mask, int batch,
                          dpm_address workspace, const layout *at, dpm_stream stream) {
    const dpm_value values[] = {
        {"Q", (int64_t)query, 0},
        {"M", (int64_t)mask, 0},
        {"B", batch, 0},
        {"D", targets->width, 0},
        {"QM", (int64_t)(workspace + at->qm), 0},
        {"MM", (int64_t)(workspace + at->mm), 0},
        {"GAIN", (int64_t)(workspace + at->gain), 0},
    };
    char name[64];
    snprintf(name, sizeof name, "masked_prepare_%s", targets->dtype == DPM_INT8 ? "fp16" : names[targets->dtype]);
    return LAUNCH(name, values);
}

/* The main kernel, to similarities or to the best key of every group of rows. `keep` 0: no filter. */
static dpm_status score(dpm_kernels *kernels, const char *what, const dpm_targets *targets, int batch, dpm_address keep,
                        dpm_address workspace, const layout *at, dpm_address out, dpm_stream stream) {
    dpm_value values[10] = {
        {"QM", (int64_t)(workspace + at->qm), 0},
        {"MM", (int64_t)(workspace + at->mm), 0},
        {"GAIN", (int64_t)(workspace + at->gain), 0},
        {"T", (int64_t)targets->rows, 0},
        {"B", batch, 0},
        {"N", targets->count, 0},
        {"D", targets->width, 0},
        {"OUT", (int64_t)out, 0},
    };
    size_t count = 8;
    char name[64];
    if (targets->dtype == DPM_INT8) values[count++] = (dpm_value){"ROW_SCALE", (int64_t)targets->row_scale, 0};
    if (keep) values[count++] = (dpm_value){"FILTER", (int64_t)keep, 0};
    snprintf(name, sizeof name, "masked_%s_%s_%s", what, batch <= SMALL_BATCH ? "small" : "large", names[targets->dtype]);
    return dpm_launch(kernels, name, values, count, stream);
}

/* Score every row of the chosen groups again, with its own key. */
static dpm_status rescore(dpm_kernels *kernels, const dpm_targets *targets, int batch, dpm_address keep,
                          dpm_address workspace, const layout *at, dpm_address chosen, dpm_stream stream) {
    dpm_value values[12] = {
        {"QM", (int64_t)(workspace + at->qm), 0},
        {"MM", (int64_t)(workspace + at->mm), 0},
        {"GAIN", (int64_t)(workspace + at->gain), 0},
        {"T", (int64_t)targets->rows, 0},
        {"FILTER", (int64_t)keep, 0},
        {"GROUPS", (int64_t)chosen, 0},
        {"B", batch, 0},
        {"N", targets->count, 0},
        {"D", targets->width, 0},
        {"K", at->chosen, 0},
        {"KEYS", (int64_t)(workspace + at->keys), 0},
    };
    size_t count = 11;
    char name[64];
    if (targets->dtype == DPM_INT8) values[count++] = (dpm_value){"ROW_SCALE", (int64_t)targets->row_scale, 0};
    snprintf(name, sizeof name, "masked_rescore_%s", names[targets->dtype]);
    return dpm_launch(kernels, name, values, count, stream);
}

/* The k best of each row of `*keys` (batch x length): passes over chunks until one is left; `*keys` then is theirs. */
static dpm_status best(dpm_kernels *kernels, dpm_address *keys, int64_t length, int batch, int k, dpm_address workspace,
                       const layout *at, dpm_stream stream) {
    for (int pass = 0;; ++pass) {
        int64_t chunks = ceil_div(length, CHUNK);
        dpm_address out = workspace + at->half[pass % 2];
        const dpm_value values[] = {
            {"KEYS", (int64_t)*keys, 0}, {"L", length, 0}, {"K", k, 0}, {"OUT", (int64_t)out, 0}, {"B", batch, 0},
        };
        dpm_status status = LAUNCH(k <= SMALL_K ? "masked_select_keys_16" : "masked_select_keys_128", values);
        *keys = out;
        if (status || chunks == 1) return status;
        length = chunks * k;
    }
}

dpm_status dpm_masked_similarity(
    dpm_kernels *kernels, const dpm_targets *targets, dpm_address query, dpm_address mask, int batch,
    dpm_address workspace, dpm_address similarity, dpm_stream stream) {
    layout at = {0};
    dpm_status status = check(targets, batch);
    if (status) return status;
    lay_out_queries(targets, batch, &at);
    status = prepare(kernels, targets, query, mask, batch, workspace, &at, stream);
    return status ? status : score(kernels, "similarity", targets, batch, 0, workspace, &at, similarity, stream);
}

dpm_status dpm_masked_topk(
    dpm_kernels *kernels, const dpm_targets *targets, dpm_address query, dpm_address mask, int batch, int k,
    dpm_address keep, dpm_address workspace, dpm_address scores, dpm_address rows, dpm_stream stream) {
    layout at = {0};
    dpm_status status = lay_out_topk(targets, batch, k, &at);
    if (status) return status;
    dpm_address keys = workspace + at.groups;
    int64_t length = (int64_t)at.chosen * GROUP;
    if (!keep) {
        keep = workspace + at.keep;
        status = dpm_fill(kernels, keep, 1, (size_t)targets->count, stream);
    }
    if (!status) status = prepare(kernels, targets, query, mask, batch, workspace, &at, stream);
    if (!status) status = score(kernels, "groups", targets, batch, keep, workspace, &at, keys, stream);
    if (!status) status = best(kernels, &keys, at.group_count, batch, at.chosen, workspace, &at, stream);
    if (!status) status = rescore(kernels, targets, batch, keep, workspace, &at, keys, stream);
    keys = workspace + at.keys;
    if (!status && length > CHUNK) {
        status = best(kernels, &keys, length, batch, k, workspace, &at, stream);
        length = k;
    }
    if (status) return status;
    const dpm_value values[] = {
        {"KEYS", (int64_t)keys, 0},     {"L", length, 0},             {"K", k, 0},
        {"SCORES", (int64_t)scores, 0}, {"ROWS", (int64_t)rows, 0}, {"B", batch, 0},
    };
    return LAUNCH(k <= SMALL_K ? "masked_select_rows_16" : "masked_select_rows_128", values);
}
