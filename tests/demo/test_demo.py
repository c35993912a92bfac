"""The demo on small made-up people and a made-up video."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_engine

from dpm_edge.boxes import read_boxes
from dpm_edge.demo.samples import choose, read_samples, run_samples
from dpm_edge.demo.video import run_video
from dpm_edge.errors import DataError
from dpm_edge.watch.detector import Detector

LOOKS = [((200, 40, 40), (30, 30, 30)), ((40, 200, 220), (200, 200, 200)), ((60, 60, 220), (160, 80, 20))]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tiny_engine.write_engine(tmp_path / "engine")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Nine people by two cameras; the lower their number, the less of them is in sight."""
    root = tmp_path / "samples"
    lines = ["file,visible"]
    for side, camera in (("query", 1), ("bounding_box_test", 2)):
        (root / side).mkdir(parents=True)
        for person, look in enumerate(tiny_engine.people(9, seed=4), start=1):
            name = f"{side}/{person:04d}_c{camera}s1_000001_00.png"
            cv2.imwrite(str(root / name), look)
            lines.append(f"{name},{person / 10}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def video(path: Path, frames: int = 60) -> tuple[Path, Path]:
    """Three people walk to the right; the second goes behind a wall at frames 25 to 40 and comes back as track 9."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 160))
    assert writer.isOpened()
    lines = ["frame,id,x0,y0,x1,y1"]
    for number in range(frames):
        frame = np.full((160, 320, 3), 128, np.uint8)
        for index, (coat, trousers) in enumerate(LOOKS):
            x, y = 20 + 3 * number, 5 + 52 * index
            hidden = index == 1 and 25 <= number < 40
            if not hidden:
                frame[y : y + 25, x : x + 20] = coat
                frame[y + 25 : y + 45, x : x + 20] = trousers
                track = 9 if index == 1 and number >= 40 else index + 1
                lines.append(f"{number},{track},{x},{y},{x + 20},{y + 45}")
        writer.write(frame)
    writer.release()
    boxes = path.with_suffix(".csv")
    boxes.write_text("\n".join(lines))
    return path, boxes


def test_samples_are_matched_printed_and_drawn(
    engine: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_samples(tmp_path / "out", engine=engine, as_json=True, quiet=True, samples=samples)
    answer = json.loads(capsys.readouterr().out)
    assert answer["scores"]["plain"]["all"]["rank1"] == 100.0
    assert answer["scores"]["plain"]["occluded"]["queries"] == 6
    assert [q["visible"] for q in answer["queries"]] == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.3, 0.2]
    assert all(q["plain"][0]["right"] for q in answer["queries"])
    picture = cv2.imread(answer["picture"])
    assert picture is not None and picture.shape[0] > 8 * 184 and picture.shape[1] > 11 * 92
    run_samples(tmp_path / "out", engine=engine, as_json=False, quiet=True, samples=samples)
    assert "in sight" in capsys.readouterr().out


def test_engine_is_built_from_the_model_that_ships_and_used_again(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    from dpm_edge.build import portable, source

    def ship(name: str, seed: int) -> None:
        graph = onnx.load(tiny_engine.write_onnx(tmp_path / "raw.onnx", seed))
        portable.write(graph, tmp_path / name, tiny_engine.SPEC, f"{seed}" * 64)
        monkeypatch.setattr("dpm_edge.demo.default_engine.MODEL", tmp_path / name)

    monkeypatch.setattr(source, "SAMPLE_CROPS", samples)
    ship("one.onnx", 1)
    run_samples(tmp_path / "out", engine=None, as_json=True, quiet=True, samples=samples)
    manifest = tmp_path / "out" / "engine" / "manifest.json"
    first = manifest.stat().st_mtime_ns
    run_samples(tmp_path / "out", engine=None, as_json=True, quiet=True, samples=samples)
    assert manifest.stat().st_mtime_ns == first
    ship("two.onnx", 2)
    run_samples(tmp_path / "out", engine=None, as_json=True, quiet=True, samples=samples)
    assert json.loads(manifest.read_text())["fingerprint"] == "2" * 64


def test_demo_needs_no_torch(samples: Path, tmp_path: Path) -> None:
    """From the portable ONNX to the picture in a process where the training libraries cannot be imported."""
    import onnx

    from dpm_edge.build import portable

    graph = onnx.load(tiny_engine.write_onnx(tmp_path / "raw.onnx"))
    portable.write(graph, tmp_path / "model.onnx", tiny_engine.SPEC, "1" * 64)
    script = f"""
        import sys
        from pathlib import Path
        for name in ("torch", "torchvision", "triton", "open_clip", "onnxscript", "matplotlib", "pyarrow"):
            sys.modules[name] = None
        import dpm_edge.demo.default_engine, dpm_edge.demo.samples, dpm_edge.build.pipeline
        dpm_edge.demo.default_engine.MODEL = Path({str(tmp_path / "model.onnx")!r})
        dpm_edge.build.source.SAMPLE_CROPS = dpm_edge.demo.samples.FOLDER = Path({str(samples)!r})
        from dpm_edge.cli import main
        main(["demo", "-o", {str(tmp_path / "out")!r}])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rank-1" in done.stdout and (tmp_path / "out" / "matches.png").stat().st_size > 10_000


def test_chosen_queries_are_the_most_hidden_of_different_people(samples: Path) -> None:
    read = read_samples(samples)
    chosen = choose(read, np.arange(9), 4)
    assert [int(read.query.people[i]) for i in chosen] == [4, 5, 6, 9]


def test_samples_without_labels_name_the_file(samples: Path) -> None:
    (samples / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"labels\.csv, got nothing"):
        read_samples(samples)


def test_person_behind_a_wall_is_recognised_again(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, boxes = video(tmp_path / "walk.avi")
    run_video(path, tmp_path / "out", boxes=boxes, engine=engine, threshold=0.5, as_json=True, quiet=True)
    answer = json.loads(capsys.readouterr().out)
    assert [[t["track"] for t in p["tracks"]] for p in answer["people"]] == [["1"], ["2", "9"], ["3"]]
    assert answer["frames"] == 60 and answer["ended_early"] is None
    again = cv2.VideoCapture(answer["annotated"])
    assert sum(1 for _ in iter(lambda: again.read()[0], False)) == 60
    assert json.loads((tmp_path / "out" / "identities.json").read_text()) == answer


def test_video_that_ends_in_the_middle_of_a_frame_is_reported_and_kept(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, boxes = video(tmp_path / "walk.avi")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    run_video(path, tmp_path / "out", boxes=boxes, engine=engine, threshold=0.5, as_json=True, quiet=True)
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert 10 < answer["frames"] < 60 and "ended early" in answer["ended_early"]
    assert "ended early" in said.err
    assert (tmp_path / "out" / "annotated.mp4").stat().st_size > 1000


def test_what_is_no_video_is_refused(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "x.avi").write_bytes(b"RIFF nothing")
    with pytest.raises(DataError, match="not a video"):
        run_video(
            tmp_path / "x.avi", tmp_path / "o", boxes=None, engine=engine, threshold=None, as_json=True, quiet=True
        )


def test_a_person_who_left_too_soon_to_be_recognised_is_nobody(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, boxes = video(tmp_path / "walk.avi")
    lines = [line for line in boxes.read_text().splitlines() if line.split(",")[1] != "3" or line[:2] in ("3,", "4,")]
    boxes.write_text("\n".join(lines))
    run_video(path, tmp_path / "out", boxes=boxes, engine=engine, threshold=0.5, as_json=True, quiet=True)
    answer = json.loads(capsys.readouterr().out)
    assert [[t["track"] for t in p["tracks"]] for p in answer["people"]] == [["1"], ["2", "9"]]


def test_an_id_that_is_used_again_is_compared_anew(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Track 2 comes back after a second and a half as the person whom it showed before."""
    path, boxes = video(tmp_path / "walk.avi")
    boxes.write_text(boxes.read_text().replace(",9,", ",2,"))
    run_video(path, tmp_path / "out", boxes=boxes, engine=engine, threshold=0.5, as_json=True, quiet=True)
    answer = json.loads(capsys.readouterr().out)
    assert [[t["track"] for t in p["tracks"]] for p in answer["people"]] == [["1"], ["2", "2"], ["3"]]
    again = answer["people"][1]["tracks"][1]
    assert again["state"] == "known" and again["probability"] >= 0.5 and again["from_s"] == 4.0


def test_without_boxes_the_detector_that_ships_finds_people(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Painted rectangles are no people for it, so its boxes are made up here; the rest is the application's own."""
    path, boxes = video(tmp_path / "walk.avi")
    frames = read_boxes(boxes).of_video(60)[0]
    number = iter(range(60))

    def find(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        here = frames[next(number)].boxes
        return here.astype(np.float32), np.full(len(here), 0.9, np.float32)

    monkeypatch.setattr(Detector, "load", lambda: find)
    run_video(path, tmp_path / "out", boxes=None, engine=engine, threshold=None, as_json=True, quiet=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["people_found_by"] == "the detector that ships"
    assert [len(p["tracks"]) for p in answer["people"]] == [1, 1, 1]


def test_detections_without_tracks_are_followed(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MOTChallenge's detections give every box the id -1, and count frames and pixels from 1."""
    path, boxes = video(tmp_path / "walk.avi", frames=20)
    lines = [line.split(",") for line in boxes.read_text().splitlines()[1:]]
    boxes.write_text(
        "".join(f"{int(n) + 1},-1,{int(x0) + 1},{int(y0) + 1},20,45,1,-1,-1,-1\n" for n, _, x0, y0, _, _ in lines)
    )
    run_video(path, tmp_path / "out", boxes=boxes, engine=engine, threshold=0.5, as_json=True, quiet=True)
    said = capsys.readouterr()
    assert len(json.loads(said.out)["people"]) == 3
    assert "followed by their movement" in said.err and "count from 1" in said.err


def test_annotated_video_that_the_disk_has_no_room_for_is_an_error(engine: Path, tmp_path: Path) -> None:
    path, boxes = video(tmp_path / "walk.avi", frames=12)
    script = f"""
        import resource
        from pathlib import Path
        from dpm_edge.cli import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        main(["demo", "--video", {str(path)!r}, "--boxes", {str(boxes)!r}, "--engine", {str(engine)!r},
              "-o", {str(tmp_path / "out")!r}])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 1 and "expected 12 frames in" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
