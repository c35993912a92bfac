"""What a similarity means: thresholds at a chosen false-match rate and probabilities, by visibility of the query.

P pairs · B bands of visibility

Measured on labelled pictures of other people than the model was trained on. The fewer of a person one sees, the wider
strangers' similarities spread, so that one threshold for all would hand out more false matches to the hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpm_edge.errors import DataError, GalleryError
from dpm_edge.files import write_whole
from dpm_edge.gallery.matches import Matches

FORMAT = 1
SAME, DIFFERENT, UNDECIDED = "same", "different", "too occluded to decide"


@dataclass(frozen=True, kw_only=True)
class Band:
    """Queries of one range of visibility."""

    low: float
    """Visibility from which the band starts; the first starts at −inf in effect."""
    threshold: float
    """Least similarity that is a match: strangers reach it at the false-match rate."""
    true_match_rate: float
    """Share of pairs of one person that reach it."""
    false_match_rate: float
    """Share of pairs of strangers that did reach it here."""
    slope: float
    offset: float
    """P(same) = 1 / (1 + exp(−(slope · similarity + offset))), as if both were equally frequent."""
    decides: bool
    """Whether the true-match rate is worth an answer; if not, the answer is "too occluded to decide"."""
    same: int
    different: int
    """Pairs that this rests on."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Bands of rising visibility, for one model, one metric, and centred features or not."""

    fingerprint: str
    metric: str
    wanted_false_match_rate: float
    bands: list[Band]
    centred: bool = False
    """Whether the similarities were those of features centred per camera."""
    by: str = "labels"
    """What told who is who: "labels", or "tracks", which know nothing of two cameras."""
    format: int = FORMAT

    def band_of(self, visibility: ArrayLike) -> NDArray[np.int64]:
        """The band of each visibility; with one band any number will do."""
        lows = [band.low for band in self.bands[1:]]
        return np.searchsorted(lows, np.asarray(visibility), side="right")

    def decide(self, similarity: ArrayLike, visibility: ArrayLike) -> NDArray[np.str_]:
        """ "same", "different" or "too occluded to decide", for similarities and queries' visibilities of one shape."""
        at = self.band_of(visibility)
        reached = np.asarray(similarity) >= np.array([band.threshold for band in self.bands])[at]
        decides = np.array([band.decides for band in self.bands])[at]
        return np.where(decides, np.where(reached, SAME, DIFFERENT), UNDECIDED)

    def probability(self, similarity: ArrayLike, visibility: ArrayLike, *, prior: float = 0.5) -> NDArray[np.float64]:
        """P(same) of each, by Bayes' rule from the share of such pairs that is one person before anything is seen.

        Raises:
            DataError: the prior is not between 0 and 1.
        """
        if not 0 < prior < 1:
            raise DataError(f"expected a prior above 0 and below 1, got {prior}")
        at = self.band_of(visibility)
        slope = np.array([band.slope for band in self.bands])[at]
        offset = np.array([band.offset for band in self.bands])[at]
        odds = slope * np.asarray(similarity) + offset + np.log(prior / (1 - prior))
        return 1 / (1 + np.exp(-np.clip(odds, -50, 50)))

    def save(self, path: Path) -> None:
        """As JSON, whole."""
        write_whole(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def of(cls, data: dict[str, Any]) -> Calibration:
        """Out of what `dataclasses.asdict` makes of one."""
        return cls(**{**data, "bands": [Band(**band) for band in data["bands"]]})

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """What `save` wrote.

        Raises:
            DataError: the file is missing, of a newer format, or is something else.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] > FORMAT:
                raise DataError(f"expected format {FORMAT}, got {path} of format {data['format']}. Upgrade dpm-edge")
            return cls.of(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"expected a calibration, got {path} ({error}). Make one: dpm-edge calibrate") from error


def choose(
    given: Calibration | None, meta: Mapping[str, Any], metric: str, centred: bool = False
) -> Calibration | None:
    """The calibration of a search under a metric: what is given, else what the gallery keeps for such searches.

    Raises:
        GalleryError: what is given is of another model or metric than the gallery that describes itself by `meta`, or
            of centred features where the search is not, or the other way round.
    """
    if given is None:
        kept = meta.get("calibration")
        known = Calibration.of(kept) if kept else None
        return known if known is not None and (known.metric, known.centred) == (metric, centred) else None
    if given.fingerprint != meta["fingerprint"] or given.metric != metric:
        raise GalleryError(
            f"expected a calibration of model {meta['fingerprint'][:12]} and metric {metric!r}, got one of model "
            f"{given.fingerprint[:12]} and metric {given.metric!r}. Calibrate again: dpm-edge calibrate"
        )
    if given.centred != centred:
        raise GalleryError(
            f"expected a calibration of {_space(centred)}, as this search compares, got one of {_space(given.centred)}."
            f" Search with centre={given.centred}, or calibrate {'with' if centred else 'without'} --centre"
        )
    return given


def _space(centred: bool) -> str:
    return "features centred per camera" if centred else "features that are not centred"


def to_keep(calibration: Calibration | None, fingerprint: str) -> dict[str, Any] | None:
    """A calibration as JSON types, to keep with a gallery of a model; None for none.

    Raises:
        GalleryError: it is of another model.
    """
    if calibration is not None and calibration.fingerprint != fingerprint:
        raise GalleryError(
            f"expected a calibration of model {fingerprint[:12]}, got one of model {calibration.fingerprint[:12]}. "
            f"Calibrate that model: dpm-edge calibrate"
        )
    return None if calibration is None else asdict(calibration)


def with_probability(
    matches: Matches, calibration: Calibration | None, visibility: NDArray[np.float32] | None, prior: float
) -> Matches:
    """Matches with a probability and a decision at each place, by the queries' visibility (Q,); as they are without.

    visibility: None of a model without one, whose calibrations have one band.

    Raises:
        DataError: the prior is not between 0 and 1.
    """
    if calibration is None:
        return matches
    filled = matches.found
    seen = np.zeros(filled.shape) if visibility is None else np.broadcast_to(visibility[:, None], filled.shape)
    similarity = np.where(filled, matches.similarity, 0)
    return replace(
        matches,
        probability=np.where(filled, calibration.probability(similarity, seen, prior=prior), np.nan),
        decision=np.where(filled, calibration.decide(similarity, seen), ""),
    )


def calibrate(
    similarity: NDArray, same: NDArray[np.bool_], visibility: NDArray | None, *,
    fingerprint: str, metric: str = "masked", false_match_rate: float = 1e-3, bands: int | None = None,
    least_true: float = 0.05, centred: bool = False, by: str = "labels",
) -> Calibration:  # fmt: skip
    """Thresholds from labelled pairs.

    Args:
        similarity: (P,) float.
        same: (P,) bool, whether it is one person.
        visibility: (P,) float, of the pair's query; None of a model without one.
        fingerprint: the model's.
        metric: the one that made the similarities.
        false_match_rate: in 0..1, allowed among strangers.
        bands: how many, of equally many pairs; without, 3, and 1 of a model without a visibility, which takes no more.
        least_true: true-match rate below which a band decides nothing; without a visibility nothing is too occluded.
        centred: the similarities are those of features centred per camera.
        by: what told who is who, "labels" or "tracks".

    Raises:
        DataError: there are too few pairs in a band: strangers must number 1 / false_match_rate at least.
    """
    seen = visibility is not None
    if bands is None:
        bands = 3 if seen else 1
    if not seen and bands != 1:
        raise DataError(
            f"expected one band for a model without a visibility, got {bands}. Leave the number of bands out"
        )
    visibility = np.zeros(len(similarity)) if visibility is None else visibility
    edges = np.quantile(visibility, np.arange(1, bands) / bands)
    which = np.searchsorted(edges, visibility, side="right")
    made = []
    for number in range(bands):
        here = which == number
        matches, strangers = similarity[here & same], similarity[here & ~same]
        if len(strangers) * false_match_rate < 1 or len(matches) < 2:
            raise DataError(
                f"expected {int(np.ceil(1 / false_match_rate))} pairs of strangers and 2 of one person at least for a "
                f"false-match rate of {false_match_rate:g}, got {len(strangers)} and {len(matches)} in band "
                f"{number + 1} of {bands}. Label more pictures, or ask for a higher rate or fewer bands"
            )
        allowed = int(np.floor(false_match_rate * len(strangers)))
        threshold = float(np.nextafter(np.sort(strangers)[-allowed - 1], np.inf))
        slope, offset = _logistic(matches, strangers)
        true = float((matches >= threshold).mean())
        made.append(
            Band(
                low=float(edges[number - 1]) if number else 0.0,
                threshold=threshold,
                true_match_rate=true,
                false_match_rate=float((strangers >= threshold).mean()),
                slope=slope,
                offset=offset,
                decides=true >= least_true or not seen,
                same=len(matches),
                different=len(strangers),
            )
        )
    return Calibration(
        fingerprint=fingerprint, metric=metric, wanted_false_match_rate=false_match_rate, bands=made, centred=centred,
        by=by,
    )  # fmt: skip


def _logistic(matches: NDArray, strangers: NDArray) -> tuple[float, float]:
    """Slope and offset of a logistic fit with both classes weighted alike, by Newton's steps.

    Targets are drawn in from 0 and 1 (Platt 1999), so that classes that never overlap give a finite slope too.
    """
    s = np.concatenate([matches, strangers]).astype(np.float64)
    x = np.stack([s - s.mean(), np.ones_like(s)])
    wanted = np.r_[np.full(len(matches), 1 - 1 / (len(matches) + 2)), np.full(len(strangers), 1 / (len(strangers) + 2))]
    weight = np.r_[np.full(len(matches), 0.5 / len(matches)), np.full(len(strangers), 0.5 / len(strangers))]
    w = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(w @ x, -50, 50)))
        gradient = x @ (weight * (p - wanted)) + np.array([1e-6, 0]) * w
        hessian = (x * (weight * p * (1 - p))) @ x.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 20 / max(np.abs(step).max(), 1e-12))
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    return float(w[0]), float(w[1] - w[0] * s.mean())
