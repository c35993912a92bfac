"""Detectors of other projects, as those export them: RF-DETR, D-FINE and RT-DETR, YOLOX, ultralytics, MMDeploy.

    detector = open_export(Path("yolox_s.onnx"))
    boxes, scores = detector(frame)

What a file gives is told by its inputs and outputs (LAYOUTS), and how a frame goes in follows from that. Nothing of
those projects is imported. A frame of W×H pixels goes into an input of w×h: stretched, or in its shape, grey around it.

P positions, queries or boxes of a network · C classes · N people
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import installed
from dpm_edge.errors import EngineError, nearest
from dpm_edge.watch.detector import MOST, Detector, best_boxes, checked_frame, grids
from dpm_edge.watch.detector_graph import Graph, GraphInput, open_graph

Found = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Boxes (P, 4) x0 y0 x1 y1 in the input's pixels, and the score of a person (P,)."""
GREY = 114
FREE_SIZE = (640, 640)
"""Width and height of an input that the file leaves free."""
SIZES = "orig_target_sizes"
IMAGENET = ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the exports of one family look like."""

    decode: Callable[[Mapping[str, NDArray], tuple[int, int], int], Found]
    """Outputs, width and height of the input, and the person's class → boxes and scores."""
    fit: str
    """"stretch", "corner" (shape kept, at the top left) or "centre" (shape kept, in the middle)."""
    rgb: bool
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    """input = (value − mean) / std of values in 0..255, in the input's channel order."""
    overlap: float | None = None
    """Share above which the worse of two boxes is dropped; None where the network does it or needs none."""


def fitted(image: NDArray[np.uint8], size: tuple[int, int], fit: str) -> tuple[NDArray[np.uint8], NDArray, NDArray]:
    """A frame (H, W, 3) in the input's width and height: (h, w, 3), and scale (2,) and shift (2,) of x and y.

    A point of the frame is at scale · point + shift in the input.
    """
    from dpm_edge.opencv import cv2

    height, width = image.shape[:2]
    if fit == "stretch":
        return np.asarray(cv2.resize(image, size), np.uint8), np.array(size) / (width, height), np.zeros(2)
    ratio = min(size[0] / width, size[1] / height)
    inside = max(1, round(width * ratio)), max(1, round(height * ratio))
    left, top = ((size[0] - inside[0]) // 2, (size[1] - inside[1]) // 2) if fit == "centre" else (0, 0)
    made = np.full((size[1], size[0], 3), GREY, np.uint8)
    made[top : top + inside[1], left : left + inside[0]] = cv2.resize(image, inside)
    return made, np.array(inside) / (width, height), np.array([left, top], np.float64)


def _corners(centres: NDArray, sides: NDArray) -> NDArray[np.float32]:
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)


def _rf_detr(outputs: Mapping[str, NDArray], size: tuple[int, int], person: int) -> Found:
    """dets (1, P, 4): cx cy w h as shares; labels (1, P, C): logits."""
    boxes = outputs["dets"][0].astype(np.float32)
    logits = np.clip(outputs["labels"][0][:, person].astype(np.float32), -50, 50)
    return _corners(boxes[:, :2] * size, boxes[:, 2:] * size), 1 / (1 + np.exp(-logits))


def _detr(outputs: Mapping[str, NDArray], size: tuple[int, int], person: int) -> Found:
    """labels (1, P), boxes (1, P, 4) x0 y0 x1 y1 in pixels of `orig_target_sizes`, scores (1, P)."""
    mine = outputs["labels"][0] == person
    return outputs["boxes"][0][mine].astype(np.float32), outputs["scores"][0][mine].astype(np.float32)


def _mmdeploy(outputs: Mapping[str, NDArray], size: tuple[int, int], person: int) -> Found:
    """dets (1, P, 5): x0 y0 x1 y1 score; labels (1, P)."""
    mine = outputs["labels"][0] == person
    dets = outputs["dets"][0][mine].astype(np.float32)
    return dets[:, :4], dets[:, 4]


def _yolox(outputs: Mapping[str, NDArray], size: tuple[int, int], person: int) -> Found:
    """(1, P, 5 + C): cx cy in strides from the cell's corner, log of w h in strides, object, classes.

    Exports that decode by themselves give cx cy w h in pixels; their last position lies near the input's far corner.
    """
    (rows,) = (one[0].astype(np.float32) for one in outputs.values())
    centres, strides = grids(size)
    cells, strides = centres - strides[:, None] / 2, strides[:, None]
    if np.abs(rows[:, :2]).max() > max(size) / 4:
        boxes = _corners(rows[:, :2], rows[:, 2:4])
    else:
        boxes = _corners(cells + rows[:, :2] * strides, np.exp(np.minimum(rows[:, 2:4], 20)) * strides)
    return boxes, rows[:, 4] * rows[:, 5 + person]


def _ultralytics(outputs: Mapping[str, NDArray], size: tuple[int, int], person: int) -> Found:
    """(1, 4 + C, P): cx cy w h in the input's pixels, classes."""
    rows = next(iter(outputs.values()))[0].T.astype(np.float32)
    return _corners(rows[:, :2], rows[:, 2:4]), rows[:, 4 + person]


def _end_to_end(outputs: Mapping[str, NDArray], size: tuple[int, int], person: int) -> Found:
    """(1, P, 6): x0 y0 x1 y1 in the input's pixels, score, class."""
    rows = next(iter(outputs.values()))[0].astype(np.float32)
    rows = rows[rows[:, 5] == person]
    return rows[:, :4], rows[:, 4]


LAYOUTS = {
    "rf-detr": Layout(decode=_rf_detr, fit="stretch", rgb=True, mean=IMAGENET[0], std=IMAGENET[1]),
    "detr": Layout(decode=_detr, fit="stretch", rgb=True),
    "yolox": Layout(decode=_yolox, fit="corner", rgb=False, std=(1.0, 1.0, 1.0), overlap=0.45),
    "ultralytics": Layout(decode=_ultralytics, fit="centre", rgb=True, overlap=0.7),
    "ultralytics-end-to-end": Layout(decode=_end_to_end, fit="centre", rgb=True),
    "mmdeploy": Layout(
        decode=_mmdeploy, fit="corner", rgb=False, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)
    ),
}
"""Name → what its exports look like. "detr" is D-FINE's and RT-DETR's own export, "ultralytics" is YOLOv8 to YOLO11,
"ultralytics-end-to-end" is YOLO26, YOLOv10 and exports with nms=True, "mmdeploy" is RTMDet's."""


class ExportedDetector:
    """A person detector of another project. Any number of threads may call it; use `open_export`."""

    def __init__(self, graph: Graph, layout: str, person: int | None, size: tuple[int, int] | None, least: float,
                 classes: Mapping[int, str] | None, path: Path) -> None:  # fmt: skip
        self._image, self._sizes = _inputs(graph, path)
        self.backend, self.least = graph.backend, least
        self.size = _size(self._image, size, path)
        shapes: dict[str, tuple[int, ...]] = {self._image.name: (1, 3, self.size[1], self.size[0])}
        if self._sizes is not None:
            shapes[self._sizes.name] = (1, 2)
        self._run = graph.fix(shapes)
        try:
            outputs = self._run(self._feeds(np.full((self.size[1], self.size[0], 3), GREY, np.uint8), LAYOUTS["detr"]))
        except Exception as error:  # the libraries' errors share no base class
            raise EngineError(
                f"expected a detector that runs on a picture of {self.size[0]}×{self.size[1]}, got {path}: "
                f"{str(error).strip().splitlines()[-1][:200]}. Give its size: detector_size"
            ) from error
        self.layout = _recognised(outputs, self.size, self._sizes is not None, path) if layout == "auto" else layout
        self._layout = LAYOUTS[self.layout]
        self.person = _person(person, self.layout, classes, outputs, path)
        try:
            boxes, scores = self._layout.decode(outputs, self.size, self.person)
        except (KeyError, IndexError, ValueError, StopIteration) as error:
            raise EngineError(
                f"expected outputs of the layout {self.layout!r} and a class {self.person}, got {_told(outputs)} from "
                f"{path}. Leave the layout out, or give the person's class"
            ) from error
        if not np.isfinite(boxes).all() or not ((scores >= -0.001) & (scores <= 1.001)).all():
            low, high = (scores.min(), scores.max()) if len(scores) else (0.0, 0.0)
            raise EngineError(
                f"expected finite boxes and scores in 0..1, got scores from {low:.3g} to {high:.3g} of {path}, taken "
                f"for {self.layout}. Export it as its own project does, with the last sigmoid inside"
            )

    def __repr__(self) -> str:
        return (
            f"ExportedDetector({self.layout}, {self.backend}, {self.size[0]}×{self.size[1]}, person is class "
            f"{self.person}, scores from {self.least:g})"
        )

    def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Find the people of one picture, as `Detector` does.

        Args:
            image: (H, W, 3) uint8 BGR.

        Returns:
            Boxes (N, 4) float32, x0 y0 x1 y1 in the picture's pixels, inside it, and scores (N,) float32, falling.

        Raises:
            ImageError: it is no such picture.
        """
        checked_frame(image)
        made, scale, shift = fitted(image, self.size, self._layout.fit)
        boxes, scores = self._layout.decode(self._run(self._feeds(made, self._layout)), self.size, self.person)
        kept = np.flatnonzero(scores >= self.least)
        kept = kept[np.argsort(-scores[kept], kind="stable")][: 4 * MOST]
        limit = np.tile([image.shape[1], image.shape[0]], 2)
        inside = np.clip((boxes[kept] - np.tile(shift, 2)) / np.tile(scale, 2), 0, limit).astype(np.float32)
        best = best_boxes(inside, scores[kept], 1.0 if self._layout.overlap is None else self._layout.overlap)
        return inside[best], scores[kept][best].astype(np.float32)

    def _feeds(self, made: NDArray[np.uint8], layout: Layout) -> dict[str, NDArray]:
        """The network's inputs for a frame that has the input's size, (h, w, 3) uint8 BGR."""
        planes = made.transpose(2, 0, 1)[:: -1 if layout.rgb else 1].astype(np.float32)
        planes -= np.array(layout.mean, np.float32)[:, None, None]
        planes /= np.array(layout.std, np.float32)[:, None, None]
        feeds: dict[str, NDArray] = {self._image.name: planes[None].astype(self._image.dtype)}
        if self._sizes is not None:
            feeds[self._sizes.name] = np.array([self.size], self._sizes.dtype)
        return feeds


def open_export(
    path: Path,
    *,
    layout: str = "auto",
    person: int | None = None,
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    backend: str | None = None,
    least: float = 0.1,
    precision: str = "fp32",
) -> Detector | ExportedDetector:
    """Open an export of another project, or another file of the detector that ships.

    Args:
        path: an ONNX file, or an OpenVINO IR's .xml.
        layout: a name of LAYOUTS; "auto" tells it by the file's inputs and outputs.
        person: the class of a person; None: by the file's own names where it has them, else 1 of RF-DETR's 91 COCO
            classes and 0 of all others.
        size: width and height of the input; None: the file's, or 640 × 640 where it leaves them free.
        threads, backend, least, precision: as `Detector.load` takes them.

    Raises:
        EngineError: the file is missing, is no detector of a known layout, or an argument does not fit it.
        MissingLibrary: neither OpenVINO nor ONNX Runtime is installed.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise EngineError(f"expected a known layout of a detector, got {layout!r}.{nearest(layout, LAYOUTS)}")
    if not 0 < least < 1:
        raise EngineError(f"expected a least score above 0 and below 1, got {least}. Try 0.1")
    graph = open_graph(path, threads=threads, backend=backend, precision=precision)
    if set(graph.outputs) == {"scores", "bins"}:
        return Detector.load(path, threads=threads, backend=backend, size=size, least=least, precision=precision)
    return ExportedDetector(graph, layout, person, size, least, class_names(path), path)


def class_names(path: Path) -> dict[int, str] | None:
    """Class → name, as ultralytics writes them into its ONNX files; None where there are none, or `onnx` is missing."""
    if path.suffix != ".onnx" or not installed("onnx"):
        return None
    import onnx

    told = {one.key: one.value for one in onnx.load(str(path), load_external_data=False).metadata_props}
    try:
        names = ast.literal_eval(told.get("names", ""))
    except (ValueError, SyntaxError):
        return None
    return {int(key): str(name) for key, name in names.items()} if isinstance(names, dict) else None


def _inputs(graph: Graph, path: Path) -> tuple[GraphInput, GraphInput | None]:
    """The picture's input, and that of the frames' sizes where there is one."""
    told = ", ".join(str(one) for one in graph.inputs)
    pictures = [one for one in graph.inputs if len(one.shape) == 4]
    others = [one for one in graph.inputs if len(one.shape) != 4]
    if len(pictures) != 1 or [one.name for one in others] not in ([], [SIZES]):
        raise EngineError(f"expected a detector with one picture as its input, got {told} in {path}")
    picture = pictures[0]
    if picture.shape[1] not in (3, None) or picture.shape[0] not in (1, None):
        last = " Its channels come last (NHWC): export it as NCHW" if picture.shape[3] == 3 else ""
        raise EngineError(f"expected an input (1, 3, height, width), got {picture} in {path}.{last}")
    if not issubclass(picture.dtype, np.floating):
        raise EngineError(f"expected an input of float32 or float16, got {picture} in {path}")
    return picture, others[0] if others else None


def _size(picture: GraphInput, size: tuple[int, int] | None, path: Path) -> tuple[int, int]:
    """Width and height of the input."""
    height, width = picture.shape[2:]
    if size is not None and (len(size) != 2 or any(side < 32 or side % 32 for side in size)):
        raise EngineError(f"expected a width and height that are multiples of 32, got {size}. Try (640, 640)")
    wanted = size or FREE_SIZE
    fixed = (width or wanted[0], height or wanted[1])
    if size is not None and fixed != tuple(size):
        raise EngineError(f"expected size {fixed}, as {path} has it, got {tuple(size)}. Leave it out")
    return fixed


def _recognised(outputs: Mapping[str, NDArray], size: tuple[int, int], sizes: bool, path: Path) -> str:
    """The layout of what a network gave for an input of that size.

    Raises:
        EngineError: it is none that is known.
    """
    names = set(outputs)
    if sizes and {"labels", "boxes", "scores"} <= names:
        return "detr"
    if {"dets", "labels"} <= names and outputs["dets"].ndim == 3:
        last = outputs["dets"].shape[2]
        if last == 5 and outputs["labels"].ndim == 2:
            return "mmdeploy"
        if last == 4 and outputs["labels"].ndim == 3:
            return "rf-detr"
    first = next(iter(outputs.values()))
    if not sizes and first.ndim == 3 and first.shape[0] == 1:
        positions, rows, columns = len(grids(size)[1]), first.shape[1], first.shape[2]
        if columns == 6 and rows != positions:
            return "ultralytics-end-to-end"
        if rows == positions and columns > 5 and len(outputs) == 1:
            return "yolox"
        if columns == positions and rows > 4:
            return "ultralytics"
        if rows == 3 * positions:
            raise EngineError(
                f"expected a detector of a known layout, got {path}, which looks like YOLOv5 with its anchors: "
                f"{_told(outputs)}. Export YOLOv8 or later"
            )
    raise EngineError(
        f"expected a detector of a known layout ({', '.join(LAYOUTS)}), got {_told(outputs)} from {path}. "
        "Export it without changes of its own project's outputs"
    )


def _person(
    person: int | None, layout: str, classes: Mapping[int, str] | None, outputs: Mapping[str, NDArray], path: Path
) -> int:
    """The class of a person."""
    if person is not None:
        return person
    if classes:
        named = [key for key, name in classes.items() if name.lower() in ("person", "people", "pedestrian")]
        if not named:
            known = ", ".join(list(classes.values())[:10])
            raise EngineError(
                f"expected a detector with a class 'person', got {path} with {known}. Give the class: detector_person"
            )
        return named[0]
    return 1 if layout == "rf-detr" and "labels" in outputs and outputs["labels"].shape[-1] == 91 else 0


def _told(outputs: Mapping[str, NDArray]) -> str:
    return ", ".join(f"{name} {one.dtype.name} {one.shape}" for name, one in outputs.items())
