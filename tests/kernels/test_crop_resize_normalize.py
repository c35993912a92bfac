"""crop_resize_normalize in the interpreter against OpenCV and the runtime's own preprocessing.

Shapes: R boxes · frame (H, W, 3) uint8 BGR, or NV12 luma (H, W) + chroma (⌈H/2⌉, ⌈W/2⌉, 2) · output (R, 3, h, w) RGB.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dpm_edge.images import clip_boxes, preprocess
from dpm_edge.kernels.crop_resize_normalize import contract, kernel, op, reference
from dpm_edge.spec import Preprocessing

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
BOXES = [[3.2, 4.7, 50.1, 88.8], [-5, -7, 20, 30], [100, 60, 300, 400], [10, 10, 11, 11], [0, 0, 121, 91]]
UNUSABLE = [[5, 5, 5, 9], [9, 9, 5, 12], [math.nan, 0, 4, 4], [0, 0, math.inf, 4], [200, 0, 300, 10], [-9, -9, 0, 3]]


def affine_of(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Scale and shift of a normalisation, (2, 3)."""
    return torch.tensor(Preprocessing(mean=mean, std=std).affine())


def random_bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def grey_levels(normalised: Tensor) -> Tensor:
    scale, shift = affine_of(MEAN, STD).double()
    return (normalised.double() - shift[:, None, None]) / scale[:, None, None]


def cpu_path(frame: np.ndarray, boxes: list[list[float]], size: tuple[int, int]) -> Tensor:
    """What the runtime does on a CPU."""
    whole, unusable = clip_boxes(np.array(boxes), frame.shape)
    assert not unusable
    settings = Preprocessing(height=size[0], width=size[1], color="rgb", mean=MEAN, std=STD, interpolation="bilinear")
    return torch.from_numpy(preprocess([frame[y0:y1, x0:x1] for x0, y0, x1, y1 in whole], settings))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-3), (torch.float16, 0.13)], ids=str)
@pytest.mark.parametrize("size", [(64, 33), (31, 70), (16, 16)])
def test_bgr_equals_the_cpu_path_to_one_grey_level(dtype, rounding, size):
    frame = random_bytes(91, 121, 3)
    got = op.crop_resize_normalize(torch.from_numpy(frame), torch.tensor(BOXES), affine_of(MEAN, STD), size, dtype)
    difference = (grey_levels(got) - grey_levels(cpu_path(frame, BOXES, size))).abs()
    assert got.dtype == dtype and got.shape == (len(BOXES), 3, *size)
    assert difference.max() <= contract.TOLERANCE_GREY_LEVELS + rounding
    assert (difference > 0.5).double().mean() < 0.02  # the same fixed point, so nearly all levels are the same


@pytest.mark.parametrize("shape", [(90, 122), (91, 121)])
def test_nv12_equals_opencv_then_the_cpu_path(shape):
    height, width = shape
    luma, chroma = random_bytes(height, width), random_bytes((height + 1) // 2, (width + 1) // 2, 2)
    even = (height + height % 2, width + width % 2)  # OpenCV takes even sizes only
    stacked = np.zeros((even[0] * 3 // 2, even[1]), np.uint8)
    stacked[:height, :width] = luma
    stacked[even[0] :] = chroma.reshape(even[0] // 2, even[1])
    frame = cv2.cvtColor(stacked, cv2.COLOR_YUV2BGR_NV12)[:height, :width]
    planes = torch.from_numpy(luma), torch.from_numpy(chroma)
    assert np.array_equal(reference.nv12_to_bgr(*planes).numpy(), frame)
    got = op.crop_resize_normalize_nv12(*planes, torch.tensor(BOXES), affine_of(MEAN, STD), (40, 21), torch.float32)
    wanted = cpu_path(np.ascontiguousarray(frame), BOXES, (40, 21))
    assert (grey_levels(got) - grey_levels(wanted)).abs().max() <= contract.TOLERANCE_GREY_LEVELS + 1e-3


def test_reference_equals_the_cpu_path_to_one_grey_level(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(kernel, "crop_resize_normalize", None)  # would fail if it were launched
    frame = random_bytes(91, 121, 3)
    arguments = (torch.tensor(BOXES + UNUSABLE), affine_of(MEAN, STD), (48, 24), torch.float32)
    got = op.crop_resize_normalize(torch.from_numpy(frame), *arguments)
    difference = (grey_levels(got[: len(BOXES)]) - grey_levels(cpu_path(frame, BOXES, (48, 24)))).abs()
    assert difference.max() <= contract.TOLERANCE_GREY_LEVELS + 1e-3
    assert not got[len(BOXES) :].any()


def test_a_crop_of_the_wanted_size_is_copied():
    frame = random_bytes(40, 50, 3)
    got = op.crop_resize_normalize(
        torch.from_numpy(frame), torch.tensor([[7.0, 5.0, 27.0, 35.0]]), affine_of((0, 0, 0), (1, 1, 1)), (30, 20),
        torch.float32,
    )  # fmt: skip
    wanted = torch.from_numpy(frame[5:35, 7:27, ::-1].copy()).permute(2, 0, 1)
    assert torch.equal((got[0] * 255).round().to(torch.uint8), wanted)


def test_unusable_boxes_give_zeros():
    frame = torch.from_numpy(random_bytes(91, 121, 3))
    boxes = torch.tensor(UNUSABLE + BOXES[:1])
    got = op.crop_resize_normalize(frame, boxes, affine_of(MEAN, STD), (16, 8))
    assert not got[:-1].any()
    assert got[-1].any()


def test_rows_may_be_padded():
    padded = torch.from_numpy(random_bytes(91, 160, 3))
    frame, affine, boxes = padded[:, :121], affine_of(MEAN, STD), torch.tensor(BOXES)
    wanted = op.crop_resize_normalize(frame.contiguous(), boxes, affine, (20, 10))
    assert torch.equal(op.crop_resize_normalize(frame, boxes, affine, (20, 10)), wanted)
    luma, chroma = padded[:, :, 0].contiguous()[:, :121], torch.from_numpy(random_bytes(46, 80, 2))[:, :61]
    wanted = op.crop_resize_normalize_nv12(luma.contiguous(), chroma.contiguous(), boxes, affine, (20, 10))
    assert torch.equal(op.crop_resize_normalize_nv12(luma, chroma, boxes, affine, (20, 10)), wanted)


def test_no_boxes_give_no_crops():
    frame = torch.zeros(8, 8, 3, dtype=torch.uint8)
    assert op.crop_resize_normalize(frame, torch.zeros(0, 4), affine_of(MEAN, STD), (6, 3)).shape == (0, 3, 6, 3)


def test_operator_passes_torchs_own_checks():
    frame, affine, boxes = (
        torch.from_numpy(random_bytes(30, 40, 3)),
        affine_of(MEAN, STD),
        torch.tensor([[1.0, 2, 20, 25]]),
    )
    arguments = (boxes, affine, 12, 6, torch.float32)
    torch.library.opcheck(torch.ops.dpm_edge.crop_resize_normalize.default, (frame, *arguments))
    luma, chroma = frame[..., 0].contiguous(), torch.from_numpy(random_bytes(15, 20, 2))
    torch.library.opcheck(torch.ops.dpm_edge.crop_resize_normalize_nv12.default, (luma, chroma, *arguments))


def test_compile_passes_through():
    frame, affine, boxes = (
        torch.from_numpy(random_bytes(30, 40, 3)),
        affine_of(MEAN, STD),
        torch.tensor([[1.0, 2, 20, 25]]),
    )
    compiled = torch.compile(op.crop_resize_normalize, backend="aot_eager", fullgraph=True)
    arguments = (frame, boxes, affine, (12, 6), torch.float32)
    assert torch.equal(compiled(*arguments), op.crop_resize_normalize(*arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": torch.zeros(3, 8, 8, dtype=torch.uint8)}, r"\(H, W, 3\)"),
        ({"frame": torch.zeros(8, 8, 3)}, "expected pictures of torch.uint8"),
        ({"boxes": torch.zeros(4)}, "x0 y0 x1 y1"),
        ({"boxes": torch.zeros(1, 4, dtype=torch.float64)}, "of torch.float32, got"),
        ({"affine": torch.zeros(3, 2)}, r"expected affine \(2, 3\)"),
        ({"size": (0, 4)}, "sides of at least 1"),
        ({"dtype": torch.int32}, "float16"),
    ],
)
def test_an_error_says_what_was_expected(change, message):
    arguments = {
        "frame": torch.zeros(8, 8, 3, dtype=torch.uint8), "boxes": torch.zeros(1, 4), "affine": affine_of(MEAN, STD),
        "size": (6, 3),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        op.crop_resize_normalize(**{**arguments, **change})


def test_nv12_planes_must_fit_each_other():
    with pytest.raises(ValueError, match=r"\(4, 4, 2\)"):
        op.crop_resize_normalize_nv12(
            torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(8, 8, 2, dtype=torch.uint8), torch.zeros(1, 4),
            affine_of(MEAN, STD), (6, 3),
        )  # fmt: skip


def test_without_triton_the_reference_runs_on_a_cpu_and_the_kernel_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes, affine = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), affine_of(MEAN, STD)
    frame = torch.zeros(8, 8, 3, dtype=torch.uint8)
    monkeypatch.setattr("dpm_edge.kernels.dispatch._has_triton", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r"expected Triton.*Install it: pip install 'dpm-edge\[gpu\]'"):
        op.crop_resize_normalize(frame, boxes, affine, (6, 3))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert op.crop_resize_normalize(frame, boxes, affine, (6, 3)).shape == (1, 3, 6, 3)
