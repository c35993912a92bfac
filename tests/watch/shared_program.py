"""A program that watches cameras of a made-up site, with a gallery in memory or on a server (test_several_programs.py).

With a gallery on a server it says "next" before each fourth frame, exchanges with the others, and waits for a line, so
that programs on several files go on at one pace, as those of live cameras do. At last it prints its tracks and moves.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from stand_ins import ColourEngine, NearestTracker, find_squares, scene, write_scenes

from dpm_edge import Gallery
from dpm_edge.watch import seeing
from dpm_edge.watch.detector import Detector
from dpm_edge.watch.site_config import CameraConfig, Site, Travel, part_of
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.watch_site import WatchSite

FRAMES, RATE, STEP = 92, 10.0, 4
WALKS = {
    "door": [("red", 0.0, 1.2), ("blue", 4.0, 5.2), ("red", 6.2, 7.2)],  # the second red is in the yard meanwhile
    "yard": [("blue", 0.0, 1.2), ("red", 4.0, 7.4), ("blue", 6.8, 8.0)],  # so soon the second blue cannot come
}
"""Camera → who walks there, from when to when."""


def scenes(camera: str) -> list[NDArray]:
    """What a camera sees."""
    times = [number / RATE for number in range(FRAMES)]
    here = [[(colour, 30 + int(40 * (at - a)), 200) for colour, a, b in WALKS[camera] if a <= at < b] for at in times]
    return [scene(*people) for people in here]


def main() -> None:
    place, names, engine = sys.argv[1], sys.argv[2].split(","), ColourEngine()
    alone = place == "memory"
    folder = Path(tempfile.mkdtemp())
    cameras = [
        CameraConfig(name=name, source=str(write_scenes(folder / f"{name}.avi", scenes(name), RATE)), start=1000.0)
        for name in WALKS
    ]
    travel = (Travel(origin="door", destination="yard", least=2.8),)
    site = part_of(Site(cameras=tuple(cameras), travel=travel, gallery=None if alone else place, folder=folder), names)
    Detector.load = classmethod(lambda cls, *_, **__: find_squares)  # type: ignore[method-assign,assignment]
    gallery = Gallery(engine.fingerprint, engine.dimension) if alone else Gallery.open(place)
    opened = seeing.open_seeing(site, engine, gallery)
    shared, numbers = opened.shared, itertools.count()

    def at_one_pace(image: NDArray) -> Any:
        if shared is not None and next(numbers) % STEP == 0:
            shared.exchange()
            print("next", flush=True)
            sys.stdin.readline()
        return find_squares(image)

    opened = dataclasses.replace(opened, detector=at_one_pace, make_tracker=lambda rate: NearestTracker())
    with WatchStore(":memory:") as store, WatchSite(site, store) as watch:
        watch.run(opened)
        tracks = [[one.camera, one.first, one.identity] for one in sorted(store.tracks(), key=lambda one: one.first)]
        moved = [[event.camera, event.details["from"]] for _, event in store.events(kinds=["moved"])]
    print(json.dumps({"tracks": tracks, "moved": moved}), flush=True)


if __name__ == "__main__":
    main()
