"""`dpm-edge build detector`: a person detector in the precision that is fastest here, found to see the same people.

    build_detector("eye", precision="auto")                 # the detector that ships
    build_detector("eye", source="yolox_s.onnx")            # an export of another project
    detector = open_detector("eye")

The reference is the same file in fp32 in ONNX Runtime, where it can read it. Detectors run on the CPU.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import installed, machine_card
from dpm_edge.errors import BuildRefused, EngineError, ImageError, MissingLibrary, SpecError
from dpm_edge.files import sha256, whole_folder
from dpm_edge.images import find_images, read_image
from dpm_edge.progress import say, track
from dpm_edge.shipped import ASSETS
from dpm_edge.watch.detector import MODEL, Detector
from dpm_edge.watch.detector_engine import NAME, NANODET, AnyDetector, Candidate, DetectorManifest, open_engine
from dpm_edge.watch.detector_exports import ExportedDetector, open_export
from dpm_edge.watch.overlap import iou

CANDIDATES = {"openvino": ("fp32", "bf16"), "onnxruntime": ("fp32",)}
"""Backend → precisions, the baseline first. INT8 is none: it was tried with NanoDet-g, and finds far too few people."""
SURE, NEARLY_SURE = 0.4, 0.3
"""A box counts from the first score on, and may be found again from the second on."""
SAME = 0.85
"""Overlap (intersection over union) of a box with the same box of the reference."""
FEWEST_BOXES = 10
BUDGET = 0.97
"""Share of the boxes that must be found again, both ways."""
NOISE = 0.03
"""A precision replaces fp32 when its median time is smaller by more than this."""
ROUNDS = 30
PICTURES = 24


def build_detector(
    out: str | Path,
    *,
    source: str | Path | None = None,
    backend: str = "openvino",
    precision: str = "fp32",
    pictures: str | Path | None = None,
    threads: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> DetectorManifest:
    """Make a detector's engine, and verify it.

    Args:
        out: the folder to write; a detector's engine that is there is replaced.
        source: an export of another project (ONNX or OpenVINO IR); None: the detector that ships.
        backend: "openvino" or "onnxruntime".
        precision: "fp32", "bf16", or "auto": the fastest that finds the same people.
        pictures: folder of pictures with people to verify on and to time; None: some that ship, people put together.
        threads: cores for one picture while it is timed; None leaves it to the library.
        force: keep an engine that finds other people; its manifest says so.
        quiet: no progress.

    Raises:
        SpecError: an argument is none of those above, or `out` holds other things.
        EngineError: the source is no detector of a known layout, or the pictures show too few people.
        BuildRefused: no precision finds the same people, or the folder cannot be written.
        MissingLibrary: the backend is not installed.
    """
    out, path = Path(out), MODEL if source is None else Path(source)
    if backend not in CANDIDATES:
        raise SpecError(
            f"expected the backend {' or '.join(CANDIDATES)} for a detector, which runs on the CPU, got {backend!r}"
        )
    wanted = CANDIDATES[backend] if precision == "auto" else (precision,)
    if not set(wanted) <= set(CANDIDATES[backend]):
        raise SpecError(
            f"expected a detector's precision of {', '.join(CANDIDATES[backend])} or auto for {backend}, got "
            f"{precision!r}. INT8 finds too few people"
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / NAME).is_file()):
        raise SpecError(f"expected a new folder or a detector's engine to replace, got {out}. Name another folder")
    frames = _people_together() if pictures is None else _read(Path(pictures))
    reference, library = _reference(path)
    expected = [reference(frame) for frame in frames]
    boxes = sum(int((scores >= SURE).sum()) for _, scores in expected)
    if boxes < FEWEST_BOXES:
        raise EngineError(
            f"expected pictures in which {path.name} finds {FEWEST_BOXES} people or more, got {boxes} in "
            f"{len(frames)} pictures. Give a folder of pictures with more people (--calibrate)"
        )
    opened: dict[str, AnyDetector] = {}
    rows: list[Candidate] = []
    for one in wanted:
        row = Candidate(precision=one)
        rows.append(row)
        try:
            opened[one] = _open(path, backend=backend, precision=one, threads=threads)
        except EngineError as error:
            if precision != "auto" or one == wanted[0]:
                raise
            row.why_not = f"cannot run here: {error}"
            continue
        row.found_again = round(min(agreement(expected, [opened[one](frame) for frame in frames])), 4)
        if row.found_again < BUDGET:
            row.why_not = f"finds {row.found_again:.1%} of the boxes again, expected {BUDGET:.0%}"
    _time(opened, rows, frames, quiet)
    chosen = _choose(rows)
    if chosen is None and not force:
        raise BuildRefused(f"expected a precision that finds the same people, got none: {_told(rows)}")
    chosen = chosen or rows[0]
    made = opened[chosen.precision]
    verification = {
        "reference": library,
        "pictures": "shipped" if pictures is None else "given",
        "frames": len(frames),
        "boxes": boxes,
        "found_again": chosen.found_again,
        "passed": not chosen.why_not,
    }
    sources = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    try:
        with whole_folder(out) as folder:
            names = [f"detector{one.suffix}" for one in sources]
            for file, name in zip(sources, names):
                shutil.copyfile(file, folder / name)
            manifest = DetectorManifest(
                model=names[0],
                files={name: sha256(folder / name) for name in names},
                source="the detector that ships, NanoDet-g" if source is None else path.name,
                layout=made.layout if isinstance(made, ExportedDetector) else NANODET,
                person=made.person if isinstance(made, ExportedDetector) else 0,
                backend=backend,
                precision=chosen.precision,
                verification=verification,
                candidates=rows,
                machine=machine_card(),
            )
            (folder / NAME).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
            open_engine(folder)  # also finds what the file needs beside it
    except OSError as error:
        raise BuildRefused(f"expected to write the detector to {out}, got: {error.strerror or error}") from error
    if not quiet:
        say(_told(rows))
    return manifest


def agreement(
    expected: Sequence[tuple[NDArray, NDArray]], found: Sequence[tuple[NDArray, NDArray]]
) -> tuple[float, float]:
    """Share of the expected boxes that were found, and of the found ones that were expected; of no boxes 1.

    A box counts from score SURE on; it is the same as one of the other side's, of NEARLY_SURE or more, that it overlaps
    by SAME.
    """
    shares = []
    for one, other in ((expected, found), (found, expected)):
        again = count = 0
        for (boxes, scores), (others, other_scores) in zip(one, other, strict=True):
            sure, there = boxes[scores >= SURE], others[other_scores >= NEARLY_SURE]
            count += len(sure)
            if len(sure) and len(there):
                again += int((iou(sure, there).max(1) >= SAME).sum())
        shares.append(again / count if count else 1.0)
    return shares[0], shares[1]


def _open(path: Path, *, backend: str, precision: str, threads: int | None) -> AnyDetector:
    if path == MODEL:
        return Detector.load(path, threads=threads, backend=backend, precision=precision)
    return open_export(path, threads=threads, backend=backend, precision=precision)


def _reference(path: Path) -> tuple[AnyDetector, str]:
    """The file in fp32, in ONNX Runtime where it is installed and reads it, and what that is called."""
    backend = "onnxruntime" if installed("onnxruntime") and path.suffix == ".onnx" else "openvino"
    if not installed(backend):
        raise MissingLibrary("OpenVINO or ONNX Runtime", "building a detector", "pip install 'dpm-edge[engines]'")
    return _open(path, backend=backend, precision="fp32", threads=None), f"{backend} fp32"


def _read(folder: Path) -> list[NDArray[np.uint8]]:
    """Up to PICTURES pictures of a folder, evenly over their names."""
    try:
        paths = find_images(folder)
    except ImageError as error:
        raise SpecError(f"expected a folder with pictures, got {folder} without one ({error})") from error
    places = np.unique(np.linspace(0, len(paths) - 1, min(PICTURES, len(paths))).astype(int))
    return [read_image(paths[place]) for place in places]


def _people_together() -> list[NDArray[np.uint8]]:
    """Pictures (480, 640, 3) of four people each, out of the crops that ship, in sizes from 120 to 400 pixels."""
    from dpm_edge.opencv import cv2

    paths = sorted((ASSETS / "samples" / "bounding_box_test").glob("*.jpg"))
    made = []
    for number in range(8):
        draw = np.random.default_rng(number)
        frame = np.full((480, 640, 3), draw.integers(90, 170), np.uint8)
        for place in range(4):
            tall = int(draw.integers(120, 400))
            picture = read_image(paths[(4 * number + place) % len(paths)])
            crop = cv2.resize(picture, (min(150, tall // 2), tall), interpolation=cv2.INTER_AREA)
            top, left = int(draw.integers(0, 480 - tall)), 160 * place + int(draw.integers(0, 10))
            frame[top : top + tall, left : left + crop.shape[1]] = crop
        made.append(frame)
    return made


def _time(opened: dict[str, AnyDetector], rows: Sequence[Candidate], frames: Sequence[NDArray], quiet: bool) -> None:
    """Median milliseconds of a picture, the candidates in turn."""
    taken: dict[str, list[float]] = {name: [] for name in opened}
    for turn in track(range(ROUNDS), what="timing the detector", quiet=quiet):
        for name, detector in opened.items():
            begin = time.perf_counter()
            detector(frames[turn % len(frames)])
            taken[name].append(1000 * (time.perf_counter() - begin))
    for row in rows:
        row.milliseconds = round(median(taken[row.precision]), 2) if row.precision in taken else None


def _choose(rows: Sequence[Candidate]) -> Candidate | None:
    """The first that finds the same people, or one that does and is faster by more than NOISE."""
    best: Candidate | None = None
    for row in rows:
        if row.why_not or row.milliseconds is None:
            continue
        if best is None or row.milliseconds < (1 - NOISE) * (best.milliseconds or 0.0):
            best = row
    for row in rows:
        if best is not None and row is not best and not row.why_not:
            row.why_not = f"not faster than {best.precision}"
    return best


def _told(rows: Sequence[Candidate]) -> str:
    """The candidates in words."""
    parts = []
    for row in rows:
        parts.append(row.precision + (f" {row.milliseconds:.1f} ms a picture" if row.milliseconds is not None else ""))
        if row.found_again is not None:
            parts[-1] += f", {row.found_again:.1%} of the boxes found again"
        if row.why_not:
            parts[-1] += f" ({row.why_not})"
    return "; ".join(parts)
