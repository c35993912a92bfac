"""Targets that stay on a device between searches, in blocks: numpy in, numpy out.

    B queries, N targets, D feature dimensions, k results

Adding targets uploads those alone: the last block has room that doubles. Scores are the kernel's, rounded as
`contract.py` says: whoever needs the exact order scores the rows found, or those `within` reach, again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpm_edge.kernels.masked_distance import op

BLOCK = 1 << 18
"""Targets of one block."""
LEAST_CAPACITY = 1024
"""Targets that a block has room for at first."""
QUERIES = 16
"""Queries of which a whole (B, N) of similarities may exist at once."""


class _Column:
    """Rows on a device, in room that doubles up to BLOCK."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._count = device, 0
        self._room: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """Those that are there."""
        assert self._room is not None, "follow puts some in"
        return self._room[: self._count]

    def append(self, values: np.ndarray) -> None:
        """Upload more rows."""
        added = torch.from_numpy(np.ascontiguousarray(values))
        end = self._count + len(added)
        if self._room is None or len(self._room) < end:
            capacity = min(BLOCK, max(LEAST_CAPACITY, 1 << (end - 1).bit_length()))
            room = torch.empty((capacity, *added.shape[1:]), dtype=added.dtype, device=self._device)
            if self._room is not None:
                room[: self._count] = self.rows
            self._room = room
        self._room[self._count : end].copy_(added)
        self._count = end


class _Block:
    """Up to BLOCK targets; scales of int8 codes and masks where there are some."""

    def __init__(self, device: torch.device) -> None:
        self.columns = {name: _Column(device) for name in ("values", "scale", "masks")}
        self.count, self.scaled, self.masked = 0, False, False

    @property
    def values(self) -> Tensor:
        return self.columns["values"].rows

    @property
    def scale(self) -> Tensor | None:
        return self.columns["scale"].rows if self.scaled else None

    @property
    def masks(self) -> Tensor | None:
        return self.columns["masks"].rows if self.masked else None

    def extend(self, values: np.ndarray, masks: np.ndarray | None) -> None:
        """Upload what these rows have beyond those that are there."""
        added = values[self.count :]
        self.columns["values"].append(added)
        if added.dtype == np.int8:
            squares = np.einsum("nd,nd->n", added, added, dtype=np.float32)
            self.columns["scale"].append(1 / np.sqrt(np.maximum(squares, 1)))
            self.scaled = True
        if masks is not None:
            part = masks[self.count :]
            self.columns["masks"].append((part / np.float32(127)).astype(np.float16) if part.dtype == np.int8 else part)
            self.masked = True
        self.count = len(values)


class Resident:
    """Targets of one dtype on one device."""

    complete = True
    """Every metric is served, and `within`."""

    def __init__(self, device: str) -> None:
        """None yet, on "cuda", "cuda:1" or, in Triton's interpreter or by the reference, "cpu".

        Raises:
            ValueError: this torch finds no such device.
        """
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"expected a GPU that torch {torch.__version__} finds, got none for device {device!r}")
        index = self._device.index or 0
        self.place = f"cuda:{index}" if self._device.type == "cuda" else str(self._device)
        """The device's name, with its number."""
        self._blocks: list[_Block] = []
        self._found: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return sum(block.count for block in self._blocks)

    def clear(self) -> None:
        """Let go of every target."""
        self._blocks = []
        self._found = None

    def close(self) -> None:
        """Let go of every target; torch keeps the device."""
        self.clear()

    def follow(self, values: np.ndarray, masks: np.ndarray | None) -> None:
        """Take over the rows of a table that were added since; those before are as they were (else: `clear`).

        values: (N, D) float32, float16 or int8 codes of any scale. masks: (N, D), codes in 127ths where int8; or None.
        """
        done = len(self)
        if done == len(values):
            return
        for start in range(done // BLOCK * BLOCK, len(values), BLOCK):
            if start // BLOCK == len(self._blocks):
                self._blocks.append(_Block(self._device))
            part = slice(start, start + BLOCK)
            self._blocks[start // BLOCK].extend(values[part], None if masks is None else masks[part])

    def topk(
        self,
        q: np.ndarray,
        m: np.ndarray,
        k: int,
        *,
        mutual: bool = False,
        keep: np.ndarray | None = None,
        groups: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of each query by the kernel: rows (B, k) int64 and scores (B, k) float32, falling.

        Args:
            q, m: (B, D) float32 queries and masks.
            k: 1 to K_MAX.
            mutual: the targets' masks act too.
            keep: (N,) bool: only these are found.
            groups: (B,) and (N,) int32: a query does not find targets of its own group.

        Where fewer than k are left: row −1, score −inf.
        """
        rows, scores = self._topk(*self._queries(q, m), k, mutual, keep, groups)
        return rows.cpu().numpy(), scores.cpu().numpy()

    def enqueue(self, feature: Any, mask: Any, k: int, keep: np.ndarray | None, stream: int) -> None:
        """As `topk`, for queries that lie on the device, behind what `stream` (its handle) holds.

        feature, mask: (B, D) float32 tensors, or anything with `__cuda_array_interface__`.
        """
        on_stream: AbstractContextManager[Any] = nullcontext()
        if self._device.type == "cuda":
            on_stream = torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self._device))
        with on_stream:
            q, m = (torch.as_tensor(one, device=self._device) for one in (feature, mask))
            self._found = self._topk(q, m, k, False, keep, None)

    def collect(self) -> tuple[np.ndarray, np.ndarray]:
        """What `enqueue` found, as `topk` gives it; its stream was waited for."""
        assert self._found is not None, "enqueue goes before"
        rows, scores = self._found
        return rows.cpu().numpy(), scores.cpu().numpy()

    def _topk(
        self,
        q: Tensor,
        m: Tensor,
        k: int,
        mutual: bool,
        keep: np.ndarray | None,
        groups: tuple[np.ndarray, np.ndarray] | None,
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for start, block in self._each():
            row_filter, junk = self._filters(start, block.count, keep, groups, len(q))
            scores, rows = op.masked_topk(
                q, m, block.values, k, row_scale=block.scale, target_masks=block.masks if mutual else None,
                row_filter=row_filter, junk=junk,
            )  # fmt: skip
            parts.append((torch.where(rows >= 0, rows + start, -1), scores))
        rows, scores = (torch.cat(columns, dim=1) for columns in zip(*parts))
        scores, at = scores.sort(dim=1, descending=True, stable=True)
        return rows.gather(1, at)[:, :k], scores[:, :k]

    def within(
        self,
        q: np.ndarray,
        m: np.ndarray,
        k: int,
        reach: float,
        *,
        mutual: bool = False,
        keep: np.ndarray | None = None,
        groups: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Iterator[np.ndarray]:
        """For each query, every row that scores at least the k-th best score less `reach`: (R,) int64, rising.

        Arguments as for `topk`; any k ≥ 1. The whole (B, N) of some queries exists meanwhile.
        """
        for first in range(0, len(q), QUERIES):
            some = slice(first, first + QUERIES)
            mine = None if groups is None else (groups[0][some], groups[1])
            parts = []
            for start, block in self._each():
                scores = op.masked_similarity(
                    *self._queries(q[some], m[some]), block.values, row_scale=block.scale,
                    target_masks=block.masks if mutual else None,
                )  # fmt: skip
                row_filter, junk = self._filters(start, block.count, keep, mine, len(scores))
                if row_filter is not None:
                    scores[:, row_filter == 0] = -torch.inf
                if junk is not None:
                    scores[junk[1][:, None] == junk[3]] = -torch.inf
                parts.append(scores)
            scores = torch.cat(parts, dim=1)
            last = scores.topk(min(k, scores.shape[1]), dim=1).values[:, -1:]
            least = torch.where(last == -torch.inf, torch.finfo(torch.float32).min, last - reach)
            for row in scores >= least:
                yield row.nonzero().flatten().cpu().numpy()

    def _each(self) -> Iterator[tuple[int, _Block]]:
        start = 0
        for block in self._blocks:
            yield start, block
            start += block.count

    def _queries(self, q: np.ndarray, m: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._up(q), self._up(m)

    def _filters(
        self,
        start: int,
        count: int,
        keep: np.ndarray | None,
        groups: tuple[np.ndarray, np.ndarray] | None,
        queries: int,
    ) -> tuple[Tensor | None, Any]:
        """The op's row filter and its "junk": one person for all, so that the group alone decides."""
        row_filter = None if keep is None else self._up(keep[start : start + count].astype(np.uint8))
        if groups is None:
            return row_filter, None
        one = [torch.zeros(n, dtype=torch.int32, device=self._device) for n in (queries, count)]
        own, group = self._up(groups[0]), self._up(groups[1][start : start + count])
        return row_filter, (one[0], own, one[1], group)

    def _up(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, copy=True)
