"""Scores of a model on a few labelled pictures of a site, as they are and centred per camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpm_edge.centring import CameraStatistics
from dpm_edge.labels import AUTO
from dpm_edge.layouts import read_dataset
from dpm_edge.model.foreign_network import AnyNetwork
from dpm_edge.spec import Preprocessing
from dpm_edge.train.data import Pictures, decode
from dpm_edge.train.evaluate import BOTH, embed, scores

NOT_CENTRED, CENTRED = "not centred", "centred"


def read_check(folder: Path, preprocessing: Preprocessing, *, quiet: bool = False) -> tuple[Pictures, Pictures]:
    """Query and gallery of a labelled folder in any layout that `dpm-edge eval` takes.

    Raises:
        DataError: the folder has no such layout, or nobody in it was seen by two cameras.
    """
    found = read_dataset(folder, AUTO)
    return decode(found.query, preprocessing, quiet=quiet), decode(found.gallery, preprocessing, quiet=quiet)


def score(
    net: AnyNetwork, query: Pictures, gallery: Pictures, covered: dict[tuple[str, float], Pictures] | None = None
) -> dict[str, Any]:
    """Rank-1 and mAP in percent: {"not centred" or "centred": {part: {metric: {"rank1", "mAP"}}}}.

    Parts are "whole" and, where there are covered queries, "covered" and "covered by KIND".
    Cameras are centred by the means of the gallery's pictures (`dpm_edge.centring`).

    Args:
        net: the model.
        query: labelled pictures that ask.
        gallery: labelled pictures that are searched.
        covered: the queries again with something in front of them, by kind and share; their scores are averaged.
    """
    target, target_masks = embed(net, gallery.pixels)
    known = CameraStatistics(fingerprint="", dimension=target.shape[1])
    known.add(target.cpu().numpy(), _names(gallery))

    def centre(features: Tensor, of: Pictures) -> Tensor:
        return torch.from_numpy(known.centre(features.cpu().numpy(), _names(of)))

    sides = {NOT_CENTRED: lambda features, of: features, CENTRED: centre}
    targets = {space: (side(target, gallery), target_masks) for space, side in sides.items()}
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {space: {} for space in sides}
    for (kind, _), pictures in {("whole", 0.0): query, **(covered or {})}.items():
        of = ["whole"] if kind == "whole" else ["covered", f"covered by {kind}"]
        asked, masks = embed(net, pictures.pixels)
        for space, side in sides.items():
            said = scores(pictures, gallery, (side(asked, pictures), masks), targets[space])
            for part in of:
                parts[space].setdefault(part, []).append(said)
    return {
        space: {
            part: {
                m: {key: round(float(np.mean([s[m][key] for s in each])), 2) for key in ("rank1", "mAP")} for m in BOTH
            }
            for part, each in found.items()
        }
        for space, found in parts.items()
    }


def _names(pictures: Pictures) -> list[str]:
    return [str(int(camera)) for camera in pictures.cameras]
