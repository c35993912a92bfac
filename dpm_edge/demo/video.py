"""The demo with a video: follow people, recognise them when they come back, draw and write it all down."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge.boxes import read_boxes
from dpm_edge.demo import draw
from dpm_edge.demo.engine import open_engine
from dpm_edge.demo.identities import Identities
from dpm_edge.demo.people import Tracker, moving
from dpm_edge.errors import DataError, DpmError
from dpm_edge.files import write_whole
from dpm_edge.progress import say, track
from dpm_edge.video import Video

DECIDE_SECONDS, END_SECONDS, EMBEDS_A_SECOND = 1.5, 1.0, 4.0
PALETTE = (
    (70, 110, 235), (80, 175, 60), (225, 135, 45), (190, 80, 190), (40, 190, 220),
    (200, 190, 50), (120, 90, 245), (100, 160, 20), (240, 100, 150), (30, 120, 170),
)  # fmt: skip
UNDECIDED = (150, 150, 150)

Finder = Callable[[int, NDArray[np.uint8]], tuple[list[str], NDArray[np.float64]]]


def run_video(
    video: Path,
    out: Path,
    *,
    boxes: Path | None,
    engine: Path | None,
    threshold: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write out/annotated.mp4 and out/identities.json, and print the identities on stdout.

    Raises:
        DataError: the video or the boxes cannot be used.
        DpmError: whatever building or opening the engine raises.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DpmError(f"{out} cannot be written ({error.strerror}). Choose another folder: -o DIR") from error
    with Video(video) as frames, open_engine(out, engine, quiet=quiet) as opened:
        find = _given(boxes) if boxes else _detected(frames.fps, quiet)
        who = Identities(
            opened.fingerprint,
            opened.dimension,
            threshold=threshold,
            decide_after=round(DECIDE_SECONDS * frames.fps),
            end_after=round(END_SECONDS * frames.fps),
        )
        every = max(1, round(frames.fps / EMBEDS_A_SECOND))
        drawn, path = _writer(out, frames)
        try:
            for number, frame in enumerate(track(frames, what="frames", total=frames.announced or None, quiet=quiet)):
                names, here = find(number, frame)
                new = [i for i, name in enumerate(names) if name not in who.tracks]
                due = list(range(len(names))) if number % every == 0 else new
                embedded = opened.embed(frame, here[due]) if due else None
                if embedded is not None:
                    embedded = dataclasses.replace(embedded, rows=np.array(due, np.int64)[embedded.rows])
                who.see(number, names, embedded)
                _annotate(frame, names, here, who, number / frames.fps)
                drawn.write(frame)
        finally:
            drawn.release()
        who.finish()
        short = frames.shortfall()
        result = _result(video, path, frames, who, short)
    if short:
        say(short)
    if not frames.read:
        raise DataError(f"{video}: not one frame could be read")
    write_whole(out / "identities.json", (json.dumps(result, indent=2) + "\n").encode())
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        for person in result["people"]:
            seen = ", then ".join(f"{t['from_s']:.1f}-{t['to_s']:.1f} s (track {t['track']})" for t in person["tracks"])
            print(f"{person['person']:<4} {seen}")
    if not quiet:
        say(f"look at {path}; identities are in {out / 'identities.json'}")


def _given(path: Path) -> Finder:
    """People from a boxes file; its frames are numbers from 0."""
    frames = read_boxes(path)

    def find(number: int, frame: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.float64]]:
        here = frames.get(str(number))
        return (list(here.ids), here.boxes) if here else ([], np.zeros((0, 4)))

    return find


def _detected(fps: float, quiet: bool) -> Finder:
    """People by their movement, tracked by overlap."""
    detect = moving()
    if not quiet:
        say("no --boxes: taking for people what moves, which needs a camera that stands still")
    tracker = Tracker(patience=max(1, round(fps * END_SECONDS / 2)))

    def find(number: int, frame: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.float64]]:
        boxes = detect(frame)
        return tracker.name(number, boxes), boxes

    return find


def _writer(out: Path, frames: Video) -> tuple[cv2.VideoWriter, Path]:
    """An open video file: MPEG-4, or motion JPEG where this OpenCV cannot write that."""
    for code, name in (("mp4v", "annotated.mp4"), ("MJPG", "annotated.avi")):
        size = (frames.width, frames.height)
        writer = cv2.VideoWriter(str(out / name), cv2.VideoWriter.fourcc(*code), frames.fps, size)
        if writer.isOpened():
            return writer, out / name
    raise DpmError(f"this OpenCV can write neither MPEG-4 nor motion JPEG into {out}")


def _annotate(
    frame: NDArray[np.uint8], names: list[str], boxes: NDArray[np.float64], who: Identities, seconds: float
) -> None:
    """Boxes, names, and a line of status, drawn into the frame."""
    for name, box in zip(names, boxes):
        if not np.isfinite(box).all():
            continue
        one = who.tracks[name]
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        color = UNDECIDED if one.person is None else PALETTE[(int(one.person[1:]) - 1) % len(PALETTE)]
        label = "?" if one.person is None else one.person + (f" back {one.similarity:.2f}" if one.similarity else "")
        cv2.rectangle(frame, (x0, y0), (x1, y1), color, 2)
        width = draw.text_width(label, size=0.45, bold=False) + 8
        top = max(16, y0)
        cv2.rectangle(frame, (x0 - 1, top - 16), (x0 - 1 + width, top), color, -1)
        draw.text(frame, label, (x0 + 3, top - 4), color=draw.WHITE)
    back = sum(t.similarity is not None for t in who.tracks.values())
    status = f"{seconds:5.1f} s   {len(who.people)} people, {back} recognised again"
    cv2.rectangle(
        frame, (0, frame.shape[0] - 24), (draw.text_width(status, size=0.5) + 20, frame.shape[0]), draw.INK, -1
    )
    draw.text(frame, status, (10, frame.shape[0] - 8), color=draw.WHITE, size=0.5)


def _result(video: Path, path: Path, frames: Video, who: Identities, short: str | None) -> dict[str, Any]:
    """JSON types: what was read, and every person's appearances in order."""
    tracks = sorted((t for t in who.tracks.values() if t.person), key=lambda t: t.first)
    return {
        "video": str(video),
        "annotated": str(path),
        "frames": frames.read,
        "frames_announced": frames.announced,
        "ended_early": short,
        "fps": frames.fps,
        "threshold": round(who.threshold, 4),
        "people": [
            {
                "person": person,
                "tracks": [
                    {
                        "track": t.name,
                        "from_s": round(t.first / frames.fps, 2),
                        "to_s": round(t.last / frames.fps, 2),
                        "similarity": None if t.similarity is None else round(t.similarity, 4),
                        "visibility": round(t.visibility, 4),
                    }
                    for t in tracks
                    if t.person == person
                ],
            }
            for person in who.people
        ],
    }
