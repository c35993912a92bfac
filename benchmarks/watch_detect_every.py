"""How well people are followed when the detector looks at every n-th frame, and motion tells where they are between.

    python benchmarks/watch_detect_every.py --video vtest.avi --boxes vtest_tracks.xml [--detections FILE.npz]

writes benchmarks/results/watch-detect-every.json. Video, boxes, detector and figures are those of watch_tracking.py.
Every frame counts, also those whose boxes are predicted.

Needs `pip install trackeval`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from watch_tracking import Frame, detect, halves

from dpm_edge.boxes import read_boxes
from dpm_edge.env import machine_card, version
from dpm_edge.files import write_whole
from dpm_edge.watch.tracker import Tracker

RESULTS = Path(__file__).parent / "results" / "watch-detect-every.json"
SHOWN = ("IDF1", "ID switches", "ids", "HOTA")


def followed(found: list[Frame], rate: float, every: int) -> list[Frame]:
    """Tracks of each frame, with a detector that looks at every n-th."""
    tracker, made = Tracker(frame_rate=rate / every), []
    for number, (scores, boxes) in enumerate(found):
        seconds = number / rate
        tracks = tracker.predict(seconds) if number % every else tracker.update(boxes, scores, seconds)
        made.append((np.array([t.id for t in tracks], int), np.array([t.box for t in tracks]).reshape(-1, 4)))
    return made


def main() -> None:
    """Detect, follow, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "boxes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--detections", type=Path)
    parser.add_argument("--rate", type=float, default=7.0, help="frames a second; vtest.avi says 10, it was taken at 7")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found, _ = detect(asked.video, asked.detections)
    true, _ = read_boxes(asked.boxes).of_video(len(found))
    truth = [
        (np.array([int(one) for one in true[i].ids]), true[i].boxes)
        if i in true
        else (np.zeros(0, int), np.zeros((0, 4)))
        for i in range(len(found))
    ]
    runs = {}
    for every in (1, 2, 3):
        runs[every] = {
            "detections a second": round(asked.rate / every, 2),
            **halves(followed(found, asked.rate, every), truth),
        }
        print(every, *(runs[every]["whole"][key] for key in SHOWN))
    report = {
        "command": "python benchmarks/watch_detect_every.py --video VIDEO --boxes BOXES",
        "machine": machine_card(),
        "libraries": {name: version(name) for name in ("trackeval", "openvino")},
        "frames": len(found),
        "frame rate": asked.rate,
        "every": runs,
    }
    write_whole(asked.out, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
