"""Calibration from tracks alone, against the labels that were hidden from it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner

from dpm_edge import Embeddings, Gallery
from dpm_edge.centring import CameraStatistics
from dpm_edge.cli import main
from dpm_edge.demo.default_engine import open_engine
from dpm_edge.errors import DataError
from dpm_edge.gallery.calibration import Calibration, calibrate
from dpm_edge.gallery.track_pairs import CROPS, pairs_of_tracks
from dpm_edge.metrics import similarity
from dpm_edge.runtime.folder import embed_files
from dpm_edge.track_crops import cut_crops, read_track_crops, seen_together


def embeddings(features: np.ndarray) -> Embeddings:
    n = len(features)
    return Embeddings(
        features=(features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32),
        masks=np.ones_like(features, np.float32),
        visibility=np.linspace(0.3, 1, n, dtype=np.float32),
        rows=np.arange(n),
        fingerprint="f",
    )


def test_pairs_of_a_track_are_its_first_and_last_third_and_strangers_shared_a_frame() -> None:
    """Twelve tracks of six crops; each crop's feature tells its track and its place, so that pairs can be read off."""
    tracks = np.repeat(np.arange(12), 6)
    some = embeddings(np.random.default_rng(1).standard_normal((72, 16)))
    together = np.array([[a, b] for a in range(12) for b in range(a + 1, 12)][:30])
    s, same, visibility = pairs_of_tracks(some, tracks, together, metric="plain")
    assert same.sum() == 12 * 2 * 2 * 2 and (~same).sum() == 30 * 6 * 6 * 2
    f = some.features.astype(np.float64)
    want = sorted(
        float(f[6 * t + i] @ f[6 * t + j]) for t in range(12) for i in (0, 1) for j in (4, 5) for _ in range(2)
    )
    np.testing.assert_allclose(np.sort(s[same]), want, atol=1e-6)
    want = sorted(
        float(f[6 * a + i] @ f[6 * b + j]) for a, b in together for i in range(6) for j in range(6) for _ in range(2)
    )
    np.testing.assert_allclose(np.sort(s[~same]), want, atol=1e-6)
    assert set(visibility[same].tolist()) == {
        float(some.visibility[6 * t + i]) for t in range(12) for i in (0, 1, 4, 5)
    }


def test_a_long_track_counts_with_crops_evenly_spread_over_it() -> None:
    tracks = np.repeat(np.arange(12), 300)
    some = embeddings(np.random.default_rng(2).standard_normal((3600, 4)))
    together = np.array([[a, b] for a in range(12) for b in range(a + 1, 12)])
    _, same, _ = pairs_of_tracks(some, tracks, together, metric="plain")
    assert same.sum() == 12 * (CROPS // 3) ** 2 * 2 and (~same).sum() == 66 * CROPS * CROPS * 2


@pytest.mark.parametrize(("tracks", "together"), [(9, 30), (12, 19)])
def test_too_few_tracks_or_meetings_are_refused(tracks: int, together: int) -> None:
    pairs = np.array([[a, b] for a in range(tracks) for b in range(a + 1, tracks)][:together])
    with pytest.raises(DataError, match=rf"expected 10 tracks .* got {tracks} and {together}\. Give a longer video"):
        some = embeddings(np.random.default_rng(3).standard_normal((4 * tracks, 4)))
        pairs_of_tracks(some, np.repeat(np.arange(tracks), 4), pairs, metric="plain")


def test_tracks_that_share_a_frame_of_one_camera_were_seen_together() -> None:
    cameras = ["a", "a", "a", "b", "b", "a", "a"]
    tracks = np.array([0, 1, 2, 3, 4, 5, 0])
    frames = np.array([7, 7, 8, 7, 9, -1, 8])
    assert seen_together(cameras, tracks, frames).tolist() == [[0, 1], [0, 2]]
    assert seen_together(cameras[:1], tracks[:1], frames[:1]).shape == (0, 2)


def test_the_threshold_holds_among_all_strangers_whom_labels_know() -> None:
    """60 people, two tracks each, one after the other; only tracks of the same time are known to be strangers."""
    draw = np.random.default_rng(4)
    people = draw.standard_normal((60, 48))
    features, who, tracks, frames = [], [], [], []
    for track in range(120):
        person = track % 60
        look = people[person] + 0.5 * draw.standard_normal(48)
        for step in range(12):
            features.append(look + 0.5 * draw.standard_normal(48))
            who.append(person)
            tracks.append(track)
            frames.append(6 * track + step)  # each track meets the next one
    some, who_n, tracks_n = embeddings(np.array(features)), np.array(who), np.array(tracks)
    together = seen_together(["a"] * len(who), tracks_n, np.array(frames))
    s, same, visibility = pairs_of_tracks(some, tracks_n, together, metric="plain")
    found = calibrate(s, same, visibility, fingerprint="f", metric="plain", false_match_rate=0.01, bands=1, by="tracks")
    every = similarity(some.features, some.features, metric="plain")
    strangers = every[who_n[:, None] != who_n[None]]
    again = every[(who_n[:, None] == who_n[None]) & (tracks_n[:, None] != tracks_n[None])]
    assert 0.003 < (strangers >= found.bands[0].threshold).mean() < 0.03
    assert (again >= found.bands[0].threshold).mean() > 0.5


def test_the_command_calibrates_a_folder_of_tracks_and_says_so(tmp_path: Path) -> None:
    import cv2

    engine = tiny_engine.write_engine(tmp_path / "engine")
    looks, draw = tiny_engine.people(12), np.random.default_rng(5)
    for track, look in enumerate(looks):
        folder = tmp_path / "crops" / f"cam-{track % 2}" / f"track-{track}"
        folder.mkdir(parents=True)
        for frame in range(6):
            noise = draw.integers(-20, 20, look.shape)
            cv2.imwrite(str(folder / f"frame-{frame:07d}.png"), np.clip(look + noise, 0, 255).astype(np.uint8))
    command = ["calibrate", str(engine), "--tracks", str(tmp_path / "crops"), "-o", str(tmp_path / "c.json")]
    done = CliRunner().invoke(main, [*command, "--fmr", "0.05", "--bands", "1", "--centre", "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    known = Calibration.load(tmp_path / "c.json")
    assert known.by == "tracks" and known.centred and json.loads(done.stdout)["by"] == "tracks"
    assert known.bands[0].different == 2 * 15 * 6 * 6 * 2 and known.bands[0].same == 12 * 2 * 2 * 2
    Gallery.create(tmp_path / "g", known.fingerprint, tiny_engine.SPEC.dimension).close()
    kept = CliRunner().invoke(main, ["gallery", "calibration", str(tmp_path / "g"), str(tmp_path / "c.json")])
    assert "metric masked, centred, by tracks" in kept.output
    both = CliRunner().invoke(main, [*command, "--quiet", "--layout", "none"][:2] + ["-o", "x.json"])
    assert both.exit_code == 2 and "expected DATA, labelled pictures, or --tracks DIR, got neither" in both.output


VTEST = os.environ.get("DPM_EDGE_VTEST")
"""A folder with vtest.avi of OpenCV's examples (Debian package opencv-doc) and its tracks, vtest_tracks.xml."""
PEOPLE = [(1, 19), (2, 13), (3, 11), (4, 12), (5, 9), (6, 10), (7,), (8, 14, 15, 18), (16,), (17,)]
"""The video's people by their tracks, merged by eye."""


@pytest.mark.slow
@pytest.mark.skipif(VTEST is None, reason="DPM_EDGE_VTEST names no folder with vtest.avi and vtest_tracks.xml")
@pytest.mark.parametrize("centred", [False, True])
def test_on_a_real_video_strangers_reach_the_threshold_at_about_the_wanted_rate(centred: bool, tmp_path: Path) -> None:
    """The labels know every stranger, the tracks only those of one frame; the model ships."""
    with open_engine(tmp_path, None, quiet=True) as engine:
        folder = Path(str(VTEST))
        video, boxes = folder / "vtest.avi", folder / "vtest_tracks.xml"
        crops = read_track_crops(cut_crops([video], [boxes], tmp_path / "crops", every=20, quiet=True))
        some = embed_files(engine, crops.paths, quiet=True)
    tracks, cameras = crops.tracks[some.rows], [crops.cameras[row] for row in some.rows]
    if centred:
        known = CameraStatistics(fingerprint=some.fingerprint, dimension=some.dimension)
        known.add(some.features, cameras)
        some = dataclasses.replace(some, features=known.centre(some.features, cameras))
    together = seen_together(cameras, tracks, crops.frames[some.rows])
    pairs = pairs_of_tracks(some, tracks, together, metric="masked")
    found = calibrate(*pairs, fingerprint="f", metric="masked", false_match_rate=0.03, bands=1, by="tracks").bands[0]
    person = {f"vtest/track-{track}": i for i, several in enumerate(PEOPLE) for track in several}
    who = np.array([person[crops.names[track]] for track in tracks])
    s = similarity(some.features, some.features, metric="masked", query_masks=some.masks, target_masks=some.masks)
    strangers = s[who[:, None] != who[None]]
    again = s[(who[:, None] == who[None]) & (tracks[:, None] != tracks[None])]
    assert 0.015 < (strangers >= found.threshold).mean() < 0.06
    assert (again >= found.threshold).mean() > 0.3
