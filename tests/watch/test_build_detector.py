"""A detector's engine: what is written, what the check finds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from test_detector_exports import BLANK, SIZE, assert_people, ultralytics, write

from dpm_edge.cli import main
from dpm_edge.errors import BuildRefused, EngineError, SpecError
from dpm_edge.watch import build_detector as module
from dpm_edge.watch.build_detector import agreement, build_detector
from dpm_edge.watch.detector import Detector
from dpm_edge.watch.detector_engine import NAME
from dpm_edge.watch.open_detector import open_detector


@pytest.fixture(autouse=True, scope="module")
def little_timing() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "ROUNDS", 3)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of people, enough to verify on."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, frame in enumerate(module._people_together()[:4]):
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    return folder


@pytest.fixture(scope="module")
def built(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "eye"
    build_detector(out, pictures=pictures, threads=1, quiet=True)
    return out


def boxes(*rows: tuple[float, float, float, float, float]) -> tuple[NDArray, NDArray]:
    made = np.array(rows, np.float32).reshape(-1, 5)
    return made[:, :4], made[:, 4]


def test_agreement_is_counted_by_hand() -> None:
    one = [boxes((0, 0, 10, 10, 0.9), (20, 0, 30, 10, 0.41), (50, 0, 60, 10, 0.2)), boxes()]
    # the first again, a tenth narrower (overlap 0.9); the second again, too unsure; one more that the other lacks
    other = [boxes((0, 0, 9, 10, 0.8), (20, 0, 30, 10, 0.25), (70, 0, 80, 10, 0.5)), boxes((0, 0, 5, 5, 0.6))]
    assert agreement(one, other) == (1 / 2, 1 / 3)
    assert agreement(one, one) == (1.0, 1.0) and agreement([boxes()], [boxes()]) == (1.0, 1.0)
    shifted = [boxes((2, 0, 12, 10, 0.9)), boxes()]  # overlap 8/12
    assert agreement(shifted, [boxes((0, 0, 10, 10, 0.9)), boxes()]) == (0.0, 0.0)


def test_the_engine_finds_what_the_detector_that_ships_finds(built: Path) -> None:
    told = json.loads((built / NAME).read_text())
    assert told["verification"]["passed"] and told["verification"]["boxes"] >= module.FEWEST_BOXES
    assert told["candidates"][0]["found_again"] >= module.BUDGET and told["candidates"][0]["milliseconds"] > 0
    frame = module._people_together()[5]
    for mine, theirs in zip(open_detector(built, threads=1)(frame), Detector.load(threads=1)(frame)):
        np.testing.assert_array_equal(mine, theirs)
    larger = open_detector(built, threads=1, size=(640, 480))
    assert larger.size == (640, 480)


def test_an_export_of_another_project_keeps_its_layout_and_class(tmp_path: Path) -> None:
    outputs = ultralytics()
    outputs["output0"][:, [4, 6]] = outputs["output0"][:, [6, 4]]
    source = write(tmp_path / "a.onnx", outputs, size=SIZE, half=False, names="{0: 'car', 1: 'dog', 2: 'person'}")
    manifest = build_detector(tmp_path / "eye", source=source, threads=1, quiet=True, backend="onnxruntime")
    assert (manifest.layout, manifest.person, manifest.backend) == ("ultralytics", 2, "onnxruntime")
    source.unlink()
    assert_people(open_detector(tmp_path / "eye")(BLANK))


class Blurred:
    """A detector that puts every box a third of its width beside."""

    def __init__(self, detector: Detector) -> None:
        self._detector, self.size = detector, None

    def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found, scores = self._detector(image)
        return found + (found[:, 2:3] - found[:, :1]) / 3, scores


@pytest.fixture
def blurred_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose bf16 finds other boxes, and that is slower in fp32."""
    plain = module._open

    def open_(path: Path, *, backend: str, precision: str, threads: int | None) -> object:
        opened = plain(path, backend=backend, precision="fp32", threads=1)
        return opened if precision == "fp32" else Blurred(opened)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_open", open_)


def test_a_precision_that_finds_others_is_not_taken(blurred_bf16: None, pictures: Path, tmp_path: Path) -> None:
    manifest = build_detector(tmp_path / "eye", precision="auto", pictures=pictures, quiet=True)
    fp32, bf16 = manifest.candidates
    assert manifest.precision == "fp32" and not fp32.why_not
    assert bf16.found_again is not None and bf16.found_again < 0.5 and "of the boxes again" in bf16.why_not
    with pytest.raises(BuildRefused, match=r"finds the same people, got none: bf16 .* of the boxes found again"):
        build_detector(tmp_path / "other", precision="bf16", pictures=pictures, quiet=True)
    assert not (tmp_path / "other").exists()


def test_the_faster_of_two_that_find_the_same_is_taken() -> None:
    rows = [module.Candidate(precision="fp32", milliseconds=10.0), module.Candidate(precision="bf16", milliseconds=5.0)]
    assert module._choose(rows) is rows[1] and rows[0].why_not == "not faster than bf16"
    rows = [module.Candidate(precision="fp32", milliseconds=10.0), module.Candidate(precision="bf16", milliseconds=9.9)]
    assert module._choose(rows) is rows[0], "within the noise"


def test_a_folder_that_was_changed_is_refused(built: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in built.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    folder = copy("weights")
    (folder / "detector.onnx").write_bytes((folder / "detector.onnx").read_bytes() + b" ")
    with pytest.raises(EngineError, match=r"expected .*detector\.onnx as it was built, got another or none"):
        open_detector(folder)
    folder = copy("later")
    told = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**told, "format": 2}))
    with pytest.raises(EngineError, match=r"expected format 1 of .*, got 2"):
        open_detector(folder)
    (folder / NAME).write_text(json.dumps({**told, "files": {"../detector.onnx": "0"}}))
    with pytest.raises(EngineError, match="as it was built"):
        open_detector(folder)
    for text in ("", "{}", "[]", json.dumps({**told, "more": 1})):
        (folder / NAME).write_text(text)
        with pytest.raises(EngineError, match="expected a detector's engine, got"):
            open_detector(folder)
    with pytest.raises(EngineError, match="expected a detector's engine, got"):
        open_detector(tmp_path)
    with pytest.raises(EngineError, match="which says them"):
        open_detector(built, backend="openvino")


def test_other_things_stay_where_they_are(built: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SpecError, match="expected a new folder or a detector's engine to replace"):
        build_detector(tmp_path, quiet=True)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    before = (built / NAME).read_bytes()
    with pytest.raises(EngineError, match="which is not there"):
        build_detector(built, source=tmp_path / "none.onnx", quiet=True)
    assert (built / NAME).read_bytes() == before


def test_pictures_of_nobody_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((480, 640, 3), 120, np.uint8))
    with pytest.raises(EngineError, match=r"finds 10 people or more, got \d in 1 pictures"):
        build_detector(tmp_path / "eye", pictures=tmp_path, quiet=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="expected a folder with pictures"):
        build_detector(tmp_path / "eye", pictures=tmp_path / "empty", quiet=True)


def test_the_command_says_what_it_made_and_refuses_what_does_not_go_with_it(tmp_path: Path, pictures: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["build", *words, "-o", str(tmp_path / "eye"), "--quiet"])
        return result.exit_code, result.output

    code, text = run("detector", "--json", "--calibrate", str(pictures))
    assert code == 0 and json.loads(text)["layout"] == "nanodet"
    code, text = run("detector", "--calibrate", str(pictures), "--backend", "onnxruntime")
    assert code == 0 and "verified" in text and "dpm-edge watch door.mp4 --detector" in text
    code, text = run("detector", "--batch", "1")
    assert code == 2 and "--batch does not go with a detector" in text
    for words, said in (
        (("--backend", "tensorrt"), "which runs on the CPU, got 'tensorrt'"),
        (("--precision", "int8"), "got 'int8'. INT8 finds too few people"),
        (("--backend", "onnxruntime", "--precision", "bf16"), "fp32 or auto for onnxruntime"),
    ):
        code, text = run("detector", *words)
        assert code == 1 and said in text, text
