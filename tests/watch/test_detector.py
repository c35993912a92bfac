"""The detector: decoding against a second one written out for each position, and people on pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dpm_edge.errors import EngineError, ImageError
from dpm_edge.opencv import cv2
from dpm_edge.shipped import ASSETS
from dpm_edge.watch import detector as module
from dpm_edge.watch.detector import Detector, best_boxes, decode, fitting_size, network_input
from dpm_edge.watch.overlap import iou

SAMPLES = sorted((ASSETS / "samples" / "bounding_box_test").glob("*.jpg"))


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def detector(request: pytest.FixtureRequest) -> Detector:
    """The detector that ships, on each backend."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return Detector.load(backend=request.param, threads=1)


def decoded_one_by_one(
    scores: NDArray, bins: NDArray, size: tuple[int, int], frame: tuple[int, int], least: float
) -> list[tuple[float, list[float]]]:
    """Boxes before suppression, position by position, in plain Python with float64."""
    found, position = [], 0
    for stride in (8, 16, 32):
        for row in range(size[1] // stride):
            for column in range(size[0] // stride):
                sides = []
                for side in range(4):
                    weights = [math.exp(float(x)) for x in bins[position, 11 * side : 11 * side + 11]]
                    sides.append(stride * sum(i * w for i, w in enumerate(weights)) / sum(weights))
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                ends = [x - sides[0], y - sides[1], x + sides[2], y + sides[3]]
                scaled = [end * frame[i % 2] / size[i % 2] for i, end in enumerate(ends)]
                clipped = [min(max(end, 0.0), float(frame[i % 2])) for i, end in enumerate(scaled)]
                if scores[position] >= least:
                    found.append((float(scores[position]), clipped))
                position += 1
    assert position == len(scores)
    return sorted(found, key=lambda one: -one[0])


def test_decoding_agrees_with_one_position_at_a_time() -> None:
    rng = np.random.default_rng(0)
    size, frame = (96, 64), (400, 300)
    positions = 12 * 8 + 6 * 4 + 3 * 2
    scores = rng.random(positions).astype(np.float32)
    bins = rng.normal(0, 2, (positions, 44)).astype(np.float32)
    everything = decoded_one_by_one(scores, bins, size, frame, 0.3)
    kept: list[tuple[float, list[float]]] = []
    for one in everything:  # suppression, best first, in the plainest way
        overlaps = [iou(np.array([one[1]]), np.array([other[1]]))[0, 0] for other in kept]
        if max(overlaps, default=0) <= 0.5:
            kept.append(one)
    boxes, confidence = decode(scores, bins, size, frame, 0.3)
    np.testing.assert_allclose(confidence, [score for score, _ in kept], rtol=1e-6)
    np.testing.assert_allclose(boxes, [box for _, box in kept], atol=2e-3)
    assert 5 < len(kept) < len(everything)


def test_suppression_keeps_the_better_of_two_and_drops_empty_boxes() -> None:
    boxes = np.array([[0, 0, 10, 20], [1, 0, 11, 20], [30, 0, 40, 20], [5, 5, 5, 9]], np.float32)
    assert best_boxes(boxes, np.array([0.6, 0.9, 0.5, 0.95], np.float32)).tolist() == [1, 2]


def test_an_input_is_scaled_as_the_network_was_trained() -> None:
    picture = np.empty((64, 96, 3), np.uint8)
    picture[:] = (10, 100, 250)
    made = network_input(picture, (96, 64))
    assert made.shape == (1, 3, 64, 96) and made.dtype == np.float32
    wanted = [(10 - 103.53) / 57.375, (100 - 116.28) / 57.12, (250 - 123.675) / 58.395]
    np.testing.assert_allclose(made[0, :, 5, 7], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("frame", "size"),
    [((640, 480), (480, 352)), ((1920, 1080), (544, 320)), ((1080, 1920), (320, 544)), ((500, 500), (416, 416))],
)
def test_the_input_has_the_shape_of_the_frame(frame: tuple[int, int], size: tuple[int, int]) -> None:
    assert fitting_size(*frame) == size


def scene() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Two rendered people, whose crops they nearly fill, pasted into a wide picture; the crops' boxes."""
    canvas = np.full((480, 640, 3), 128, np.uint8)
    boxes = np.array([[60, 100, 188, 356], [400, 150, 528, 406]], np.float64)
    for path, (x0, y0, x1, y1) in zip(SAMPLES[120:122], boxes.astype(int)):
        canvas[y0:y1, x0:x1] = cv2.resize(cv2.imread(str(path)), (x1 - x0, y1 - y0))
    return canvas, boxes


def test_people_are_found_where_they_stand(detector: Detector) -> None:
    picture, there = scene()
    boxes, scores = detector(picture)
    assert boxes.dtype == scores.dtype == np.float32 and boxes.shape == (len(scores), 4)
    assert (np.diff(scores) <= 0).all()
    best = boxes[scores > 0.35]
    centres = (best[:, :2] + best[:, 2:]) / 2
    for box in there:
        assert ((centres > box[:2]) & (centres < box[2:])).all(1).any()


def test_backends_agree() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    picture, _ = scene()
    one, other = (Detector.load(backend=name, threads=1)(picture) for name in ("openvino", "onnxruntime"))
    assert len(one[0]) == len(other[0])
    np.testing.assert_allclose(one[0], other[0], atol=0.1)
    np.testing.assert_allclose(one[1], other[1], atol=1e-3)


def test_an_even_picture_holds_nobody(detector: Detector) -> None:
    boxes, scores = detector(np.full((2160, 3840, 3), 90, np.uint8))
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 2000, 3), (2000, 8, 3)])
def test_pictures_of_odd_shapes_give_an_answer(detector: Detector, shape: tuple[int, int, int]) -> None:
    boxes, scores = detector(np.zeros(shape, np.uint8))
    assert len(boxes) == len(scores)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((0, 10, 3), np.uint8),
        None,
    ],
)
def test_what_is_no_picture_is_refused(detector: Detector, image: object) -> None:
    with pytest.raises(ImageError, match="expected a picture"):
        detector(image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (400, 416)}, "multiples of 32"),
        ({"least": 0.0}, "above 0 and below 1"),
        ({"threads": 0}, "1 thread or more"),
        ({"backend": "tensorrt"}, "openvino or onnxruntime"),
        ({"path": "/nowhere/detector.onnx"}, "is not there"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Detector.load(**arguments)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_another_network_is_refused(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    (tmp_path / "damaged.onnx").write_bytes(module.MODEL.read_bytes()[:5000])
    for path in (tmp_path / "damaged.onnx", ASSETS / "dpm-t.onnx"):
        with pytest.raises(EngineError):
            Detector.load(path, backend=backend, threads=1)
