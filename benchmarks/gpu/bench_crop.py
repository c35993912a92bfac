"""Crop, resize, normalise: correctness against float64 and OpenCV, and time against torch loops. Run by `suite.py`.

Question: do 32 people in a 1080p frame become network input in under 30 µs, in one launch?
Shapes: R boxes · frame (H, W, 3) uint8 BGR, or NV12 luma (H, W) and chroma (H/2, W/2, 2) · output (R, 3, h, w).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timing import median_ms
from torch import Tensor

from dpm_edge.kernels.crop_resize_normalize import contract, kernel, op, reference
from dpm_edge.spec import Preprocessing

Row = dict[str, Any]
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def random_boxes(count: int, height: int, width: int, device: str) -> Tensor:
    """People-like boxes: twice to three times as high as wide, some of them over the frame's edge."""
    high = height * (0.15 + 0.55 * torch.rand(count))
    wide = high / (2 + torch.rand(count))
    left, top = torch.rand(count) * width - wide / 3, torch.rand(count) * (height - high / 2)
    return torch.stack([left, top, left + wide, top + high], dim=1).to(device)


def _whole(box: Tensor, frame: Tensor) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box.tolist()
    right, bottom = min(frame.shape[1], math.ceil(x1)), min(frame.shape[0], math.ceil(y1))
    return max(0, math.floor(x0)), max(0, math.floor(y0)), right, bottom


def _exact(frame: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Grey levels in float64, unrounded: (R, 3, h, w) RGB."""
    crops = []
    for box in boxes:
        x0, y0, x1, y1 = _whole(box, frame)
        crop = frame[y0:y1, x0:x1].flip(2).permute(2, 0, 1)[None].double()
        crops.append(F.interpolate(crop, size, mode="bilinear", align_corners=False)[0])
    return torch.stack(crops)


def _opencv(frame: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Grey levels as OpenCV gives them, or None where it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    picture, crops = frame.cpu().numpy(), []
    for box in boxes:
        x0, y0, x1, y1 = _whole(box, frame)
        small = cv2.resize(picture[y0:y1, x0:x1], (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        crops.append(torch.from_numpy(small).flip(2).permute(2, 0, 1))
    return torch.stack(crops).double().to(frame.device)


def check(device: str, quick: bool) -> list[Row]:
    """BGR and NV12, both dtypes, even and odd sizes, in grey levels; unusable boxes must give zeros."""
    rows = []
    shapes = [(2, 54, 97, (33, 17))] if quick else [(32, 1080, 1920, (256, 128)), (7, 333, 517, (129, 65))]
    for count, height, width, size in shapes:
        boxes = random_boxes(count, height, width, device)
        bad = torch.tensor([[5, 5, 5, 9], [math.nan, 0, 4, 4], [2.0 * width, 0, 3.0 * width, 10]], device=device)
        frame = torch.randint(0, 256, (height, width, 3), device=device, dtype=torch.uint8)
        luma = torch.randint(0, 256, (height, width), device=device, dtype=torch.uint8)
        chroma_shape = ((height + 1) // 2, (width + 1) // 2, 2)
        chroma = torch.randint(0, 256, chroma_shape, device=device, dtype=torch.uint8)
        affine = torch.tensor(Preprocessing(mean=MEAN, std=STD).affine(), device=device)
        every = torch.cat([boxes, bad])
        for name, picture in (("BGR", frame), ("NV12", reference.nv12_to_bgr(luma, chroma))):
            truths = {"float64": _exact(picture, boxes, size), "OpenCV": _opencv(picture, boxes, size)}
            for dtype in (torch.float16, torch.float32):
                if name == "BGR":
                    got = op.crop_resize_normalize(frame, every, affine, size, dtype)
                else:
                    got = op.crop_resize_normalize_nv12(luma, chroma, every, affine, size, dtype)
                grey = (got[:count].double() - affine[1, :, None, None]) / affine[0, :, None, None]
                rounding = 0.13 if dtype == torch.float16 else 1e-3
                tolerance = contract.TOLERANCE_GREY_LEVELS + rounding
                for against, wanted in truths.items():
                    if wanted is None:
                        continue
                    error = (grey - wanted).abs().max().item()
                    shape = f"R={count} frame={height}x{width} out={size[0]}x{size[1]}"
                    rows.append(
                        {"name": f"crop {name} against {against}", "dtype": str(dtype).removeprefix("torch."),
                         "shape": shape, "error": error, "tolerance": tolerance,
                         "ok": error <= tolerance and not got[count:].any().item()}
                    )  # fmt: skip
    return rows


def _bytes_moved(frame: Tensor, boxes: Tensor, size: tuple[int, int], element: int, per_pixel: float) -> int:
    source = 0
    for box in boxes:
        x0, y0, x1, y1 = _whole(box, frame)
        source += (x1 - x0) * (y1 - y0)
    source = min(source, frame.shape[0] * frame.shape[1])
    return int(source * per_pixel) + boxes.shape[0] * 3 * size[0] * size[1] * element


def timings(device: str, quick: bool) -> list[Row]:
    """32 people in a 1080p frame to 256×128 float16, beside a torch loop over boxes and torchvision's roi_align."""
    count, height, width, size = (2, 54, 96, (32, 16)) if quick else (32, 1080, 1920, (256, 128))
    boxes = random_boxes(count, height, width, device)
    frame = torch.randint(0, 256, (height, width, 3), device=device, dtype=torch.uint8)
    luma = frame[..., 0].contiguous()
    chroma = torch.randint(0, 256, (height // 2, width // 2, 2), device=device, dtype=torch.uint8)
    affine = torch.tensor(Preprocessing(mean=MEAN, std=STD).affine(), device=device)
    whole = [_whole(box, frame) for box in boxes]

    def loop() -> Tensor:
        crops = [frame[y0:y1, x0:x1].permute(2, 0, 1)[None].float() for x0, y0, x1, y1 in whole]
        small = torch.cat([F.interpolate(crop, size, mode="bilinear", align_corners=False) for crop in crops])
        return (small.flip(1) * affine[0, :, None, None] + affine[1, :, None, None]).half()

    graph = device == "cuda"
    variants = {
        "ours, BGR": (lambda: op.crop_resize_normalize(frame, boxes, affine, size), 3.0, graph),
        "ours, BGR, launched from Python": (lambda: op.crop_resize_normalize(frame, boxes, affine, size), 3.0, False),
        "ours, NV12": (lambda: op.crop_resize_normalize_nv12(luma, chroma, boxes, affine, size), 1.5, graph),
        "torch, interpolate per box": (loop, 3.0, graph),
        "torch, interpolate per box, launched from Python": (loop, 3.0, False),
    }
    roi_align = _roi_align() if device == "cuda" else None
    if roi_align is not None:

        def aligned() -> Tensor:
            planes = frame.permute(2, 0, 1)[None].float()
            small = roi_align(planes, [boxes], size, sampling_ratio=1, aligned=True)
            return (small.flip(1) * affine[0, :, None, None] + affine[1, :, None, None]).half()

        variants["torchvision roi_align, no rounding of boxes"] = (aligned, 3.0, graph)
    return [
        {"name": f"crop: {label}", "shape": f"R={count} frame={height}x{width} out={size[0]}x{size[1]}",
         "dtype": "uint8 to float16", "ms": median_ms(function, graph=in_graph), "graph": in_graph, "flops": 0,
         "bytes": _bytes_moved(frame, boxes, size, 2, per_pixel)}
        for label, (function, per_pixel, in_graph) in variants.items()
    ]  # fmt: skip


def _roi_align() -> Any:
    try:
        from torchvision.ops import roi_align
    except Exception:  # absent, or built for another torch: RuntimeError on import
        return None
    return roi_align


def sweep(device: str) -> list[Row]:
    """Pixels and warps per program, at 32 people in a 1080p frame."""
    boxes = random_boxes(32, 1080, 1920, device)
    frame = torch.randint(0, 256, (1080, 1920, 3), device=device, dtype=torch.uint8)
    affine, out = (
        torch.tensor(Preprocessing(mean=MEAN, std=STD).affine(), device=device),
        torch.empty(32, 3, 256, 128, device=device, dtype=torch.float16),
    )
    rows = []
    for block, warps in ((128, 4), (256, 4), (256, 8), (512, 4), (512, 8), (1024, 4), (1024, 8), (2048, 8)):

        def launch(block: int = block, warps: int = warps) -> None:
            kernel.crop_resize_normalize[(-(-256 * 128 // block), 32)](
                frame, frame, boxes, affine, 1080, 1920, frame.stride(0), frame.stride(0), 256, 128, out,
                NV12=False, BLOCK=block, num_warps=warps,
            )  # fmt: skip

        ms = median_ms(launch, graph=device == "cuda")
        rows.append({"name": "crop", "dtype": "uint8 to float16", "tile": f"block={block} warps={warps}", "ms": ms})
    return rows
