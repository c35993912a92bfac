"""The commands as a user runs them, on the tiny network and on small folders."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner, Result

from dpm_edge import Embeddings, Gallery
from dpm_edge import cli as cli_package
from dpm_edge.cli import main
from dpm_edge.cli.commands import COMMANDS
from dpm_edge.cli.doctor import ABILITIES


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tiny_engine.write_engine(tmp_path / "engine")


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """Ten people, each one colour pattern; a query by camera 1, gallery by cameras 1 and 2, junk, a corrupt file."""
    looks = tiny_engine.people(10, seed=7)
    for side in ("query", "bounding_box_test"):
        (tmp_path / "market" / side).mkdir(parents=True)
    for person, look in enumerate(looks, start=1):
        dim = (look * 0.9).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"market/query/{person:04d}_c1s1_000001_00.png"), look)
        cv2.imwrite(str(tmp_path / f"market/bounding_box_test/{person:04d}_c1s1_000009_00.png"), look)
        if person != 10:
            cv2.imwrite(str(tmp_path / f"market/bounding_box_test/{person:04d}_c2s1_000002_00.png"), dim)
    cv2.imwrite(str(tmp_path / "market/bounding_box_test/-1_c2s1_000003_00.png"), looks[0])
    (tmp_path / "market/bounding_box_test/0001_c2s1_000004_00.jpg").write_bytes(b"\xff\xd8 not a picture")
    return tmp_path / "market"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_of_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"dpm-edge {command}" in result.output.split("Example:")[1]


def test_eval_counts_and_scores(engine: Path, market: Path) -> None:
    result = run("eval", engine, market, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert set(answer["metrics"]) == {"plain", "masked", "mutual"} and answer["skipped"] == 1
    plain = answer["metrics"]["plain"]
    assert plain["queries"] == 9 and plain["queries_without_match"] == 1
    assert plain["dropped_junk"] == 1 and plain["dropped_same_camera"] == 10
    assert plain["rank1"] == 100.0 and plain["mAP"] == 100.0
    assert "0001_c2s1_000004_00.jpg" in result.stderr
    text = run("eval", engine, market, "--metric", "masked", "--quiet")
    assert "masked" in text.stdout and "9 queries counted, 1 without a match" in text.stdout


def test_eval_of_a_model_that_ships_goes_by_its_name(market: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    result = run("eval", "dpm-n", market, "--metric", "plain", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["metrics"]["plain"]["queries"] > 0, result.stderr
    missing = run("eval", "dpm-m", market)
    assert missing.exit_code == 1 and "at dpm-m, got nothing" in missing.stderr


def test_eval_of_a_folder_of_no_layout_says_what_it_holds(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "holiday").mkdir(parents=True)
    result = run("eval", engine, tmp_path / "pictures")
    assert result.exit_code == 1 and "which holds holiday" in result.stderr
    assert "Traceback" not in result.output


def own_cameras(market: Path, out: Path) -> Path:
    """The readable pictures of known people, as query/ and gallery/ of PERSON/CAMERA/."""
    for side, name in (("query", "query"), ("bounding_box_test", "gallery")):
        for path in (market / side).iterdir():
            person, camera = path.name.split("s1_")[0].split("_c")
            if int(person) > 0 and path.stat().st_size > 100:
                (out / name / f"person {person}" / camera).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, out / name / f"person {person}" / camera / path.name[-10:])
    return out


def test_eval_of_own_cameras_scores_as_the_same_pictures_do_in_markets_layout(
    engine: Path, market: Path, tmp_path: Path
) -> None:
    own = own_cameras(market, tmp_path / "own")
    answers = [json.loads(run("eval", engine, data, "--json", "--quiet").stdout) for data in (market, own)]
    assert [answer["layout"] for answer in answers] == ["market", "cameras"]
    kept = ("queries", "queries_without_match", "dropped_same_camera", "rank1", "mAP")
    plain = [{name: answer["metrics"]["plain"][name] for name in kept} for answer in answers]
    assert plain[0] == plain[1]


def test_eval_of_one_picture_a_person_and_camera_is_scored(engine: Path, market: Path, tmp_path: Path) -> None:
    first = sorted((market / "query").iterdir())[:3]
    for number, path in enumerate(first):
        for camera in ("door", "yard"):
            (tmp_path / "test" / f"p{number}" / camera).mkdir(parents=True)
            shutil.copy(path, tmp_path / "test" / f"p{number}" / camera / "a.png")
    result = run("eval", engine, tmp_path, "--metric", "plain", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)["metrics"]["plain"]
    assert (scores["queries"], scores["dropped_same_camera"], scores["rank1"]) == (6, 6, 100.0)


def test_eval_by_a_named_layout_refuses_another(engine: Path, market: Path) -> None:
    result = run("eval", engine, market, "--layout", "msmt17")
    assert result.exit_code == 1 and "list_query" in result.stderr


def test_embed_then_match(engine: Path, market: Path, tmp_path: Path) -> None:
    q, g = tmp_path / "q.safetensors", tmp_path / "g.safetensors"
    assert run("embed", engine, market / "query", "-o", q, "--quiet").exit_code == 0
    result = run("embed", engine, market / "bounding_box_test", "-o", g, "--json", "--quiet")
    answer = json.loads(result.stdout)
    assert answer["rows"] == 20 and [s["row"] for s in answer["skipped"]] == [3]
    rows = json.loads(run("match", q, g, "-k", 1, "--exclude-same-camera", "--metric", "plain", "--json").stdout)
    assert len(rows) == 10
    assert all(r["matches"][0]["camera"] == "2" for r in rows)
    for row in rows[1:9]:
        assert Path(row["query"]).name[:4] == row["matches"][0]["person"]
    assert "visibility" in run("match", q, g).stdout


def test_match_reads_a_saved_gallery_and_refuses_another_models(engine: Path, market: Path, tmp_path: Path) -> None:
    q = tmp_path / "q.safetensors"
    run("embed", engine, market / "query", "-o", q, "--quiet")
    rows = Embeddings.load(q)
    gallery = Gallery(rows.fingerprint, rows.dimension)
    gallery.add(rows, people=[f"name {i}" for i in range(len(rows))])
    gallery.save(tmp_path / "gallery.safetensors")
    answer = json.loads(run("match", q, tmp_path / "gallery.safetensors", "--json", "--metric", "plain").stdout)
    assert [r["matches"][0]["person"] for r in answer] == [f"name {i}" for i in range(10)]
    Gallery("other", rows.dimension).save(tmp_path / "other.safetensors")
    result = run("match", q, tmp_path / "other.safetensors")
    assert result.exit_code == 1 and "model other" in result.stderr


def test_corrupt_jpeg_in_a_folder_is_reported_and_the_rest_done(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    for row, image in enumerate(tiny_engine.people(40)):
        cv2.imwrite(str(tmp_path / f"crops/{row:03d}.jpg"), image)
    whole = (tmp_path / "crops/017.jpg").read_bytes()
    (tmp_path / "crops/017.jpg").write_bytes(whole[: len(whole) // 2])
    result = run("embed", engine, tmp_path / "crops", "-o", tmp_path / "e.safetensors", "--quiet")
    assert result.exit_code == 0 and "39 rows, 1 skipped" in result.stdout
    assert "skipped 17" in result.stderr and "ends too early" in result.stderr
    found = Embeddings.load(tmp_path / "e.safetensors")
    assert found.rows.tolist() == [*range(17), *range(18, 40)]


def test_embed_frames_of_a_boxes_file(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "frames/a.png"), frame)
    (tmp_path / "boxes.csv").write_text("frame,id,x0,y0,x1,y1\na.png,7,5,5,40,80\na.png,8,300,0,400,50\n")
    result = run(
        "embed",
        engine,
        tmp_path / "frames",
        "--boxes",
        tmp_path / "boxes.csv",
        "-o",
        tmp_path / "e.safetensors",
        "--quiet",
    )
    assert result.exit_code == 0, result.output
    found = Embeddings.load(tmp_path / "e.safetensors")
    np.testing.assert_allclose(found.features, tiny_engine.expected([frame[5:80, 5:40]])[0], atol=2e-3)
    assert found.rows.tolist() == [0] and found.skipped[0][0] == 1 and "outside" in found.skipped[0][1]
    assert found.sources[0].endswith("#frame=a.png&id=7")


def test_embed_numbered_frames_of_motchallenge(engine: Path, tmp_path: Path) -> None:
    """img1/000001.jpg is frame 1; left 6 is the sixth pixel, x0 = 5."""
    (tmp_path / "img1").mkdir()
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "img1/000001.png"), frame)
    (tmp_path / "gt.txt").write_text("1,7,6,6,35,75,1,1,1\n")
    out = tmp_path / "e.safetensors"
    result = run("embed", engine, tmp_path / "img1", "--boxes", tmp_path / "gt.txt", "-o", out, "--quiet")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(Embeddings.load(out).features, tiny_engine.expected([frame[5:80, 5:40]])[0], atol=2e-3)


@pytest.fixture
def counting_video(tmp_path: Path) -> Path:
    """Six frames; frame n, from 0, is grey of the value 40 · n."""
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for number in range(6):
        writer.write(np.full((64, 64, 3), 40 * number, np.uint8))
    writer.release()
    return tmp_path / "v.avi"


@pytest.mark.parametrize(("frames", "more"), [(range(1, 7), []), ((2, 3), ["--first-frame", 1]), ((1, 2), [])])
def test_embed_takes_each_box_from_its_own_frame(
    engine: Path, counting_video: Path, tmp_path: Path, frames: Sequence[int], more: list[object]
) -> None:
    (tmp_path / "b.csv").write_text("".join(f"{frame},a,0,0,64,64\n" for frame in frames))
    out = tmp_path / "e.safetensors"
    result = run("embed", engine, counting_video, "--boxes", tmp_path / "b.csv", *more, "-o", out, "--quiet")
    if not more and len(frames) == 2:
        assert result.exit_code == 1 and "--first-frame 0 or --first-frame 1" in result.stderr
        return
    assert result.exit_code == 0, result.output
    rows = Embeddings.load(out)
    assert [source.rpartition("frame=")[2] for source in rows.sources] == [f"{n - 1}&id=a" for n in frames]
    pictures = [np.full((64, 64, 3), 40 * number, np.uint8) for number in range(6)]
    nearest = (rows.features @ tiny_engine.expected(pictures)[0].T).argmax(axis=1)
    assert nearest.tolist() == [n - 1 for n in frames]


def test_embed_of_a_folder_with_a_name_that_is_not_utf_8_loses_nothing(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    data = cv2.imencode(".png", tiny_engine.people(1)[0])[1].tobytes()
    for name in (b"a.png", b"caf\xe9.png"):
        (tmp_path / "crops" / os.fsdecode(name)).write_bytes(data)
    out = tmp_path / "e.safetensors"
    result = run("embed", engine, tmp_path / "crops", "-o", out, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["rows"] == 2
    assert Embeddings.load(out).sources[1].endswith("caf\\xe9.png")


def test_embed_of_a_video_without_boxes_says_what_is_missing(engine: Path, tmp_path: Path) -> None:
    result = run("embed", engine, tmp_path / "street.avi", "-o", tmp_path / "e.safetensors")
    assert result.exit_code == 1 and "--boxes" in result.stderr


def test_inspect_says_what_it_is_and_whether_it_fits(engine: Path) -> None:
    good = run("inspect", engine)
    assert good.exit_code == 0 and "tiny" in good.stdout and "fits here    yes" in good.stdout
    answer = json.loads(run("inspect", engine, "--json").stdout)
    assert answer["fits"] is True and answer["backend"] == "onnxruntime"
    (engine / "model.onnx").write_bytes(b"")
    bad = run("inspect", engine)
    assert bad.exit_code == 1 and "NO" in bad.stdout and "sha256 differs" in bad.stdout


def test_doctor_answers_in_text_and_json() -> None:
    assert "OpenVINO engines" in run("doctor").stdout
    answer = json.loads(run("doctor", "--json").stdout)
    assert answer["machine"]["cores"] >= 1 and any(a["can"] for a in answer["abilities"])


def test_doctor_has_a_row_for_every_extra() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {extra for _, _, extra in ABILITIES} == set(project["optional-dependencies"]) - {"dev", "docs"}


def test_doctor_names_opencv_builds_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "overwrite" not in run("doctor").stdout
    monkeypatch.setattr("dpm_edge.env.version", lambda name: "5.0" if name.startswith("opencv-python") else None)
    assert "got opencv-python and opencv-python-headless, which overwrite" in run("doctor").stdout


def test_doctor_warns_of_extras_that_would_overwrite_the_applications_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpm_edge.env.installed", lambda name: False)
    monkeypatch.setattr("dpm_edge.env.version", lambda name: "5.0" if name == "opencv-python" else None)
    lines = {line.split("[")[1].split("]")[0]: line for line in run("doctor").stdout.splitlines() if "[" in line}
    assert "would overwrite" in lines["train"] and "would overwrite" not in lines["engines"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [(["evaluate"], "Did you mean 'eval'?"), (["gallery", "serch"], "search"), (["embed", "--box"], "--boxes")],
)
def test_unknown_command_or_option_is_answered_with_the_nearest(words: list[str], answer: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and answer in result.stderr


def test_folder_where_embeddings_are_wanted_names_the_command(engine: Path, market: Path) -> None:
    for folder, remedy in ((market, "dpm-edge embed ENGINE"), (engine, "which is an engine directory")):
        result = run("match", folder, folder)
        assert result.exit_code == 1 and "expected an embeddings file" in result.stderr and remedy in result.stderr


def test_embeddings_where_a_folder_is_wanted_are_named(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "crops.safetensors").write_bytes(b"")
    result = run("embed", engine, tmp_path / "crops.safetensors", "-o", tmp_path / "e.safetensors")
    assert result.exit_code == 1 and "expected a folder of pictures" in result.stderr and "got a file" in result.stderr


def test_traceback_is_shown_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in run("inspect", tmp_path).output
    monkeypatch.setenv("DPM_EDGE_TRACEBACK", "1")
    assert "Traceback" in run("inspect", tmp_path).stderr


def imports(path: Path) -> set[str]:
    """Files of dpm_edge/cli that a file of it imports, at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "dpm_edge.cli":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpm_edge.cli."):
            names.add((node.module or "").split(".")[2])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[2] for alias in node.names if alias.name.startswith("dpm_edge.cli.")}
    return names


def test_files_of_the_command_line_import_each_other_in_no_circle() -> None:
    folder = Path(cli_package.__file__).parent
    graph = {path.stem: imports(path) for path in folder.glob("*.py")}
    assert sum(map(len, graph.values())) > 20, "no imports found: is this test still about something?"
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_error_on_purpose_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = run("inspect", tmp_path)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and "dpm-edge build" in result.stderr


def test_reference_page_is_current() -> None:
    """In a process of its own: click keeps how a command's help option was first shown."""
    command = [sys.executable, "-m", "dpm_edge.cli.reference", "--check"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, "docs/cli.md is old: python -m dpm_edge.cli.reference"


def test_train_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpm_edge.env.installed", lambda name: False)
    for command in ("train", "explain"):
        result = run(command, "x", "y")
        assert result.exit_code == 1 and "dpm-edge[train]" in result.stderr
