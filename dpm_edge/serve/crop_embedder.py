"""Pictures to embeddings for many requests at once: decoded on several threads, embedded in shared batches.

n crops of a request
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import cores
from dpm_edge.errors import ImageError
from dpm_edge.images import clip_boxes, decode_image, to_network_size
from dpm_edge.runtime.batcher import Batcher
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.engine import Engine
from dpm_edge.serve.limits import RequestRefused, ServeLimits, overloaded
from dpm_edge.serve.request_body import SentPicture

WAIT_SECONDS = 0.002
"""How long a crop waits for company. While a batch is computed others gather without waiting."""
SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"BM")
"""First bytes of JPEG, PNG and BMP."""


@dataclass(frozen=True, eq=False)
class RequestCrops:
    """The crops of one request."""

    embeddings: Embeddings
    """n rows; `sources` are the pictures' names."""
    places: list[tuple[int, int | None]]
    """(n,) number of the picture, and of the box in it."""
    boxes: NDArray[np.float32]
    """(n, 4) x0 y0 x1 y1 in the picture's pixels; NaN without boxes."""
    skipped: list[dict[str, Any]]
    """Those that could not be used: picture, box, reason."""


def _decoded(picture: SentPicture) -> NDArray[np.uint8]:
    """A picture of one of the four formats that are promised. OpenCV reads many more, each with faults of its own, and
    whoever may send pictures should not reach them.

    Raises:
        ImageError: it is of another format, or cannot be read.
    """
    head = picture.data[:12]
    if head and not (head.startswith(SIGNATURES) or (head.startswith(b"RIFF") and head.endswith(b"WEBP"))):
        raise ImageError(
            f"expected a picture (JPEG, PNG, BMP or WebP), got {picture.name} of {len(picture.data)} bytes, which is "
            "none of them. Convert it"
        )
    return decode_image(picture.data, what=picture.name)


@dataclass
class _Cut:
    crops: list[NDArray[np.uint8]]
    places: list[tuple[int, int | None]]
    boxes: list[Sequence[float]]
    skipped: list[dict[str, Any]]


class _CountingEngine:
    """An engine that counts its calls."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.batches, self.crops = engine, 0, 0

    def embed(self, images: list[NDArray[np.uint8]]) -> Embeddings:
        """As `Engine.embed`."""
        self.batches += 1
        self.crops += len(images)
        return self._engine.embed(images)


class CropEmbedder:
    """Embeds the pictures of requests; for one event loop.

    Whole pictures are decoded, cut and brought to the network's size on a thread of a pool, so that only crops of the
    network's size wait for the engine.

    Args:
        engine: stays yours to close.
        limits: how many crops may be under way.
    """

    def __init__(self, engine: Engine, limits: ServeLimits) -> None:
        self.engine, self._limits = engine, limits
        self._counting = _CountingEngine(engine)
        best = engine.batch.best
        self._batcher = Batcher(
            self._counting, max_batch=best, max_wait=WAIT_SECONDS, capacity=max(limits.queue, best), policy="error"
        )
        self._pool = ThreadPoolExecutor(cores(), "dpm-edge-decode")
        self.under_way = 0
        """Crops of requests that are running."""

    @property
    def batches(self) -> int:
        """Calls of the engine."""
        return self._counting.batches

    @property
    def crops(self) -> int:
        """Crops in them."""
        return self._counting.crops

    async def embed(self, pictures: list[SentPicture], boxes: list[list[list[float]]], client: str) -> RequestCrops:
        """Embed every picture, or every box of every picture.

        Args:
            pictures: files.
            boxes: for each picture its (n, 4) x0 y0 x1 y1 in pixels; nothing: each is a crop of one person.
            client: clients take turns.

        Raises:
            RequestRefused: 400, nothing of it can be used; 413, it has too many crops; 422, boxes do not fit the
                pictures; 503, the queue is full.
        """
        if boxes and len(boxes) != len(pictures):
            raise RequestRefused(
                422, f"expected boxes once for each of {len(pictures)} pictures, got them {len(boxes)} times. Send []"
                " for a picture without people"
            )  # fmt: skip
        count = sum(len(some) for some in boxes) if boxes else len(pictures)
        if count > self._limits.crops:
            raise RequestRefused(
                413, f"expected at most {self._limits.crops} crops in a request, got {count}. Send several requests"
            )
        held = max(count, len(pictures))
        if self.under_way + held > self._limits.queue:
            raise overloaded(f"expected at most {self._limits.queue} crops under way, got more")
        self.under_way += held
        try:
            return await self._embed(pictures, boxes, client)
        finally:
            self.under_way -= held

    async def _embed(self, pictures: list[SentPicture], boxes: list[list[list[float]]], client: str) -> RequestCrops:
        loop = asyncio.get_running_loop()
        cuts = await asyncio.gather(
            *(
                loop.run_in_executor(self._pool, self._cut, number, picture, boxes[number] if boxes else None)
                for number, picture in enumerate(pictures)
            )
        )
        crops = [crop for one in cuts for crop in one.crops]
        skipped = [reason for one in cuts for reason in one.skipped]
        if skipped and not crops:
            more = f" ({len(skipped) - 1} more cannot be used)" if len(skipped) > 1 else ""
            raise RequestRefused(400, skipped[0]["reason"] + more)
        futures = [self._batcher.submit(crop, camera=client, copy=False) for crop in crops]
        rows = await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        places = [place for one in cuts for place in one.places]
        names = [pictures[at].name + ("" if box is None else f"#box={box}") for at, box in places]
        joined = Embeddings.join(rows) if rows else self.engine.embed([])
        return RequestCrops(
            embeddings=replace(joined, rows=np.arange(len(rows)), sources=names),
            places=places,
            boxes=np.array([box for one in cuts for box in one.boxes], np.float32).reshape(len(rows), 4),
            skipped=skipped,
        )

    def _cut(self, number: int, picture: SentPicture, boxes: list[list[float]] | None) -> _Cut:
        """Decode a picture, cut its boxes out, and bring them to the network's size."""
        pre, cut = self.engine.spec.preprocessing, _Cut([], [], [], [])
        try:
            image = _decoded(picture)
        except ImageError as error:
            cut.skipped.append({"picture": number, "box": None, "reason": str(error)})
            return cut
        if boxes is None:
            cut.crops.append(to_network_size(image, pre))
            cut.places.append((number, None))
            cut.boxes.append([np.nan] * 4)
            return cut
        whole, unusable = clip_boxes(np.array(boxes, np.float64).reshape(-1, 4), image.shape)
        reasons = dict(unusable)
        for at, (x0, y0, x1, y1) in enumerate(whole.tolist()):
            if at in reasons:
                cut.skipped.append({"picture": number, "box": at, "reason": reasons[at]})
                continue
            cut.crops.append(to_network_size(image[y0:y1, x0:x1], pre))
            cut.places.append((number, at))
            cut.boxes.append(boxes[at])
        return cut

    def close(self) -> None:
        """Finish what was submitted, and end the threads."""
        self._batcher.close()
        self._pool.shutdown()
