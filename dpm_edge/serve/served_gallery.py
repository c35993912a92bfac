"""A gallery behind a server: searched and added to from one thread, and on the disk before an answer.

n crops of a request
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from dpm_edge.errors import DpmError, GalleryError
from dpm_edge.gallery import Gallery
from dpm_edge.gallery.answers import cameras_to_search_with, gallery_json, query_json
from dpm_edge.gallery.calibration import Calibration
from dpm_edge.gallery.labels import new_rows
from dpm_edge.gallery.rows import Rows
from dpm_edge.gallery.search.query import make_query
from dpm_edge.gallery.stores.store import check_model
from dpm_edge.metrics import chosen_metric
from dpm_edge.runtime.engine import Engine
from dpm_edge.serve.crop_embedder import RequestCrops
from dpm_edge.serve.limits import RequestRefused
from dpm_edge.serve.options import AddOptions, SearchOptions, WhoOptions

NO_GALLERY = "expected a server with a gallery, got one without. Start it with --gallery PLACE"

Answer = TypeVar("Answer")


class ServedGallery:
    """A gallery of the served engine's model; for one event loop.

    Args:
        gallery: stays yours to close.
        engine: whose model it must be of.
        add: whether rows may be added.
        calibration: for searches under its metric; else what the gallery keeps.

    Raises:
        GalleryError: the gallery or the calibration is of another model.
    """

    def __init__(self, gallery: Gallery, engine: Engine, *, add: bool, calibration: Calibration | None) -> None:
        check_model(gallery.store.meta, engine.fingerprint, engine.dimension)
        if calibration is not None and calibration.fingerprint != engine.fingerprint:
            raise GalleryError(
                f"expected a calibration of model {engine.fingerprint[:12]}, got one of model "
                f"{calibration.fingerprint[:12]}. Calibrate again: dpm-edge calibrate"
            )
        self.gallery, self.engine = gallery, engine
        self.adds = add and not gallery.store.read_only
        self._wanted, self._calibration = add, calibration
        self._thread = ThreadPoolExecutor(1, "dpm-edge-gallery")
        self._flushing = asyncio.Lock()
        self._next_flush: asyncio.Task[None] | None = None

    async def describe(self) -> dict[str, Any]:
        """As `dpm-edge gallery stats --json`, and whether rows are added."""
        return {**await self._in_thread(lambda: gallery_json(self.gallery)), "adds": self.adds}

    async def count(self) -> int:
        """Rows that are there."""
        return await self._in_thread(lambda: len(self.gallery))

    async def who(self, crops: RequestCrops, options: WhoOptions) -> list[dict[str, Any]]:
        """As `dpm-edge who --json`. Raises as `search`."""
        return await self._search(crops, options, SearchOptions(by="person"))

    async def search(self, crops: RequestCrops, options: SearchOptions) -> list[dict[str, Any]]:
        """As `dpm-edge match --json`.

        Raises:
            RequestRefused: 400, the gallery or the model cannot do what an option wants; 422, an option wants another
                one.
            GalleryError: the gallery does not answer, or is damaged.
        """
        if options.exclude_same_camera and not options.seen_by:
            raise RequestRefused(422, "expected seen_by with exclude_same_camera, got none. Say which camera saw it")
        return await self._search(crops, options, options)

    async def _search(self, crops: RequestCrops, options: WhoOptions, further: SearchOptions) -> list[dict[str, Any]]:
        """Search with the options that every search has, and with the further ones."""
        queries = crops.embeddings
        cameras = one_each(options.seen_by, len(queries), "seen_by") or [""] * len(queries)
        if not len(queries):
            return []
        known = self._calibration_of(further.metric or chosen_metric(None, queries.has_masks), options.centre)
        needed = bool(options.centre or further.exclude_same_camera)
        what: dict[str, Any] = {
            "metric": further.metric,
            "camera": further.camera or None,
            "since": further.since,
            "until": further.until,
            "min_visibility": further.min_visibility,
            "exclude_same_camera": further.exclude_same_camera,
            "query_cameras": cameras_to_search_with(cameras, known, needed=needed),
            "expand": further.expand,
            "neighbours": further.neighbours,
            "by": further.by,
            "centre": options.centre,
        }
        try:  # what the search checks first, apart from what its store refuses
            make_query(queries, self.gallery.store.meta, k=options.top, candidates=None, cap=1, **what)
        except GalleryError as error:
            raise RequestRefused(400, str(error)) from error
        matches = await self._in_thread(
            lambda: self.gallery.search(queries, options.top, prior=options.prior, calibration=known, **what)
        )
        return [query_json(queries, matches, i) for i in range(len(queries))]

    def _calibration_of(self, metric: str, centre: bool | None) -> Calibration | None:
        """The given calibration, for searches under its metric.

        Raises:
            RequestRefused: 400, it is of centred features and the search shall not be, or the other way round.
        """
        known = self._calibration
        if known is None or known.metric != metric:
            return None
        if centre is not None and centre != known.centred:
            raise RequestRefused(
                400, f"expected centre={str(known.centred).lower()}, as the server's calibration is, got "
                f"{str(centre).lower()}. Leave centre out"
            )  # fmt: skip
        return known

    async def add(self, crops: RequestCrops, options: AddOptions) -> dict[str, Any]:
        """Add every crop, or none; they are on the gallery's disk when this returns.

        Raises:
            RequestRefused: 400, a crop cannot be used or the gallery cannot keep what was told of it; 409, the gallery
                takes no rows; 422, there are not as many labels as crops; 507, they could not be kept.
        """
        self.require_adding()
        if crops.skipped:
            raise RequestRefused(400, f"{crops.skipped[0]['reason']}. No row was added: leave it out, or send it again")
        n = len(crops.embeddings)
        columns: dict[str, Any] = {
            "people": one_each(options.person, n, "person") or [""] * n,
            "cameras": one_each(options.camera, n, "camera"),
            "timestamps": one_each(options.timestamp, n, "timestamp"),
            "payloads": one_each(options.payload, n, "payload"),
            "boxes": crops.boxes,
        }
        self._check(crops, columns)
        try:
            ids, total = await self._in_thread(lambda: self._added(crops, columns))
            await self._flushed()
        except DpmError as error:
            raise RequestRefused(507, str(error)) from error
        return {"rows": ids, "total": total}

    def require_adding(self) -> None:
        """Refuse to add where rows are not added.

        Raises:
            RequestRefused: 409.
        """
        if not self._wanted:
            raise RequestRefused(409, "expected a server that adds rows, got one with --no-add. Start it with --add")
        if self.gallery.store.read_only:
            raise RequestRefused(
                409, f"expected a gallery open for changes, got a read-only one: {self.gallery.store.read_only}"
            )

    def _check(self, crops: RequestCrops, columns: dict[str, Any]) -> None:
        """Refuse labels that no gallery keeps, apart from what its disk refuses."""
        n = len(crops.embeddings)
        try:
            rows = new_rows(crops.embeddings, masks=False, tracks=None, **columns)
            Rows(ids=np.arange(n), **{**rows, "visibility": crops.embeddings.weight})
        except GalleryError as error:
            raise RequestRefused(400, str(error)) from error

    def _added(self, crops: RequestCrops, columns: dict[str, Any]) -> tuple[list[int], int]:
        ids = self.gallery.add(crops.embeddings, **columns).tolist()
        return ids, len(self.gallery)

    async def _flushed(self) -> None:
        """Wait for a flush that begins after now. Those who wait while one is running share the next."""
        if self._next_flush is None:
            self._next_flush = asyncio.ensure_future(self._flush())
        await asyncio.shield(self._next_flush)

    async def _flush(self) -> None:
        async with self._flushing:
            self._next_flush = None  # a row that is added from here on needs another one
            await self._in_thread(self.gallery.flush)

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Finish what was begun, and end the thread."""
        self._thread.shutdown()


def one_each(values: list[Any], count: int, name: str) -> list[Any] | None:
    """Spread one value over all crops, or take one for each; None where nothing is given.

    Raises:
        RequestRefused: 422, there are neither one nor `count`.
    """
    if len(values) == 1:
        return values * count
    if values and len(values) != count:
        raise RequestRefused(422, f"expected {name} once, or {count} times, once for each crop, got {len(values)}")
    return values or None
