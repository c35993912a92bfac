"""`--precision auto`: what is chosen from given times, that the baseline's speed is kept, and whole builds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_engine

from dpm_edge import Engine
from dpm_edge.build import AccuracyBudget, auto, build, candidate
from dpm_edge.build.auto import Candidate, choose, table
from dpm_edge.errors import BuildRefused, EngineError, SpecError
from dpm_edge.manifest import Manifest


def row(precision: str, *milliseconds: float, within: bool = True, **more: Any) -> Candidate:
    """A candidate that was timed at 1 and 8 crops."""
    return Candidate(
        precision=precision,
        milliseconds=dict(zip(("1", "8"), milliseconds)),
        cosine_mean=0.999,
        within_budget=within,
        **more,
    )


def chosen(*rows: Candidate) -> str | None:
    return next((one.precision for one in choose(rows) if one.chosen), None)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([row("fp16", 2, 8), row("int8", 1, 4)], "int8"),
        ([row("fp16", 2, 8), row("int8", 2.2, 4)], "fp16"),  # slower at one size
        ([row("fp16", 2, 8), row("int8", 1.99, 7.95)], "fp16"),  # within the noise
        ([row("fp16", 2, 8), row("int8", 1, 4, within=False)], "fp16"),
        ([row("fp16", 2, 8), row("int8", 1.5, 6), row("fp8", 1.2, 6), row("bf16", 3, 9)], "fp8"),
        ([row("fp16", 2, 8, within=False), row("bf16", 3, 9), row("fp32", 6, 20)], "bf16"),  # the baseline is no good
        ([row("fp16", 2, 8, within=False), row("int8", 1, 4, within=False)], None),
        ([row("fp16", 2, 8), row("fp8", within=False, why_not="cannot be built here")], "fp16"),
        ([row("fp16", 2, 8)], "fp16"),
    ],
)
def test_the_fastest_inside_the_budget_is_chosen(rows: list[Candidate], wanted: str | None) -> None:
    assert chosen(*rows) == wanted


def test_the_table_says_what_became_of_each() -> None:
    rows = choose(
        [row("fp16", 2, 8), row("int8", 1, 4), row("bf16", 3, 9), Candidate(precision="fp8", why_not="no crops")]
    )
    lines = table(rows).splitlines()
    assert lines[0].split() == ["precision", "1", "crops,", "ms", "8", "crops,", "ms", "cosine", "mAP", "lost"]
    assert lines[1].endswith("not faster than int8") and lines[2].endswith("chosen") and lines[4].endswith("no crops")
    assert "1.00" in lines[2] and "4.00" in lines[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_engine.write_portable(tmp_path / "model" / "tiny.onnx")


class Slow:
    """An engine of which a call takes a while longer."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.engine, self.seconds = engine, seconds

    def embed(self, images: Any) -> Any:
        time.sleep(self.seconds)
        return self.engine.embed(images)

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *what: object) -> None:
        self.engine.close()


def delays(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Let the timed engines of these precisions take so much longer."""
    load = Engine.load

    def slow(folder: Path, **arguments: Any) -> Any:
        return Slow(load(folder, **arguments), seconds[Manifest.read(folder).precision])

    monkeypatch.setattr(auto, "SECONDS", 0.5)
    monkeypatch.setattr(auto, "Engine", type("Engines", (), {"load": staticmethod(slow)}))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("seconds", "wanted"), [((0.03, 0.0), "int8"), ((0.0, 0.03), "fp32")])
def test_the_faster_engine_is_built(
    backend: str,
    seconds: tuple[float, float],
    wanted: str,
    model: Path,
    crops: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real engines, really timed; one of them made slower by a known delay."""
    delays(monkeypatch, {"fp32": seconds[0], "int8": seconds[1], "bf16": 0.06})
    manifest = build(
        model,
        tmp_path / "engine",
        backend=backend,
        precision="auto",
        calibrate=crops,
        budget=AccuracyBudget(cosine=0.9),
        progress=False,
    )
    assert manifest.precision == wanted and manifest == Manifest.read(tmp_path / "engine")
    rows = {one["precision"]: one for one in manifest.verification["candidates"]}
    assert {"fp32", "int8"} <= rows.keys() and [r["precision"] for r in rows.values() if r["chosen"]] == [wanted]
    slower = {"fp32": "int8", "int8": "fp32"}[wanted]
    assert rows[slower]["milliseconds"]["8"] - rows[wanted]["milliseconds"]["8"] > 15
    assert not (tmp_path / "engine" / "candidates").exists()
    with Engine.load(tmp_path / "engine") as engine:
        assert len(engine.embed(tiny_engine.people(3))) == 3


def test_what_is_over_the_budget_is_not_chosen_however_fast(
    model: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays(monkeypatch, {"fp32": 0.03, "int8": 0.0})
    manifest = build(
        model,
        tmp_path / "engine",
        backend="onnxruntime",
        precision="auto",
        calibrate=crops,
        budget=AccuracyBudget(cosine=0.999999),
        progress=False,
    )
    assert manifest.precision == "fp32"
    refused = next(one for one in manifest.verification["candidates"] if one["precision"] == "int8")
    assert "mean cosine of features" in refused["why_not"]


def test_without_crops_int8_is_not_tried_and_the_table_is_shown(
    model: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dpm_edge.build.source.SAMPLE_CROPS", crops)
    monkeypatch.setattr(auto, "SECONDS", 0.2)
    build(model, tmp_path / "engine", backend="onnxruntime", precision="auto")
    shown = capsys.readouterr().err
    assert "no crops to calibrate on" in shown and "chosen" in shown
    kept = json.loads((tmp_path / "engine" / "manifest.json").read_text())["verification"]["candidates"]
    assert [one["precision"] for one in kept] == ["fp32", "int8"]


def test_no_engine_inside_the_budget_is_refused_with_the_table(
    model: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "choose", lambda rows: rows)
    monkeypatch.setattr(auto, "SECONDS", 0.1)
    with pytest.raises(BuildRefused, match=r"a precision inside the accuracy budget, got none(.|\n)*fp32"):
        build(model, tmp_path / "engine", backend="onnxruntime", precision="auto", calibrate=crops, progress=False)
    assert [path.name for path in tmp_path.iterdir() if "engine" in path.name] == []


def test_a_candidate_that_cannot_be_built_is_named_and_the_baseline_must_be(
    model: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = candidate.make
    broken = {"int8"}

    def fails(folder: Path, source: Any, job: Any, precision: str) -> Manifest:
        if precision in broken:
            raise EngineError(f"this GPU computes no {precision}")
        return make(folder, source, job, precision)

    monkeypatch.setattr(candidate, "make", fails)
    monkeypatch.setattr(auto, "SECONDS", 0.1)
    arguments: dict[str, Any] = {"backend": "onnxruntime", "precision": "auto", "calibrate": crops, "progress": False}
    manifest = build(model, tmp_path / "engine", **arguments)
    assert "this GPU computes no int8" in manifest.verification["candidates"][1]["why_not"]
    broken.add("fp32")
    with pytest.raises(EngineError, match="no fp32"):
        build(model, tmp_path / "engine", **arguments)
    assert Manifest.read(tmp_path / "engine") == manifest, "the old engine stays"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch": "1:1:1,2:8:64"}, "one range of batch sizes for openvino, got 2. Give one, such as 1:8:64"),
        ({"mask_head": "plugin"}, "the backend tensorrt for --mask-head plugin, got openvino"),
        ({"mask_head": "magic"}, "got 'magic'"),
        ({"precision": "fp8"}, "a precision of openvino .*, got fp8"),
    ],
)
def test_what_a_cpu_engine_has_not_is_refused(arguments: dict, says: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=says):
        build(model, tmp_path / "engine", progress=False, **arguments)


def test_options_of_tensorrt_are_refused_elsewhere(model: Path, tmp_path: Path) -> None:
    from dpm_edge.build import PlanOptions

    with pytest.raises(SpecError, match="for --workspace, got openvino"):
        build(model, tmp_path / "engine", plan=PlanOptions(workspace=5), progress=False)
