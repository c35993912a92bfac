"""Open an engine directory and embed crops with it.

frame (H, W, 3) uint8 · boxes (N, 4) float xyxy pixels · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dpm_edge import images as pictures
from dpm_edge.errors import EngineError, ImageError
from dpm_edge.manifest import BatchRange, Manifest
from dpm_edge.runtime import checks
from dpm_edge.runtime.backends import Backend, open_backend
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.spec import ModelSpec


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

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "CPU", threads: int | None = None) -> Engine:
        """Check an engine directory, open it, and run the crop that was stored when it was built.

        Args:
            folder: the directory that `dpm-edge build` wrote.
            device: "CPU"; OpenVINO also "GPU", "NPU" or "AUTO".
            threads: cores for one call; None leaves it to the library.

        Raises:
            EngineError: a file was changed or is missing, the library's major version or the device is another than
                the build's, or the golden crop comes out differently. Each names the command that builds it again.
            MissingLibrary: the engine library is not installed.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        manifest.check_files(folder)
        checks.check_library(manifest, folder)
        checks.check_device(manifest, folder, device)
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
    def batch(self) -> BatchRange:
        """Crops in one call of the engine; `embed` takes any number and cuts it into calls."""
        return self.manifest.batch

    def embed(
        self,
        images: NDArray | Sequence[NDArray],
        boxes: NDArray | Sequence[Sequence[float]] | None = None,
        *,
        color: str = "bgr",
    ) -> Embeddings:
        """Features, masks and visibility of crops, in the order given.

        Args:
            images: without boxes, a sequence of N pictures (H, W, 3) uint8 of any size, or one array (N, H, W, 3);
                with boxes, one frame (H, W, 3).
            boxes: (N, 4) float x0 y0 x1 y1 in the frame's pixels, clipped to it.
            color: channel order of the pictures: "bgr" (OpenCV's) or "rgb".

        Returns:
            Embeddings; `rows` says which input each row is, `skipped` names every input that has no row, and why.

        Raises:
            ImageError: what came is no picture, no sequence of pictures, or no array of boxes.
            EngineError: the engine is closed, or its output is not finite.
        """
        skipped: list[tuple[int, str]] = []
        if boxes is not None:
            if not isinstance(images, np.ndarray) or images.ndim == 4:
                raise ImageError("with boxes, one frame (H, W, 3) is wanted, not a batch: call embed once per frame")
            frame = pictures.as_bgr(images, color=color, what="the frame")
            whole, skipped = pictures.clip_boxes(np.asarray(boxes, np.float64), frame.shape)
            unusable = {row for row, _ in skipped}
            rows = [row for row in range(len(whole)) if row not in unusable]
            crops = [frame[y0:y1, x0:x1] for x0, y0, x1, y1 in whole[rows]]
        else:
            if isinstance(images, np.ndarray) and images.ndim != 4:
                raise ImageError(f"images has shape {images.shape}; (N, H, W, 3), or a list of pictures, is wanted")
            crops = [pictures.as_bgr(image, color=color, what=f"image {row}") for row, image in enumerate(images)]
            rows = list(range(len(crops)))
        feature, mask = self._run(crops)
        return Embeddings(
            features=feature,
            masks=mask,
            visibility=mask.mean(axis=1) / np.float32(max(self.spec.mask_mean, 1e-6)),
            rows=np.array(rows, np.int64),
            fingerprint=self.fingerprint,
            skipped=skipped,
        )

    def close(self) -> None:
        """Let go of the engine's memory; a second call does nothing."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _embed_one(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One crop's feature (D,) and mask (D,)."""
        feature, mask = self._run([crop])
        return feature[0], mask[0]

    def _run(self, crops: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features and masks (n, D) of n crops, in calls of at most the batch's high end, padded to its low end."""
        backend = self._backend
        if backend is None:
            raise EngineError(f"the engine of {self.folder} is closed. Open it: Engine.load({str(self.folder)!r})")
        low, n = self.batch.low, len(crops)
        feature = np.empty((n, self.dimension), np.float32)
        mask = np.empty_like(feature)
        for part in pictures.chunks(n, self.batch.high):
            some = crops[part]
            pad = max(0, low - len(some))

            def fill(batch: NDArray[np.float32], some: list[NDArray[np.uint8]] = some) -> None:
                pictures.preprocess(some, self.spec.preprocessing, out=batch[: len(some)])
                batch[len(some) :] = 0

            if pad:
                shape = (low, self.dimension)
                padded = np.empty(shape, np.float32), np.empty(shape, np.float32)
                backend.run(low, fill, *padded)
                feature[part], mask[part] = padded[0][: len(some)], padded[1][: len(some)]
            else:
                backend.run(len(some), fill, feature[part], mask[part])
        bad = ~(np.isfinite(feature).all(axis=1) & np.isfinite(mask).all(axis=1))
        if bad.any():
            raise EngineError(
                f"the engine of {self.folder} gave NaN or infinity for crops {np.flatnonzero(bad)[:8].tolist()}: "
                f"its precision ({self.manifest.precision}) overflows. Build it in another: --precision fp32"
            )
        return feature, mask
