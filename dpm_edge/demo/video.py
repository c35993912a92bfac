"""The demo with a video: follow people, recognise them when they come back, draw and write it all down."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.boxes import BoxesFile, read_boxes
from dpm_edge.demo.people import Identities, Tracker, moving, open_engine
from dpm_edge.demo.picture import INK, WHITE, draw_text, text_width
from dpm_edge.errors import DataError, DpmError
from dpm_edge.files import write_whole
from dpm_edge.opencv import cv2
from dpm_edge.progress import say, track
from dpm_edge.video import Video

DECIDE_SECONDS, END_SECONDS, EMBEDS_A_SECOND = 1.5, 1.0, 4.0
PALETTE = (
    (70, 110, 235), (80, 175, 60), (225, 135, 45), (190, 80, 190), (40, 190, 220),
    (200, 190, 50), (120, 90, 245), (100, 160, 20), (240, 100, 150), (30, 120, 170),
)  # fmt: skip
UNDECIDED = (150, 150, 150)

MOVEMENT = "movement"
GUESS = (
    "people are guessed: whatever moves before a camera that stands still is taken for a person, and one person may be "
    "counted as several. Give a detector's boxes for a result to rely on: --boxes FILE"
)

Finder = Callable[[int, NDArray[np.uint8]], tuple[list[str], NDArray[np.float64]]]
"""Position of a frame, frame (H, W, 3) uint8 BGR → n track ids, boxes (n, 4) float64 xyxy pixels."""


def run_video(
    video: Path,
    out: Path,
    *,
    boxes: Path | None,
    engine: Path | None,
    threshold: float | None,
    as_json: bool,
    quiet: bool,
    boxes_format: str = "auto",
    first_frame: int | None = None,
) -> None:
    """Write out/annotated.mp4 and out/identities.json, and print the identities on stdout.

    Without `boxes`, people are found by movement, which is a guess; the output says so.

    Raises:
        DataError: the video or the boxes cannot be used.
        DpmError: whatever building or opening the engine raises.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DpmError(f"expected a folder to write to, got {out}: {error.strerror}. Choose another: -o DIR") from error
    file = read_boxes(boxes, format=boxes_format) if boxes else None
    with Video(video) as frames, open_engine(out, engine, quiet=quiet) as opened:
        find = _given(file, frames, first_frame) if file else _moving(frames.fps)
        if file is None and not quiet:
            say(GUESS)
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
                ids, here = find(number, frame)
                new = [i for i, id in enumerate(ids) if id not in who.tracks]
                due = list(range(len(ids))) if number % every == 0 else new
                embedded = opened.embed(frame, here[due]) if due else None
                if embedded is not None:
                    embedded = dataclasses.replace(embedded, rows=np.array(due, np.int64)[embedded.rows])
                who.see(number, ids, embedded)
                _annotate(frame, ids, here, who, number / frames.fps, guessed=file is None)
                drawn.write(frame)
        finally:
            drawn.release()
        who.finish()
        short = frames.shortfall()
        result = _result(video, path, frames, who, short, MOVEMENT if file is None else f"boxes of {file.path}")
    if short:
        say(short)
    if not frames.read:
        raise DataError(f"expected frames in {video}, got none that could be read. Copy the file again")
    _check_written(path, frames)
    write_whole(out / "identities.json", (json.dumps(result, indent=2) + "\n").encode())
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        if file is None:
            print("people guessed by their movement:")
        for person in result["people"]:
            seen = ", then ".join(f"{t['from_s']:.1f}-{t['to_s']:.1f} s (track {t['track']})" for t in person["tracks"])
            print(f"{person['person']:<4} {seen}")
    if not quiet:
        say(f"look at {path}; identities are in {out / 'identities.json'}")


def _given(file: BoxesFile, video: Video, first_frame: int | None) -> Finder:
    """People from a boxes file; where it gives one id to several boxes of a frame, as detections do, by overlap."""
    boxes, how = file.of_video(video.announced, first_frame)
    if how:  # a decision and no progress: said with --quiet too
        say(how)
    tracker = _tracker(video.fps) if any(len(set(one.ids)) < len(one.ids) for one in boxes.values()) else None
    if tracker:
        say(f"{file.path} gives one id to several people of a frame: they are followed by overlap instead")

    def find(number: int, frame: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.float64]]:
        here = boxes.get(number)
        if here is None:
            return [], np.zeros((0, 4))
        return (tracker.follow(number, here.boxes) if tracker else list(here.ids)), here.boxes

    return find


def _moving(fps: float) -> Finder:
    """People guessed by their movement, followed by overlap."""
    detect, tracker = moving(), _tracker(fps)

    def find(number: int, frame: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.float64]]:
        boxes = detect(frame)
        return tracker.follow(number, boxes), boxes

    return find


def _tracker(fps: float) -> Tracker:
    """A tracker that waits half as long as a track that has ended."""
    return Tracker(patience=max(1, round(fps * END_SECONDS / 2)))


def _writer(out: Path, frames: Video) -> tuple[cv2.VideoWriter, Path]:
    """An open video file: MPEG-4, or motion JPEG where this OpenCV cannot write that."""
    for code, name in (("mp4v", "annotated.mp4"), ("MJPG", "annotated.avi")):
        size = (frames.width, frames.height)
        writer = cv2.VideoWriter(str(out / name), cv2.VideoWriter.fourcc(*code), frames.fps, size)
        if writer.isOpened():
            return writer, out / name
    raise DpmError(f"expected an OpenCV that writes MPEG-4 or motion JPEG into {out}, got one that writes neither")


def _check_written(path: Path, frames: Video) -> None:
    """Refuse an annotated video that the disk had no room for: OpenCV's writer does not say so itself.

    Raises:
        DpmError: the file cannot be opened, or lacks frames.
    """
    written = cv2.VideoCapture(str(path))
    count = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
    written.release()
    if count < frames.read:
        raise DpmError(
            f"expected {frames.read} frames in {path}, got {count} that can be read. Free some space and run it again"
        )


def _annotate(
    frame: NDArray[np.uint8],
    ids: list[str],
    boxes: NDArray[np.float64],
    who: Identities,
    seconds: float,
    *,
    guessed: bool,
) -> None:
    """Draw boxes, people, and a line of status into the frame."""
    for id, box in zip(ids, boxes):
        if not np.isfinite(box).all():
            continue
        one = who.tracks[id]
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        color = UNDECIDED if one.person is None else PALETTE[(int(one.person[1:]) - 1) % len(PALETTE)]
        label = "?" if one.person is None else one.person + (f" back {one.similarity:.2f}" if one.similarity else "")
        cv2.rectangle(frame, (x0, y0), (x1, y1), color, 2)
        width = text_width(label, size=0.45, bold=False) + 8
        top = max(16, y0)
        cv2.rectangle(frame, (x0 - 1, top - 16), (x0 - 1 + width, top), color, -1)
        draw_text(frame, label, (x0 + 3, top - 4), color=WHITE)
    back = sum(t.similarity is not None for t in who.tracks.values())
    status = f"{seconds:5.1f} s   {len(who.people)} people, {back} recognised again"
    status += "   (people guessed by movement)" if guessed else ""
    cv2.rectangle(frame, (0, frame.shape[0] - 24), (text_width(status, size=0.5) + 20, frame.shape[0]), INK, -1)
    draw_text(frame, status, (10, frame.shape[0] - 8), color=WHITE, size=0.5)


def _result(
    video: Path, path: Path, frames: Video, who: Identities, short: str | None, found_by: str
) -> dict[str, Any]:
    """JSON types: what was read, and every person's appearances in order."""
    tracks = sorted((t for t in who.tracks.values() if t.person), key=lambda t: t.first)
    return {
        "video": str(video),
        "annotated": str(path),
        "frames": frames.read,
        "frames_announced": frames.announced,
        "ended_early": short,
        "fps": frames.fps,
        "people_found_by": found_by,
        "threshold": round(who.threshold, 4),
        "people": [
            {
                "person": person,
                "tracks": [
                    {
                        "track": t.id,
                        "from_s": round(t.first / frames.fps, 2),
                        "to_s": round(t.last / frames.fps, 2),
                        "similarity": None if t.similarity is None else round(t.similarity, 4),
                        "visibility": None if t.visibility is None else round(t.visibility, 4),
                    }
                    for t in tracks
                    if t.person == person
                ],
            }
            for person in who.people
        ],
    }
