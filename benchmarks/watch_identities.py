"""How well the camera application knows people again, on a real video whose people are known.

    python benchmarks/watch_identities.py --video vtest.avi --boxes vtest_tracks.xml --engine ENGINE_DIR [-o FILE]

writes benchmarks/results/watch-identities.json. The video is PETS 2009 S2.L1, as OpenCV ships it in its examples
(Debian package opencv-doc): 795 frames, 7 a second; its 19 tracks are ten people, merged by eye (video_identities.py).
Frames go through `CameraPipeline` and `Rules` as `dpm-edge watch` sends them, with its detector, tracker and
identities, at its own settings.

one camera: the whole picture; people leave and come back. IDF1 (trackeval, at IoU 0.5) is over the ten people, with the
identity that each track has at the end. A track is a person's whose true boxes most of its boxes cover; a wrong merge
is a track that joins an identity which only other people's tracks had before. Some tracks show two people, because the
tracker went from one to the other: those of them that join the identity of either are counted beside.

two cameras: the left and the right 260 columns, a third of the picture each, and nothing between them. A stay is an
unbroken true track in one of them. A crossing is a stay of somebody who had one before, in either. Looks alone: each
crossing's pooled crops against those of all earlier stays that ended before it began, one row a person. Of all pairs of
a stay and an earlier one, recall is the share of one person's pairs above the score that 1 % of two people's pairs
reach. A move is a stay whose person was at the other camera last; an event `moved` is right where it names that way of
the person whom its track shows, once a move.

"true tracks": detector and tracker are replaced by the true boxes and stays. Needs `pip install trackeval`.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from remembered_looks import RememberedLooks
from video_identities import PEOPLE
from watch_tracking import evaluate

from dpm_edge import Embeddings, Engine, Gallery
from dpm_edge.boxes import FrameBoxes, read_boxes
from dpm_edge.centring import CameraStatistics
from dpm_edge.env import machine_card, version
from dpm_edge.files import write_whole
from dpm_edge.gallery.search.prototypes import prototypes
from dpm_edge.manifest import Manifest
from dpm_edge.metrics import chosen_metric, similarity
from dpm_edge.video import Video
from dpm_edge.watch.detector import Detector
from dpm_edge.watch.drift_watch import DriftWatch
from dpm_edge.watch.events import Event
from dpm_edge.watch.evidence import Crops
from dpm_edge.watch.given_tracks import GivenTracks
from dpm_edge.watch.identities import Identities
from dpm_edge.watch.overlap import iou
from dpm_edge.watch.pipeline import CameraPipeline
from dpm_edge.watch.rules import Rules, Sighting
from dpm_edge.watch.seeing import ABSENT_SECONDS, Seeing
from dpm_edge.watch.site_config import CameraConfig, Site
from dpm_edge.watch.sources import CameraFrame
from dpm_edge.watch.tracker import Tracker

RESULTS = Path(__file__).parent / "results" / "watch-identities.json"
WHOLE = {"whole": (0, 768)}
THIRDS = {"left": (0, 260), "right": (508, 768)}
RATE = 7.0
FALSE_PAIRS = 0.01
SHOWN = 0.1
"""Share of a track's boxes from which on it shows somebody."""
SLACK = 2.0
"""Seconds that a track may begin before or after the stay that it shows."""

Columns = dict[str, tuple[int, int]]
"""Camera → its first column and the one after its last."""
Find = Callable[[NDArray[np.uint8]], tuple[NDArray, NDArray]]


@dataclass
class Stay:
    """An unbroken true track in one camera."""

    camera: str
    person: int
    track: int
    """A number of its own."""
    first: int
    last: int
    """Frames."""
    boxes: dict[int, NDArray] = field(default_factory=dict)
    """Frame → (4,) in the camera's pixels."""


def stays_of(truth: dict[int, FrameBoxes], cameras: Columns) -> list[Stay]:
    """The stays of everybody whose box's centre is in a camera, by their first frame."""
    made: list[Stay] = []
    open_now: dict[tuple[str, str], Stay] = {}
    for number in sorted(truth):
        for name, box in zip(truth[number].ids, truth[number].boxes):
            for camera, (low, high) in cameras.items():
                if low <= (box[0] + box[2]) / 2 < high:
                    stay = open_now.get((camera, name))
                    if stay is None or stay.last != number - 1:
                        stay = Stay(camera, PEOPLE[name], len(made) + 1, number, number)
                        open_now[camera, name] = stay
                        made.append(stay)
                    stay.last = number
                    inside = np.clip(box - [low, 0, low, 0], 0, [high - low, 1e4] * 2)
                    stay.boxes[number] = inside
    return made


class Recorded(Identities):
    """Identities that also keep every track's crops, for looks alone."""

    def __init__(self, gallery: Gallery, **options: Any) -> None:
        super().__init__(gallery, **options)
        self.crops: dict[tuple[str, str], Crops] = {}

    def observe(self, camera: str, track_id: Any, seconds: float, *given: Any) -> Any:  # type: ignore[override]
        """Take in crops."""
        features, masks, visibility, quality = given
        kept = self.crops.setdefault((camera, str(track_id)), Crops())
        for row in range(len(features)):
            seen = None if visibility is None else float(visibility[row])
            kept.add(features[row], masks[row], seen, float(quality[row]), seconds)
        return super().observe(camera, track_id, seconds, *given)


@dataclass
class Run:
    """What the application made of the video."""

    sightings: list[tuple[str, int, Sighting]]
    """(camera, frame, sighting) of all."""
    identity: dict[tuple[str, str], str]
    """(camera, track) → who it was at the end."""
    events: list[Event]
    crops: dict[tuple[str, str], Crops]
    """(camera, track, or "stay n" where stays are given) → its crops."""
    fingerprint: str


def watch(
    frames: Iterator[NDArray[np.uint8]], cameras: Columns, engine: Any, find: Find, stays: list[Stay] | None,
    **options: Any,
) -> Run:  # fmt: skip
    """Send every frame through the pipeline of each camera and the rules; with true tracks where stays are given."""
    at: dict[tuple[str, int], list[Stay]] = {}
    for stay in stays or ():
        for number in stay.boxes:
            at.setdefault((stay.camera, number), []).append(stay)
    gallery = Gallery(engine.fingerprint, engine.dimension)
    metric = chosen_metric(None, engine.spec.masks)
    identities = Recorded(gallery, **{"metric": metric, "cameras": list(cameras), "absent": ABSENT_SECONDS, **options})
    seeings = {}
    given = {camera: GivenTracks() for camera in cameras} if stays is not None else {}
    for camera in cameras:
        true = given.get(camera)
        seeings[camera] = Seeing(
            detector=find if true is None else true.detect,
            make_tracker=lambda rate, true=true: true or Tracker(frame_rate=RATE),
            engine=engine, gallery=gallery, identities=identities,
        )  # fmt: skip
    configs = tuple(CameraConfig(name=name, source="") for name in cameras)
    rules = Rules(Site(cameras=configs))
    still: Any = SimpleNamespace(live=False, peek=lambda: None)
    pipelines = {
        one.name: CameraPipeline(one, still, thumbnails=False, run="", drift=DriftWatch(), lock=threading.Lock())
        for one in configs
    }
    run = Run([], {}, [], identities.crops, gallery.fingerprint)

    def decided(camera: str, final: tuple[Sighting, ...]) -> None:
        for one in final:
            run.identity[camera, one.track] = str(one.identity)
            run.events += rules.decide(camera, one)

    for number, frame in enumerate(frames):
        for camera, (low, high) in cameras.items():
            if camera in given:
                here = at.get((camera, number), [])
                given[camera].place([str(one.track) for one in here], [one.boxes[number] for one in here])
            image, seconds = np.ascontiguousarray(frame[:, low:high]), 1e9 + number / RATE
            shot = CameraFrame(
                camera=camera, image=image, number=number, seconds=seconds, wall=seconds, uncertainty=0.0
            )
            looked = pipelines[camera].look_at(seeings[camera], shot)
            decided(camera, looked.final)
            run.sightings += [(camera, number, one) for one in looked.sightings]
            run.events += rules.see(camera, looked.moment, looked.sightings, looked.size)
    for camera, pipeline in pipelines.items():
        decided(camera, pipeline.end_tracks(seeings[camera]))
    run.events += rules.finish()
    for camera, true in given.items():
        for name in [name for name in run.crops if name[0] == camera]:
            run.crops[camera, f"stay {true.names[int(name[1])]}"] = run.crops.pop(name)
    return run


def persons_of(run: Run, truth: dict[int, FrameBoxes], cameras: Columns) -> dict[tuple[str, str], Counter[int]]:
    """(camera, track) → person → boxes of the track that show that person most, in the order of first frames."""
    votes: dict[tuple[str, str], Counter[int]] = {}
    for camera, number, one in run.sightings:
        counts = votes.setdefault((camera, one.track), Counter())
        if number not in truth:
            continue
        low, high = cameras[camera]
        there = np.clip(truth[number].boxes - [low, 0, low, 0], 0, [high - low, 1e4] * 2)
        shared = iou(np.array([one.box]), there)[0]
        if shared.max() >= 0.5:
            counts[PEOPLE[truth[number].ids[int(shared.argmax())]]] += 1
    return votes


def main_person(counts: Counter[int]) -> int:
    """Whom a track shows most; 0 for nobody."""
    return max(counts, key=lambda person: (counts[person], person), default=0)


def merges(run: Run, votes: dict[tuple[str, str], Counter[int]]) -> dict[str, int]:
    """Tracks whose person had one before, how many got that identity again, and how many joined strangers alone."""
    owners: dict[str, set[int]] = {}
    returns = recognised = wrong = changed = 0
    for key, counts in votes.items():
        person = main_person(counts)
        here = owners.setdefault(run.identity[key], set())
        returns += any(person in some for some in owners.values())
        recognised += person in here
        if here and person not in here:
            wrong += 1
            changed += any(counts[one] >= SHOWN * counts.total() for one in here)
        here.add(person)
    return {
        "tracks": len(votes),
        "identities": len(owners),
        "returns": returns,
        "recognised": recognised,
        "wrong merges": wrong,
        "of them, tracks that show the identity's person, too": changed,
    }


def over_people(run: Run, truth: dict[int, FrameBoxes], count: int) -> dict[str, Any]:
    """trackeval's figures over people, of one camera that sees the whole picture."""
    names = {name: at for at, name in enumerate(sorted(set(run.identity.values())))}
    mine: list[list[tuple[int, Any]]] = [[] for _ in range(count)]
    for camera, number, one in run.sightings:
        mine[number].append((names[run.identity[camera, one.track]], one.box))
    empty = (np.zeros(0, int), np.zeros((0, 4)))
    found = [
        (np.array([who for who, _ in one]), np.array([box for _, box in one], float)) if one else empty for one in mine
    ]
    real = [
        (np.array([PEOPLE[name] for name in truth[i].ids]), truth[i].boxes) if i in truth else empty
        for i in range(count)
    ]
    figures = evaluate(found, real)
    return {key: figures[key] for key in ("IDF1", "ID switches", "HOTA", "recall", "precision")}


def looks_alone(run: Run, stays: list[Stay]) -> dict[str, Any]:
    """Rank-1 of the crossings and recall of pairs, by pooled crops."""
    seen = [stay for stay in stays if (stay.camera, f"stay {stay.track}") in run.crops]
    pooled = [run.crops[stay.camera, f"stay {stay.track}"].query(run.fingerprint) for stay in seen]
    features = np.concatenate([one.features for one in pooled])
    masks = np.concatenate([one.masks for one in pooled])
    weight = np.concatenate([one.weight for one in pooled])
    cameras = [stay.camera for stay in seen]
    statistics = CameraStatistics(fingerprint=run.fingerprint, dimension=features.shape[1])
    statistics.add(features, cameras)
    person = np.array([stay.person for stay in seen])
    first, last = (np.array([getattr(stay, name) for stay in seen]) for name in ("first", "last"))
    earlier = last[None] < first[:, None]
    same = person[:, None] == person[None]
    crossings = np.flatnonzero((earlier & same).any(1))
    everybody = sum(any(other.person == stay.person and other.last < stay.first for other in stays) for stay in stays)
    made: dict[str, Any] = {"stays": len(stays), "crossings": everybody, "crossings with crops": len(crossings)}
    for centred in (False, True):
        used = statistics.centre(features, cameras) if centred else features
        for metric in ("plain", "masked") if pooled[0].has_masks else ("plain",):
            scores = similarity(used, used, metric=metric, query_masks=masks)
            right = 0
            for i in crossings:
                past = np.flatnonzero(earlier[i])
                rows = Embeddings(
                    features=used[past], masks=masks[past], visibility=weight[past], rows=past,
                    fingerprint=run.fingerprint,
                )  # fmt: skip
                people, names = prototypes(rows, [str(person[j]) for j in past])
                found = similarity(used[i : i + 1], people.features, metric=metric, query_masks=masks[i : i + 1])
                right += int(names[int(found[0].argmax())]) == person[i]
            threshold = np.quantile(scores[earlier & ~same], 1 - FALSE_PAIRS)
            made[f"{metric}, centred" if centred else metric] = {
                "rank-1 right": int(right),
                "recall at 1 % false pairs": round(float((scores[earlier & same] > threshold).mean()), 4),
            }
    return made


def moves(run: Run, stays: list[Stay], votes: dict[tuple[str, str], Counter[int]]) -> dict[str, Any]:
    """Precision and recall of the events `moved`."""
    true: list[tuple[Stay, str]] = []
    for stay in stays:
        before = [one for one in stays if one.person == stay.person and one.last < stay.first]
        if before and (last := max(before, key=lambda one: one.last)).camera != stay.camera:
            true.append((stay, last.camera))
    told = [event for event in run.events if event.kind == "moved"]
    found: set[int] = set()
    for event in told:
        at = (event.seconds - 1e9) * RATE
        for k, (stay, origin) in enumerate(true):
            fits = (stay.camera, origin) == (event.camera, event.details["from"]) and k not in found
            there = stay.first - SLACK * RATE <= at <= stay.last + SLACK * RATE
            if fits and there and main_person(votes[event.camera, event.track]) == stay.person:
                found.add(k)
                break
    return {
        "moves": len(true),
        "events": len(told),
        "right": len(found),
        "precision": round(len(found) / max(len(told), 1), 4),
        "recall": round(len(found) / len(true), 4),
    }


def measure(frames: Callable[[], Iterator[NDArray[np.uint8]]], count: int, truth: Any, engine: Any, find: Find) -> Any:
    """All of it."""
    report: dict[str, Any] = {"one camera": {}, "two cameras": {}}
    for name, columns in (("one camera", WHOLE), ("two cameras", THIRDS)):
        stays = stays_of(truth, columns)
        for how in ("true tracks", "own detector and tracker"):
            true = stays if how == "true tracks" else None
            run = watch(frames(), columns, engine, find, true)
            votes = persons_of(run, truth, columns)
            made: dict[str, Any] = merges(run, votes)
            if name == "one camera":
                made |= over_people(run, truth, count)
            else:
                made["events moved"] = moves(run, stays, votes)
                if true is not None:
                    made["looks alone"] = looks_alone(run, stays)
            report[name][how] = made
    return report


def main() -> None:
    """Watch, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "boxes", "engine"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--looks", type=Path, help="a file of its own, which keeps boxes and features for the next run")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    said = parser.parse_args()

    def frames() -> Iterator[NDArray[np.uint8]]:
        with Video(said.video) as opened:
            yield from opened

    count = sum(1 for _ in frames())
    truth, _ = read_boxes(said.boxes).of_video(count)
    manifest = Manifest.read(said.engine)
    with Engine.load(said.engine, threads=1) as engine:
        looks = RememberedLooks(engine, Detector.load(threads=1), said.looks)
        figures = measure(frames, count, truth, looks, looks.find)
        looks.save()
    report = {
        "command": "python benchmarks/watch_identities.py --video VIDEO --boxes BOXES --engine ENGINE_DIR",
        "machine": machine_card(),
        "libraries": {"trackeval": version("trackeval")},
        "engine": {"model": manifest.spec.name, "backend": manifest.backend, "precision": manifest.precision},
        "frames": count,
        "frame rate": RATE,
        **figures,
    }
    write_whole(said.out, (json.dumps(report, indent=1) + "\n").encode())
    print(said.out.read_text())


if __name__ == "__main__":
    main()
