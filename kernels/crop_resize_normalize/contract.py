"""Contract of crop_resize_normalize: what goes in and out, tolerances, block sizes per architecture.

Shapes: R boxes · frame H×W · output h×w. Frame (H, W, 3) uint8 BGR, or NV12: luma (H, W) and chroma (⌈H/2⌉, ⌈W/2⌉, 2)
uint8, BT.601 limited range. Boxes (R, 4) float32 xyxy pixels. Output (R, 3, h, w) RGB, float16 or float32.
"""

from __future__ import annotations

NAME = "dpm_edge::crop_resize_normalize"
DTYPES = ("float16", "float32")
TOLERANCE_GREY_LEVELS = 1.0
"""Largest difference from cv2.cvtColor + cv2.resize + normalisation, in grey levels (1/255 before normalisation)."""
BLOCK = {0: 4096, 80: 256, 86: 256, 87: 256, 89: 256, 90: 256, 100: 256, 110: 256}
"""Output pixels of one program per architecture; 0 is the interpreter."""
WARPS = 4


def architecture(major: int, minor: int) -> int:
    """The table's architecture for a compute capability: the newest that is not newer than the device."""
    known = [arch for arch in BLOCK if 0 < arch <= 10 * major + minor]
    return max(known) if known else 80
