"""How far a calibration from tracks alone is from one by labels, on a video whose people are known.

    python benchmarks/track_calibration.py --video vtest.avi --boxes vtest_tracks.xml --engine ENGINE_DIR [-o FILE]

The video is PETS 2009 S2.L1, as OpenCV ships it in its examples (Debian package opencv-doc); its 19 tracks are ten
people, merged by eye (video_identities.py). Thresholds are found as `dpm-edge calibrate --tracks` finds them, which
knows nothing of the merging. Then every pair of crops of two tracks is looked at with the labels: which share of
strangers reaches the threshold, and which share of pairs of one person; beside it the threshold that labels give.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from video_identities import PEOPLE

from dpm_edge import Embeddings, Engine
from dpm_edge.centring import CameraStatistics
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.gallery.calibration import calibrate
from dpm_edge.gallery.track_pairs import pairs_of_tracks
from dpm_edge.metrics import similarity
from dpm_edge.runtime.folder import embed_files
from dpm_edge.track_crops import TrackCrops, cut_crops, read_track_crops, seen_together

RESULTS = Path(__file__).parent / "results" / "track-calibration.json"
RATES, EVERY, METRIC = (0.1, 0.03, 0.01), 5, "masked"


def compare(rows: Embeddings, crops: TrackCrops, centred: bool) -> list[dict[str, Any]]:
    """For each wanted rate the threshold by tracks and by labels, and the rates that labels find at the former."""
    tracks = crops.tracks[rows.rows]
    cameras = [crops.cameras[row] for row in rows.rows]
    if centred:
        known = CameraStatistics(fingerprint=rows.fingerprint, dimension=rows.dimension)
        known.add(rows.features, cameras)
        rows = replace(rows, features=known.centre(rows.features, cameras))
    pairs = pairs_of_tracks(rows, tracks, seen_together(cameras, tracks, crops.frames[rows.rows]), metric=METRIC)
    person = np.array([PEOPLE[name.rsplit("track-", 1)[1]] for name in crops.names])[tracks]
    every = similarity(rows.features, rows.features, metric=METRIC, query_masks=rows.masks, target_masks=rows.masks)
    other = tracks[:, None] != tracks[None]
    same = (person[:, None] == person[None])[other]
    seen = np.broadcast_to(rows.visibility[:, None], other.shape)[other]
    made = []
    for rate in RATES:
        options: dict[str, Any] = {
            "fingerprint": rows.fingerprint, "metric": METRIC, "false_match_rate": rate, "bands": 1, "centred": centred,
        }  # fmt: skip
        by_tracks = calibrate(*pairs, **options, by="tracks").bands[0]
        by_labels = calibrate(every[other], same, seen, **options).bands[0]
        reached = every[other] >= by_tracks.threshold
        made.append(
            {
                "wanted false-match rate": rate,
                "threshold by tracks": round(by_tracks.threshold, 4),
                "threshold by labels": round(by_labels.threshold, 4),
                "false-match rate by labels": round(float(reached[~same].mean()), 5),
                "true-match rate by labels": round(float(reached[same].mean()), 4),
                "true-match rate that tracks promise": round(by_tracks.true_match_rate, 4),
                "true-match rate at the threshold by labels": round(by_labels.true_match_rate, 4),
            }
        )
    return made


def main() -> None:
    """Cut, embed, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "boxes", "engine"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, Engine.load(said.engine, threads=1) as engine:
        crops = read_track_crops(cut_crops([said.video], [said.boxes], Path(work) / "crops", every=EVERY, quiet=True))
        rows = embed_files(engine, crops.paths, quiet=True)
    result = {
        "command": "python benchmarks/track_calibration.py --video VIDEO --boxes BOXES --engine ENGINE_DIR",
        "machine": machine_card(),
        "model": rows.fingerprint[:12],
        "crops": len(rows),
        "tracks": len(crops.names),
        "people": len(set(PEOPLE.values())),
        "metric": METRIC,
        "not centred": compare(rows, crops, False),
        "centred": compare(rows, crops, True),
    }
    write_whole(said.out, (json.dumps(result, indent=1) + "\n").encode())
    print(said.out.read_text())


if __name__ == "__main__":
    main()
