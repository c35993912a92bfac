"""What the gallery's tests share: random rows, and answers by the float64 formula, without the package."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge import Embeddings


def rows(n: int, d: int = 12, seed: int = 0, fingerprint: str = "f") -> Embeddings:
    """n random unit features with random masks."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, d))
    return Embeddings(
        features=features / np.linalg.norm(features, axis=1, keepdims=True),
        masks=rng.random((n, d)),
        visibility=rng.uniform(0.3, 1.2, n),
        rows=np.arange(n),
        fingerprint=fingerprint,
        sources=[f"{i}.jpg" for i in range(n)],
    )


def scores(
    q: NDArray, masks: NDArray, targets: NDArray, target_masks: NDArray | None, metric: str
) -> NDArray[np.float64]:
    """(Q, N) by the formula: Σ q̂ m t̂ / sqrt(max(Σ m² t̂², 1e-12)), with m = 1, m_q or m_q·m_t."""
    q64, t64 = np.asarray(q, np.float64), np.asarray(targets, np.float64)
    q64 = q64 / np.maximum(np.linalg.norm(q64, axis=1, keepdims=True), 1e-6)
    t64 = t64 / np.maximum(np.linalg.norm(t64, axis=1, keepdims=True), 1e-6)
    s = np.zeros((len(q64), len(t64)))
    for i in range(len(q64)):
        m: Any = np.ones_like(q64[i]) if metric == "plain" else np.asarray(masks[i], np.float64)
        seen = m * t64 * (np.asarray(target_masks, np.float64) if metric == "mutual" else 1)
        s[i] = seen @ q64[i] / np.sqrt(np.maximum((seen * seen).sum(1), 1e-12))
    return s


def people(seed: int = 0, count: int = 12, each: int = 6, d: int = 64, share: float = 0.5) -> tuple:
    """Pictures of people of whom a random share of the dimensions is seen; the others show noise."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((count, d))
    person = np.repeat(np.arange(count), each)
    seen = rng.random((len(person), d)) < share
    noise = rng.standard_normal((len(person), d))
    features = np.where(seen, truth[person] + 0.5 * noise, 1.5 * noise)
    some = rows(len(person), d)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    some = dataclasses.replace(
        some, features=features, masks=np.where(seen, 0.95, 0.05), visibility=np.ones(len(person))
    )
    return some, person, truth


CAMERAS = ("a", "b", "c", "")


def biased(n: int, seed: int = 0, d: int = 12) -> tuple[Embeddings, list[str]]:
    """n rows, each moved by its camera's own bias."""
    rng = np.random.default_rng(seed)
    cameras = [CAMERAS[i] for i in rng.integers(0, len(CAMERAS), n)]
    bias = dict(zip(CAMERAS, np.random.default_rng(99).standard_normal((len(CAMERAS), d)) * 0.4))
    some = rows(n, d, seed)
    moved = some.features + np.array([bias[one] for one in cameras]).reshape(n, d)
    features = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return Embeddings(**{**vars(some), "features": features}), cameras
