"""`dpm-edge site init` with its real steps, killed in the middle of adapting: the same command ends what was begun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the extra train is not installed")
pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")

import tiny_engine
import toy_world as toy

from dpm_edge import Engine, Gallery
from dpm_edge.centring import CameraStatistics
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM

DRIVER = """
import sys
from dpm_edge.train.adapt import command, rounds
small = dict(rounds=4, people=4, pictures=2, passes=0.5, neighbours=6, query_neighbours=2, least=2, eps=0.5)
small["passers_by"] = 0.0
Plan = rounds.Plan
rounds.Plan = lambda **given: Plan(**{**given, **small})
command.MOST_PAIRS = 0  # an untrained network gets worse or better by chance: nothing is held out
from dpm_edge.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_site_goes_on_and_ends_with_an_engine_a_gallery_and_a_calibration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint.save(DPM(toy.TINY.replace(height=64, width_px=32)).eval(), tmp_path / "base")
    draw, seen = np.random.default_rng(0), []
    for number in range(30):
        for camera in range(2):
            folder = tmp_path / "crops" / f"camera-{camera}" / f"track-{number:02d}"
            folder.mkdir(parents=True)
            for shot in range(6):  # each track shares frames with the next one
                seen.append(folder / f"frame-{4 * number + shot:07d}.jpg")
                cv2.imwrite(str(seen[-1]), toy.person(number, camera, draw))
    old = Engine.load(tiny_engine.write_engine(tmp_path / "engine"))
    with old as engine, Gallery.for_engine(engine, tmp_path / "seen") as gallery:
        some = [str(path) for path in seen[::12]]
        gallery.add(some, people=[f"p{i}" for i in range(len(some))], cameras=["camera-0"] * len(some))
    command = [sys.executable, "-c", DRIVER, "site", "init", str(tmp_path / "shop"), str(tmp_path / "base.safetensors")]
    command += ["--crops", str(tmp_path / "crops"), "--gallery", str(tmp_path / "seen"), "--fmr", "0.05"]
    command += ["--backend", "onnxruntime", "--minutes", "30"]
    version = tmp_path / "shop" / "versions" / "0001"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (version / "adapt-resume.pt").is_file():  # the first round is over
        assert process.poll() is None, "it ended before its first round did"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (version / "adapted.safetensors").is_file() and not (tmp_path / "shop" / "current").exists()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on after round" in done.stderr
    told = json.loads(done.stdout)
    assert told["version"] == "0001" and told["rows"] == 30 and told["calibration"].startswith("by tracks")
    current = tmp_path / "shop" / "current"
    rounds = json.loads((version / "adapt.json").read_text())["rounds"]
    assert len(rounds) == 4
    with Engine.load(current / "engine") as engine, Gallery.for_engine(engine, current / "gallery") as gallery:
        assert engine.camera_statistics is not None and len(engine.camera_statistics.counts) == 2
        assert CameraStatistics.load(version / "cameras.json").fingerprint == engine.fingerprint
        found = gallery.search([str(seen[0])], 1, query_cameras=["camera-0"])
        assert found.people[0, 0] == "p0" and found.centred and found.decision[0, 0] != ""
    with Gallery.open(tmp_path / "seen") as gallery:  # what there was stays as it was
        assert len(gallery) == 30 and gallery.fingerprint == tiny_engine.FINGERPRINT
