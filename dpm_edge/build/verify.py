"""Verification: the engine that was built is opened and compared with a float32 reference, on real crops; and whether
it may stay, by the budget that it must keep.

n crops · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import BuildRefused, EngineError, MissingLibrary, SpecError
from dpm_edge.evaluation import market_scores
from dpm_edge.images import chunks, preprocess, read_image
from dpm_edge.layouts import Dataset
from dpm_edge.market import LabelledFolder
from dpm_edge.metrics import similarity
from dpm_edge.progress import say, track
from dpm_edge.runtime import Engine
from dpm_edge.spec import Preprocessing
from dpm_edge.telemetry import import_onnxruntime

if TYPE_CHECKING:
    from dpm_edge.build.source import Source

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Feature and mask, each (n, D) float32."""
Forward = Callable[[NDArray[np.float32]], Outputs]
"""Preprocessed crops (n, 3, H, W) float32 → outputs."""
AT_ONCE = 16
"""Crops that are read and run at once, so that memory does not grow with the folder."""
GOLDEN_MARGIN = 0.01
"""How far below its value at build time the golden crop's cosine may fall where the engine is opened."""


@dataclass(frozen=True, kw_only=True)
class AccuracyBudget:
    """What an engine may lose against the reference."""

    cosine: float = 0.995
    """Least mean cosine between the engine's and the reference's features."""
    map_points: float = 0.5
    """Most that mAP may fall, in percentage points, on the labelled folder (masked metric)."""

    def __post_init__(self) -> None:
        if not -1 <= self.cosine <= 1 or not 0 <= self.map_points <= 100:
            raise SpecError(f"expected a cosine in −1..1 and map_points in 0..100, got {self}")


@dataclass(frozen=True)
class Reference:
    """The float32 network that an engine is compared with."""

    name: str
    """What computes it, with version; recorded in the manifest."""
    forward: Forward
    known: dict[tuple[Path, ...], Outputs] = field(default_factory=dict, compare=False, repr=False)
    """Outputs of the folders that were run before: every candidate of one build is compared with the same."""


def torch_reference(net: Any) -> Reference:
    """The checkpoint's own network in torch, float32, eager."""
    import torch

    def forward(inputs: NDArray[np.float32]) -> Outputs:
        with torch.inference_mode():
            feature, mask = net(torch.from_numpy(inputs))[:2]
        return feature.numpy(), mask.numpy()

    return Reference(f"torch {torch.__version__} float32", forward)


def onnx_reference(model: bytes) -> Reference:
    """The portable ONNX in ONNX Runtime, float32: the reference where there is no torch.

    Raises:
        MissingLibrary: onnxruntime is not installed.
    """
    onnxruntime = import_onnxruntime("verifying an engine")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def forward(inputs: NDArray[np.float32]) -> Outputs:
        feature, mask = session.run(["feature", "mask"], {"images": inputs})
        return feature, mask

    return Reference(f"onnxruntime {onnxruntime.__version__} float32", forward)


def run_reference(
    reference: Reference, paths: Sequence[Path], pre: Preprocessing, *, what: str, quiet: bool
) -> Outputs:
    """The reference's outputs for picture files, in order, (n, D) each; computed once for each list of files."""
    if tuple(paths) in reference.known:
        return reference.known[tuple(paths)]
    parts = [
        reference.forward(preprocess([read_image(p) for p in paths[part]], pre))
        for part in track(list(chunks(len(paths), AT_ONCE)), what=what, quiet=quiet)
    ]
    outputs = np.concatenate([f for f, _ in parts]), np.concatenate([m for _, m in parts])
    reference.known[tuple(paths)] = outputs
    return outputs


def run_engine(engine: Engine, paths: Sequence[Path], *, what: str, quiet: bool) -> Outputs:
    """The engine's outputs for picture files, in order, (n, D) each; the same calls that serve."""
    parts = [
        engine.embed([read_image(p) for p in paths[part]])
        for part in track(list(chunks(len(paths), AT_ONCE)), what=what, quiet=quiet)
    ]
    return np.concatenate([e.features for e in parts]), np.concatenate([e.masks for e in parts])


def compare(engine: Outputs, reference: Outputs) -> dict[str, float]:
    """Cosines of the features (both sides have norm 1) and the largest error of the masks."""
    cosines = np.sum(engine[0] * reference[0], axis=1)
    return {
        "cosine_mean": round(float(cosines.mean()), 6),
        "cosine_min": round(float(cosines.min()), 6),
        "mask_max_error": round(float(np.abs(engine[1] - reference[1]).max()), 6),
    }


def compare_labelled(engine: Engine, reference: Reference, people: Dataset, *, quiet: bool) -> dict[str, float | int]:
    """Give mAP, in percent, of the reference and of the engine on labelled pictures, masked metric.

    Raises:
        DataError: no query has a match.
    """
    query, gallery = people.query, people.gallery
    paths, pre = query.paths + gallery.paths, engine.spec.preprocessing
    wanted = run_reference(reference, paths, pre, what="labelled folder, reference", quiet=quiet)
    got = run_engine(engine, paths, what="labelled folder, engine", quiet=quiet)
    before, after = (map_percent(outputs, query, gallery) for outputs in (wanted, got))
    return {
        "pictures": len(paths),
        "reference_map": round(before, 3),
        "engine_map": round(after, 3),
        "map_lost": round(before - after, 3),
    }


def map_percent(outputs: Outputs, query: LabelledFolder, gallery: LabelledFolder) -> float:
    """mAP in percent of stacked outputs, queries first."""
    features, masks = outputs
    n = len(query)
    ranking = similarity(features[:n], features[n:], metric="masked", query_masks=masks[:n])
    scores = market_scores(ranking, query.people, query.cameras, gallery.people, gallery.cameras)
    return 100 * scores.mean_average_precision


def over_budget(measured: dict[str, Any], budget: AccuracyBudget) -> list[str]:
    """Every way in which the numbers go over the budget, in words; empty where they keep it."""
    over = []
    if not measured["cosine_mean"] >= budget.cosine:
        over.append(f"expected a mean cosine of features of {budget.cosine} or more, got {measured['cosine_mean']:.4f}")
    lost = measured.get("labelled", {}).get("map_lost")
    if lost is not None and not lost <= budget.map_points:
        over.append(
            f"expected mAP to fall by {budget.map_points} points or less, got {lost:.2f} "
            f"({measured['labelled']['reference_map']:.2f} → {measured['labelled']['engine_map']:.2f})"
        )
    return over


def examine(
    folder: Path,
    source: Source,
    paths: list[Path],
    labelled: Dataset | None,
    budget: AccuracyBudget,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """A manifest's verification entry: what was measured, and `over_budget` in words.

    `not_verified` holds the reason where the engine cannot be opened on this machine.

    Raises:
        DataError: no labelled query has a match.
    """
    measured: dict[str, Any] = {
        "reference": source.reference.name,
        "crops": len(paths),
        "budget": {"cosine": budget.cosine, "map_points": budget.map_points},
    }
    if not quiet:
        say(f"verifying against {source.reference.name} on {len(paths)} crops")
    try:
        engine = Engine.load(folder, trusted=True)
    except (EngineError, MissingLibrary) as error:
        return measured | {"golden_cosine": -1.0, "passed": False, "forced": False, "not_verified": str(error)}
    with engine:
        pre = source.spec.preprocessing
        wanted = run_reference(source.reference, paths, pre, what="reference", quiet=quiet)
        got = run_engine(engine, paths, what="engine", quiet=quiet)
        measured |= compare(got, wanted)
        measured["golden_cosine"] = round(float(np.sum(got[0][0] * wanted[0][0])) - GOLDEN_MARGIN, 6)
        if labelled is not None:
            measured["labelled"] = compare_labelled(engine, source.reference, labelled, quiet=quiet)
    reasons = over_budget(measured, budget)
    return measured | {"passed": not reasons, "forced": False, "over_budget": reasons}


def keep_or_refuse(verification: dict[str, Any], *, force: bool) -> dict[str, Any]:
    """The entry as it is kept: what did not pass stays only by force, and says so.

    Raises:
        BuildRefused: it did not pass, and nobody forces it.
    """
    if verification["passed"]:
        return verification
    if force:
        return verification | {"forced": True}
    if "not_verified" in verification:
        raise BuildRefused(
            "expected to open the engine and verify it, got one that cannot be opened here. Build it on the device "
            f"that is to run it, or keep it unverified with --force. The reason: {verification['not_verified']}"
        )
    raise BuildRefused(
        f"the engine is over the accuracy budget: {'; '.join(verification['over_budget'])}. Give more or better crops "
        "(--calibrate), another precision, a wider budget, or keep it as it is with --force"
    )
