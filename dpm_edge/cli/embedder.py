"""An engine directory or a checkpoint, behind one face, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge import shipped
from dpm_edge.env import installed
from dpm_edge.errors import CheckpointError, MissingLibrary
from dpm_edge.images import chunks, preprocess
from dpm_edge.manifest import NAME, BatchRange
from dpm_edge.runtime import Embeddings, Engine
from dpm_edge.sight import visibility_of_maps
from dpm_edge.spec import ModelSpec


def open_embedder(path: Path, *, device: str | None, threads: int | None) -> AbstractContextManager[Any]:
    """An `Engine` where `path` holds a manifest, else the network of a checkpoint, or of a model that ships, in torch.

    Raises:
        MissingLibrary: it is a checkpoint and torch is not installed.
        CheckpointError: there is nothing at `path`.
    """
    if (path / NAME).is_file():
        return Engine.load(path, device=device, threads=threads)
    path = shipped.resolve(path, ".safetensors")
    if not path.exists() and not path.with_name(path.name + ".safetensors").exists():
        raise CheckpointError(f"expected an engine directory or a checkpoint at {path}, got nothing. Check the path")
    if not installed("torch"):
        raise MissingLibrary("torch", f"evaluating the checkpoint {path}", "pip install 'dpm-edge[build]'")
    return nullcontext(TorchEmbedder(path, threads))


class TorchEmbedder:
    """A checkpoint's network in torch, float32, on the CPU."""

    batch = BatchRange(low=1, best=8, high=32)

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Load the checkpoint."""
        import torch

        from dpm_edge.model import checkpoint

        if threads:
            torch.set_num_threads(threads)
        self._net = checkpoint.load_any(path)
        self._fingerprint = checkpoint.fingerprint(self._net)

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> Embeddings:
        """Pictures (H, W, 3) uint8 BGR in, one row each out."""
        import torch

        spec = self._net.spec
        feature = np.empty((len(images), spec.dimension), np.float32)
        mask = np.empty_like(feature)
        maps: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for part in chunks(len(images), self.batch.high):
                f, m, *seen = self._net(torch.from_numpy(preprocess(images[part], spec.preprocessing)))
                feature[part], mask[part] = f.numpy(), m.numpy()
                maps += [one.numpy() for one in seen]
        return Embeddings(
            features=feature,
            masks=mask,
            visibility=_visibility(spec, mask, maps),
            visibility_map=np.concatenate(maps)[:, 0] if maps else None,
            rows=np.arange(len(images)),
            fingerprint=self._fingerprint,
        )


def _visibility(
    spec: ModelSpec, mask: NDArray[np.float32], maps: list[NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    """What `Embeddings.visibility` is of this model; None of one without masks."""
    if not spec.masks:
        return None
    return visibility_of_maps(np.concatenate(maps)) if maps else mask.mean(axis=1) / spec.mask_mean
