"""crop_resize_normalize in plain torch, one box after the other: what runs on a CPU and what tests compare with.

Shapes: R boxes · frame (H, W, 3) uint8 BGR · luma (H, W), chroma (⌈H/2⌉, ⌈W/2⌉, 2) uint8 · output (R, 3, h, w) RGB.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_resize_normalize(frame: Tensor, boxes: Tensor, affine: Tensor, height: int, width: int) -> Tensor:
    """(R, 3, height, width) float32: crops rounded outward and clipped, bilinear, grey · affine[0] + affine[1].

    An unusable box (empty, not finite, outside the frame) gives zeros.
    """
    out = torch.zeros(boxes.shape[0], 3, height, width, device=frame.device)
    for row, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
            continue
        if x1 <= 0 or y1 <= 0 or x0 >= frame.shape[1] or y0 >= frame.shape[0]:
            continue
        crop = frame[max(0, math.floor(y0)) : math.ceil(y1), max(0, math.floor(x0)) : math.ceil(x1)]
        rgb = crop.flip(2).permute(2, 0, 1)[None].float()
        grey = F.interpolate(rgb, (height, width), mode="bilinear", align_corners=False)[0].round()
        out[row] = grey * affine[0, :, None, None] + affine[1, :, None, None]
    return out


def nv12_to_bgr(luma: Tensor, chroma: Tensor) -> Tensor:
    """(H, W), (⌈H/2⌉, ⌈W/2⌉, 2) uint8 → (H, W, 3) uint8 BGR by BT.601, limited range.

    The coefficients 1.164, 2.018, 0.813, 0.391, 1.596 are rounded to 20 bits as in cv2.COLOR_YUV2BGR_NV12.
    """
    height, width = luma.shape
    uv = chroma.repeat_interleave(2, 0).repeat_interleave(2, 1)[:height, :width].to(torch.int64) - 128
    y = 1220542 * (luma.to(torch.int64) - 16).clamp(min=0)
    u, v = uv[..., 0], uv[..., 1]
    bgr = torch.stack([y + 2116026 * u, y - 852492 * v - 409993 * u, y + 1673527 * v], dim=-1)
    return ((bgr + 2**19) >> 20).clamp(0, 255).to(torch.uint8)
