"""docs/serve.md: its commands and its example work as they stand."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_engine

from dpm_edge import Engine, Gallery

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx is not installed")

from served import application, serving

from dpm_edge.cli.serve import MOST_PIXELS
from dpm_edge.serve.limits import ServeLimits

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
CALLS = [line for line in PAGE.splitlines() if line.startswith("curl ")]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_call_and_the_example_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    monkeypatch.chdir(tmp_path)
    pictures = tiny_engine.people(2)
    frame = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    for name, image in {"crop": pictures[0], "other": pictures[0], "frame": frame}.items():
        cv2.imwrite(f"{name}.jpg", image)
    folder = tiny_engine.write_engine(tmp_path / "engine")
    answers: list[Any] = []
    with Engine.load(folder, threads=1) as engine, application(folder, Gallery.for_engine(engine)) as app:
        with serving(app) as address:
            for call in CALLS:
                words = shlex.split(call.replace("http://127.0.0.1:8090", address))
                done = subprocess.run(words, capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, done.stdout + done.stderr
                answers.append(json.loads(done.stdout))
            names: dict[str, Any] = {}
            exec(PYTHON[0].replace("http://127.0.0.1:8090", address), names)
        own = engine.embed(["crop.jpg"])
    assert [len(answer["rows"]) for answer in answers[:4]] == [1, 2, 2, 1]
    assert [answer["results"][0]["matches"][0]["person"] for answer in answers[4:]] == ["anna", "anna"]
    np.testing.assert_allclose(names["feature"], own.features[0], rtol=0, atol=2e-6)


def test_the_application_of_the_page_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")
    monkeypatch.chdir(tmp_path)
    tiny_engine.write_engine(tmp_path / "demo-out" / "engine")
    names: dict[str, Any] = {}
    exec(PYTHON[1], names)
    names["app"].close()
    names["engine"].close()


def test_the_limits_of_the_page_are_those_of_the_server() -> None:
    limits = ServeLimits()
    for text in (
        f"`--queue` {limits.queue}: crops", f"{limits.crops} pictures or boxes",
        f"{limits.body_seconds:g} seconds for a", f"`--largest` {limits.body_bytes // 1_000_000}: megabytes",
        f"bodies of {limits.all_bodies} times `--largest`", f"{round(MOST_PIXELS / 1e6)} million pixels",
    ):  # fmt: skip
        assert text in PAGE, text


def test_the_figures_of_the_page_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "serve-load.json").read_text(encoding="utf-8"))
    assert measured["machine"]["date"][:10] in PAGE
    for row in measured["rows"]:
        if row["how"] != "Engine.embed":
            cell = f"{row['per_second']:.0f} · {row['p50_ms']:.0f} · {row['p99_ms']:.0f} · {row['processor_ms']:.1f}"
            assert cell in next(line for line in PAGE.splitlines() if line.startswith(f"| {row['clients']} | "))
