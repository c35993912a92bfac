"""Triton kernel: boxes of one uint8 frame → resized, normalised RGB crops, all boxes in one launch.

Shapes: R boxes · frame H×W · output h×w.
    plane   BGR: (H, W, 3) uint8, rows `plane_stride` bytes apart; NV12: luma (H, W)
    chroma  NV12: (⌈H/2⌉, ⌈W/2⌉, 2) uint8, U then V, rows `chroma_stride` bytes apart; BGR: unused
    boxes   (R, 4) float32 x0 y0 x1 y1 in pixels · affine (2, 3) float32: out = grey · affine[0, c] + affine[1, c]
    out     (R, 3, h, w), channels R, G, B
Bilinear, half-pixel centres, no antialiasing, in OpenCV's 11-bit fixed point (cv2.resize INTER_LINEAR on uint8); the
source position is computed as an exact fraction. NV12 is BT.601 limited range in OpenCV's 20-bit fixed point
(cv2.COLOR_YUV2BGR_NV12).
"""

import triton
import triton.language as tl


@triton.jit
def crop_resize_normalize(
    plane, chroma, boxes, affine,
    frame_height, frame_width, plane_stride, chroma_stride, out_height, out_width,
    out,
    NV12: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: (pixel tiles of one crop, R). A box is rounded outward and clipped; an unusable one gives zeros."""
    box = tl.program_id(1)
    left = tl.load(boxes + box * 4)
    top = tl.load(boxes + box * 4 + 1)
    right = tl.load(boxes + box * 4 + 2)
    bottom = tl.load(boxes + box * 4 + 3)
    usable = (right > left) & (bottom > top) & (right > 0) & (bottom > 0) & (left < frame_width) & (top < frame_height)
    usable = usable & (left > -1e30) & (top > -1e30) & (right < 1e30) & (bottom < 1e30)
    x0 = tl.where(usable, tl.floor(tl.maximum(left, 0.0)), 0.0).to(tl.int32)
    y0 = tl.where(usable, tl.floor(tl.maximum(top, 0.0)), 0.0).to(tl.int32)
    x1 = tl.where(usable, tl.ceil(tl.minimum(right, tl.cast(frame_width, tl.float32))), 1.0).to(tl.int32)
    y1 = tl.where(usable, tl.ceil(tl.minimum(bottom, tl.cast(frame_height, tl.float32))), 1.0).to(tl.int32)

    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = out_height * out_width
    ok = pixel < tl.where(usable, size, 0)
    near_x, far_x, weight_x = _axis(pixel % out_width, x1 - x0, out_width)
    near_y, far_y, weight_y = _axis(pixel // out_width, y1 - y0, out_height)
    near_x += x0
    far_x += x0
    near_y += y0
    far_y += y0
    b00, g00, r00 = _bgr(plane, chroma, near_y, near_x, plane_stride, chroma_stride, ok, NV12)
    b01, g01, r01 = _bgr(plane, chroma, near_y, far_x, plane_stride, chroma_stride, ok, NV12)
    b10, g10, r10 = _bgr(plane, chroma, far_y, near_x, plane_stride, chroma_stride, ok, NV12)
    b11, g11, r11 = _bgr(plane, chroma, far_y, far_x, plane_stride, chroma_stride, ok, NV12)

    inside = pixel < size
    at = out + tl.cast(box, tl.int64) * 3 * size + pixel
    _store(at, affine, _blend(r00, r01, r10, r11, weight_x, weight_y), ok, inside)
    _store(at + size, affine + 1, _blend(g00, g01, g10, g11, weight_x, weight_y), ok, inside)
    _store(at + 2 * size, affine + 2, _blend(b00, b01, b10, b11, weight_x, weight_y), ok, inside)


@triton.jit
def _axis(index, size_in, size_out):
    """Neighbours of output `index` along one axis, and the far one's weight in 2048ths.

    Position (index + ½)·in/out − ½ = numerator / (2·out), so neither division nor rounding goes through floats.
    """
    numerator = tl.maximum((2 * index + 1) * size_in - size_out, 0)
    near = numerator // (2 * size_out)
    rest = numerator - near * 2 * size_out
    weight = (rest * 2048 + size_out) // (2 * size_out)
    at_end = near >= size_in - 1
    near = tl.where(at_end, size_in - 1, near)
    return near, tl.minimum(near + 1, size_in - 1), tl.where(at_end, 0, weight)


@triton.jit
def _bgr(plane, chroma, y, x, plane_stride, chroma_stride, ok, NV12: tl.constexpr):
    """Blue, green, red of source pixels, int32 in 0..255."""
    if NV12:
        luma = tl.load(plane + y * plane_stride + x, mask=ok, other=0).to(tl.int32)
        at = chroma + (y // 2) * chroma_stride + (x // 2) * 2
        u = tl.load(at, mask=ok, other=0).to(tl.int32) - 128
        v = tl.load(at + 1, mask=ok, other=0).to(tl.int32) - 128
        base = tl.maximum(luma - 16, 0) * 1220542 + 524288
        blue = _grey(base + 2116026 * u)
        green = _grey(base - 852492 * v - 409993 * u)
        red = _grey(base + 1673527 * v)
    else:
        at = plane + y * plane_stride + x * 3
        blue = tl.load(at, mask=ok, other=0).to(tl.int32)
        green = tl.load(at + 1, mask=ok, other=0).to(tl.int32)
        red = tl.load(at + 2, mask=ok, other=0).to(tl.int32)
    return blue, green, red


@triton.jit
def _grey(fixed):
    return tl.minimum(tl.maximum(fixed >> 20, 0), 255)


@triton.jit
def _blend(near_near, near_far, far_near, far_far, weight_x, weight_y):
    """Bilinear blend of four grey levels with weights in 2048ths, rounded as OpenCV rounds."""
    upper = near_near * (2048 - weight_x) + near_far * weight_x
    lower = far_near * (2048 - weight_x) + far_far * weight_x
    return ((((2048 - weight_y) * (upper >> 4)) >> 16) + ((weight_y * (lower >> 4)) >> 16) + 2) >> 2


@triton.jit
def _store(at, affine, grey, ok, inside):
    value = grey.to(tl.float32) * tl.load(affine) + tl.load(affine + 3)
    tl.store(at, tl.where(ok, value, 0.0).to(at.dtype.element_ty), mask=inside)
