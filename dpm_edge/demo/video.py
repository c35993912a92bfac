"""The demo with a video: the camera application on one file, which draws and writes down what it sees."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.boxes import BoxesFile, FrameBoxes, read_boxes
from dpm_edge.demo.default_engine import open_engine
from dpm_edge.demo.picture import INK, WHITE, draw_text, text_width
from dpm_edge.errors import DataError, DpmError
from dpm_edge.files import write_whole
from dpm_edge.gallery import Gallery
from dpm_edge.opencv import cv2
from dpm_edge.progress import say, track
from dpm_edge.runtime import Engine
from dpm_edge.video import Video
from dpm_edge.watch.detector import Detector
from dpm_edge.watch.drift_watch import DriftWatch
from dpm_edge.watch.given_tracks import GivenTracks
from dpm_edge.watch.identities import Identities
from dpm_edge.watch.pipeline import CameraPipeline
from dpm_edge.watch.records import TrackRecord
from dpm_edge.watch.rules import Sighting
from dpm_edge.watch.seeing import Seeing
from dpm_edge.watch.site_config import CameraConfig
from dpm_edge.watch.sources import CameraFrame, Source
from dpm_edge.watch.tracker import Tracker

CAMERA = "video"
PROBABILITY = 0.75
"""Least probability of a known person, where no other is asked for."""
PALETTE = (
    (70, 110, 235), (80, 175, 60), (225, 135, 45), (190, 80, 190), (40, 190, 220),
    (200, 190, 50), (120, 90, 245), (100, 160, 20), (240, 100, 150), (30, 120, 170),
)  # fmt: skip
UNDECIDED = (150, 150, 150)
DETECTOR = "the detector that ships"


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

    Without `boxes`, people are found by the detector that ships. `threshold` is the least probability of somebody who
    was seen before.

    Raises:
        DataError: the video or the boxes cannot be used, or the threshold is no probability.
        DpmError: whatever building or opening the engine raises.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DpmError(f"expected a folder to write to, got {out}: {error.strerror}. Choose another: -o DIR") from error
    file = read_boxes(boxes, format=boxes_format) if boxes else None
    with Video(video) as frames, open_engine(out, engine, quiet=quiet) as opened:
        placed = _placed(file, frames, first_frame) if file else {}
        given = None if file is None or _lacks_tracks(placed, file) else GivenTracks()
        seeing = _seeing(opened, frames.fps, placed if file else None, given, threshold)
        pipeline = CameraPipeline(
            CameraConfig(name=CAMERA, source=str(video)), Source(video, CAMERA), thumbnails=False, run="",
            drift=DriftWatch(), lock=threading.Lock(),
        )  # fmt: skip
        people: dict[str, str] = {}
        drawn, path = _writer(out, frames)
        try:
            for number, frame in enumerate(track(frames, what="frames", total=frames.announced or None, quiet=quiet)):
                if given is not None and (here := placed.get(number)) is not None:
                    given.place(here.ids, here.boxes)
                elif given is not None:
                    given.place([], np.zeros((0, 4)))
                seconds = number / frames.fps
                looked = pipeline.look_at(
                    seeing,
                    CameraFrame(
                        camera=CAMERA, image=frame, number=number, seconds=seconds, wall=seconds, uncertainty=0.0
                    ),
                )  # fmt: skip
                _annotate(frame, looked.sightings, people, seconds)
                drawn.write(frame)
        finally:
            drawn.release()
        pipeline.end_tracks(seeing)
        short = frames.shortfall()
        result: dict[str, Any] = {
            "video": str(video),
            "annotated": str(path),
            "frames": frames.read,
            "frames_announced": frames.announced,
            "ended_early": short,
            "fps": frames.fps,
            "people_found_by": DETECTOR if file is None else f"boxes of {file.path}",
            "threshold": PROBABILITY if threshold is None else threshold,
            "people": _people(pipeline.changed_tracks()[0], people, {} if given is None else given.names),
        }
    if short:
        say(short)
    if not frames.read:
        raise DataError(f"expected frames in {video}, got none that could be read. Copy the file again")
    _check_written(path, frames)
    write_whole(out / "identities.json", (json.dumps(result, indent=2) + "\n").encode())
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        for person in result["people"]:
            seen = ", then ".join(f"{t['from_s']:.1f}-{t['to_s']:.1f} s (track {t['track']})" for t in person["tracks"])
            print(f"{person['person']:<4} {seen}")
    if not quiet:
        say(f"look at {path}; identities are in {out / 'identities.json'}")


def _placed(file: BoxesFile, video: Video, first_frame: int | None) -> dict[int, FrameBoxes]:
    """A boxes file by the position of its frames in the video."""
    boxes, how = file.of_video(video.announced, first_frame)
    if how:  # a decision and no progress: said with --quiet too
        say(how)
    return boxes


def _lacks_tracks(boxes: dict[int, FrameBoxes], file: BoxesFile) -> bool:
    """Whether one id stands for several people of a frame, as in a file of detections; said if so."""
    lacks = any(len(set(one.ids)) < len(one.ids) for one in boxes.values())
    if lacks:
        say(f"{file.path} gives one id to several people of a frame: they are followed by their movement instead")
    return lacks


def _seeing(
    engine: Engine, fps: float, boxes: dict[int, FrameBoxes] | None, given: GivenTracks | None, threshold: float | None
) -> Seeing:
    """The camera application's detector, tracker and identities, or what the boxes file says in their place."""
    gallery = Gallery.for_engine(engine)
    number = iter(range(10**12))

    def from_file(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        here = (boxes or {}).get(next(number))
        found = np.zeros((0, 4), np.float32) if here is None else here.boxes.astype(np.float32)
        real = np.isfinite(found).all(1) & (found[:, 2:] > found[:, :2]).all(1)
        return found[real], np.ones(int(real.sum()), np.float32)

    if boxes is None:
        find: Any = Detector.load()
    else:
        find = from_file if given is None else given.detect
    return Seeing(
        detector=find,
        make_tracker=lambda rate: Tracker(frame_rate=fps) if given is None else given,
        engine=engine,
        gallery=gallery,
        identities=Identities(
            gallery,
            metric="masked" if engine.spec.masks else "plain",
            probability=PROBABILITY if threshold is None else threshold,
            ours=not engine.spec.foreign,
        ),
    )


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
    frame: NDArray[np.uint8], sightings: tuple[Sighting, ...], people: dict[str, str], seconds: float
) -> None:
    """Draw boxes, people, and a line of status into the frame; `people`: identity → its name here, filled."""
    for one in sightings:
        x0, y0, x1, y1 = (round(value) for value in one.box)
        label, color = "?", UNDECIDED
        if one.identity is not None:
            label = people.setdefault(one.identity, f"P{len(people) + 1}")
            color = PALETTE[(int(label[1:]) - 1) % len(PALETTE)]
            if one.state == "known":
                label += " back" if one.probability is None else f" back {one.probability:.2f}"
        cv2.rectangle(frame, (x0, y0), (x1, y1), color, 2)
        width = text_width(label, size=0.45, bold=False) + 8
        top = max(16, y0)
        cv2.rectangle(frame, (x0 - 1, top - 16), (x0 - 1 + width, top), color, -1)
        draw_text(frame, label, (x0 + 3, top - 4), color=WHITE)
    status = f"{seconds:5.1f} s   {len(sightings)} people here, {len(people)} so far"
    cv2.rectangle(frame, (0, frame.shape[0] - 24), (text_width(status, size=0.5) + 20, frame.shape[0]), INK, -1)
    draw_text(frame, status, (10, frame.shape[0] - 8), color=WHITE, size=0.5)


def _people(tracks: list[TrackRecord], people: dict[str, str], names: dict[int, str]) -> list[dict[str, Any]]:
    """JSON types: every person's appearances, in order. Tracks that showed too little are left out."""
    told = sorted((one for one in tracks if one.identity and one.probability is not None), key=lambda one: one.first)
    found: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        person = people.setdefault(str(one.identity), f"P{len(people) + 1}")
        found.setdefault(person, []).append(
            {
                "track": names.get(int(one.track), one.track),
                "from_s": round(one.first, 2),
                "to_s": round(one.last, 2),
                "state": one.state,
                "probability": None if one.probability is None else round(one.probability, 4),
                "visibility": None if one.visibility is None else round(one.visibility, 4),
            }
        )
    return [{"person": person, "tracks": appearances} for person, appearances in found.items()]
