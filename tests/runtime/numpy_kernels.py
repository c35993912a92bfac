"""What our compiled kernels do, in numpy and OpenCV on raw addresses, called with the packed parameters of a launch.

B queries · N targets · W padded width · G = 32 rows a group · k results · L keys
"""

from __future__ import annotations

import ctypes
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge.kernels.crop_resize_normalize import contract as crop
from dpm_edge.kernels.masked_distance import contract as distance

HIDDEN = [{"name": "global_scratch", "type": "*u8"}, {"name": "profile_scratch", "type": "*u8"}]
GROUP = 32


def write_descriptions(folder: Path, sm: int = 87) -> Path:
    """Launch files of every variant of the two ops, as ahead-of-time compilation writes them; the cubins are names."""
    folder.mkdir(parents=True, exist_ok=True)
    for variant in (one.on(sm) for one in (*crop.VARIANTS, *distance.VARIANTS)):
        name = f"{variant.name}_sm{sm}"
        description = {
            "variant": variant.name,
            "entry": variant.kernel.rpartition(":")[2],
            "grid": variant.grid_rule,
            "block": [32 * variant.num_warps, 1, 1],
            "shared_bytes": 0,
            "parameters": [{"name": n, "type": kind} for n, kind in variant.parameters.items()] + HIDDEN,
            "divisible_by_16": list(variant.divisible_by_16),
        }
        (folder / f"{name}.json").write_text(json.dumps(description))
        (folder / f"{name}.cubin").write_bytes(name.encode())
    return folder


def unpack(description: dict[str, Any], parameters: int) -> dict[str, int]:
    """The values behind the array of pointers that cuLaunchKernel is given, by name."""
    declared = description["parameters"]
    pointers = (ctypes.c_void_p * len(declared)).from_address(parameters)
    kinds = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}
    return {
        one["name"]: kinds.get(one["type"], ctypes.c_uint64).from_address(pointer).value
        for one, pointer in zip(declared, pointers, strict=True)
    }


def run(cuda: Any, description: dict[str, Any], values: dict[str, int], grid: tuple[int, ...]) -> None:
    """Do what the kernel does."""
    name = description["variant"]
    if name.startswith("crop"):
        _crop(cuda, values, grid)
    elif name.startswith("masked_prepare"):
        _prepare(cuda, values, grid, _dtype(name))
    elif name.startswith("masked_groups"):
        _groups(cuda, values, _dtype(name))
    elif name.startswith("masked_rescore"):
        _rescore(cuda, values, grid, _dtype(name))
    elif name.startswith("masked_select"):
        _select(cuda, values, grid, int(name.rpartition("_")[2]))
    else:
        raise NotImplementedError(name)


def _crop(cuda: Any, v: dict[str, int], grid: tuple[int, ...]) -> None:
    height, width, stride = v["frame_height"], v["frame_width"], v["plane_stride"]
    rows = np.stack([cuda.view(v["plane"] + y * stride, (width * 3,), np.uint8) for y in range(height)])
    frame = rows.reshape(height, width, 3)
    scale, shift = cuda.view(v["affine"], (2, 3), np.float32)
    size = (v["out_height"], v["out_width"])
    out = cuda.view(v["out"], (grid[1], 3, *size), np.float32)
    for row, (x0, y0, x1, y1) in enumerate(cuda.view(v["boxes"], (grid[1], 4), np.float32)):
        out[row] = 0
        if x1 > x0 and y1 > y0:
            part = frame[max(0, math.floor(y0)) : math.ceil(y1), max(0, math.floor(x0)) : math.ceil(x1)]
            small = cv2.resize(np.ascontiguousarray(part), size[::-1], interpolation=cv2.INTER_LINEAR)
            out[row] = (small[:, :, ::-1] * scale + shift).transpose(2, 0, 1)


def _dtype(name: str) -> np.dtype:
    """The type that a variant's name ends in."""
    return np.dtype({"fp32": np.float32, "fp16": np.float16, "i8": np.int8}[name.rpartition("_")[2]])


def _prepare(cuda: Any, v: dict[str, int], grid: tuple[int, ...], dtype: np.dtype) -> None:
    batch, width = v["B"], v["D"]
    padded = grid[0]
    q = cuda.view(v["Q"], (batch, width), np.float32).astype(np.float64)
    m = cuda.view(v["M"], (batch, width), np.float32).astype(np.float64)
    most, most_m = np.abs(q * m).max(1), np.abs(m).max(1)
    qm, mm = (cuda.view(v[name], (padded, width), dtype) for name in ("QM", "MM"))
    gain = cuda.view(v["GAIN"], (padded,), np.float32)
    qm[:], mm[:], gain[:] = 0, 0, 0
    some = (most > 0) & (most_m > 0)
    qm[:batch][some] = ((q * m)[some] / most[some, None]).astype(dtype)
    mm[:batch][some] = ((m[some] / most_m[some, None]) ** 2).astype(dtype)
    gain[:batch][some] = most[some] / most_m[some] / np.linalg.norm(q[some], axis=1)


def _scores(cuda: Any, v: dict[str, int], dtype: np.dtype) -> NDArray[np.float32]:
    batch, count, width = v["B"], v["N"], v["D"]
    operand = np.float32 if dtype == np.float32 else np.float16
    qm = cuda.view(v["QM"], (batch, width), operand).astype(np.float64)
    mm = cuda.view(v["MM"], (batch, width), operand).astype(np.float64)
    t = cuda.view(v["T"], (count, width), dtype).astype(np.float64)
    if dtype == np.int8:
        t *= cuda.view(v["ROW_SCALE"], (count, 1), np.float32)
    gain = cuda.view(v["GAIN"], (batch,), np.float32)
    norm = mm @ (t * t).T
    s = gain[:, None] * np.where(norm > 0, (qm @ t.T) / np.sqrt(np.where(norm > 0, norm, 1)), 0)
    keep = cuda.view(v["FILTER"], (count,), np.uint8)
    return np.where(keep[None, :] == 1, np.clip(s, -1, 1), -np.inf).astype(np.float32)


def _pack(score: NDArray[np.float32], index: NDArray[Any]) -> NDArray[np.int64]:
    bits = np.ascontiguousarray(score, np.float32).view(np.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    return (ordered << 32) | (0x7FFFFFFF - index.astype(np.int64))


def _unpack(keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    ordered = (keys >> 32).astype(np.int32)
    score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)
    return score, 0x7FFFFFFF - (keys & 0x7FFFFFFF)


def _groups(cuda: Any, v: dict[str, int], dtype: np.dtype) -> None:
    scores = _scores(cuda, v, dtype)
    count = -(-v["N"] // GROUP)
    padded = np.full((v["B"], count * GROUP), -np.inf, np.float32)
    padded[:, : v["N"]] = scores
    best = padded.reshape(v["B"], count, GROUP).max(2)
    cuda.view(v["OUT"], (v["B"], count), np.int64)[:] = _pack(best, np.broadcast_to(np.arange(count), best.shape))


def _rescore(cuda: Any, v: dict[str, int], grid: tuple[int, ...], dtype: np.dtype) -> None:
    k, batch = v["K"], v["B"]
    assert grid[:2] == (k, batch)
    scores = np.full((batch, v["N"] + GROUP), -np.inf, np.float32)
    scores[:, : v["N"]] = _scores(cuda, v, dtype)
    _, groups = _unpack(cuda.view(v["GROUPS"], (batch, k), np.int64))
    rows = groups[:, :, None] * GROUP + np.arange(GROUP)
    found = np.take_along_axis(scores, rows.reshape(batch, -1), 1)
    cuda.view(v["KEYS"], (batch, k * GROUP), np.int64)[:] = _pack(found, rows.reshape(batch, -1))


def _select(cuda: Any, v: dict[str, int], grid: tuple[int, ...], most: int) -> None:
    chunks, batch, length, k = grid[0], grid[1], v["L"], v["K"]
    assert k <= most and chunks == -(-length // distance.CHUNK)
    keys = np.full((batch, chunks * distance.CHUNK), np.iinfo(np.int64).min, np.int64)
    keys[:, :length] = cuda.view(v["KEYS"], (batch, length), np.int64)
    best = np.sort(keys.reshape(batch, chunks, -1), axis=2)[:, :, ::-1][:, :, :k]
    if "OUT" in v:
        if v["OUT"] < v["KEYS"] + batch * length * 8 and v["KEYS"] < v["OUT"] + batch * chunks * k * 8:
            cuda.violations.append("select writes where other blocks still read")
        cuda.view(v["OUT"], (batch, chunks, k), np.int64)[:] = best
        return
    assert chunks == 1
    score, row = _unpack(best[:, 0])
    cuda.view(v["SCORES"], (batch, k), np.float32)[:] = score
    cuda.view(v["ROWS"], (batch, k), np.int64)[:] = np.where(score > -np.inf, row, -1)
