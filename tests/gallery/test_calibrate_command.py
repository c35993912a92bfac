"""`dpm-edge calibrate` on a labelled folder, against thresholds and rates counted in plain loops of float64."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner
from oracle import scores

from dpm_edge.cli import main
from dpm_edge.gallery.calibration import Calibration

PEOPLE, CAMERAS, FMR, BANDS = 9, 4, 0.05, 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Market-1501's layout: nine people, four cameras, a distractor and a junk picture, and an engine."""
    root = tmp_path_factory.mktemp("site")
    tiny_engine.write_engine(root / "engine")
    rng = np.random.default_rng(5)
    looks = {who: rng.integers(0, 256, (4, 4, 3)) for who in (*range(1, PEOPLE + 1), 0, -1)}
    for side, each in (("query", 2), ("bounding_box_test", 5)):
        (root / "data" / side).mkdir(parents=True)
        for who, look in looks.items():
            for number in range(each if who > 0 else 3):
                camera = 1 + (number + who + (side == "query")) % CAMERAS
                small = np.clip(look + rng.normal(0, 40, look.shape), 0, 255).astype(np.uint8)
                picture = cv2.resize(small, (64, 64), interpolation=cv2.INTER_NEAREST)
                who_said = f"{who:04d}" if who >= 0 else "-1"
                cv2.imwrite(str(root / "data" / side / f"{who_said}_c{camera}s1_{number:06d}_00.png"), picture)
    for path in (root / "data" / "query").glob("0000*"), (root / "data" / "query").glob("-1*"):
        for one in path:
            one.unlink()
    return root


def centred(features: np.ndarray, cameras: list[int], rows: np.ndarray, of_rows: list[int]) -> np.ndarray:
    """Features less the mean of their camera's rows, which 20 times the mean of all rows is added to."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    site, out = unit.mean(0), []
    for f, camera in zip(features, cameras):
        own = [one for one, other in zip(unit, of_rows) if other == camera]
        moved = f / np.linalg.norm(f) - (sum(own) + 20 * site) / (len(own) + 20)
        out.append(moved / np.linalg.norm(moved))
    return np.array(out)


def counted_pairs(site: Path, centre: bool = False) -> tuple[list[float], list[bool], list[float]]:
    """Similarity, whether it is one person, and the query's visibility, of every pair that counts."""
    sides = {}
    for side in ("query", "bounding_box_test"):
        paths = sorted((site / "data" / side).iterdir())
        feature, mask = tiny_engine.expected([cv2.imread(str(path)) for path in paths])
        names = [(int(path.name.rsplit("_c")[0]), int(path.name.split("_c")[1][0])) for path in paths]
        sides[side] = feature, mask, names
    (q, m, asked), (t, _, held) = sides["query"], sides["bounding_box_test"]
    if centre:
        of_rows = [camera for _, camera in held]
        q, t = centred(q, [camera for _, camera in asked], t, of_rows), centred(t, of_rows, t, of_rows)
    s = scores(q, m, t, None, "masked")
    similarity, same, visibility = [], [], []
    for i, (person, camera) in enumerate(asked):
        for j, (other, where) in enumerate(held):
            if camera != where and other > 0:
                similarity.append(float(s[i, j]))
                same.append(person == other)
                visibility.append(float(m[i].mean() / tiny_engine.SPEC.mask_mean))
    return similarity, same, visibility


def test_thresholds_rates_table_plot_and_json(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    command = ["calibrate", str(site / "engine"), str(site / "data"), "-o", str(out), "--fmr", str(FMR)]
    command += ["--bands", str(BANDS), "--plot", "--quiet"]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    similarity, same, visibility = counted_pairs(site)
    edges = [float(np.quantile(visibility, share)) for share in (1 / 3, 2 / 3)]
    for number, band in enumerate(told["bands"]):
        here = [i for i, v in enumerate(visibility) if sum(v >= edge - 1e-6 for edge in edges) == number]
        matches = sorted(similarity[i] for i in here if same[i])
        strangers = sorted((similarity[i] for i in here if not same[i]), reverse=True)
        assert (band["same"], band["different"]) == (len(matches), len(strangers))
        allowed = math.floor(FMR * len(strangers))  # so many strangers may reach the threshold, and no more
        assert band["threshold"] == pytest.approx(strangers[allowed], abs=2e-3)
        passed = [sum(s >= band["threshold"] for s in some) / len(some) for some in (matches, strangers)]
        assert band["true_match_rate"] == pytest.approx(passed[0], abs=1.5 / len(matches))
        assert passed[1] == pytest.approx(band["false_match_rate"], abs=1.5 / len(strangers)) and passed[1] <= 1.5 * FMR
        assert band["false_match_rate"] == pytest.approx(allowed / len(strangers), abs=1e-9)
        assert band["decides"] == (band["true_match_rate"] >= 0.05)
        # the probability is a logistic fit that no other slope and offset near it beats
        best = loss(band["slope"], band["offset"], matches, strangers)
        for change in ((0.3, 0.0), (-0.3, 0.0), (0.0, 0.1), (0.0, -0.1)):
            assert best <= loss(band["slope"] + change[0], band["offset"] + change[1], matches, strangers) + 1e-6
    assert Calibration.load(out).bands[0].threshold == told["bands"][0]["threshold"]
    table = CliRunner().invoke(main, command).output.splitlines()
    assert len([line for line in table if line.strip()]) == BANDS + 1 and "threshold" in table[0]
    plot = cv2.imread(str(out.with_suffix(".png")))
    assert plot is not None and (plot.reshape(-1, 3) != 255).any(1).mean() > 0.02, "an empty picture"


def test_own_cameras_give_the_thresholds_of_the_same_pictures_in_markets_layout(site: Path, tmp_path: Path) -> None:
    for side, name in (("query", "query"), ("bounding_box_test", "gallery")):
        for path in (site / "data" / side).iterdir():
            person, camera = path.name.split("s1_")[0].rsplit("_c", 1)
            if int(person) > 0:
                folder = tmp_path / "own" / name / f"person {person}" / camera
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / path.name)
    told = []
    for data in (site / "data", tmp_path / "own"):
        command = ["calibrate", str(site / "engine"), str(data), "-o", str(tmp_path / "c.json"), "--fmr", str(FMR)]
        told.append(json.loads(CliRunner().invoke(main, [*command, "--quiet", "--json"]).stdout))
    for theirs, ours in zip(told[0]["bands"], told[1]["bands"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # sums in another order


def loss(slope: float, offset: float, matches: list[float], strangers: list[float]) -> float:
    """Cross-entropy with both classes weighted alike and Platt's targets."""

    def of(some: list[float], target: float) -> float:
        p = [1 / (1 + math.exp(-(slope * s + offset))) for s in some]
        return -sum(target * math.log(x) + (1 - target) * math.log(1 - x) for x in p) / len(p)

    return of(matches, 1 - 1 / (len(matches) + 2)) + of(strangers, 1 / (len(strangers) + 2))


def test_what_calibrate_wrote_answers_in_match_and_gallery_search(site: Path, tmp_path: Path) -> None:
    run, out = CliRunner(), tmp_path / "calibration.json"
    base = ["calibrate", str(site / "engine"), str(site / "data"), "-o", str(out), "--fmr", "0.05", "--bands", "2"]
    assert run.invoke(main, [*base, "--quiet"]).exit_code == 0
    for side, name in (("query", "q"), ("bounding_box_test", "g")):
        command = [
            "embed",
            str(site / "engine"),
            str(site / "data" / side),
            "-o",
            str(tmp_path / f"{name}.safetensors"),
        ]
        assert run.invoke(main, [*command, "--quiet"]).exit_code == 0
    q, g, place = str(tmp_path / "q.safetensors"), str(tmp_path / "g.safetensors"), str(tmp_path / "seen")
    asked = ["match", q, g, "-k", "3", "--calibration", str(out)]
    by_match = json.loads(run.invoke(main, [*asked, "--json"]).stdout)
    assert run.invoke(main, ["gallery", "create", place, "--model", g]).exit_code == 0
    assert run.invoke(main, ["gallery", "add", place, g, "--quiet"]).exit_code == 0
    kept = run.invoke(main, ["gallery", "calibration", place, str(out)])
    assert kept.exit_code == 0, kept.output
    by_gallery = json.loads(run.invoke(main, ["gallery", "search", place, q, "-k", "3", "--json"]).stdout)
    known = Calibration.load(out)
    for one, other in zip(by_match, by_gallery):
        for match, again in zip(one["matches"], other["matches"]):
            s = match["similarity"]
            assert match["probability"] == pytest.approx(float(known.probability(s, one["visibility"])), abs=2e-3)
            assert match["decision"] in ("same", "different", "too occluded to decide")
            assert (again["decision"], again["person"]) == (match["decision"], match["person"])
            assert again["probability"] == pytest.approx(match["probability"], abs=5e-3)
    text = run.invoke(main, asked).output
    assert by_match[0]["matches"][0]["decision"] in text
    people = json.loads(run.invoke(main, ["gallery", "search", place, q, "--by", "person", "--json"]).stdout)
    assert all(len({m["person"] for m in one["matches"]}) == len(one["matches"]) for one in people)


def test_mistakes_are_named(site: Path, tmp_path: Path) -> None:
    run, out = CliRunner(), str(tmp_path / "c.json")
    base = ["calibrate", str(site / "engine"), str(site / "data"), "-o", out, "--quiet"]
    few = run.invoke(main, [*base, "--fmr", "0.0001"])
    assert few.exit_code == 1 and "Label more pictures" in few.output
    lacks = run.invoke(main, ["calibrate", str(site / "engine"), str(tmp_path), "-o", out, "--quiet"])
    assert lacks.exit_code == 1 and "expected a data set in one of the layouts" in lacks.output
    assert not Path(out).exists()


def test_similarities_of_centred_features_are_calibrated_as_such(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    command = ["calibrate", str(site / "engine"), str(site / "data"), "-o", str(out), "--fmr", str(FMR), "--bands", "1"]
    done = CliRunner().invoke(main, [*command, "--centre", "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    similarity, same, _ = counted_pairs(site, centre=True)
    strangers = sorted((s for s, one in zip(similarity, same) if not one), reverse=True)
    known = Calibration.load(out)
    assert known.centred and json.loads(done.stdout)["centred"] is True
    assert known.bands[0].threshold == pytest.approx(strangers[math.floor(FMR * len(strangers))], abs=1e-2)
