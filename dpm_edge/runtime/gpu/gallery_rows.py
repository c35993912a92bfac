"""Rows of a gallery in GPU memory, searched by our compiled kernels: no torch, no Triton, no host round trip.

B queries · N rows, in blocks · D feature dimensions · W = D rounded up to 128 · G = 32 rows a group · k places

The passes are those of kernels/masked_distance/kernel_topk.py, the limits those of its compiled variants.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dpm_edge.errors import EngineError
from dpm_edge.runtime.gpu.device import NON_BLOCKING, Device, Memory, Staged
from dpm_edge.runtime.gpu.kernels import CompiledKernels, kernels_folder, missing_kernels

ALIGNMENT, QUERY_ROWS, WIDTH_STEP, SMALL_BATCH, GROUP, CHUNK, SMALL_K = 256, 128, 128, 16, 32, 1024, 16
BLOCK = 1 << 18
"""Most rows of one block."""
LEAST_CAPACITY = 1024
"""Rows that the first block has room for; it doubles up to BLOCK."""
PIECE = 1 << 14
"""Rows that are padded and uploaded at a time."""
ROOM_STEP = 1 << 18
"""Bytes by which the buffers of a search grow."""
QUERIES = 256
"""Queries of one pass, which bounds the workspace."""
KINDS = {"float32": "fp32", "float16": "fp16", "int8": "i8"}
OPERANDS = {"float32": ("fp32", 4), "float16": ("fp16", 2), "int8": ("fp16", 2)}
"""Type of the rows → type in which queries are multiplied with them, and its bytes."""


class _Block:
    """Up to BLOCK rows (n, W), and for int8 codes each row's scale (n,) float32."""

    def __init__(self, device: Device, capacity: int, width: int, dtype: np.dtype) -> None:
        self.count, self.capacity = 0, capacity
        self.memory = Memory(device)
        try:
            self.rows = self.memory.reserve(capacity * width * dtype.itemsize)
            self.scale = self.memory.reserve(capacity * 4) if dtype == np.int8 else 0
        except EngineError:
            self.memory.close()
            raise


@dataclass(frozen=True)
class _Layout:
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


class GalleryRows:
    """Rows of one dtype on one GPU. One thread at a time: the gallery holds a lock.

    `enqueue` puts a search behind the work of a stream, `collect` reads its result once that stream was waited for.
    """

    complete = False
    """Whether the mutual metric and `within` are served: the kernels for them are not among the compiled ones."""

    def __init__(self, index: int = 0) -> None:
        """None yet, on GPU number `index`. It retains the GPU's context for itself.

        Raises:
            MissingLibrary: cuda-bindings or the compiled kernels are not here.
            EngineError: there is no such GPU.
        """
        self._device = Device(index)
        self.place = f"cuda:{index}"
        """The GPU, by the name that torch gives it."""
        self._kernels: CompiledKernels | None = None
        self._stream: Any = None
        self._blocks: list[_Block] = []
        self._memory: dict[str, Memory] = {}
        self._staged: dict[str, Staged] = {}
        self._addresses: dict[str, tuple[int, int]] = {}
        self._dimension, self._dtype = 0, np.dtype(np.float32)
        self._found: list[tuple[int, int]] = []
        self._queries = self._k = 0
        try:
            capability = self._device.compute_capability
            self._kernels = CompiledKernels(kernels_folder(capability), self._device)
            if not any(name.startswith("masked_groups") for name in self._kernels.names):
                raise missing_kernels(capability, "a gallery on a GPU")
            with self._device:
                self._stream = self._device.call("cuStreamCreate", NON_BLOCKING)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return sum(block.count for block in self._blocks)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end the driver may be gone
            self.close()

    def clear(self) -> None:
        """Free every row."""
        with self._device:
            for block in self._blocks:
                block.memory.close()
        self._blocks.clear()

    def follow(self, values: NDArray, masks: NDArray | None) -> None:
        """Upload the rows of a table that were added since; those before are as they were (else: `clear`).

        values: (N, D) float32, float16 or int8 codes of any scale. masks: stay where they are (see `complete`).

        Raises:
            EngineError: the GPU's memory does not suffice.
        """
        done = len(self)
        if done == len(values):
            return
        self._dimension, self._dtype = values.shape[1], values.dtype
        with self._device:
            for start in range(done // BLOCK * BLOCK, len(values), BLOCK):
                self._extend(start // BLOCK, values[start : start + BLOCK])
            self._device.call("cuStreamSynchronize", 0)  # a copy from pageable memory may still be under way

    def topk(
        self, q: NDArray[np.float32], m: NDArray[np.float32], k: int, *, mutual: bool = False,
        keep: NDArray[np.bool_] | None = None, groups: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # fmt: skip
        """The k best of each query by the kernel: rows (B, k) int64 and scores (B, k) float32, falling.

        Args:
            q, m: (B, D) float32 queries and masks.
            k: 1 to 128.
            mutual: never (see `complete`).
            keep: (N,) bool: only these are found.
            groups: (B,) and (N,) int32: a query does not find rows of its own group.

        Where fewer than k are left: row −1, score −inf.
        """
        assert not mutual, "the caller looks at `complete`"
        rows, scores = np.full((len(q), k), -1, np.int64), np.full((len(q), k), -np.inf, np.float32)
        for which, kept in _by_group(len(q), keep, groups):
            for start in range(0, len(which), QUERIES):
                some = which[start : start + QUERIES]
                with self._device:
                    feature, mask = self._uploaded("q", q[some]), self._uploaded("m", m[some])
                    self._enqueue(feature, mask, len(some), k, kept, self._stream)
                    self._device.call("cuStreamSynchronize", self._stream)
                rows[some], scores[some] = self.collect()
        return rows, scores

    def enqueue(self, feature: Any, mask: Any, k: int, keep: NDArray[np.bool_] | None, stream: int) -> None:
        """Search for queries that lie on the GPU, behind what `stream` holds. Arguments as for `topk`.

        feature, mask: (B, D) float32 with `__cuda_array_interface__`.
        """
        told = [one.__cuda_array_interface__ for one in (feature, mask)]
        with self._device:
            self._enqueue(told[0]["data"][0], told[1]["data"][0], told[0]["shape"][0], k, keep, stream)

    def collect(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What `enqueue` found, (B, k) as for `topk`, now that its stream was waited for."""
        count, parts, at = self._queries, [], 0
        for number, k in self._found:
            size = count * k
            scores = self._staged["scores"].host[at : at + size].reshape(count, k)
            rows = self._staged["rows"].host[at : at + size].reshape(count, k)
            parts.append((np.where(rows >= 0, rows + number * BLOCK, -1), scores))
            at += size
        all_rows, all_scores = (np.concatenate(one, axis=1) for one in zip(*parts))
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, : self._k]
        rows, scores = np.take_along_axis(all_rows, order, axis=1), np.take_along_axis(all_scores, order, axis=1)
        short = self._k - rows.shape[1]
        if short > 0:
            rows = np.pad(rows, ((0, 0), (0, short)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
        return rows, scores

    def close(self) -> None:
        """Free everything; a second call does nothing. No search is under way."""
        if self._device.closed:
            return
        self.clear()
        with self._device:
            for memory in self._memory.values():
                memory.close()
            if self._stream is not None:
                self._device.call("cuStreamDestroy", self._stream)
        if self._kernels is not None:
            self._kernels.close()
        self._device.close()

    @property
    def _width(self) -> int:
        return -(-self._dimension // WIDTH_STEP) * WIDTH_STEP

    def _extend(self, number: int, values: NDArray) -> None:
        """Bring block `number` up to these rows, in room that doubles."""
        if number < len(self._blocks) and self._blocks[number].capacity < len(values):
            self._blocks.pop().memory.close()
        if number == len(self._blocks):
            capacity = min(BLOCK, max(LEAST_CAPACITY, 1 << (len(values) - 1).bit_length()))
            self._blocks.append(_Block(self._device, capacity, self._width, self._dtype))
        block = self._blocks[number]
        for start in range(block.count, len(values), PIECE):
            self._upload(block, start, values[start : start + PIECE])
        block.count = len(values)

    def _upload(self, block: _Block, start: int, values: NDArray) -> None:
        part = np.zeros((len(values), self._width), self._dtype)
        part[:, : self._dimension] = values
        self._device.call("cuMemcpyHtoD", block.rows + start * part[0].nbytes, part.ctypes.data, part.nbytes)
        if block.scale:
            squares = np.einsum("nd,nd->n", values, values, dtype=np.float32)
            scale = (1 / np.sqrt(np.maximum(squares, 1))).astype(np.float32)
            self._device.call("cuMemcpyHtoD", block.scale + start * 4, scale.ctypes.data, scale.nbytes)

    def _enqueue(
        self, feature: int, mask: int, count: int, k: int, keep: NDArray[np.bool_] | None, stream: Any
    ) -> None:
        """feature, mask: addresses of (count, D) float32."""
        self._queries, self._k = count, k
        self._found = [(number, min(k, block.count)) for number, block in enumerate(self._blocks)]
        most = max(block.count for block in self._blocks)
        at = _layout(count, min(k, most), most, self._width, OPERANDS[str(self._dtype)][1], self._dimension)
        workspace = self._room("workspace", at.size)
        size = sum(count * places for _, places in self._found)
        scores, rows = self._stage("scores", size, np.float32), self._stage("rows", size, np.int64)
        kept = self._filter(keep, most, stream)
        one = _Search(self, at, workspace, count, stream)
        one.prepare(feature, mask)
        done = 0
        for (number, places), block in zip(self._found, self._blocks):
            filtered = kept if keep is None else kept + number * BLOCK
            one.enqueue(block, filtered, places, scores.address + done * 4, rows.address + done * 8)
            done += count * places
        scores.download(size * 4, stream)
        rows.download(size * 8, stream)

    def _filter(self, keep: NDArray[np.bool_] | None, most: int, stream: Any) -> int:
        """Address of a byte a row, 1 for those that may be found; without `keep` those of one block serve all."""
        if keep is None:
            grows = self._addresses.get("all", (0, 0))[1] < most
            address = self._room("all", most)
            if grows:
                self._device.call("cuMemsetD8Async", address, 1, self._addresses["all"][1], stream)
            return address
        staged = self._stage("keep", len(keep), np.uint8)
        staged.host[: len(keep)] = keep
        staged.upload(len(keep), stream)
        return staged.address

    def _uploaded(self, name: str, values: NDArray[np.float32]) -> int:
        """Address of queries (B, D) float32 on this object's own stream."""
        staged = self._stage(name, values.size, np.float32)
        staged.host[: values.size] = values.reshape(-1)
        staged.upload(values.nbytes, self._stream)
        return staged.address

    def _stage(self, name: str, size: int, dtype: DTypeLike) -> Staged:
        """Pinned memory of that name, which grows with the largest search so far."""
        if name not in self._staged or len(self._staged[name].host) < size:
            self._staged[name] = self._fresh(name).stage((max(1, 1 << (size - 1).bit_length()),), dtype)
        return self._staged[name]

    def _room(self, name: str, size: int) -> int:
        """Address of GPU memory of that name, which grows with the largest search so far."""
        if self._addresses.get(name, (0, 0))[1] < size:
            size = -(-size // ROOM_STEP) * ROOM_STEP
            self._addresses[name] = (self._fresh(name).reserve(size), size)
        return self._addresses[name][0]

    def _fresh(self, name: str) -> Memory:
        if name in self._memory:
            self._memory[name].close()
        self._memory[name] = Memory(self._device)
        return self._memory[name]


class _Search:
    """The passes of one search, enqueued on one stream."""

    def __init__(self, rows: GalleryRows, at: _Layout, workspace: int, batch: int, stream: Any) -> None:
        self._rows, self._at, self._base, self._batch, self._stream = rows, at, workspace, batch, int(stream)
        self._kind = KINDS[str(rows._dtype)]

    def prepare(self, query: int, mask: int) -> None:
        """query, mask: addresses of (B, D) float32."""
        if self._rows._dimension != self._rows._width:
            query, mask = self._padded(query, self._at.query), self._padded(mask, self._at.mask)
        operand = OPERANDS[str(self._rows._dtype)][0]
        self._launch(f"masked_prepare_{operand}", {"Q": query, "M": mask, **self._size, **self._prepared})

    def enqueue(self, block: _Block, keep: int, k: int, scores: int, rows: int) -> None:
        """scores (B, k) float32, rows (B, k) int64, falling: addresses. keep: a byte a row.

        Raises:
            EngineError: a kernel is missing for this GPU.
        """
        count = -(-block.count // GROUP)
        chosen = min(k, count)
        targets = {"T": block.rows, "FILTER": keep, "N": block.count}
        if block.scale:
            targets["ROW_SCALE"] = block.scale
        path = "small" if self._batch <= SMALL_BATCH else "large"
        known, groups = {**self._prepared, **targets, **self._size}, self._base + self._at.groups
        self._launch(f"masked_groups_{path}_{self._kind}", {**known, "OUT": groups})
        groups = self._best(groups, count, chosen)
        keys, length = self._base + self._at.keys, chosen * GROUP
        self._launch(f"masked_rescore_{self._kind}", {**known, "GROUPS": groups, "K": chosen, "KEYS": keys})
        if length > CHUNK:
            keys, length = self._best(keys, length, k), k
        last = {"KEYS": keys, "L": length, "K": k, "SCORES": scores, "ROWS": rows, "B": self._batch}
        self._launch(f"masked_select_rows_{16 if k <= SMALL_K else 128}", last)

    @property
    def _size(self) -> dict[str, int]:
        return {"B": self._batch, "D": self._rows._width}

    @property
    def _prepared(self) -> dict[str, int]:
        return {"QM": self._base + self._at.qm, "MM": self._base + self._at.mm, "GAIN": self._base + self._at.gain}

    def _best(self, keys: int, length: int, k: int) -> int:
        """The k best of each row of keys (B, length): passes over chunks until one is left; its address."""
        turn = 0
        while True:
            out, chunks = self._base + self._at.half[turn], -(-length // CHUNK)
            values = {"KEYS": keys, "L": length, "K": k, "OUT": out, "B": self._batch}
            self._launch(f"masked_select_keys_{16 if k <= SMALL_K else 128}", values)
            if chunks == 1:
                return out
            keys, length, turn = out, chunks * k, 1 - turn

    def _padded(self, address: int, offset: int) -> int:
        """(B, D) float32 copied into zeroed rows of W: the copy's address."""
        device, width, dimension, to = self._rows._device, self._rows._width, self._rows._dimension, self._base + offset
        device.call("cuMemsetD8Async", to, 0, self._batch * width * 4, self._stream)
        copy = device.cuda.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = device.cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch = address, dimension * 4
        copy.dstDevice, copy.dstPitch = to, width * 4
        copy.WidthInBytes, copy.Height = dimension * 4, self._batch
        device.call("cuMemcpy2DAsync", copy, self._stream)
        return to

    def _launch(self, name: str, values: dict[str, int]) -> None:
        if self._rows._kernels is None:
            raise EngineError("expected open rows on a GPU, got closed ones. Make the gallery again")
        self._rows._kernels.launch(name, values, self._stream)


def _by_group(
    count: int, keep: NDArray[np.bool_] | None, groups: tuple[NDArray[np.int32], NDArray[np.int32]] | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_] | None]]:
    """Queries that may find the same rows, and which those are."""
    if groups is None:
        yield np.arange(count), keep
        return
    own, group = groups
    for one in np.unique(own):
        others = group != one
        yield np.flatnonzero(own == one), others if keep is None else keep & others


def _layout(batch: int, k: int, count: int, width: int, operand_bytes: int, dimension: int) -> _Layout:
    """The workspace for `batch` queries, `k` places and blocks of up to `count` rows."""
    end = 0

    def take(size: int) -> int:
        nonlocal end
        start, end = end, end + -(-size // ALIGNMENT) * ALIGNMENT
        return start

    rows = -(-batch // QUERY_ROWS) * QUERY_ROWS
    group_count = -(-count // GROUP)
    chosen = min(k, group_count)
    half = batch * -(-max(group_count, chosen * GROUP) // CHUNK) * k * 8
    padded = 0 if dimension == width else batch * width * 4
    return _Layout(
        query=take(padded), mask=take(padded), qm=take(rows * width * operand_bytes),
        mm=take(rows * width * operand_bytes), gain=take(rows * 4), groups=take(batch * group_count * 8),
        keys=take(batch * chosen * GROUP * 8), half=(take(half), take(half)), size=end,
    )  # fmt: skip
