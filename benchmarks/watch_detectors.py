"""What other projects' detectors find and cost beside the one that ships, and how our tracker follows on their boxes.

    python benchmarks/watch_detectors.py --video vtest.avi --boxes vtest_tracks.xml --detector NAME=FILE.onnx …

writes benchmarks/results/watch-detectors.json. Video and figures are those of watch_tracking.py; each detector's input
is as large as its file says. All take turns at each frame, in OpenVINO at one thread, and the time is the processor's.
The tracker's scores are the shipped detector's. Needs `pip install trackeval`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from watch_tracking import LEAST, Frame, average_precision, evaluate, ours, true_boxes

from dpm_edge.env import machine_card, version
from dpm_edge.files import sha256, write_whole
from dpm_edge.progress import track
from dpm_edge.video import Video
from dpm_edge.watch.open_detector import open_detector

RESULTS = Path(__file__).parent / "results" / "watch-detectors.json"


def main() -> None:
    """Detect in turn, follow, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "boxes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--detector", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--rate", type=float, default=7.0, help="frames a second; vtest.avi says 10, it was taken at 7")
    parser.add_argument("--beside", default="nothing", help="what else runs on this machine")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    files: dict[str, Path | None] = {"the one that ships": None}
    files |= {name: Path(file) for name, _, file in (one.partition("=") for one in asked.detector)}
    detectors = {name: open_detector(file, threads=1, least=LEAST) for name, file in files.items()}
    found: dict[str, list[Frame]] = {name: [] for name in detectors}
    spent: dict[str, list[float]] = {name: [] for name in detectors}
    with Video(asked.video) as frames:
        for frame in track(frames, what="detect", total=None):
            for name, detector in detectors.items():
                start = time.process_time()
                boxes, scores = detector(frame)
                spent[name].append(time.process_time() - start)
                found[name].append((scores, boxes))
    truth = true_boxes(asked.boxes, len(found["the one that ships"]))
    rows: dict[str, Any] = {}
    for name, detector in detectors.items():
        file = files[name]
        rows[name] = {
            "detector": repr(detector),
            "sha256": None if file is None else sha256(file),
            **average_precision(found[name], truth),
            "processor ms a frame": round(float(np.median(spent[name])) * 1e3, 1),
            "followed by our tracker": evaluate(ours(found[name], asked.rate), truth),
        }
    report = {
        "command": "python benchmarks/watch_detectors.py --video VIDEO --boxes BOXES --detector NAME=FILE",
        "machine": machine_card(),
        "libraries": {name: version(name) for name in ("trackeval", "openvino")},
        "beside": asked.beside,
        "frames": len(truth),
        "frame rate": asked.rate,
        "detectors": rows,
    }
    write_whole(asked.out, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
