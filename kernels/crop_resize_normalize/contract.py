"""Contract of crop_resize_normalize: what goes in and out, tolerances, block sizes per architecture.

Shapes: R boxes · frame H×W · output h×w. Frame (H, W, 3) uint8 BGR, or NV12: luma (H, W) and chroma (⌈H/2⌉, ⌈W/2⌉, 2)
uint8, BT.601 limited range. Boxes (R, 4) float32 xyxy pixels. Output (R, 3, h, w) RGB, float16 or float32.
"""

from __future__ import annotations

from dpm_edge.kernels.variant import Variant

NAME = "dpm_edge::crop_resize_normalize"
DTYPES = ("float16", "float32")
TOLERANCE_GREY_LEVELS = 1.0
"""Largest difference from cv2.cvtColor + cv2.resize + normalisation, in grey levels (1/255 before normalisation)."""
BLOCK = {0: 4096, 80: 256, 86: 256, 87: 256, 89: 256, 90: 512, 100: 256, 110: 256}
"""Output pixels of one program per architecture; 0 is the interpreter."""
WARPS = 4


def architecture(major: int, minor: int) -> int:
    """The table's architecture for a compute capability: the newest that is not newer than the device."""
    known = [arch for arch in BLOCK if 0 < arch <= 10 * major + minor]
    return max(known) if known else 80


def _variant(nv12: bool, dtype: str = "fp16") -> Variant:
    sizes = ("frame_height", "frame_width", "plane_stride", "chroma_stride", "out_height", "out_width")
    return Variant(
        op="crop_resize_normalize",
        name=f"crop_resize_normalize_{'nv12' if nv12 else 'bgr'}_{dtype}",
        kernel="dpm_edge.kernels.crop_resize_normalize.kernel:crop_resize_normalize",
        signature={
            "plane": "*u8", "chroma": "*u8", "boxes": "*fp32", "affine": "*fp32", **dict.fromkeys(sizes, "i32"),
            "out": f"*{dtype}", "NV12": "constexpr", "BLOCK": "constexpr",
        },
        constexprs={"NV12": nv12, "BLOCK": BLOCK[87]},
        num_warps=WARPS,
        num_stages=3,
        divisible_by_16=("boxes", "affine", "out"),
        grid="ceil(out_height * out_width / BLOCK), box_count",
        load_bytes=0,
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (_variant(nv12=False), _variant(nv12=True), _variant(nv12=False, dtype="fp32"))
"""Compiled ahead of time; fp32 for engines whose input is float32. Sources are single bytes anywhere in the
frame, so loads are narrow by nature."""
