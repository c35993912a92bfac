"""Other projects' detectors: each layout against boxes that were put into it by hand, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dpm_edge.errors import EngineError, ImageError
from dpm_edge.opencv import cv2
from dpm_edge.watch.detector import Detector
from dpm_edge.watch.detector_exports import LAYOUTS, ExportedDetector, fitted
from dpm_edge.watch.detector_graph import Graph, GraphInput
from dpm_edge.watch.open_detector import open_detector
from dpm_edge.watch.site_config import DETECTOR_LAYOUTS

FRAME = (320, 240)
"""Width and height."""
SIZE = 128
PEOPLE = [((40.0, 30.0, 100.0, 210.0), 0.9), ((200.0, 60.0, 250.0, 200.0), 0.6)]
"""Boxes of two people in the frame, and their scores."""
CAR = ((10.0, 100.0, 300.0, 230.0), 0.8)
RATIO = SIZE / FRAME[0]
"""Of a frame whose shape is kept."""


def kept(box: tuple[float, ...], top: float = 0.0) -> list[float]:
    """A box of the frame in an input that keeps its shape, `top` pixels from the top."""
    return [value * RATIO + (top if i % 2 else 0.0) for i, value in enumerate(box)]


def stretched(box: tuple[float, ...]) -> list[float]:
    return [value * SIZE / FRAME[i % 2] for i, value in enumerate(box)]


def centred(box: list[float]) -> list[float]:
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]


def rf_detr() -> dict[str, NDArray]:
    """91 COCO classes, sparse: a person is 1, a car 3."""
    dets, labels = np.full((1, 300, 4), 0.5, np.float32), np.full((1, 300, 91), -9.0, np.float32)
    for i, ((box, score), kind) in enumerate([(PEOPLE[0], 1), (CAR, 3), (PEOPLE[1], 1)]):
        dets[0, i] = [value / SIZE for value in centred(stretched(box))]
        labels[0, i, kind] = math.log(score / (1 - score))
    return {"labels": labels, "dets": dets}  # by name, not by order


def detr() -> dict[str, NDArray]:
    found = [(PEOPLE[0], 0), (CAR, 2), (PEOPLE[1], 0)]
    return {
        "labels": np.array([[kind for _, kind in found]], np.int64),
        "boxes": np.array([[stretched(box) for (box, _), _ in found]], np.float32),
        "scores": np.array([[score for (_, score), _ in found]], np.float32),
    }


def mmdeploy() -> dict[str, NDArray]:
    found = [(PEOPLE[0], 0), (CAR, 2), (PEOPLE[1], 0)]
    return {
        "dets": np.array([[[*kept(box), score] for (box, score), _ in found]], np.float32),
        "labels": np.array([[kind for _, kind in found]], np.int64),
    }


def positions() -> list[tuple[int, int, int]]:
    """Stride, column and row of each position, in the order of YOLOX and ultralytics."""
    return [
        (stride, column, row)
        for stride in (8, 16, 32)
        for row in range(SIZE // stride)
        for column in range(SIZE // stride)
    ]


def yolox(raw: bool = True) -> dict[str, NDArray]:
    """Each person at two neighbouring positions, the second a little less sure: one of them is to go."""
    rows = np.zeros((1, len(positions()), 85), np.float32)
    if not raw:
        rows[0, :, :2] = [((x + 0.5) * stride, (y + 0.5) * stride) for stride, x, y in positions()]
    for number, ((box, score), kind) in enumerate([(PEOPLE[0], 0), (CAR, 2), (PEOPLE[1], 0)]):
        cx, cy, width, height = centred(kept(box))
        for again in (0, 1):
            at = 3 * number + again
            stride, x, y = positions()[at]
            if raw:
                rows[0, at, :4] = cx / stride - x, cy / stride - y, math.log(width / stride), math.log(height / stride)
            else:
                rows[0, at, :4] = cx, cy, width, height
            rows[0, at, 4] = 0.95
            rows[0, at, 5 + kind] = (score - 0.1 * again) / 0.95
    return {"output": rows}


TOP = (SIZE - round(FRAME[1] * RATIO)) // 2
"""Rows of grey above a frame in the middle of the input."""


def ultralytics() -> dict[str, NDArray]:
    rows = np.zeros((1, 84, len(positions())), np.float32)
    for number, ((box, score), kind) in enumerate([(PEOPLE[0], 0), (CAR, 2), (PEOPLE[1], 0)]):
        for again in (0, 1):
            rows[0, :4, 7 * number + again] = centred(kept(box, TOP))
            rows[0, 4 + kind, 7 * number + again] = score - 0.1 * again
    return {"output0": rows}


def end_to_end() -> dict[str, NDArray]:
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, :, 5] = 9
    for i, ((box, score), kind) in enumerate([(PEOPLE[0], 0), (CAR, 2), (PEOPLE[1], 0)]):
        rows[0, i] = [*kept(box, TOP), score, kind]
    return {"output0": rows}


MADE: dict[str, tuple[str, Callable[[], dict[str, NDArray]]]] = {
    "RF-DETR": ("rf-detr", rf_detr),
    "D-FINE and RT-DETR": ("detr", detr),
    "MMDeploy": ("mmdeploy", mmdeploy),
    "YOLOX": ("yolox", yolox),
    "YOLOX that decodes": ("yolox", lambda: yolox(raw=False)),
    "YOLOv8 to 11": ("ultralytics", ultralytics),
    "YOLO26": ("ultralytics-end-to-end", end_to_end),
}


def graph(
    outputs: Mapping[str, NDArray], *, size: int | None = SIZE, seen: list[dict[str, NDArray]] | None = None,
    dtype: Any = np.float32,
) -> Graph:  # fmt: skip
    """A file that gives these outputs, whatever it sees."""

    def fix(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[Mapping[str, NDArray]], dict[str, NDArray]]:
        def run(feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
            assert {name: one.shape for name, one in feeds.items()} == dict(shapes)
            if seen is not None:
                seen.append(dict(feeds))
            return dict(outputs)

        return run

    inputs = [GraphInput(name="images", shape=(1, 3, size, size), dtype=dtype)]
    if {"labels", "boxes", "scores"} <= set(outputs):
        inputs.append(GraphInput(name="orig_target_sizes", shape=(1, 2), dtype=np.int64))
    return Graph(inputs=tuple(inputs), outputs=tuple(outputs), backend="none", fix=fix)


def detector(made: Graph, **changes: Any) -> ExportedDetector:
    said: dict[str, Any] = {"layout": "auto", "person": None, "size": None, "least": 0.1, "classes": None}
    return ExportedDetector(made, path=Path("a.onnx"), **{**said, **changes})


def assert_people(found: tuple[NDArray, NDArray], atol: float = 0.05) -> None:
    boxes, scores = found
    np.testing.assert_allclose(scores, [score for _, score in PEOPLE], atol=1e-3)
    np.testing.assert_allclose(boxes, [box for box, _ in PEOPLE], atol=atol)
    assert boxes.dtype == scores.dtype == np.float32


BLANK = np.zeros((FRAME[1], FRAME[0], 3), np.uint8)


@pytest.mark.parametrize("kind", MADE)
def test_people_are_where_they_were_put(kind: str) -> None:
    layout, outputs = MADE[kind]
    opened = detector(graph(outputs()))
    assert opened.layout == layout
    assert_people(opened(BLANK))


@pytest.mark.parametrize("kind", MADE)
def test_an_input_of_free_size_takes_the_size_that_is_said(kind: str) -> None:
    assert_people(detector(graph(MADE[kind][1](), size=None), size=(SIZE, SIZE))(BLANK))


@pytest.mark.parametrize(
    ("kind", "order", "mean", "std", "corner"),
    [
        ("RF-DETR", "rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
        ("D-FINE and RT-DETR", "rgb", (0, 0, 0), (255, 255, 255), False),
        ("MMDeploy", "bgr", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395), True),
        ("YOLOX", "bgr", (0, 0, 0), (1, 1, 1), True),
        ("YOLOv8 to 11", "rgb", (0, 0, 0), (255, 255, 255), None),
        ("YOLO26", "rgb", (0, 0, 0), (255, 255, 255), None),
    ],
)
def test_a_picture_goes_in_as_the_project_itself_puts_it_in(
    kind: str, order: str, mean: tuple[float, ...], std: tuple[float, ...], corner: bool | None
) -> None:
    """One colour: what is frame and what is grey, which channel is first, and how values are scaled."""
    frame, seen = np.empty_like(BLANK), list[dict[str, NDArray]]()
    frame[:] = (10, 90, 250)
    detector(graph(MADE[kind][1](), seen=seen))(frame)
    (picture,) = (one for name, one in seen[-1].items() if name == "images")
    colour = (10, 90, 250) if order == "bgr" else (250, 90, 10)
    rows = {True: range(96), False: range(128), None: range(16, 112)}[corner]
    for row in range(SIZE):
        values = colour if row in rows else (114, 114, 114)
        wanted = [(v - m) / s for v, m, s in zip(values, mean, std, strict=True)]
        np.testing.assert_allclose(picture[0, :, row, 64], wanted, rtol=1e-5, atol=1e-6)
    if "orig_target_sizes" in seen[-1]:
        assert seen[-1]["orig_target_sizes"].tolist() == [[SIZE, SIZE]]


@pytest.mark.parametrize("fit", sorted({one.fit for one in LAYOUTS.values()}))
@pytest.mark.parametrize("frame", [(320, 240), (90, 300), (1000, 333)])
def test_a_point_of_the_frame_is_where_scale_and_shift_say(fit: str, frame: tuple[int, int]) -> None:
    picture = np.zeros((frame[1], frame[0], 3), np.uint8)
    x, y = frame[0] * 0.7, frame[1] * 0.2
    cv2.circle(picture, (int(x), int(y)), max(6, frame[0] // 40), (255, 255, 255), -1)
    made, scale, shift = fitted(picture, (256, 192), fit)
    assert made.shape == (192, 256, 3)
    rows, columns = np.nonzero(made[:, :, 0] > 200)
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], scale * (x, y) + shift, atol=1.5)


def test_the_class_of_a_person_comes_from_the_files_names_or_is_said() -> None:
    outputs = ultralytics()
    outputs["output0"][:, [4, 6]] = outputs["output0"][:, [6, 4]]  # people are class 2 now
    assert detector(graph(outputs)).person == 0
    by_names = detector(graph(outputs), classes={0: "car", 1: "dog", 2: "Person"})
    assert by_names.person == 2
    assert_people(by_names(BLANK))
    assert_people(detector(graph(outputs), person=2)(BLANK))
    with pytest.raises(EngineError, match=r"a class 'person', got a\.onnx with car, dog"):
        detector(graph(outputs), classes={0: "car", 1: "dog"})
    with pytest.raises(EngineError, match="and a class 99, got output0 float32"):
        detector(graph(outputs), person=99)


def test_rf_detr_that_was_trained_anew_counts_its_classes_from_0() -> None:
    outputs = rf_detr()
    outputs["labels"] = outputs["labels"][:, :, 1:5]
    assert detector(graph(outputs)).person == 0
    assert_people(detector(graph(outputs))(BLANK))


def changed(make: Callable[[], dict[str, NDArray]], name: str, value: Callable[[NDArray], NDArray]) -> dict:
    outputs = make()
    outputs[name] = value(outputs[name])
    return outputs


@pytest.mark.parametrize(
    ("outputs", "changes", "says"),
    [
        ({"feature": np.zeros((1, 512), np.float32)}, {}, r"known layout \(rf-detr.*got feature float32 \(1, 512\)"),
        ({"output0": np.zeros((1, 3 * 336, 85), np.float32)}, {}, "looks like YOLOv5 with its anchors"),
        (changed(yolox, "output", lambda one: 30 * one), {}, "scores from .* taken for yolox"),
        (changed(detr, "boxes", lambda one: one * np.nan), {}, "finite boxes"),
        (yolox(), {"layout": "rf-detr"}, "outputs of the layout 'rf-detr'.*Leave the layout out"),
        (yolox(), {"size": (64, 64)}, r"expected size \(128, 128\).*Leave it out"),
        (yolox(), {"size": (100, 100)}, "multiples of 32"),
    ],
)
def test_what_is_no_detector_is_refused_in_one_line(outputs: dict, changes: dict, says: str) -> None:
    with pytest.raises(EngineError, match=says) as refused:
        detector(graph(outputs), **changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([GraphInput(name="x", shape=(1, 128, 128, 3), dtype=np.float32)], "channels come last"),
        ([GraphInput(name="x", shape=(1, 3, 128, 128), dtype=np.uint8)], "expected an input of float32 or float16"),
        ([GraphInput(name="x", shape=(1, 16000), dtype=np.float32)], r"one picture as its input, got x .*\(1, 16000\)"),
        (
            [GraphInput(name="x", shape=(8, 3, 128, 128), dtype=np.float32)],
            r"expected an input \(1, 3, height, width\)",
        ),
    ],
)
def test_other_inputs_are_refused(inputs: list[GraphInput], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        detector(Graph(inputs=tuple(inputs), outputs=("y",), backend="none", fix=graph(yolox()).fix))


def test_what_is_no_picture_is_refused_as_by_the_detector_that_ships() -> None:
    with pytest.raises(ImageError, match="expected a picture"):
        detector(graph(yolox()))(np.zeros((5, 5), np.uint8))


def write(path: Path, outputs: dict[str, NDArray], *, size: int | str, half: bool, names: str = "") -> Path:
    """An ONNX file that gives these outputs, after a look at the picture so that no input is unused."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("images", kind, [1, 3, size, size])]
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Cast", ["pooled"], ["pooled32"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pooled32"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nought"], ["nothing"]),
    ]
    constants = [numpy_helper.from_array(np.float32(0), "nought")]
    told = []
    if "boxes" in outputs:
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [1, 2]))
        nodes += [
            helper.make_node("Cast", ["orig_target_sizes"], ["sizes"], to=TensorProto.FLOAT),
            helper.make_node("Tile", ["sizes", "twice"], ["sides"]),
        ]
        constants.append(numpy_helper.from_array(np.array([1, 2], np.int64), "twice"))
        outputs = {**outputs, "boxes": outputs["boxes"] / SIZE}
    for name, value in outputs.items():
        constants.append(numpy_helper.from_array(value, f"{name}_value"))
        element = helper.np_dtype_to_tensor_dtype(value.dtype)
        nodes.append(helper.make_node("Cast", ["nothing"], [f"{name}_nothing"], to=element))
        if name == "boxes":
            nodes.append(helper.make_node("Mul", ["boxes_value", "sides"], ["boxes_pixels"]))
        source = "boxes_pixels" if name == "boxes" else f"{name}_value"
        nodes.append(helper.make_node("Add", [source, f"{name}_nothing"], [name]))
        told.append(helper.make_tensor_value_info(name, element, list(value.shape)))
    made = helper.make_model(
        helper.make_graph(nodes, "detector", inputs, told, constants),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    if names:
        made.metadata_props.add(key="names", value=names)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("kind", "size", "half"),
    [("RF-DETR", SIZE, False), ("D-FINE and RT-DETR", SIZE, False), ("MMDeploy", "side", False), ("YOLOX", SIZE, True)],
)
def test_files_are_read_by_both_libraries(kind: str, size: int | str, half: bool, backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    path = write(tmp_path / "a.onnx", MADE[kind][1](), size=size, half=half)
    opened = open_detector(path, backend=backend, threads=1, size=(SIZE, SIZE))
    assert opened.backend == backend
    assert_people(opened(BLANK), atol=0.1)


def test_a_files_own_names_say_which_class_a_person_is(tmp_path: Path) -> None:
    outputs = ultralytics()
    outputs["output0"][:, [4, 6]] = outputs["output0"][:, [6, 4]]
    path = write(tmp_path / "a.onnx", outputs, size=SIZE, half=False, names="{0: 'car', 1: 'dog', 2: 'person'}")
    assert_people(open_detector(path, threads=1)(BLANK))


def test_no_file_and_our_own_file_are_the_detector_that_ships(tmp_path: Path) -> None:
    from dpm_edge.watch.detector import MODEL

    assert isinstance(open_detector(threads=1), Detector) and isinstance(open_detector(MODEL, threads=1), Detector)


def test_what_is_no_file_of_a_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(EngineError, match=r"expected a detector that .* reads, got .*bad\.onnx"):
            open_detector(tmp_path / "bad.onnx", backend=backend)
    with pytest.raises(EngineError, match="which is not there"):
        open_detector(tmp_path / "none.onnx")
    with pytest.raises(EngineError, match="Did you mean 'yolox'"):
        open_detector(tmp_path / "bad.onnx", layout="yolo-x")


def test_a_site_file_knows_the_layouts() -> None:
    assert ("auto", *LAYOUTS) == DETECTOR_LAYOUTS
