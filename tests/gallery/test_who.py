"""`dpm-edge who`: names for pictures out of a gallery."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner, Result

from dpm_edge import Engine, Gallery
from dpm_edge.cli import main
from dpm_edge.gallery.calibration import Band, Calibration
from dpm_edge.metrics import similarity

NAMES = ("anna", "ben", "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine, three pictures, and a gallery that knows two of them by name."""
    root = tmp_path_factory.mktemp("who")
    tiny_engine.write_engine(root / "engine")
    for i, crop in enumerate(tiny_engine.people(3)):
        cv2.imwrite(str(root / f"{i}.png"), crop)
    with Engine.load(root / "engine") as engine, Gallery.for_engine(engine, root / "seen") as gallery:
        gallery.add([root / f"{i}.png" for i in range(3)], people=NAMES)
    return root


def who(site: Path, *arguments: object) -> Result:
    line = ["who", *map(str, arguments), "--engine", str(site / "engine"), "--gallery", str(site / "seen")]
    return CliRunner().invoke(main, line)


def test_a_picture_gets_the_names_of_known_people_with_their_similarity(site: Path) -> None:
    result = who(site, site / "1.png", "--json")
    (one,) = json.loads(result.stdout)
    assert [match["person"] for match in one["matches"]] == ["ben", "anna"]
    feature, mask = tiny_engine.expected([cv2.imread(str(site / f"{i}.png")) for i in range(2)])
    wanted = similarity(feature[1:2], feature, query_masks=mask[1:2])[0, ::-1]
    np.testing.assert_allclose([match["similarity"] for match in one["matches"]], wanted, atol=5e-3)


def test_a_kept_calibration_adds_probability_and_decision(site: Path) -> None:
    band = Band(
        low=0, threshold=0.5, true_match_rate=1, false_match_rate=0, slope=0, offset=np.log(3), decides=True, same=2,
        different=2,
    )  # fmt: skip
    with Gallery.open(site / "seen") as gallery:
        known = Calibration(fingerprint=gallery.fingerprint, metric="masked", wanted_false_match_rate=0.1, bands=[band])
        gallery.use_calibration(known)
    try:
        assert "ben  75.0% same" in who(site, site / "1.png", "-k", 1).stdout
    finally:
        with Gallery.open(site / "seen") as gallery:
            gallery.use_calibration(None)


def test_without_a_calibration_the_way_to_probabilities_is_named(site: Path) -> None:
    assert "dpm-edge calibrate" in who(site, site / "1.png").stderr


def test_a_picture_that_cannot_be_read_is_named_and_the_rest_is_done(site: Path) -> None:
    result = who(site, site / "none.png", site / "0.png", "-k", 1)
    assert result.exit_code == 0 and "none.png" in result.stderr
    assert "0.png  anna" in result.stdout


def test_no_picture_that_can_be_read_fails(site: Path) -> None:
    result = who(site, site / "none.png")
    assert result.exit_code == 1 and "Traceback" not in result.output


def test_the_camera_of_pictures_centres_them(site: Path) -> None:
    with Engine.load(site / "engine") as engine, Gallery.for_engine(engine, site / "centred") as gallery:
        files = [site / f"{i}.png" for i in range(3)]
        gallery.add(files, people=["anna", "ben", "carl"], cameras=["gate", "gate", "hall"])
        want = gallery.search(files[1:2], 3, by="person", centre=True, query_cameras=["hall"])
    line = ["who", str(site / "1.png"), "--engine", str(site / "engine"), "--gallery", str(site / "centred"), "--json"]
    (one,) = json.loads(CliRunner().invoke(main, [*line, "--centre", "--seen-by", "hall"]).stdout)
    got = [match["similarity"] for match in one["matches"]]
    np.testing.assert_allclose(got, want.similarity[0], atol=1e-5)
    (unknown,) = json.loads(CliRunner().invoke(main, [*line, "--centre"]).stdout)
    assert not np.allclose([match["similarity"] for match in unknown["matches"]], got, atol=1e-4)
