"""Pictures in memory, decoded once, and batches of P identities × K pictures.

N pictures · H×W network input · B = P·K pictures of a batch
"""

from __future__ import annotations

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpm_edge.env import cores
from dpm_edge.errors import DataError, ImageError
from dpm_edge.files import decode_text
from dpm_edge.images import read_image, resize
from dpm_edge.market import LabelledFolder
from dpm_edge.progress import say
from dpm_edge.spec import Preprocessing
from dpm_edge.train.status import counted


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures with their labels; `pixels` may live on a GPU."""

    pixels: Tensor
    """(N, 3, H, W) uint8, channels in the preprocessing's order."""
    people: Tensor
    """(N,) int64 person ids as the data set gives them."""
    cameras: Tensor
    """(N,) int64."""
    names: list[str]
    """(N,) file names."""

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device) -> Pictures:
        """The same with pixels on `device`."""
        return Pictures(self.pixels.to(device), self.people, self.cameras, self.names)

    def take(self, rows: Tensor | np.ndarray) -> Pictures:
        """The pictures of these rows, (n,) integers."""
        return Pictures(self.pixels[rows], self.people[rows], self.cameras[rows], [self.names[int(i)] for i in rows])

    def labels(self) -> Tensor:
        """(N,) int64 in 0..C−1: the people numbered in order of their ids."""
        return torch.unique(self.people, return_inverse=True)[1]


def decode(folder: LabelledFolder, pre: Preprocessing, workers: int = 0, quiet: bool = False) -> Pictures:
    """Read and resize every picture with what serving resizes with, `dpm_edge.images.resize`; kept as uint8.

    A picture that cannot be read is left out and named on stderr. Raises DataError when none can be read.
    """

    def one(path: Path) -> np.ndarray | str:
        try:
            image = read_image(path)
        except ImageError as error:
            return str(error)
        return np.ascontiguousarray(resize(image, pre).transpose(2, 0, 1))

    pixels = np.empty((len(folder), 3, pre.height, pre.width), np.uint8)
    keep = np.ones(len(folder), bool)
    with ThreadPoolExecutor(workers or cores()) as pool:
        for row, result in enumerate(
            counted(pool.map(one, folder.paths), what="decode", total=len(folder), quiet=quiet)
        ):
            if isinstance(result, str):
                keep[row] = False
                say(f"left out: {result}")
            else:
                pixels[row] = result
    if not len(folder):
        raise DataError("expected pictures to read, got none: a part of the data set is empty")
    if not keep.any():
        raise DataError(
            f"expected pictures that can be read, got {len(folder)} that cannot, such as {folder.paths[0]}. The "
            "reasons are above"
        )
    rows = np.flatnonzero(keep)
    return Pictures(
        torch.from_numpy(pixels if keep.all() else pixels[rows]),
        torch.from_numpy(folder.people[rows].copy()),
        torch.from_numpy(folder.cameras[rows].copy()),
        [folder.paths[r].name for r in rows],
    )


def visible_shares(folder: LabelledFolder, labels: Path) -> np.ndarray:
    """Read the share of each person that is visible, (N,), from a rendered set's labels.csv (columns file, visible).

    Raises DataError where the file or a picture's row is missing.
    """
    if not labels.is_file():
        raise DataError(f"expected a rendered set's labels.csv for data.min_visible, got no {labels}")
    rows = csv.DictReader(io.StringIO(decode_text(labels, labels.read_bytes()), newline=""))
    try:
        shares = {Path(row["file"]).name: float(row["visible"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"expected columns file and visible (a number) in {labels}, got line {rows.line_num} ({error!r}). Render "
            "the set again"
        ) from error
    missing = [p.name for p in folder.paths if p.name not in shares]
    if missing:
        raise DataError(f"expected a row of every picture in {labels}, {len(missing)} lack one, such as {missing[0]}")
    return np.array([shares[p.name] for p in folder.paths])


def to_input(pixels: Tensor, pre: Preprocessing) -> Tensor:
    """(B, 3, H, W) pixels 0..255 of any dtype → float32 network input, by `Preprocessing.affine`."""
    scale, shift = (by_channel(values, pixels.device) for values in pre.affine())
    return pixels.float() * scale + shift


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, 3, 1, 1) float32, kept: each new constant would be a copy to the GPU that waits for all work before it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)


class IdentitySampler:
    """P×K identity-balanced batches: P people drawn without replacement over an epoch, K pictures of each.

    An epoch visits every person as often as it takes to show about as many pictures as there are. A person with fewer
    than K pictures is shown some of them twice. Batches depend on (seed, epoch) alone, so that a resumed run draws
    what the uninterrupted one would have drawn.
    """

    def __init__(self, labels: np.ndarray, identities: int, pictures: int, seed: int) -> None:
        """labels (N,) int64 in 0..C−1; pictures labelled below 0 are left out."""
        self.rows = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
        if len(self.rows) < identities:
            raise DataError(
                f"expected {identities} training people or more, got {len(self.rows)}. Set "
                f"data.identities={len(self.rows)}"
            )
        self.identities, self.pictures, self.seed = identities, pictures, seed
        self.rounds = max(1, round(sum(map(len, self.rows)) / (len(self.rows) * pictures)))

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self.rounds * len(self.rows) // self.identities

    def epoch(self, number: int) -> np.ndarray:
        """(batches, P·K) int64 rows, pictures of one person side by side."""
        draw = np.random.default_rng((self.seed, number))
        order = np.concatenate([draw.permutation(len(self.rows)) for _ in range(self.rounds)])
        batches = []
        for people in order[: self.batches * self.identities].reshape(self.batches, self.identities):
            people = self._without_doubles(people, draw)
            batches.append(np.concatenate([self._pictures(p, draw) for p in people]))
        return np.stack(batches)

    def _without_doubles(self, people: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Where two rounds meet in one batch a person may come twice: others take the place."""
        unique = np.unique(people)
        if len(unique) == len(people):
            return people
        others = np.setdiff1d(np.arange(len(self.rows)), unique)
        return np.concatenate([unique, draw.choice(others, len(people) - len(unique), replace=False)])

    def _pictures(self, person: int, draw: np.random.Generator) -> np.ndarray:
        rows = self.rows[person]
        return draw.choice(rows, self.pictures, replace=len(rows) < self.pictures)
