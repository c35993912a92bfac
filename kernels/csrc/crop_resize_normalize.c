/* dpm_crop_resize_normalize: see dpm_kernels.h and kernels/crop_resize_normalize/contract.py. */

#include "driver.h"
#include "library.h"

void dpm_affine(const float mean[3], const float std[3], float affine[6]) {
    for (int c = 0; c < 3; ++c) {
        affine[c] = (float)(1.0 / (255.0 * (double)std[c]));
        affine[3 + c] = (float)(-(double)mean[c] / (double)std[c]);
    }
}

dpm_status dpm_crop_resize_normalize(
    dpm_kernels *kernels, const dpm_frame *frame, dpm_address boxes, int box_count, dpm_address affine,
    int crop_height, int crop_width, dpm_address crops, dpm_stream stream) {
    const int nv12 = frame->chroma != 0;
    const dpm_value values[] = {
        {"plane", (int64_t)frame->plane, 0},
        {"chroma", (int64_t)(nv12 ? frame->chroma : frame->plane), 0},
        {"boxes", (int64_t)boxes, 0},
        {"affine", (int64_t)affine, 0},
        {"frame_height", frame->height, 0},
        {"frame_width", frame->width, 0},
        {"plane_stride", frame->plane_stride, 0},
        {"chroma_stride", frame->chroma_stride, 0},
        {"out_height", crop_height, 0},
        {"out_width", crop_width, 0},
        {"out", (int64_t)crops, 0},
        {"box_count", box_count, 0},
    };
    if (box_count == 0) return DPM_OK;
    if (!frame->plane || frame->height < 1 || frame->width < 1 ||
        (int64_t)frame->plane_stride < (int64_t)frame->width * (nv12 ? 1 : 3))
        return dpm_fail(DPM_BAD_VALUE, "a frame of %d x %d with rows %d bytes apart; BGR rows have 3 bytes a pixel, NV12 1",
                        frame->height, frame->width, frame->plane_stride);
    if (nv12 && frame->chroma_stride < 2 * ((frame->width + 1) / 2))
        return dpm_fail(DPM_BAD_VALUE, "chroma rows %d bytes apart; a frame of width %d needs %d", frame->chroma_stride,
                        frame->width, 2 * ((frame->width + 1) / 2));
    return dpm_launch(kernels, nv12 ? "crop_resize_normalize_nv12_fp16" : "crop_resize_normalize_bgr_fp16", values,
                      sizeof values / sizeof *values, stream);
}
