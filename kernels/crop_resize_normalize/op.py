"""People cut out of a frame on the GPU, ready for the network: one launch for all boxes.

Shapes: R boxes · frame (H, W, 3) uint8 BGR, or NV12 luma (H, W) + chroma (⌈H/2⌉, ⌈W/2⌉, 2) uint8, BT.601 limited range
    boxes (R, 4) float32 x0 y0 x1 y1 in pixels, rounded outward and clipped · output (R, 3, h, w) RGB.
On a GPU, and under TRITON_INTERPRET=1, the Triton kernel runs; on other CPUs the reference does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpm_edge.kernels.dispatch import runs_kernel

from . import contract, reference


def crop_resize_normalize(
    frame: Tensor, boxes: Tensor, affine: Tensor, size: tuple[int, int], dtype: torch.dtype = torch.float16
) -> Tensor:
    """Crops of a BGR frame.

    Args:
        frame: (H, W, 3) uint8; its rows may be padded, its pixels may not.
        boxes: (R, 4) float32, same device. An empty, non-finite or outside box gives an all-zero crop.
        affine: (2, 3) float32 scale and shift in the order R, G, B, same device: scale·grey + shift is what the network
            reads (`Preprocessing.affine`).
        size: (h, w) of the crops.
        dtype: float16 or float32.

    Returns:
        (R, 3, h, w), equal to OpenCV's resize of the same crops to one grey level.

    Raises:
        ValueError: shapes, dtypes or strides other than these.
    """
    if frame.dim() != 3 or frame.shape[2] != 3 or frame.stride()[1:] != (3, 1):
        raise ValueError(
            f"expected a frame (H, W, 3) with pixels side by side, got {tuple(frame.shape)} with strides "
            f"{frame.stride()}. Call .contiguous() on it"
        )
    _check([frame], boxes, affine, size, dtype)
    return torch.ops.dpm_edge.crop_resize_normalize(frame, boxes, affine, *size, dtype)


def crop_resize_normalize_nv12(
    luma: Tensor, chroma: Tensor, boxes: Tensor, affine: Tensor, size: tuple[int, int],
    dtype: torch.dtype = torch.float16,
) -> Tensor:  # fmt: skip
    """Crops of an NV12 frame, what hardware decoders give; otherwise as `crop_resize_normalize`.

    Args:
        luma: (H, W) uint8, rows may be padded.
        chroma: (⌈H/2⌉, ⌈W/2⌉, 2) uint8, U then V, rows may be padded.
    """
    wanted = ((luma.shape[0] + 1) // 2, (luma.shape[-1] + 1) // 2, 2)
    if luma.dim() != 2 or tuple(chroma.shape) != wanted or luma.stride(1) != 1 or chroma.stride()[1:] != (2, 1):
        raise ValueError(
            f"expected luma (H, W) and chroma {wanted}, dense in each row, got {tuple(luma.shape)} with strides "
            f"{luma.stride()} and {tuple(chroma.shape)} with strides {chroma.stride()}"
        )
    _check([luma, chroma], boxes, affine, size, dtype)
    return torch.ops.dpm_edge.crop_resize_normalize_nv12(luma, chroma, boxes, affine, *size, dtype)


@torch.library.custom_op("dpm_edge::crop_resize_normalize", mutates_args=())
def _bgr(frame: Tensor, boxes: Tensor, affine: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    if runs_kernel(frame):
        return _launch(frame, frame, boxes, affine, height, width, dtype, nv12=False)
    return reference.crop_resize_normalize(frame, boxes, affine, height, width).to(dtype)


@torch.library.custom_op("dpm_edge::crop_resize_normalize_nv12", mutates_args=())
def _nv12(
    luma: Tensor, chroma: Tensor, boxes: Tensor, affine: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    if runs_kernel(luma):
        return _launch(luma, chroma, boxes, affine, height, width, dtype, nv12=True)
    frame = reference.nv12_to_bgr(luma, chroma)
    return reference.crop_resize_normalize(frame, boxes, affine, height, width).to(dtype)


@_bgr.register_fake
def _(frame: Tensor, boxes: Tensor, affine: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    return boxes.new_empty(boxes.shape[0], 3, height, width, dtype=dtype)


@_nv12.register_fake
def _(
    luma: Tensor, chroma: Tensor, boxes: Tensor, affine: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    return boxes.new_empty(boxes.shape[0], 3, height, width, dtype=dtype)


def _launch(
    plane: Tensor, chroma: Tensor, boxes: Tensor, affine: Tensor, height: int, width: int, dtype: torch.dtype,
    nv12: bool,
) -> Tensor:  # fmt: skip
    from . import kernel

    count = boxes.shape[0]
    out = torch.empty(count, 3, height, width, dtype=dtype, device=plane.device)
    if count == 0:
        return out
    arch = contract.architecture(*torch.cuda.get_device_capability(plane.device)) if plane.is_cuda else 0
    block = contract.BLOCK[arch]
    kernel.crop_resize_normalize[(-(-height * width // block), count)](
        plane, chroma, boxes.contiguous(), affine, plane.shape[0], plane.shape[1], plane.stride(0), chroma.stride(0),
        height, width, out, NV12=nv12, BLOCK=block, num_warps=contract.WARPS,
    )  # fmt: skip
    return out


def _check(images: list[Tensor], boxes: Tensor, affine: Tensor, size: tuple[int, int], dtype: torch.dtype) -> None:
    if any(image.dtype != torch.uint8 for image in images):
        raise ValueError(f"expected pictures of torch.uint8, got {[image.dtype for image in images]}")
    if boxes.dim() != 2 or boxes.shape[1] != 4 or boxes.dtype != torch.float32:
        raise ValueError(
            f"expected boxes (R, 4) x0 y0 x1 y1 of torch.float32, got {tuple(boxes.shape)} of {boxes.dtype}"
        )
    if tuple(affine.shape) != (2, 3) or affine.dtype != torch.float32 or not affine.is_contiguous():
        raise ValueError(
            f"expected affine (2, 3) of torch.float32, got {tuple(affine.shape)} of {affine.dtype}. Make it of "
            "Preprocessing.affine()"
        )
    devices = {tensor.device for tensor in (*images, boxes, affine)}
    if len(devices) != 1:
        raise ValueError(f"expected pictures, boxes and affine on one device, got {sorted(map(str, devices))}")
    if min(size) < 1 or str(dtype).removeprefix("torch.") not in contract.DTYPES:
        raise ValueError(f"expected crops with sides of at least 1 in one of {contract.DTYPES}, got {size} in {dtype}")
