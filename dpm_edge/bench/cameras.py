"""End to end: cameras give frames with people at fixed times, and somebody waits for the ids of who is in them.

A camera's frame is due at its time whatever is still unanswered. Then its boxes are cut out, go to the batcher, and
come back as embeddings; the gallery says who they are. A frame's latency runs from its due time to the last id: it
holds every wait, for the camera's own thread as well. Grabbing and decoding the frame, and finding the boxes, are not
in it.

C cameras · frame (H, W, 3) uint8 BGR · boxes (P, 4) float xyxy pixels
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge.bench.load import at_times, on_threads, regular
from dpm_edge.gallery import Gallery
from dpm_edge.images import clip_boxes, find_images, read_image
from dpm_edge.metrics import normalise
from dpm_edge.runtime.batcher import Batcher, Embedder, QueueFull
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.shipped import ASSETS

LEAD = 0.05
"""Seconds before the first frame, so that every thread has started."""
PLACES = 8
"""Most people in the frame."""
SAMPLES = ASSETS / "samples" / "query"
HEIGHT, WIDTH = 400, 160
"""Pixels of a person in the frame."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the cameras see."""

    frame: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    """(P, 4): where people stand in the frame."""
    people: list[str]
    """(P,): who they are in the gallery."""


@dataclass(frozen=True, kw_only=True)
class CameraLoad:
    """How much comes, and how it is gathered."""

    cameras: int
    people: float
    """People per frame on average: 0.5 is one person in every second frame."""
    fps: float
    seconds: float
    """Length of the measurement, after the warm-up."""
    warm_up: float
    """Seconds of frames that come before and are not counted."""
    max_batch: int
    max_wait: float
    capacity: int
    """Crops that may wait in the batcher; a frame that does not fit in is refused."""

    @property
    def crops_per_second(self) -> float:
        """Of all cameras together."""
        return self.cameras * self.people * self.fps


@dataclass
class CameraTimes:
    """What was measured of one camera, or of all; durations in seconds, one for each counted frame with people."""

    latencies: list[float] = field(default_factory=list)
    """From the due time to the ids."""
    late: list[float] = field(default_factory=list)
    """From the due time to the camera's thread taking the frame up: the machine had no core for it."""
    cut: list[float] = field(default_factory=list)
    """To cut the boxes out and hand them to the batcher."""
    search: list[float] = field(default_factory=list)
    """The gallery's search."""
    people: int = 0
    right: int = 0
    """People whose id was the right one."""
    refused: int = 0
    """Frames that found the batcher's queue full."""
    batches: list[int] = field(default_factory=list)
    """Crops of each call of the engine, warm-up included."""
    engine: list[float] = field(default_factory=list)
    """Seconds of each call of the engine."""

    def join(self, other: CameraTimes) -> None:
        """Add what another camera saw."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class TimedEngine:
    """An engine that remembers the size and the duration of each call."""

    def __init__(self, engine: Embedder) -> None:
        self.batches: list[int] = []
        self.took: list[float] = []
        self._engine = engine

    def embed(self, images: list[NDArray[np.uint8]]) -> Embeddings:
        """As the engine's."""
        start = time.perf_counter()
        found = self._engine.embed(images)
        self.took.append(time.perf_counter() - start)
        self.batches.append(len(images))
        return found


_Frame = tuple[float, list[int], list["Future[Embeddings]"]]
"""Due time, which people are in it, their futures."""


def run_cameras(engine: Embedder, gallery: Gallery, scene: Scene, load: CameraLoad, *, seed: int = 0) -> CameraTimes:
    """Let the cameras run; returns once the last frame is answered."""
    timed, everything = TimedEngine(engine), [CameraTimes() for _ in range(load.cameras)]
    phases = np.random.default_rng(seed).random((2, load.cameras))
    begin = time.perf_counter() + LEAD
    with Batcher(
        timed, max_batch=load.max_batch, max_wait=load.max_wait, capacity=load.capacity, policy="error"
    ) as batcher:
        works: list[Callable[[], None]] = []
        for camera, seen in enumerate(everything):
            due = begin + regular(load.fps, load.warm_up + load.seconds, phase=phases[0, camera])
            one = _Camera(str(camera), batcher, gallery, scene, load, begin + load.warm_up, seen)
            works.append(partial(one.feed, due, phases[1, camera]))
            works.append(one.collect)
        on_threads(works)
    total = CameraTimes(batches=timed.batches, engine=timed.took)
    for seen in everything:
        total.join(seen)
    return total


class _Camera:
    """One camera: a thread that feeds the batcher, and one that collects the ids."""

    def __init__(
        self,
        name: str,
        batcher: Batcher,
        gallery: Gallery,
        scene: Scene,
        load: CameraLoad,
        counted_from: float,
        seen: CameraTimes,
    ) -> None:
        self._name, self._batcher, self._gallery, self._scene, self._load = name, batcher, gallery, scene, load
        self._from, self._seen = counted_from, seen
        self._frames: queue.SimpleQueue[_Frame | None] = queue.SimpleQueue()

    def feed(self, due: NDArray[np.float64], more: float) -> None:
        """Hand every frame's people over when it is due; `more` (0..1) decides where a fraction of a person falls."""
        people, places = self._load.people, len(self._scene.boxes)

        def take(i: int, at: float) -> None:
            first, end = int(i * people + more), int((i + 1) * people + more)
            if end > first:
                self._take([place % places for place in range(first, end)], at)

        try:
            at_times(due, take)
        finally:
            self._frames.put(None)

    def _take(self, places: list[int], due: float) -> None:
        start = time.perf_counter()
        frame = self._scene.frame
        whole, _ = clip_boxes(self._scene.boxes[places], frame.shape)
        futures: list[Future[Embeddings]] = []
        try:
            for x0, y0, x1, y1 in whole.tolist():
                futures.append(self._batcher.submit(frame[y0:y1, x0:x1], camera=self._name))
        except QueueFull:
            for future in futures:
                future.cancel()
            self._seen.refused += due >= self._from
            return
        if due >= self._from:
            self._seen.late.append(max(0.0, start - due))
            self._seen.cut.append(time.perf_counter() - start)
        self._frames.put((due, places, futures))

    def collect(self) -> None:
        """Wait for each frame's embeddings and look the people up."""
        while (frame := self._frames.get()) is not None:
            due, places, futures = frame
            rows = Embeddings.join([future.result() for future in futures])
            start = time.perf_counter()
            found = self._gallery.search(rows, 1)
            end = time.perf_counter()
            if due >= self._from:
                self._seen.latencies.append(end - due)
                self._seen.search.append(end - start)
                self._seen.people += len(places)
                self._seen.right += _right(found.people, [self._scene.people[place] for place in places])


def _right(found: NDArray, wanted: Sequence[str]) -> int:
    """How many of the first places are who stands there."""
    return sum(str(row[0]) == name for row, name in zip(found, wanted))


def sample_people() -> list[NDArray[np.uint8]]:
    """Pictures of PLACES different people out of the samples that ship.

    Raises:
        ImageError: the samples are missing from this installation.
    """
    first = {path.name.split("_", 1)[0]: path for path in reversed(find_images(SAMPLES))}
    return [read_image(path) for _, path in sorted(first.items())[:PLACES]]


def compose(pictures: Sequence[NDArray[np.uint8]]) -> Scene:
    """A frame (1080, 1920, 3) with up to PLACES people, each HEIGHT × WIDTH pixels."""
    frame = np.full((1080, 1920, 3), 127, np.uint8)
    boxes = []
    for place, picture in enumerate(pictures[:PLACES]):
        x, y = 40 + 230 * place, 300
        frame[y : y + HEIGHT, x : x + WIDTH] = cv2.resize(picture, (WIDTH, HEIGHT))
        boxes.append((x, y, x + WIDTH, y + HEIGHT))
    return Scene(frame=frame, boxes=np.array(boxes, np.float64), people=[f"person {i}" for i in range(len(boxes))])


def crops(scene: Scene, count: int) -> list[NDArray[np.uint8]]:
    """`count` crops of the scene's people, cut out already, one person after the other."""
    cut = [np.ascontiguousarray(scene.frame[y0:y1, x0:x1]) for x0, y0, x1, y1 in scene.boxes.astype(int)]
    return [cut[i % len(cut)] for i in range(count)]


def fill(gallery: Gallery, people: Embeddings, scene: Scene, rows: int) -> None:
    """The scene's people under their names, and random strangers up to `rows` rows."""
    gallery.add(people, people=scene.people)
    strangers = max(0, rows - len(people))
    if strangers:
        draw = np.random.default_rng(0)
        features = normalise(draw.standard_normal((strangers, people.dimension), np.float32))
        gallery.add(
            Embeddings(
                features=features,
                masks=0.2 + 0.6 * draw.random(features.shape, np.float32),
                visibility=np.ones(strangers, np.float32),
                rows=np.arange(strangers),
                fingerprint=people.fingerprint,
            ),
            people=["stranger"] * strangers,
        )
