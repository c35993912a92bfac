"""What our embeddings change in other people's trackers, on the same boxes, and what the adapters cost.

    python benchmarks/tracker_embeddings.py --video vtest.avi --boxes vtest_tracks.xml --engine ENGINE

writes benchmarks/results/tracker-embeddings.json. Video, truth and boxes are those of benchmarks/watch_tracking.py,
`--detections` is its file of boxes; every tracker gets those with a score of LEAST or more, and runs with its own
defaults. roboflow's trackers take no
embeddings: `JoinedTracks` joins their tracks. deep-sort-realtime takes them: alone, all features are one constant, so
that motion alone decides. The thresholds are the best of GRID by IDF1 on the first half of the video; the second half
is what tells. Figures are trackeval's at IoU 0.5.

An adapter's cost is its own CPU time a frame, around an engine that answers at once, over the CPU time that the engine
takes to embed the frame's boxes, one thread; the best of several passes.

Needs `pip install trackeval trackers supervision deep-sort-realtime` and the engine's library.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from watch_tracking import Frame, detect, evaluate

from dpm_edge.boxes import read_boxes
from dpm_edge.env import machine_card, version
from dpm_edge.files import write_whole
from dpm_edge.interop.joined_tracks import JoinedTracks
from dpm_edge.interop.supervision_detections import embed_detections
from dpm_edge.interop.tracker_hooks import BoxmotReid, DeepSortEmbedder, UltralyticsEncoder
from dpm_edge.runtime import Embeddings, Engine
from dpm_edge.video import Video

RESULTS = Path(__file__).parent / "results" / "tracker-embeddings.json"
RIVALS = ("SORTTracker", "ByteTrackTracker", "OCSORTTracker", "CBIoUTracker")
LEAST, RATE = 0.5, 7.0
GRID = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
DEEP_SORT_GRID = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
PASSES, TIMED_FRAMES = 5, 60


class Answers:
    """An engine in the adapters' eyes, which knows every box of every frame beforehand."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.now: Embeddings | None = None

    def embed(self, images: Any, boxes: Any = None, **_options: Any) -> Embeddings:
        assert self.now is not None
        return self.now


def embeddings(video: Path, found: list[Frame], engine: Path) -> tuple[list[Embeddings], float]:
    """The boxes of each frame embedded, and the CPU milliseconds that a frame took, at one thread."""
    made, spent = [], []
    with Engine.load(engine, threads=1) as opened, Video(video) as frames:
        for frame, (_, boxes) in zip(frames, found):
            start = time.process_time()
            made.append(opened.embed(frame, boxes))
            spent.append(time.process_time() - start)
    return made, float(np.median(spent)) * 1e3


def roboflow(kind: Any, found: list[Frame]) -> tuple[list[Frame], list[np.ndarray]]:
    """Tracks of one of roboflow's trackers, and which of the frame's boxes each is."""
    import supervision

    rate = {"frame_rate": RATE} if "frame_rate" in inspect.signature(kind).parameters else {}
    tracker, made, which = kind(**rate), [], []
    for scores, boxes in found:
        given = supervision.Detections(
            xyxy=boxes.astype(np.float32), confidence=scores.astype(np.float32), data={"row": np.arange(len(boxes))}
        )
        tracks = tracker.update(given)
        ids = np.array([] if tracks.tracker_id is None else tracks.tracker_id, int)
        rows = np.asarray(tracks.data.get("row", np.zeros(0)), int)
        made.append((ids[ids >= 0], boxes[rows[ids >= 0]]))
        which.append(rows[ids >= 0])
    return made, which


def joined(
    tracks: list[Frame], which: list[np.ndarray], known: list[Embeddings], threshold: float
) -> tuple[list[Frame], float]:
    """The tracks joined by what people look like, and the CPU milliseconds of joining a frame."""
    join, made, spent = JoinedTracks(threshold=threshold), [], 0.0
    for (ids, boxes), rows, frame in zip(tracks, which, known):
        place = {int(row): i for i, row in enumerate(frame.rows)}
        kept = [i for i, row in enumerate(rows) if int(row) in place]
        part = frame.take([place[int(rows[i])] for i in kept])
        part = dataclasses.replace(part, rows=np.array(kept, np.int64))
        start = time.process_time()
        made.append((join.update(ids, part), boxes))
        spent += time.process_time() - start
    return made, spent / len(tracks) * 1e3


def join_at(tracks: list[Frame], which: list[np.ndarray], known: list[Embeddings], threshold: float) -> list[Frame]:
    """The tracks of `joined` alone."""
    return joined(tracks, which, known, threshold)[0]


def deep_sort(found: list[Frame], known: list[Embeddings] | None, threshold: float = 0.2) -> list[Frame]:
    """Tracks of deep-sort-realtime, with these embeddings or with one constant."""
    from deep_sort_realtime.deepsort_tracker import DeepSort

    tracker, made = DeepSort(embedder=None, max_cosine_distance=threshold), []
    for number, (scores, boxes) in enumerate(found):
        features = np.ones((len(boxes), 2), np.float32)
        if known is not None:
            features = np.zeros((len(boxes), known[number].features.shape[1]), np.float32)
            features[known[number].rows] = known[number].features
        given = [([a, b, c - a, d - b], float(s), "person") for (a, b, c, d), s in zip(boxes.tolist(), scores)]
        tracks = tracker.update_tracks(given, embeds=list(features))
        shown = [t for t in tracks if t.is_confirmed() and t.time_since_update == 0]
        corners = [t.to_ltrb(orig=True, orig_strict=True) for t in shown]
        made.append((np.array([int(t.track_id) for t in shown]), np.array(corners, float).reshape(-1, 4)))
    return made


def halves(made: list[Frame], truth: list[Frame]) -> dict[str, Any]:
    """Figures over the whole video and over its second half."""
    middle = (len(truth) + 1) // 2
    return {"whole": evaluate(made, truth), "second half": evaluate(made[middle:], truth[middle:])}


def best(
    follow: Callable[[float], list[Frame]], grid: Sequence[float], truth: list[Frame]
) -> tuple[float, dict[str, Any]]:
    """The threshold with the highest IDF1 on the first half, and what it gives."""
    middle = (len(truth) + 1) // 2
    runs = {at: follow(at) for at in grid}
    chosen = max(runs, key=lambda at: evaluate(runs[at][:middle], truth[:middle])["IDF1"])
    return chosen, halves(runs[chosen], truth)


def adapter_costs(frames: list[Any], found: list[Frame], known: list[Embeddings]) -> dict[str, float]:
    """CPU milliseconds a frame of each adapter's own, around an engine that answers at once."""
    import supervision

    engine: Any = Answers(known[0].features.shape[1])
    deep, boxmot, ultralytics = DeepSortEmbedder(engine), BoxmotReid(engine), UltralyticsEncoder(engine)

    def crops(frame: Any, boxes: np.ndarray) -> list[Any]:
        return [frame[max(0, int(b)) : int(d) + 1, max(0, int(a)) : int(c) + 1] for a, b, c, d in boxes]

    def centres(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)

    cases: dict[str, tuple[Callable[[Any, np.ndarray], Any], Callable[[Any, Any], Any]]] = {
        "supervision": (
            lambda frame, boxes: supervision.Detections(xyxy=boxes.astype(np.float32)),
            lambda frame, given: embed_detections(engine, frame, given),
        ),
        "deep-sort-realtime": (crops, lambda frame, given: deep.predict(given)),
        "BoxMOT": (lambda frame, boxes: boxes, lambda frame, given: boxmot.get_features(given, frame)),
        "ultralytics": (lambda frame, boxes: centres(boxes), lambda frame, given: ultralytics(frame, given)),
    }
    costs = {}
    for name, (prepare, run) in cases.items():
        passes = []
        for _ in range(PASSES):
            spent = 0.0
            for frame, (_, boxes), answer in zip(frames, found, known):
                if len(boxes) == 0:
                    continue
                given, engine.now = prepare(frame, boxes), answer
                start = time.process_time()
                run(frame, given)
                spent += time.process_time() - start
            passes.append(spent / len(frames) * 1e3)
        costs[name] = min(passes)
    return costs


def main() -> None:
    """Detect, embed, follow with and without, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "boxes", "engine"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--detections", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found, _ = detect(asked.video, asked.detections)
    found = [(scores[scores >= LEAST], boxes[scores >= LEAST]) for scores, boxes in found]
    true, _ = read_boxes(asked.boxes).of_video(len(found))
    none = (np.zeros(0, int), np.zeros((0, 4)))
    truth = [
        (np.array([int(one) for one in true[i].ids]), true[i].boxes) if i in true else none for i in range(len(found))
    ]
    known, embedding_ms = embeddings(asked.video, found, asked.engine)
    import trackers as library

    rows: dict[str, Any] = {}
    joining = []
    for name in RIVALS:
        alone, which = roboflow(getattr(library, name), found)
        threshold, after = best(partial(join_at, alone, which, known), GRID, truth)
        joining.append(min(joined(alone, which, known, threshold)[1] for _ in range(PASSES)))
        rows[f"trackers {name}"] = {"alone": halves(alone, truth), "with embeddings": after, "threshold": threshold}
    threshold, after = best(lambda at: deep_sort(found, known, at), DEEP_SORT_GRID, truth)
    rows["deep-sort-realtime"] = {
        "alone": halves(deep_sort(found, None), truth), "with embeddings": after, "max_cosine_distance": threshold
    }  # fmt: skip
    with Video(asked.video) as frames:
        few = [frame.copy() for _, frame in zip(range(TIMED_FRAMES), frames)]
    costs = {**adapter_costs(few, found, known), "JoinedTracks": max(joining)}
    with Engine.load(asked.engine) as engine:
        model = {"name": engine.manifest.spec.name, "backend": engine.manifest.backend}
    report = {
        "command": "python benchmarks/tracker_embeddings.py --video VIDEO --boxes BOXES --engine ENGINE",
        "machine": machine_card(),
        "libraries": {n: version(n) for n in ("trackeval", "trackers", "supervision", "deep-sort-realtime")},
        "model": model,
        "frames": len(found),
        "boxes a frame": round(float(np.mean([len(boxes) for _, boxes in found])), 2),
        "trackers": rows,
        "adapters": {
            "embedding, CPU ms a frame, one thread": round(embedding_ms, 2),
            "own CPU ms a frame": {name: round(ms, 4) for name, ms in costs.items()},
            "percent of the embedding": {name: round(100 * ms / embedding_ms, 2) for name, ms in costs.items()},
        },
    }
    write_whole(asked.out, (json.dumps(report, indent=1) + "\n").encode())
    for name, row in rows.items():
        for how in ("alone", "with embeddings"):
            figures = [row[how][part][key] for part in ("whole", "second half") for key in ("ID switches", "IDF1")]
            print(f"{name:28} {how:16}", *figures)
    print(report["adapters"])


if __name__ == "__main__":
    main()
