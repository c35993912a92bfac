"""Open an engine directory and embed crops with it.

frame (H, W, 3) uint8 · boxes (N, 4) float xyxy pixels · D feature dimensions · k places of a search
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpm_edge import images as pictures
from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import EngineError, ImageError
from dpm_edge.manifest import BatchRange, Manifest, people
from dpm_edge.runtime import checks, trust
from dpm_edge.runtime.backends import Backend, GpuBackend, open_backend
from dpm_edge.runtime.embeddings import Embeddings, Identified
from dpm_edge.runtime.frames import Boxed, FrameQueries, SearchBehind, boxed, read_pictures
from dpm_edge.runtime.site_statistics import read_statistics
from dpm_edge.runtime.tickets import Calls, InOrder, Ticket
from dpm_edge.sight import visibility_of_maps
from dpm_edge.spec import ModelSpec

_Outputs = tuple[NDArray[np.float32], ...]
"""Feature (n, D), mask (n, D), logits (n, C), C 0 without a closed set, and visibility (n, 2, h, w), (n, 0) without."""


class Searchable(Protocol):
    """A gallery."""

    def search(self, queries: Any, k: int, **options: Any) -> Any:
        """`Gallery.search`: Embeddings, or FrameQueries that it lets embed."""


class Engine:
    """An open engine. Use it as a context manager, or call `close`. Any number of threads may embed at once.

    with Engine.load("engine") as engine:
        people = engine.embed(frame, boxes)
    """

    def __init__(self, manifest: Manifest, folder: Path, device: str, backend: Backend) -> None:
        self.manifest = manifest
        self.folder = folder
        self.device = device
        self._backend: Backend | None = backend
        self._people = people(folder) if "logits" in manifest.outputs else ()
        self._statistics = read_statistics(manifest, folder)
        self._sees = "visibility" in manifest.outputs
        self._submitted = InOrder(backend.lanes if isinstance(backend, GpuBackend) else 1)
        self._calls = Calls(self._submitted, backend)

    def __repr__(self) -> str:
        m = self.manifest
        state = "closed" if self._backend is None else self.device
        what = f"{m.spec.name!r}, {m.backend} {m.precision}, {state}, model {m.fingerprint[:8]}…"
        return f"Engine({what}, {str(self.folder)!r})"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | None = None,
        threads: int | None = None,
        trusted: bool = False,
    ) -> Engine:
        """Check an engine directory, open it, and run the crop that was stored when it was built.

        Args:
            folder: the directory that `dpm-edge build` wrote.
            device: "CPU" or "GPU" ("GPU.1" is the second), OpenVINO also "NPU" or "AUTO"; None: the CPU for engines of
                CPU backends, the first GPU for those of GPU backends.
            threads: cores for one call; None leaves it to the library.
            trusted: open a TensorRT plan that is not in the trust file (`dpm-edge trust`). A plan is code.

        Raises:
            EngineError: a file was changed or is missing, the library's version, the GPU or the device is another than
                the build's, the plan is not trusted, or the golden crop comes out differently. Each names what to do.
            MissingLibrary: the engine library is not installed.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        manifest.check_files(folder)
        checks.check_library(manifest, folder)
        device = checks.check_device(manifest, folder, device)
        trust.check(manifest, folder, trusted)
        engine = cls(manifest, folder, device, open_backend(manifest, folder, device, threads))
        try:
            checks.check_golden(manifest, folder, engine._embed_one)
        except BaseException:
            engine.close()
            raise
        return engine

    @property
    def spec(self) -> ModelSpec:
        """The network and its preprocessing."""
        return self.manifest.spec

    @property
    def fingerprint(self) -> str:
        """Names the model; a gallery holds embeddings of one fingerprint."""
        return self.manifest.fingerprint

    @property
    def dimension(self) -> int:
        """D, the length of a feature and of a mask."""
        return self.spec.dimension

    @property
    def camera_statistics(self) -> CameraStatistics | None:
        """What the features of a site's cameras have in common; None where the engine was built without."""
        return self._statistics

    @property
    def batch(self) -> BatchRange:
        """Crops in one call of the engine; `embed` takes any number and cuts it into calls."""
        return self.manifest.batch

    def embed(
        self,
        images: Any,
        boxes: NDArray | Sequence[Sequence[float]] | None = None,
        *,
        color: str = "bgr",
        stream: Any = None,
    ) -> Embeddings:
        """Features, masks and visibility of crops, in the order given.

        Args:
            images: without boxes, a sequence of N pictures (H, W, 3) uint8 of any size or paths of picture files, one
                array (N, H, W, 3), or one picture or path; with boxes, one frame (H, W, 3) or its path. An engine on a
                GPU also takes a frame that lies there (DLPack or `__cuda_array_interface__`: torch, CuPy, pycuda,
                numba).
            boxes: (N, 4) float x0 y0 x1 y1 in the frame's pixels, clipped to it.
            color: channel order of the pictures: "bgr" (OpenCV's) or "rgb".
            stream: the CUDA stream whose work the frame on the GPU comes from: an int, or a stream object of
                torch, CuPy, pycuda or cuda.core. The GPU waits for it, this thread does not.

        Returns:
            Embeddings; `rows` says which input each row is, `skipped` names every input that has no row, and why,
            `sources` holds the paths where some were given.

        Raises:
            ImageError: what came is no picture, no sequence of pictures or no array of boxes, or a file cannot be read.
            EngineError: the engine is closed, or its output is not finite.
        """
        with self._using() as backend:
            return self._compute(backend, images, boxes, color, self._mark(backend, stream))[0]

    def submit(
        self,
        images: Any,
        boxes: NDArray | Sequence[Sequence[float]] | None = None,
        *,
        color: str = "bgr",
        stream: Any = None,
    ) -> Ticket[Embeddings]:
        """As `embed`, without waiting: the ticket's `result` gives the embeddings, or raises what `embed` would.

        Tickets are served, and become done, in the order of the calls. The pictures must stay as they are until the
        ticket is done. Where many wait already, this waits for room.

        Raises:
            EngineError: the engine is closed.
        """
        backend = self._open()
        after = self._mark(backend, stream)
        return self._submitted.submit(lambda: self._compute(backend, images, boxes, color, after)[0])

    def identify(
        self,
        images: Any,
        boxes: NDArray | Sequence[Sequence[float]] | None = None,
        *,
        color: str = "bgr",
        stream: Any = None,
    ) -> Identified:
        """Which of the people it was built with, by an engine of a closed set (`dpm-edge build --closed-set`).

        Arguments as in `embed`.

        Raises:
            ImageError, EngineError: as in `embed`; or the engine knows nobody.
        """
        if not self._people:
            raise EngineError(
                f"the engine of {self.folder} was built without a closed set, so it knows nobody by itself. Build it "
                "with --closed-set GALLERY, or search a Gallery with what embed gives"
            )
        with self._using() as backend:
            found, logits = self._compute(backend, images, boxes, color, self._mark(backend, stream))
        return Identified(people=self._people, logits=logits, rows=found.rows, skipped=found.skipped)

    def search(
        self,
        frame: Any,
        boxes: NDArray | Sequence[Sequence[float]],
        gallery: Searchable,
        k: int = 10,
        *,
        color: str = "bgr",
        stream: Any = None,
        exclude_camera: Any = None,
        **options: Any,
    ) -> tuple[Embeddings, Any]:
        """Who stands in these boxes: `embed` and then `Gallery.search`, with the same answer and the same checks.

        Where the gallery's rows lie on this engine's GPU (`Gallery(device="cuda")`), crops, network and search follow
        each other on one stream, which is waited for once.

        Args:
            frame, boxes, color, stream: as in `embed`.
            gallery: of this engine's model.
            k: places of each box.
            exclude_camera: the camera that the frame comes from, whose own rows are not to be found.
            options: those of `Gallery.search`, such as metric, camera, since, until, min_visibility, by.

        Returns:
            Embeddings, whose `rows` say which box each one is, and Matches, one row for each of them.

        Raises:
            ImageError, EngineError: as in `embed`.
            GalleryError: as in `Gallery.search`: the gallery is of another model, or an option cannot be.
        """
        with self._using() as backend:
            one, after = boxed(frame, boxes, color), self._mark(backend, stream)
            place = backend.place if isinstance(backend, GpuBackend) and not backend.refuses_frames(one.color) else ""
            queries = FrameQueries(
                self.fingerprint, self.dimension, self.spec.masks, place, len(one.boxes),
                lambda search: self._compute_boxes(backend, one, after, search)[0],
            )  # fmt: skip
            if exclude_camera is not None:
                options |= {"exclude_same_camera": True, "query_cameras": [exclude_camera] * len(one.boxes)}
            matches = gallery.search(queries, k, **options)
            assert queries.embeddings is not None, "the search has embedded"
            return queries.embeddings, matches

    def close(self) -> None:
        """Let go of the engine's memory; a second call does nothing.

        What was submitted is finished first, and so are calls of `embed` in other threads; later ones raise
        EngineError. In a forked child the memory is kept until the child ends.
        """
        self._submitted.close()
        backend, self._backend = self._backend, None
        self._calls.wait()
        if backend is not None and not self._calls.forked:
            backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> Backend:
        """The backend, or an error that says the engine is closed."""
        if self._backend is None:
            raise EngineError(f"the engine of {self.folder} is closed. Open it: Engine.load({str(self.folder)!r})")
        return self._backend

    @contextmanager
    def _using(self) -> Iterator[Backend]:
        """The backend, which `close` leaves alone meanwhile."""
        with self._calls:
            yield self._open()

    def _gpu(self, backend: Backend) -> GpuBackend:
        if not isinstance(backend, GpuBackend):
            raise EngineError(
                f"expected an engine on a GPU (backend tensorrt or torch) for stream=, got that of {self.folder}, "
                f"which runs on {self.device}. Leave stream= out"
            )
        return backend

    def _compute(
        self, backend: Backend, images: Any, boxes: Any, color: str, after: Any
    ) -> tuple[Embeddings, NDArray[np.float32]]:
        """`embed`, once the stream to wait for was marked; and the logits (n, C), C = 0 without a closed set."""
        if boxes is not None:
            return self._compute_boxes(backend, boxed(images, boxes, color), after, None)
        crops, sources = read_pictures(images, color)
        return self._embeddings(self._run(backend, crops), list(range(len(crops))), [], sources)

    def _compute_boxes(
        self, backend: Backend, one: Boxed, after: Any, search: SearchBehind | None
    ) -> tuple[Embeddings, NDArray[np.float32]]:
        """As `_compute`, for boxes that were checked; `search` follows the network on the GPU."""
        reason = "it is on no GPU itself"
        if isinstance(backend, GpuBackend) and not (reason := backend.refuses_frames(one.color)):
            outputs = self._run_frame(backend, one.frame, one.boxes, after, search)
        elif one.on_gpu:
            raise ImageError(
                f"expected a frame in the CPU's memory, got a {type(one.frame).__name__} that lies on a GPU, where the "
                f"engine of {self.folder} cannot take it: {reason}. Copy it to a numpy array first"
            )
        else:
            outputs = self._run(backend, [one.frame[y0:y1, x0:x1] for x0, y0, x1, y1 in one.boxes])
        return self._embeddings(outputs, one.rows, one.skipped)

    def _embeddings(
        self, outputs: _Outputs, rows: list[int], skipped: list[tuple[int, str]], sources: Sequence[str] = ()
    ) -> tuple[Embeddings, NDArray[np.float32]]:
        """Outputs of the network with what belongs to them; and the logits."""
        feature, mask, logits, seen = outputs
        found = Embeddings(
            features=feature,
            masks=mask,
            visibility=self._visibility(mask, seen),
            visibility_map=seen[:, 0] if self._sees else None,
            rows=np.array(rows, np.int64),
            fingerprint=self.fingerprint,
            skipped=skipped,
            sources=list(sources),
        )
        return found, logits

    def _visibility(self, mask: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """(n,): the share of the person in sight, by the map (n, 2, h, w); without one, the mask's mean over its usual
        value; None of a model without masks."""
        if not self.spec.masks:
            return None
        if not self._sees:
            return mask.mean(axis=1) / np.float32(max(self.spec.mask_mean, 1e-6))
        return visibility_of_maps(seen)

    def _embed_one(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One crop's feature (D,) and mask (D,)."""
        feature, mask, *_ = self._run(self._open(), [crop])
        return feature[0], mask[0]

    def _room(self, n: int) -> _Outputs:
        """Arrays for the outputs of n crops."""
        shapes = (
            (self.dimension,),
            (self.dimension,),
            (len(self._people),),
            (2, *self.spec.grid) if self._sees else (0,),
        )
        return tuple(np.empty((n, *shape), np.float32) for shape in shapes)

    def _run(self, backend: Backend, crops: list[NDArray[np.uint8]]) -> _Outputs:
        """Outputs of n crops, in calls of at most the batch's high end, padded to its low end."""
        low, outputs = self.batch.low, self._room(len(crops))
        for part in pictures.chunks(len(crops), self.batch.high):
            some = crops[part]
            n = max(len(some), low)
            out = self._room(n) if n > len(some) else [one[part] for one in outputs]

            def fill(batch: NDArray[np.float32], some: list[NDArray[np.uint8]] = some) -> None:
                pictures.preprocess(some, self.spec.preprocessing, out=batch[: len(some)])
                batch[len(some) :] = 0

            seen = {"visibility": out[3]} if self._sees else {}
            backend.run(n, fill, out[0], out[1], *([out[2]] if self._people else []), **seen)
            if n > len(some):
                for whole, padded in zip(outputs, out):
                    whole[part] = padded[: len(some)]
        self._check_finite(*outputs)
        return outputs

    def _run_frame(
        self, backend: GpuBackend, frame: Any, boxes: NDArray[np.int64], after: Any, search: SearchBehind | None
    ) -> _Outputs:
        """Outputs of the boxes (n, 4) of a frame that is cut up on the GPU."""
        outputs, usable = self._room(len(boxes)), boxes.astype(np.float32)
        for part in pictures.chunks(len(boxes), self.batch.high):
            feature, mask, logits, _ = (one[part] for one in outputs)
            backend.run_frame(
                frame, usable[part], feature, mask, after, logits if self._people else None,
                None if search is None else search.enqueue,
            )  # fmt: skip
            if search is not None:
                search.collect()
        self._check_finite(*outputs)
        return outputs

    def _mark(self, backend: Backend, stream: Any) -> Any:
        """What a stream holds by now, for work that has to wait for it; None without a stream."""
        return None if stream is None else self._gpu(backend).mark(stream)

    def _check_finite(self, *outputs: NDArray[np.float32]) -> None:
        """Refuse NaN and infinity in rows of (n, …) outputs, naming the rows."""
        bad = ~np.logical_and.reduce([np.isfinite(one).all(axis=tuple(range(1, one.ndim))) for one in outputs])
        if bad.any():
            raise EngineError(
                f"the engine of {self.folder} gave NaN or infinity for crops {np.flatnonzero(bad)[:8].tolist()}: "
                f"its precision ({self.manifest.precision}) overflows. Build it in another: --precision fp32"
            )
