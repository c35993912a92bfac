"""Adapted on the first half of a video, tested on its second: one video as two cameras, split by place.

    python benchmarks/video_halves.py --video vtest.avi --boxes vtest_tracks.xml --work WORK [--checkpoint M] [-o FILE]

The video is PETS 2009 S2.L1, as OpenCV ships it in its examples (Debian package opencv-doc); its 19 tracks are ten
people, merged by eye (video_identities.py). What stands left of the middle is one camera's, what stands right of it the
other's. `dpm-edge adapt` gets the crops of the first half with their tracks, and no person. Of the second half every
tenth crop asks and the others are the gallery; a match of the query's own camera does not count. Ten people are a check
that nothing breaks, not a measure of how much is gained: the same people walk through both halves, and groups of
PEOPLE are enough for a batch here where the command wants more. WORK keeps crops and state; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from video_identities import PEOPLE as PERSON

from dpm_edge.boxes import read_boxes
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.layouts import LabelledFolder
from dpm_edge.model import checkpoint
from dpm_edge.track_crops import cut_crops, read_track_crops
from dpm_edge.train.adapt import command
from dpm_edge.train.adapt.check import score
from dpm_edge.train.adapt.rounds import Plan
from dpm_edge.train.data import decode
from dpm_edge.video import Video

RESULTS = Path(__file__).parent / "results" / "video-halves.json"
ASK_EVERY, PEOPLE = 10, 4


def split(video: Path, boxes: Path, work: Path, every: int) -> dict[str, Path]:
    """Crops of the first and of the second half, CAMERA/TRACK/*.jpg, by where people stand."""
    with Video(video) as opened:
        middle, half = opened.width / 2, opened.announced // 2
    frames = read_boxes(boxes).frames
    made = {}
    for name, start, stop in (("first", 0, half), ("second", half, 2 * half)):
        videos, files = [], []
        for side in ("left", "right"):
            folder = work / name
            folder.mkdir(parents=True, exist_ok=True)
            lines = ["frame,id,x0,y0,x1,y1"]
            for number, here in frames.items():
                for track, (x0, y0, x1, y1) in zip(here.ids, here.boxes.tolist()):
                    if start <= int(number) < stop and ((x0 + x1) / 2 < middle) == (side == "left"):
                        lines.append(f"{number},{track},{x0},{y0},{x1},{y1}")
            files.append(folder / f"{side}.csv")
            text = "\n".join(lines) + "\n"
            if not files[-1].is_file() or files[-1].read_text() != text:
                files[-1].write_text(text)
            videos.append(folder / f"{side}{video.suffix}")
            if not videos[-1].is_symlink():
                videos[-1].symlink_to(video.resolve())
        made[name] = cut_crops(videos, files, work / f"{name}-crops", every=every, first_frame=0, quiet=True)
    return made


def labelled(folder: Path) -> tuple[LabelledFolder, LabelledFolder]:
    """Queries and gallery of a half's crops, with the people that the tracks are."""
    crops = read_track_crops(folder)
    people = np.array([PERSON[name.rsplit("track-", 1)[1]] for name in crops.names])[crops.tracks]
    cameras = np.unique(np.array(crops.cameras), return_inverse=True)[1].astype(np.int64)
    whole = LabelledFolder(paths=crops.paths, people=people.astype(np.int64), cameras=cameras)
    asks = np.arange(len(whole)) % ASK_EVERY == 0
    return whole.take(np.flatnonzero(asks)), whole.take(np.flatnonzero(~asks))


def main() -> None:
    """Split, adapt, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "boxes", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("dpm-n"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--every", type=int, default=4, help="crops of every n-th frame")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    halves, out = split(said.video, said.boxes, said.work, said.every), said.work / "adapted"
    plan = Plan(rounds=said.rounds, people=PEOPLE, minutes=600)
    report: dict[str, Any] = (
        json.loads((out / "adapt.json").read_text())
        if (out / "adapt.json").is_file()
        else command.run(said.checkpoint, halves["first"], out, plan, force=True)
    )
    before, after = checkpoint.load(said.checkpoint), checkpoint.load(out / "adapted")
    query, gallery = (decode(side, before.spec.preprocessing, quiet=True) for side in labelled(halves["second"]))
    result = {
        "command": "python benchmarks/video_halves.py --video VIDEO --boxes BOXES --work WORK",
        "machine": machine_card(),
        "model": said.checkpoint.name,
        "crops of every n-th frame": said.every,
        "crops of the first half": report["crops"],
        "pairs of tracks seen together": report["pairs of tracks seen together"],
        "queries": len(query.names),
        "rows": len(gallery.names),
        "people of the second half": len(np.unique(gallery.people.numpy())),
        "before": score(before, query, gallery),
        "after": score(after, query, gallery),
        "rounds": report["rounds"],
    }
    write_whole(said.out, (json.dumps(result, indent=1) + "\n").encode())
    print(said.out.read_text())


if __name__ == "__main__":
    main()
