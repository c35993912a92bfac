"""How well people are found and followed, beside other trackers on the same boxes, on a video whose people are known.

    python benchmarks/watch_tracking.py --video vtest.avi --boxes vtest_tracks.xml [--detections FILE.npz]

writes benchmarks/results/watch-tracking.json. The video is PETS 2009 S2.L1, as OpenCV ships it in its examples (Debian
package opencv-doc): 795 frames, 7 a second, 19 tracks. Every tracker gets the boxes of the detector that ships, with
scores from 0.05. The parameters of ours were chosen on the first half; the rivals run with their own defaults and with
our three scores, whichever has the higher IDF1 on the first half. Figures are trackeval's, at IoU 0.5 (HOTA: its mean).

Needs `pip install trackeval`, and `pip install trackers` for the rivals; those that are not installed are left out.
`--detections` keeps the boxes, so that the rivals may run in another environment than the detector.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.boxes import read_boxes
from dpm_edge.env import machine_card, version
from dpm_edge.files import write_whole
from dpm_edge.video import Video
from dpm_edge.watch.detector import Detector
from dpm_edge.watch.overlap import iou
from dpm_edge.watch.tracker import Tracker

RESULTS = Path(__file__).parent / "results" / "watch-tracking.json"
RIVALS = ("CBIoUTracker", "ByteTrackTracker", "OCSORTTracker", "SORTTracker")
OUR_SCORES = {"track_activation_threshold": 0.65, "high_conf_det_threshold": 0.55}
LEAST = 0.05

Frame = tuple[NDArray, NDArray]
"""(n,) and (n, 4): ids, or scores, and boxes of one frame."""


def detect(video: Path, cache: Path | None) -> tuple[list[Frame], float]:
    """Scores and boxes of each frame, and the milliseconds that one took, at one thread; from the cache if there."""
    if cache is not None and cache.is_file():
        kept = np.load(cache)
        at = [kept["frames"] == i for i in range(int(kept["count"]))]
        return [(kept["scores"][i], kept["boxes"][i]) for i in at], float(kept["ms"])
    detector = Detector.load(threads=1, least=LEAST)
    found, seconds = [], []
    with Video(video) as frames:
        for frame in frames:
            start = time.perf_counter()
            boxes, scores = detector(frame)
            seconds.append(time.perf_counter() - start)
            found.append((scores, boxes))
    ms = float(np.median(seconds)) * 1e3
    if cache is not None:
        numbers = np.repeat(np.arange(len(found)), [len(scores) for scores, _ in found])
        scores, boxes = (np.concatenate([one[i] for one in found]) for i in (0, 1))
        np.savez(cache, frames=numbers, scores=scores, boxes=boxes, count=len(found), ms=ms)
    return found, ms


def true_boxes(path: Path, frames: int) -> list[Frame]:
    """Ids and boxes of each frame, from a file that `read_boxes` reads."""
    true, _ = read_boxes(path).of_video(frames)
    none = np.zeros(0, int), np.zeros((0, 4))
    return [(np.array([int(one) for one in true[i].ids]), true[i].boxes) if i in true else none for i in range(frames)]


def average_precision(found: list[Frame], truth: list[Frame]) -> dict[str, float]:
    """AP at IoU 0.5, and the recall at precision 0.9: a true box is found by the best box that no better one took."""
    hits: list[tuple[float, bool]] = []
    for (scores, boxes), (_, true) in zip(found, truth):
        shared, free = iou(boxes, true), np.ones(len(true), bool)
        for i in np.argsort(-scores):
            best = int(np.argmax(np.where(free, shared[i], -1))) if free.any() else -1
            hit = best >= 0 and shared[i, best] >= 0.5
            if hit:
                free[best] = False
            hits.append((float(scores[i]), bool(hit)))
    hits.sort(key=lambda one: -one[0])
    right = np.cumsum([hit for _, hit in hits])
    recall, precision = right / sum(len(true) for _, true in truth), right / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return {
        "AP50": round(float((np.diff(recall, prepend=0) * envelope).sum()), 4),
        "recall at precision 0.9": round(float(recall[precision >= 0.9].max(initial=0)), 4),
    }


def evaluate(found: list[Frame], truth: list[Frame]) -> dict[str, Any]:
    """trackeval's figures."""
    from trackeval.metrics import CLEAR, HOTA, Identity

    names = [sorted({int(one) for frame, _ in some for one in frame}) for some in (truth, found)]
    ids = [{name: i for i, name in enumerate(some)} for some in names]
    data = {
        "gt_ids": [np.array([ids[0][int(one)] for one in frame], int) for frame, _ in truth],
        "tracker_ids": [np.array([ids[1][int(one)] for one in frame], int) for frame, _ in found],
        "similarity_scores": [iou(true[1], mine[1]) for true, mine in zip(truth, found)],
        "num_gt_ids": len(ids[0]),
        "num_tracker_ids": len(ids[1]),
        "num_gt_dets": sum(len(frame) for frame, _ in truth),
        "num_tracker_dets": sum(len(frame) for frame, _ in found),
        "num_timesteps": len(truth),
    }
    quiet = {"PRINT_CONFIG": False}
    clear, identity = CLEAR(quiet).eval_sequence(data), Identity(quiet).eval_sequence(data)
    return {
        "IDF1": round(float(identity["IDF1"]), 4),
        "ID switches": int(clear["IDSW"]),
        "ids": len(ids[1]),
        "HOTA": round(float(np.mean(HOTA().eval_sequence(data)["HOTA"])), 4),
        "MOTA": round(float(clear["MOTA"]), 4),
        "recall": round(float(clear["CLR_Re"]), 4),
        "precision": round(float(clear["CLR_Pr"]), 4),
    }


def ours(found: list[Frame], rate: float) -> list[Frame]:
    """Tracks of our tracker, frame by frame."""
    tracker, made = Tracker(frame_rate=rate), []
    for number, (scores, boxes) in enumerate(found):
        tracks = tracker.update(boxes, scores, number / rate)
        made.append((np.array([t.id for t in tracks], int), np.array([t.box for t in tracks]).reshape(-1, 4)))
    return made


def rival(kind: Any, options: dict[str, float]) -> Callable[[list[Frame], float], list[Frame]]:
    """Make one that follows with a tracker of roboflow's `trackers`, given those of the options that it has."""

    def follow(found: list[Frame], rate: float) -> list[Frame]:
        import supervision

        known = inspect.signature(kind).parameters
        tracker, made = kind(**{k: v for k, v in {**options, "frame_rate": rate}.items() if k in known}), []
        for scores, boxes in found:
            given = supervision.Detections(xyxy=boxes.astype(np.float32), confidence=scores.astype(np.float32))
            tracks = tracker.update(given)
            ids = np.array([] if tracks.tracker_id is None else tracks.tracker_id, int)
            made.append((ids[ids >= 0], np.asarray(tracks.xyxy).reshape(-1, 4)[ids >= 0]))
        return made

    return follow


def halves(made: list[Frame], truth: list[Frame]) -> dict[str, Any]:
    """Figures of one run over the whole video, and of its halves alone."""
    middle = (len(truth) + 1) // 2
    return {
        "whole": evaluate(made, truth),
        "first half": evaluate(made[:middle], truth[:middle]),
        "second half": evaluate(made[middle:], truth[middle:]),
    }


def main() -> None:
    """Detect, follow, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "boxes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--detections", type=Path)
    parser.add_argument("--rate", type=float, default=7.0, help="frames a second; vtest.avi says 10, it was taken at 7")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    rate = asked.rate
    found, ms = detect(asked.video, asked.detections)
    truth = true_boxes(asked.boxes, len(found))
    start = time.perf_counter()
    mine = ours(found, rate)
    spent = time.perf_counter() - start
    trackers = {"dpm-edge Tracker": {**halves(mine, truth), "ms a frame": round(spent / len(found) * 1e3, 3)}}
    try:
        import trackers as library
    except ImportError:
        library = None
    for name in RIVALS if library is not None else ():
        kind, runs = getattr(library, name), []
        for scores in ("its own", "ours"):
            start = time.perf_counter()
            made = rival(kind, OUR_SCORES if scores == "ours" else {})(found, rate)
            spent = time.perf_counter() - start
            runs.append({**halves(made, truth), "scores": scores, "ms a frame": round(spent / len(found) * 1e3, 3)})
        trackers[f"trackers {name}"] = max(runs, key=lambda run: run["first half"]["IDF1"])
    report = {
        "command": "python benchmarks/watch_tracking.py --video VIDEO --boxes BOXES",
        "machine": machine_card(),
        "libraries": {name: version(name) for name in ("trackeval", "trackers", "supervision", "openvino")},
        "frames": len(found),
        "frame rate": rate,
        "detector": {**average_precision(found, truth), "ms a frame, one thread": round(ms, 1) if ms == ms else None},
        "trackers": trackers,
    }
    write_whole(asked.out, (json.dumps(report, indent=2) + "\n").encode())
    shown = ("IDF1", "ID switches", "ids", "HOTA")
    for name, run in trackers.items():
        print(f"{name:28}", *([run[part][key] for key in shown] for part in ("whole", "second half")))


if __name__ == "__main__":
    main()
