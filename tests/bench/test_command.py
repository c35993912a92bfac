"""`dpm-edge bench` as a user runs it, on the tiny network, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import tiny_engine
from click.testing import CliRunner, Result

from dpm_edge.bench import results
from dpm_edge.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built engine, which holds its portable ONNX."""
    import onnx

    from dpm_edge.build import build, portable

    folder = tmp_path_factory.mktemp("bench")
    graph = onnx.load(tiny_engine.write_onnx(folder / "raw.onnx"))
    portable.write(graph, folder / "tiny.onnx", tiny_engine.SPEC, "7" * 64)
    build(folder / "tiny.onnx", folder / "engine", backend="onnxruntime", batch="1:4:8", progress=False)
    return folder / "engine"


@pytest.fixture(scope="module")
def measured(engine: Path) -> tuple[dict[str, Any], Result, Path]:
    """One small run with a rival: its JSON, its output, and the folder of its files."""
    out = engine.parent
    result = run(
        engine, "--against", "openvino", "--batch", "1,4", "--streams", "1", "--cameras", "1,2", "--seconds", "0.1",
        "--gallery", "20", "--fps", "200", "--threads", "1", "--deadline", "500", "--plot", out / "plots",
        "-o", out / "b.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return json.loads((out / "b.json").read_text()), result, out


def test_results_hold_everything_that_the_page_names(measured: tuple[dict[str, Any], Result, Path]) -> None:
    found, _, _ = measured
    assert set(found) == {"format", "settings", "machine", "conditions", "engines", "ratios"}
    assert found["format"] == 1 and found["settings"]["batches"] == [1, 4] and found["settings"]["threads"] == 1
    assert {"cpu", "cores", "libraries", "date"} <= set(found["machine"])
    wanted = {"before", "after", "others_working", "cores_working", "cores_stolen", "energy"}
    assert set(found["conditions"]) == wanted
    assert [one["name"] for one in found["engines"]] == ["onnxruntime fp32", "openvino fp32"]
    for one in found["engines"]:
        assert one["fingerprint"] == "7" * 64 and one["memory"]["resident_mb"] > 20
        assert [(cell["batch"], cell["streams"]) for cell in one["engine_only"]] == [(1, 1), (4, 1)]
        for cell in one["engine_only"]:
            assert 0 < cell["p50_ms"] <= cell["p90_ms"] <= cell["p99_ms"] and cell["crops_per_second"] > 0
        assert {run["cameras"] for run in one["end_to_end"]} == {1, 2}
        for run_ in one["end_to_end"]:
            assert run_["ids_right"] == run_["ids"], "the gallery named somebody else"
            assert run_["frames"] >= run_["refused"] and run_["sustained"] == (run_["late"] <= 0.01 * run_["frames"])
        assert [row["cameras"] for row in one["sustained"]] == [1, 2]


def test_ratios_are_the_rivals_figures_over_the_engines(measured: tuple[dict[str, Any], Result, Path]) -> None:
    found, _, _ = measured
    mine, its = (one["engine_only"][1] for one in found["engines"])
    (ratio,) = found["ratios"]
    assert ratio["name"] == "openvino fp32" and ratio["of"] == "onnxruntime fp32"
    assert ratio["engine_only"][1]["p50_ms"] == pytest.approx(its["p50_ms"] / mine["p50_ms"], rel=0.01)
    wanted = its["crops_per_second"] / mine["crops_per_second"]
    assert ratio["engine_only"][1]["crops_per_second"] == pytest.approx(wanted, rel=0.01)


@pytest.mark.slow
def test_table_and_plots_are_written(measured: tuple[dict[str, Any], Result, Path]) -> None:
    _, result, out = measured
    for line in ("engine only", "end to end", "people/frame", "× first", "energy", "memory, MB", "load average"):
        assert line in result.stdout
    assert "measurements, about" in result.stderr and "measurements, about" not in result.stdout
    for name in ("bench-latency.png", "bench-people.png"):
        picture = cv2.imread(str(out / "plots" / name))
        assert picture is not None and picture.std() > 5


def test_busy_machine_is_named(measured: tuple[dict[str, Any], Result, Path]) -> None:
    found = copy.deepcopy(measured[0])
    found["conditions"]["others_working"] = 0.4
    assert "other programs used 40% of the cores" in results.text(found)
    found["conditions"]["others_working"] = 0.05
    assert "NOT QUIET" not in results.text(found)


def test_engine_that_sustains_nothing_is_reported_and_drawn(
    measured: tuple[dict[str, Any], Result, Path], tmp_path: Path
) -> None:
    from dpm_edge.bench import plot

    found = copy.deepcopy(measured[0])
    slow = found["engines"][0]
    for run_ in slow["end_to_end"]:
        run_["sustained"] = False
        for key in ("p50_ms", "p90_ms", "p99_ms"):
            run_.pop(key, None)
    for row in slow["sustained"]:
        row |= {"people_per_frame": 0.0, "crops_per_second": 0.0, "p99_ms": None}
    found["ratios"] = results.ratios(found["engines"])
    assert found["ratios"][0]["sustained"][0]["people_per_frame"] is None
    assert "none" in results.text(found)
    assert all(path.is_file() for path in plot.draw(found, tmp_path / "new" / "plots"))


def test_json_goes_to_stdout_alone(engine: Path) -> None:
    result = run(engine, "--streams", 1, "--cameras", 1, "--seconds", 0.05, "--json", "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["ratios"] == [] and [cell["batch"] for cell in found["engines"][0]["engine_only"]] == [1, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--against", "onnxrutime"), "Did you mean 'onnxruntime'"),
        (("--against", "onnxruntime"), "got onnxruntime fp32"),
        (("--against", "openvino,openvino"), "twice"),
        (("--against", "torch"), "--checkpoint"),
        (("--batch", "16"), "1 to 8"),
        (("--batch", "0"), "1 or more"),
        (("--cameras", "2,2"), "different whole numbers"),
        (("--batch", "1;8"), "such as 1,8,32, got '1;8'"),
        (("--seconds", "0"), "above 0, got 0"),
        (("--seconds", "nan"), "above 0, got nan"),
        (("--gallery", "0"), "1 row or more"),
        (("-o", "/nowhere/b.json"), "/nowhere does not exist"),
        (("--device", "TPU"), "TPU"),
    ],
)
def test_what_cannot_be_measured_is_refused(engine: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(engine, *arguments)
    assert result.exit_code in (1, 2) and message in result.stderr and "Traceback" not in result.output
    assert result.stdout == ""


def test_no_engine_directory_names_the_command(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1 and "dpm-edge build" in result.stderr


def test_plot_without_matplotlib_is_refused_before_anything_is_measured(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(engine, "--plot", tmp_path)
    assert result.exit_code == 1 and "dpm-edge[bench]" in result.stderr
