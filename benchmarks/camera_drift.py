"""How well drift tells a camera that changed from one that did not: real people, pictures changed as cameras change.

    python benchmarks/camera_drift.py --data FOLDER --name NAME --engine ENGINE [-o FILE]

FOLDER has Market-1501's layout. For each camera of its training part a window of TRACKS people is compared with the
statistics of that camera's other people: as they are (what is reported then is a false alarm), changed (CHANGES), and
people of another camera in their place, as if the camera had been turned. A person's pictures at a camera are one
track. `after how many`: the window holds unchanged people, and changed ones come in one by one until drift is reported.
DRIFTED was chosen on other people, those of bounding_box_test/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge import Engine
from dpm_edge.centring import CameraStatistics
from dpm_edge.drift import DRIFTED, LEAST_TRACKS, WINDOW, DriftMeter
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.images import chunks, read_image
from dpm_edge.market import LabelledFolder, read_folder
from dpm_edge.progress import track

RESULTS = Path(__file__).parent / "results" / "camera-drift.json"
TRACKS = (LEAST_TRACKS, WINDOW)
CHANGED_PEOPLE, DRAWS = 150, 100
"""People whose pictures are also changed; windows drawn of each camera."""
Picture = NDArray[np.uint8]


def dark(picture: Picture) -> Picture:
    """Three tenths of the light."""
    return (picture * 0.3).astype(np.uint8)


def night(picture: Picture) -> Picture:
    """Grey, half the light, and noise of a standard deviation of 12: infrared."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) * 0.5
    noisy = grey + np.random.default_rng(int(grey.sum())).normal(0, 12, grey.shape)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def blurred(picture: Picture) -> Picture:
    """Out of focus: a Gaussian of 3 pixels, of 128 rows."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 3), np.uint8)


def dirty(picture: Picture) -> Picture:
    """A soft grey spot over the upper body, 60 % dense."""
    height, width = picture.shape[:2]
    spot = cv2.circle(np.zeros((height, width), np.float32), (width // 2, height // 3), width // 2, (1.0,), -1)
    dense = cv2.GaussianBlur(spot, (0, 0), 8)[..., None] * 0.6
    return (picture * (1 - dense) + 75 * dense).astype(np.uint8)


def tilted(picture: Picture) -> Picture:
    """Turned by 20 degrees."""
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 20, 1)
    return np.asarray(cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REFLECT), np.uint8)


def upside_down(picture: Picture) -> Picture:
    """Turned by 180 degrees."""
    return np.ascontiguousarray(picture[::-1, ::-1])


def mirrored(picture: Picture) -> Picture:
    """Left and right exchanged: models learn to take no notice."""
    return np.ascontiguousarray(picture[:, ::-1])


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "dark": dark, "night": night, "blurred": blurred, "dirty": dirty, "tilted": tilted, "upside down": upside_down,
    "mirrored": mirrored,
}  # fmt: skip


def embedded(engine: Engine, paths: list[Path], change: Callable[[Picture], Picture], what: str) -> NDArray[np.float32]:
    """Features (N, D)."""
    parts = list(chunks(len(paths), 64))
    found = [
        engine.embed([change(read_image(path)) for path in paths[part]]).features
        for part in track(parts, what=what, total=len(parts))
    ]
    return np.concatenate(found)


class Site:
    """The pictures of a site, as they are, and changed for some of the people."""

    def __init__(self, engine: Engine, pictures: LabelledFolder) -> None:
        """Embed all of it."""
        self.people, self.cameras = pictures.people, pictures.cameras
        everyone = np.unique(self.people)
        self.some = everyone[:: max(1, len(everyone) // CHANGED_PEOPLE)][:CHANGED_PEOPLE]
        self.features = {"unchanged": embedded(engine, pictures.paths, lambda one: one, "unchanged")}
        rows = np.flatnonzero(np.isin(self.people, self.some))
        for name, change in CHANGES.items():
            changed = self.features["unchanged"].copy()
            changed[rows] = embedded(engine, [pictures.paths[i] for i in rows], change, name)
            self.features[name] = changed

    def of(self, person: int, camera: int, kind: str) -> NDArray[np.float32]:
        """The features of a person at a camera."""
        return self.features[kind][(self.people == person) & (self.cameras == camera)]

    def at(self, camera: int) -> NDArray[np.int64]:
        """The people of a camera whose pictures are also changed."""
        return np.intersect1d(self.some, self.people[self.cameras == camera])

    def statistics(self, camera: int, without: NDArray[np.int64]) -> CameraStatistics:
        """Of the camera's other people."""
        rows = (self.cameras == camera) & ~np.isin(self.people, without)
        made = CameraStatistics(fingerprint="", dimension=self.features["unchanged"].shape[1])
        made.add(self.features["unchanged"][rows], ["here"] * int(rows.sum()))
        return made


def drift(meter: DriftMeter, tracks: list[NDArray[np.float32]]) -> float:
    """Drift after these tracks."""
    for number, features in enumerate(tracks):
        meter.add("here", number, features)
    return meter.drifts()["here"].drift


def windows(site: Site, count: int) -> dict[str, list[float]]:
    """Drift by kind of DRAWS windows of `count` people at each camera that has so many."""
    rng, found = np.random.default_rng(0), dict[str, list[float]]()
    cameras = np.unique(site.cameras)
    for camera in cameras:
        for _ in range(DRAWS):
            here = site.at(camera)
            if len(here) < count:
                break
            people = rng.permutation(here)[:count]
            known = site.statistics(camera, people)
            for kind in site.features:
                tracks = [site.of(person, camera, kind) for person in people]
                found.setdefault(kind, []).append(drift(DriftMeter(known), tracks))
            other = rng.choice(cameras[cameras != camera])
            if len(site.at(other)) >= count:
                tracks = [site.of(one, other, "unchanged") for one in rng.permutation(site.at(other))[:count]]
                found.setdefault("another camera's people", []).append(drift(DriftMeter(known), tracks))
    return found


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Quantiles of drift, and how often it was reported."""
    return {
        kind: {
            "windows": len(values),
            "drift, 1 %, 50 %, 99 %": np.quantile(values, [0.01, 0.5, 0.99]).round(3).tolist(),
            "reported": round(float(np.mean(np.array(values) >= DRIFTED)), 4),
        }
        for kind, values in found.items()
    }


def after_how_many(site: Site) -> dict[str, Any]:
    """By kind of change, how many changed people it takes until drift is reported, the median; None: it never is."""
    rng, found = np.random.default_rng(1), dict[str, list[float]]()
    for camera in np.unique(site.cameras):
        for _ in range(DRAWS // 10):
            order = rng.permutation(site.at(camera))
            if len(order) < WINDOW:
                break
            known, before = site.statistics(camera, order), order[: WINDOW // 2]
            for kind in CHANGES:
                meter = DriftMeter(known)
                unchanged = [site.of(one, camera, "unchanged") for one in rng.permutation(site.some)]
                for number, features in enumerate(one for one in unchanged if len(one)):
                    meter.add("here", f"before-{number}", features)
                needed = np.inf
                for number, person in enumerate(np.concatenate([order[WINDOW // 2 :], before])):
                    meter.add("here", number, site.of(person, camera, kind))
                    if meter.drifts()["here"].warns:
                        needed = number + 1
                        break
                found.setdefault(kind, []).append(needed)
    return {kind: None if np.isinf(middle := float(np.median(values))) else middle for kind, values in found.items()}


def main() -> None:
    """Embed, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--name", required=True, help="what the data is, for the results file")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    pictures = read_folder(said.data / "bounding_box_train")
    pictures = pictures.take(pictures.people > 0)
    with Engine.load(said.engine, threads=said.threads) as engine:
        model, site = engine.fingerprint[:12], Site(engine, pictures)
    result = {
        "command": "python benchmarks/camera_drift.py --data FOLDER --name NAME --engine ENGINE",
        "machine": machine_card(),
        "data": said.name,
        "model": model,
        "pictures": len(pictures),
        "people": len(np.unique(pictures.people)),
        "changed people": len(site.some),
        "reported from": DRIFTED,
        **{f"windows of {count} tracks": summary(windows(site, count)) for count in TRACKS},
        "after how many changed tracks, of a window of 50, median": after_how_many(site),
    }
    write_whole(said.out, (json.dumps(result, indent=1) + "\n").encode())
    print(said.out.read_text())


if __name__ == "__main__":
    main()
