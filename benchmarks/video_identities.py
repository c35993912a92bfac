"""How well people are recognised when they come back: the demo on a real video whose people are known.

    python benchmarks/video_identities.py --video vtest.avi --boxes vtest_tracks.xml --engine ENGINE_DIR

writes benchmarks/results/video_identities.json. The video is PETS 2009 S2.L1, as OpenCV ships it in its examples
(Debian package opencv-doc). Its 19 tracks are ten people, merged by eye; a track is recognised again when it joins the
right earlier one, and each wrong join is an error of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

from dpm_edge.demo.video import run_video
from dpm_edge.env import machine_card
from dpm_edge.manifest import Manifest

RESULTS = Path(__file__).parent / "results" / "video_identities.json"
TRACKS = {1: (1, 19), 2: (2, 13), 3: (3, 11), 4: (4, 12), 5: (5, 9), 6: (6, 10), 7: (7,), 8: (8, 14, 15, 18)}
PEOPLE = {str(track): person for person, tracks in {**TRACKS, 9: (16,), 10: (17,)}.items() for track in tracks}
"""Track → person."""


def score(people: list[dict]) -> dict[str, int]:
    """Returns of known people, how many joined the right person, and how many tracks joined a wrong one."""
    tracks = sorted((t["from_s"], t["to_s"], t["track"], p["person"]) for p in people for t in p["tracks"])
    returns = right = wrong = 0
    for start, _, track, name in tracks:
        past = [(other, given) for _, end, other, given in tracks if end < start]
        returns += any(PEOPLE[other] == PEOPLE[track] for other, _ in past)
        joined = {PEOPLE[other] for other, given in past if given == name}
        right += joined == {PEOPLE[track]}
        wrong += bool(joined - {PEOPLE[track]})
    return {"tracks": len(tracks), "returns": returns, "recognised": right, "wrong": wrong}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "boxes", "engine"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out = Path(folder)
        run_video(asked.video, out, boxes=asked.boxes, engine=asked.engine, threshold=None, as_json=True, quiet=True)
        found = json.loads((out / "identities.json").read_text(encoding="utf-8"))
    manifest = Manifest.read(asked.engine)
    report = {
        "command": "python benchmarks/video_identities.py --video VIDEO --boxes BOXES --engine ENGINE_DIR",
        "machine": machine_card(),
        "engine": {
            "model": manifest.spec.name,
            "trained_on": manifest.spec.weights.data,
            "backend": manifest.backend,
            "precision": manifest.precision,
        },
        "frames": found["frames"],
        "threshold": found["threshold"],
        "score": score(found["people"]),
        "people": [[t["track"] for t in p["tracks"]] for p in found["people"]],
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: report[key] for key in ("score", "threshold", "people")}))


if __name__ == "__main__":
    main()
