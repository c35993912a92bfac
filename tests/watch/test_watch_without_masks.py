"""Watching with another project's network, which has no masks and no visibility."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner
from numpy.typing import NDArray
from stand_ins import NearestTracker, find_squares, make_seeing, scene, walk, write_scenes

from dpm_edge import Engine, Gallery
from dpm_edge.cli import main
from dpm_edge.gallery.calibration import calibrate
from dpm_edge.spec import foreign_spec
from dpm_edge.watch import seeing as seeing_module
from dpm_edge.watch.evidence import FIRST_WEIGHT
from dpm_edge.watch.identities import Identities
from dpm_edge.watch.seeing import Seeing
from dpm_edge.watch.sharpness import sharpness
from dpm_edge.watch.site_config import CameraConfig, OutputConfig, Site
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.watch_site import WatchSite

D = 64


@pytest.fixture
def engine_folder(tmp_path: Path) -> Path:
    """An engine of a network without masks."""
    spec = foreign_spec("theirs", tiny_engine.SPEC.width, tiny_engine.SPEC.preprocessing, tiny_engine.SPEC.weights)
    return tiny_engine.write_engine(tmp_path / "engine", spec=spec)


class Crowd:
    """Identities that see made-up people without masks, or with those that another project's network was taught; all
    people have half of their looks in common."""

    def __init__(self, gallery: Gallery, *, masked: bool = False) -> None:
        self.rng = np.random.default_rng(0)
        self.common = self.rng.normal(size=D)
        self.identities = Identities(gallery, metric="masked" if masked else "plain", ours=False if masked else None)
        self.seen = (np.full((1, D), 0.5, np.float32), np.ones(1, np.float32)) if masked else ()
        self.looks: dict[str, NDArray] = {}
        self.tracks = 0

    def crop(self, person: str) -> NDArray[np.float32]:
        look = self.looks.setdefault(person, self.common + self.rng.normal(size=D))
        feature = look + 0.3 * self.rng.normal(size=D)
        return (feature / np.linalg.norm(feature)).astype(np.float32)[None]

    def together(self, start: float, *people: str) -> list[str]:
        """Show people for three seconds; the state of each at the end."""
        tracks = {person: f"{self.tracks + i}" for i, person in enumerate(people)}
        self.tracks += len(people)
        for i in range(6):
            for person, track in tracks.items():
                self.identities.observe("door", track, start + 0.5 * i, self.crop(person), *self.seen)
        made = [self.identities.end("door", track) for track in tracks.values()]
        return [one.state for one in made if one is not None]


@pytest.mark.parametrize("masked", [False, True])
def test_strangers_are_learned_from_people_in_one_picture_before_anybody_is_recognised(masked: bool) -> None:
    crowd = Crowd(Gallery("theirs", D), masked=masked)
    assert crowd.together(0, "anna") == crowd.together(100, "anna") == ["unknown"]
    several = [f"person {i}" for i in range(7)]
    assert FIRST_WEIGHT <= 7 * 6 / 2
    assert set(crowd.together(200, *several)) == {"unknown"}
    assert crowd.together(300, "person 3") == ["known"]
    assert crowd.together(400, "somebody new") == ["unknown"]


def test_a_calibration_of_the_gallery_recognises_without_people_seen_together() -> None:
    gallery, rng = Gallery("theirs", D), np.random.default_rng(0)
    same = rng.random(5000) < 0.3
    scores = np.where(same, 0.95, 0.5) + 0.05 * rng.standard_normal(5000)
    gallery.use_calibration(calibrate(scores, same, None, fingerprint="theirs", metric="plain"))
    crowd = Crowd(gallery)
    assert [crowd.together(0, "anna"), crowd.together(100, "ben"), crowd.together(200, "anna")] == [
        ["unknown"], ["unknown"], ["known"],
    ]  # fmt: skip


def test_the_rows_of_a_track_have_no_visibility() -> None:
    gallery = Gallery("theirs", D)
    identities = Crowd(gallery).identities
    for i in range(3):
        identities.observe("door", "1", 0.5 * i, np.eye(1, D, dtype=np.float32))
    pooled = identities.pooled("door", "1")
    assert pooled is not None and pooled.visibility is None
    identities.end("door", "1")
    assert gallery.rows().visibility is None and len(gallery) == 3


def test_tracks_events_and_the_search_have_no_visibility(tmp_path: Path, engine_folder: Path) -> None:
    video = write_scenes(tmp_path / "a.avi", walk("red", 12))
    output = OutputConfig(name="all", kind="jsonl", path=tmp_path / "events", vectors=True)
    site = Site(cameras=(CameraConfig(name="a", source=str(video), start=1000.0),), outputs=(output,), thumbnails=True)
    with (
        Engine.load(engine_folder) as engine,
        WatchStore(":memory:", run="") as store,
        WatchSite(site, store) as watch,
    ):
        gallery = Gallery.for_engine(engine)
        watch.run(
            Seeing(
                detector=find_squares,
                make_tracker=lambda rate: NearestTracker(),
                engine=engine,
                gallery=gallery,
                identities=Identities(gallery, metric="plain"),
            )
        )
        assert watch.deliveries[0].drain(10) == 0
        (track,) = store.tracks()
        assert track.visibility is None and track.identity is not None
        assert store.thumbnail(track.identity) is not None
        found = watch.search(scene(("red", 100, 200)))
        assert found["visibility"] is None and found["masked"] == []
        assert [one["identity"] for one in found["plain"]] == [track.identity]
    vectors = [json.loads(line)["vector"] for line in (tmp_path / "events").read_text().splitlines()]
    assert [one["visibility"] for one in vectors] == [None, None]
    assert len(base64.b64decode(vectors[0]["feature"])) == 4 * tiny_engine.SPEC.width


def test_the_application_opens_such_an_engine_with_the_plain_metric(engine_folder: Path) -> None:
    with Engine.load(engine_folder) as engine:
        gallery = Gallery.for_engine(engine)
        opened = seeing_module.open_seeing(Site(), engine, gallery, threads=1)
        for i in range(3):
            found = engine.embed([scene(("red", 100, 200))])
            opened.identities.observe(
                "door", "1", 0.5 * i, found.features, found.masks, found.visibility, np.ones(1, np.float32)
            )
        opened.identities.end("door", "1")
        assert gallery.rows().visibility is None


def test_the_command_takes_such_an_engine(tmp_path: Path, engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing_module, "open_seeing", lambda *_, **__: make_seeing())
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "a.avi", walk("red", 8))
    done = CliRunner().invoke(main, ["watch", "a.avi", "--no-page", "--engine", str(engine_folder)])
    assert done.exit_code == 0 and "2 events" in done.stderr, done.output


def test_a_blurred_crop_is_less_sharp() -> None:
    rng = np.random.default_rng(0)
    sharp = cv2.resize(rng.integers(0, 255, (32, 16, 3), np.uint8), (64, 128), interpolation=cv2.INTER_CUBIC)
    values = [sharpness(cv2.GaussianBlur(sharp, (0, 0), s) if s else sharp, (-5, 0, 64, 200)) for s in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] > 2 * values[-1] and values[-1] >= 0
    along = cv2.GaussianBlur(sharp, (31, 1), 4)  # moved sideways while the shutter was open
    assert sharpness(along, (0, 0, 64, 128)) < values[1]
    assert sharpness(sharp, (10, 10, 10, 60)) == 0.0
