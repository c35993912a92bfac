"""Masked top-k of a gallery in GPU memory, launched without a host round trip.

B queries · N targets · D feature dimensions · W = D rounded up to 128 · G = 32 rows a group · k results

The passes are those of kernels/masked_distance/kernel_topk.py, the limits those of its compiled variants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.metrics import normalise
from dpm_edge.runtime.gpu.device import Device
from dpm_edge.runtime.gpu.kernels import OurKernels
from dpm_edge.runtime.gpu.memory import Memory

ALIGNMENT, QUERY_ROWS, WIDTH_STEP, SMALL_BATCH, GROUP, CHUNK, SMALL_K = 256, 128, 128, 16, 32, 1024, 16


class Held:
    """N targets as (N, W) float16, L2-normalised, and a filter that keeps them all."""

    def __init__(self, index: int, features: NDArray[np.float32]) -> None:
        """Copy (N, D) float32 features to GPU number `index`; waits for the copy."""
        self.count, self.dimension = features.shape
        self.width = -(-self.dimension // WIDTH_STEP) * WIDTH_STEP
        rows = np.zeros((self.count, self.width), np.float16)
        rows[:, : self.dimension] = normalise(features)
        self._device = device = Device(index)  # its own hold on the context: an engine may be closed first
        self._memory: Memory | None = Memory(device)
        try:
            with device:
                self.rows = self._memory.reserve(rows.nbytes)
                self.keep = self._memory.reserve(self.count)
                device.call("cuMemcpyHtoD", self.rows, rows.ctypes.data, rows.nbytes)
                device.call("cuMemsetD8", self.keep, 1, self.count)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        memory, self._memory = self._memory, None
        if memory is not None:
            with self._device:
                memory.close()
            self._device.close()


@dataclass(frozen=True)
class Layout:
    """Where each buffer lies in the workspace, in bytes from its start."""

    query: int
    mask: int
    qm: int
    mm: int
    gain: int
    groups: int
    keys: int
    half: tuple[int, int]
    size: int
    group_count: int
    chosen: int
    """Groups whose rows are scored again."""


def layout(held: Held, batch: int, k: int) -> Layout:
    """The workspace for `batch` queries and `k` results."""
    end = 0

    def take(size: int) -> int:
        nonlocal end
        start, end = end, end + -(-size // ALIGNMENT) * ALIGNMENT
        return start

    rows = -(-batch // QUERY_ROWS) * QUERY_ROWS
    group_count = -(-held.count // GROUP)
    chosen = min(k, group_count)
    longest = max(group_count, chosen * GROUP)
    padded = 0 if held.dimension == held.width else batch * held.width * 4
    return Layout(
        query=take(padded),
        mask=take(padded),
        qm=take(rows * held.width * 2),
        mm=take(rows * held.width * 2),
        gain=take(rows * 4),
        groups=take(batch * group_count * 8),
        keys=take(batch * chosen * GROUP * 8),
        half=(take(batch * -(-longest // CHUNK) * k * 8), take(batch * -(-longest // CHUNK) * k * 8)),
        size=end,
        group_count=group_count,
        chosen=chosen,
    )


class Search:
    """One search: enqueues its passes on one stream."""

    def __init__(
        self, device: Device, kernels: OurKernels, held: Held, batch: int, k: int, workspace: int, stream: Any
    ) -> None:
        """`workspace`: address of `layout(held, batch, k).size` bytes."""
        self._device, self._kernels, self._held = device, kernels, held
        self._batch, self._k, self._at, self._stream = batch, k, workspace, stream
        self._layout = layout(held, batch, k)

    def enqueue(self, query: int, mask: int, scores: int, rows: int) -> None:
        """query, mask: addresses of (B, D) float32; scores (B, k) float32, rows (B, k) int64, falling.

        Raises:
            EngineError: a kernel is missing for this GPU.
        """
        lay, held, k = self._layout, self._held, self._k
        if held.dimension != held.width:
            query, mask = self._padded(query, lay.query), self._padded(mask, lay.mask)
        prepared = {"QM": self._at + lay.qm, "MM": self._at + lay.mm, "GAIN": self._at + lay.gain}
        size = {"B": self._batch, "D": held.width}
        targets = {"T": held.rows, "FILTER": held.keep, "N": held.count}
        path = "small" if self._batch <= SMALL_BATCH else "large"
        self._launch("masked_prepare_fp16", {"Q": query, "M": mask, **size, **prepared})
        self._launch(f"masked_groups_{path}_fp16", {**prepared, **targets, **size, "OUT": self._at + lay.groups})
        groups = self._best(self._at + lay.groups, lay.group_count, lay.chosen)
        keys, length = self._at + lay.keys, lay.chosen * GROUP
        again = {"GROUPS": groups, "K": lay.chosen, "KEYS": keys}
        self._launch("masked_rescore_fp16", {**prepared, **targets, **size, **again})
        if length > CHUNK:
            keys, length = self._best(keys, length, k), k
        last = {"KEYS": keys, "L": length, "K": k, "SCORES": scores, "ROWS": rows, "B": self._batch}
        self._launch(f"masked_select_rows_{16 if k <= SMALL_K else 128}", last)

    def _best(self, keys: int, length: int, k: int) -> int:
        """The k best of each row of keys (B, length): passes over chunks until one is left; its address."""
        turn = 0
        while True:
            out, chunks = self._at + self._layout.half[turn], -(-length // CHUNK)
            values = {"KEYS": keys, "L": length, "K": k, "OUT": out, "B": self._batch}
            self._launch(f"masked_select_keys_{16 if k <= SMALL_K else 128}", values)
            if chunks == 1:
                return out
            keys, length, turn = out, chunks * k, 1 - turn

    def _padded(self, address: int, offset: int) -> int:
        """(B, D) float32 copied into zeroed rows of W: the copy's address."""
        held, to = self._held, self._at + offset
        self._device.call("cuMemsetD8Async", to, 0, self._batch * held.width * 4, self._stream)
        driver = self._device.cuda
        copy = driver.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch = address, held.dimension * 4
        copy.dstDevice, copy.dstPitch = to, held.width * 4
        copy.WidthInBytes, copy.Height = held.dimension * 4, self._batch
        self._device.call("cuMemcpy2DAsync", copy, self._stream)
        return to

    def _launch(self, name: str, values: dict[str, int]) -> None:
        self._kernels.launch(name, values, int(self._stream))
