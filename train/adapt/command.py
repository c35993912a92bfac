"""What `dpm-edge adapt` does: hold crops out, adapt on the others, judge, and write or refuse."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import machine_card
from dpm_edge.errors import CheckpointError, DataError
from dpm_edge.files import write_whole
from dpm_edge.metrics import normalise
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import AnyNetwork
from dpm_edge.progress import say
from dpm_edge.track_answers import read_answers
from dpm_edge.train.adapt.check import CENTRED, NOT_CENTRED, read_check, score
from dpm_edge.train.adapt.crops import Crops, read_crops
from dpm_edge.train.adapt.evidence import LEAST_TRACKS, Evidence, compare, glimpses
from dpm_edge.train.adapt.rounds import Plan, adapt, features_of, statistics
from dpm_edge.train.allocator import keep_freed_memory
from dpm_edge.train.data import Pictures
from dpm_edge.train.mask import covered

HELD_OUT = 0.15
"""Share of the tracks (of the crops, where no tracks are known) that judge and are not adapted on."""
MOST_PAIRS = 1000
CHECK_SLACK = 1.0
"""Points of mAP that a model may lose on labelled pictures before it is refused: they are few."""


def hold_out(crops: Crops, seed: int) -> tuple[Crops, Crops]:
    """The crops to adapt on, and those of other tracks to judge with; `Crops.split` says what becomes of the pixels."""
    tracks = np.unique(crops.tracks)
    draw = np.random.default_rng(seed)
    held = draw.permutation(tracks)[: min(MOST_PAIRS, round(HELD_OUT * len(tracks)))]
    return crops.split(np.isin(crops.tracks, held))


def two_glimpses(held: Crops, seed: int) -> tuple[Pictures, Pictures, list[tuple], NDArray[np.int64]]:
    """Pictures of all first and of all second glimpses, which rows of them make each pair, and each pair's camera."""
    if held.tracked:
        pairs = glimpses(held.tracks)
        cameras = np.array([held.cameras[first[0]] for first, _ in pairs], np.int64)
        return held.pictures, held.pictures, pairs, cameras
    hidden = covered(held.pictures.pixels, held.pictures.pixels, np.random.default_rng(seed))
    rows = [(np.array([i]), np.array([i])) for i in range(len(held))]
    return held.pictures, replace(held.pictures, pixels=hidden), rows, held.cameras


def judge(before: AnyNetwork, after: AnyNetwork, held: Crops, seed: int, *, quiet: bool = True) -> Evidence | None:
    """Evidence of both models on held-out crops; None where they are too few."""
    first, second, pairs, cameras = two_glimpses(held, seed)
    if len(pairs) < LEAST_TRACKS:
        return None
    names = held.names_of_cameras()
    found = []
    for net in (before, after):
        a = features_of(net, first.pixels, what="embed held-out crops", quiet=quiet)
        b = a if second is first else features_of(net, second.pixels, what="embed covered copies", quiet=quiet)
        known = statistics(net, a, names)
        a, b = known.centre(a, names), known.centre(b, names)
        glimpse_means = [normalise(np.stack([v[rows[i]].mean(0) for rows in pairs])) for i, v in enumerate((a, b))]
        found.append((glimpse_means[0], glimpse_means[1]))
    kind = "tracks" if held.tracked else "covered copies"
    return compare(found[0], found[1], cameras, kind=kind, seed=seed)


def run(
    source: Path,
    folder: Path,
    out: Path,
    plan: Plan,
    *,
    check: Path | None = None,
    labels: Path | None = None,
    force: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Adapt, judge, and write OUT/adapted.safetensors with its card, cameras.json and adapt.json. Returns adapt.json.

    `check` is a labelled folder that both models are scored on; nothing is learned from it. `labels` says of some
    tracks who is who (`dpm_edge.track_answers`).

    Raises:
        DpmError: the checkpoint or the crops cannot be used, or the adapted model is worse on held-out crops and was
            not written (`force` writes it).
    """
    keep_freed_memory()
    net = checkpoint.load_any(source)
    if net.spec.cameras:
        raise CheckpointError(
            f"expected a model without a camera embedding, got {source} with {net.spec.cameras} cameras"
        )
    labelled = None if check is None else read_check(check, net.spec.preprocessing, quiet=quiet)
    answers = [] if labels is None else read_answers(labels)
    crops = replace(read_crops(folder, net.spec.preprocessing, quiet=quiet), answers=tuple(answers))
    _check_answers(crops, labels)
    learning, held = hold_out(crops, plan.seed)
    adapted, history = adapt(net, learning, plan, out, quiet=quiet)
    evidence = judge(net, adapted, held, plan.seed, quiet=quiet)
    result: dict[str, Any] = {
        "from": str(net.spec.weights.recipe),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "crops": len(crops),
        "cameras": crops.camera_names,
        "tracks": len(np.unique(crops.tracks)) if crops.tracked else None,
        "answers": len(answers),
        "pairs of tracks seen together": len(replace(crops, answers=()).constraints().apart),
        "plan": vars(plan),
        "rounds": history,
        "evidence": None if evidence is None else evidence.as_dict(),
        "check": None if labelled is None else {"before": score(net, *labelled), "after": score(adapted, *labelled)},
        "machine": machine_card(),
    }
    worse = None if force else _worse(evidence, result["check"], check)
    if worse is not None:
        write_whole(out / "adapt.json", (json.dumps({**result, "written": False}, indent=1) + "\n").encode())
        raise DataError(f"the adapted model is worse on {worse}")
    recipe = (
        f"{net.spec.weights.recipe}; adapted without labels on {result['date'][:10]} to {len(crops)} crops of "
        f"{', '.join(crops.camera_names)}"
    )
    adapted.spec = replace(adapted.spec, weights=replace(adapted.spec.weights, recipe=recipe))
    checkpoint.save(adapted, out / "adapted")
    features = features_of(adapted, learning.pictures.pixels, what="embed the crops", quiet=quiet)
    statistics(adapted, features, learning.names_of_cameras()).save(out / "cameras.json")
    result["written"] = True
    write_whole(out / "adapt.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def _check_answers(crops: Crops, labels: Path | None) -> None:
    """Refuse answers of other crops, or that contradict each other.

    Raises:
        DataError: they are, or do.
    """
    named, there = {name for a, b, _ in crops.answers for name in (a, b)}, set(crops.names_of_tracks())
    if named and not named & there:
        raise DataError(
            f"expected tracks of the crops in {labels}, such as {min(there)}, got {min(named)}. Name them "
            "CAMERA/TRACK, as their folders are named"
        )
    crops.constraints()


def _worse(evidence: Evidence | None, scored: dict[str, Any] | None, check: Path | None) -> str | None:
    """What an adapted model is worse on, by how much, and what to do; None where it is not."""
    if evidence is not None and evidence.worse:
        return (
            f"held-out crops ({evidence.kind}: mAP {evidence.before:.1f} before, {evidence.after:.1f} after) and was "
            f"not written. Keep the old one; more people, more cameras or crops without other things in them help"
        )
    if scored is not None:
        was, now = (scored[when][CENTRED]["whole"]["plain"]["mAP"] for when in ("before", "after"))
        if now < was - CHECK_SLACK:
            return (
                f"the labelled pictures of {check} (centred mAP {was:.1f} before, {now:.1f} after) and was not "
                f"written. Keep the old one, or write it all the same with --force"
            )
    return None


def print_report(result: dict[str, Any], out: Path) -> None:
    """What was learned, in words."""
    last = result["rounds"][-1]
    print(
        f"{result['crops']} crops of {len(result['cameras'])} cameras: {last['clusters']} groups, "
        f"{100 * last['clusters of several cameras']:.0f} % of them seen by several cameras"
    )
    evidence = result["evidence"]
    if evidence is None:
        print(f"too few crops were held out to judge by ({LEAST_TRACKS} pairs are needed)")
    else:
        weak = "" if evidence["kind"] == "tracks" else " (weak evidence: no tracks were given)"
        sure = "better" if evidence["sure"] else "no surer difference"
        print(
            f"held-out {evidence['kind']}{weak}: mAP {evidence['before']:.1f} before, {evidence['after']:.1f} after "
            f"({evidence['low']:+.1f} to {evidence['high']:+.1f}): {sure}"
        )
    if result["check"]:
        for space in (NOT_CENTRED, CENTRED):
            before, after = (result["check"][when][space]["whole"] for when in ("before", "after"))
            print(
                f"labelled pictures, {space}: "
                + "; ".join(
                    f"{m} Rank-1 {before[m]['rank1']:.1f} -> {after[m]['rank1']:.1f}, "
                    f"mAP {before[m]['mAP']:.1f} -> {after[m]['mAP']:.1f}"
                    for m in before
                )
            )
    say(f"{out}/adapted.safetensors, its cameras' means cameras.json, the report adapt.json")
