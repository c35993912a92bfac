"""`dpm-edge gallery`: from a file of embeddings to an answer, and what each command leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from oracle import rows

from dpm_edge import Embeddings, Gallery
from dpm_edge.cli import main
from dpm_edge.gallery.calibration import Band, Calibration


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["gallery", *map(str, arguments)])


def said(*arguments: object) -> dict:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def named(n: int, seed: int) -> Embeddings:
    some = rows(n, seed=seed)
    names = [f"{i % 5 + 1:04d}_c{i % 3}s1_{i:06d}_00.jpg" for i in range(n)]
    return Embeddings(**{**vars(some), "sources": names})


def test_from_embeddings_to_who_is_this(tmp_path: Path) -> None:
    place, crops, asked = tmp_path / "seen", tmp_path / "crops.safetensors", tmp_path / "q.safetensors"
    named(40, 1).save(crops)
    named(40, 1).take([7]).save(asked)
    assert said("create", place, "--model", crops)["dimension"] == 12
    assert said("add", place, crops, "--since", 100, "--quiet") == {"added": 40, "rows": 40}
    band = Band(
        low=0,
        threshold=0.9,
        true_match_rate=1,
        false_match_rate=0,
        slope=1,
        offset=0,
        decides=True,
        same=2,
        different=2,
    )
    Calibration(fingerprint="f", metric="masked", wanted_false_match_rate=0.1, bands=[band]).save(tmp_path / "c.json")
    (found,) = said("search", place, asked, "-k", 3, "--camera", "1", "--calibration", tmp_path / "c.json")
    first, second = found["matches"][:2]
    assert (first["person"], first["camera"], first["decision"]) == ("0003", "1", "same")
    assert first["similarity"] > 0.9 and first["timestamp"] == 100 and second["decision"] == "different"
    about = said("stats", place)
    assert (about["rows"], about["people"], about["cameras"]["0"]) == (40, 5, 14)
    recall = said("check-recall", place, "--keep", "-k", 2)
    assert recall["kept"] and recall["measured"][-1]["recall"] >= 0.99
    assert said("stats", place)["candidates_per_place"] * 2 == recall["candidates"]
    assert said("forget", place, "0002") == {"forgotten": 8, "rows": 32}
    assert call("snapshot", place, tmp_path / "copy").exit_code == 0
    assert call("snapshot", place, tmp_path / "all.parquet").exit_code == 0
    assert said("expire", place, "--camera", "1", "--retain", 60)["expired"] > 0
    assert said("stats", tmp_path / "copy")["rows"] == 32
    assert said("add", place, tmp_path / "all.parquet")["added"] == 32


def test_a_search_that_finds_nothing_says_so(tmp_path: Path) -> None:
    place, crops = tmp_path / "seen", tmp_path / "crops.safetensors"
    named(4, 1).save(crops)
    said("create", place, "--model", crops)
    said("add", place, crops, "--quiet")
    result = call("search", place, crops, "--camera", "nowhere")
    assert result.exit_code == 0 and result.output.count("no row that the filters let through") == 4


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for arguments, says in (
        (["stats", tmp_path / "nothing"], "expected a gallery in"),
        (["stats", "redis://x/y"], "expected a folder, milvus"),
        (["stats", "milvus://localhost:1"], "expected a folder, milvus"),
        (["search", tmp_path, tmp_path / "none.safetensors"], "expected an embeddings file"),
    ):
        result = call(*arguments)
        assert result.exit_code == 1 and says in result.output and "Traceback" not in result.output


def test_numbers_reach_json(tmp_path: Path) -> None:
    rows(3).save(tmp_path / "e.safetensors")
    said("create", tmp_path / "g", "--model", tmp_path / "e.safetensors")
    said("add", tmp_path / "g", tmp_path / "e.safetensors", "--camera", "gate")
    found = said("search", tmp_path / "g", tmp_path / "e.safetensors", "-k", 9)
    assert [len(one["matches"]) for one in found] == [3, 3, 3]
    assert found[0]["matches"][0]["timestamp"] is None and found[0]["matches"][0]["camera"] == "gate"
    assert np.isfinite(found[0]["matches"][0]["similarity"])


def folders(tmp_path: Path) -> Path:
    """An embeddings file of pictures in PERSON/CAMERA folders."""
    sources = [f"people/{person}/{camera}/{i}.jpg" for i, (person, camera) in enumerate(PLACES)]
    file = tmp_path / "e.safetensors"
    Embeddings(**{**vars(rows(len(PLACES))), "sources": sources}).save(file)
    return file


PLACES = [("anna", "gate"), ("anna", "yard"), ("ben", "gate"), ("ben", "yard")]


def test_person_and_camera_folders_name_the_rows(tmp_path: Path) -> None:
    file = folders(tmp_path)
    said("create", tmp_path / "g", "--model", file)
    said("add", tmp_path / "g", file)
    about = said("stats", tmp_path / "g")
    assert (about["people"], about["cameras"]) == (2, {"gate": 2, "yard": 2})


def test_layout_none_makes_nobody_known(tmp_path: Path) -> None:
    file = folders(tmp_path)
    said("create", tmp_path / "g", "--model", file)
    said("add", tmp_path / "g", file, "--layout", "none")
    about = said("stats", tmp_path / "g")
    assert (about["people"], about["cameras"]) == (0, {"": 4})


def test_an_unknown_layout_offers_the_nearest(tmp_path: Path) -> None:
    file = folders(tmp_path)
    said("create", tmp_path / "g", "--model", file)
    result = call("add", tmp_path / "g", file, "--layout", "camera")
    assert result.exit_code == 1 and "Did you mean 'cameras'" in result.output


def test_match_reads_person_and_camera_folders(tmp_path: Path) -> None:
    file = folders(tmp_path)
    result = CliRunner().invoke(main, ["match", str(file), str(file), "-k", "4", "--exclude-same-camera", "--json"])
    (first, *_) = json.loads(result.stdout)
    assert {one["camera"] for one in first["matches"]} == {"yard"}
    assert {one["person"] for one in first["matches"]} == {"anna", "ben"}


def test_a_person_can_be_named_for_all_rows(tmp_path: Path) -> None:
    rows(3).save(tmp_path / "e.safetensors")
    said("create", tmp_path / "g", "--model", tmp_path / "e.safetensors")
    said("add", tmp_path / "g", tmp_path / "e.safetensors", "--person", "anna")
    assert said("forget", tmp_path / "g", "anna") == {"forgotten": 3, "rows": 0}


def test_forgetting_nobody_fails_and_offers_the_nearest_name(tmp_path: Path) -> None:
    rows(3).save(tmp_path / "e.safetensors")
    said("create", tmp_path / "g", "--model", tmp_path / "e.safetensors")
    said("add", tmp_path / "g", tmp_path / "e.safetensors", "--person", "anna")
    result = call("forget", tmp_path / "g", "Anna")
    assert result.exit_code == 1 and "no row was removed. Did you mean 'anna'?" in result.output
    assert said("stats", tmp_path / "g")["rows"] == 3


def test_a_probable_stranger_is_explained_on_stderr(tmp_path: Path) -> None:
    file = folders(tmp_path)
    said("create", tmp_path / "g", "--model", file)
    said("add", tmp_path / "g", file)
    band = {"low": 0, "true_match_rate": 1, "false_match_rate": 0, "slope": 0, "same": 2, "different": 2}
    sure = Band(**band, threshold=2.0, offset=3.0, decides=True)  # type: ignore[arg-type]
    Calibration(fingerprint="f", metric="masked", wanted_false_match_rate=0.1, bands=[sure]).save(tmp_path / "c.json")
    result = call("search", tmp_path / "g", file, "-k", 1, "--calibration", tmp_path / "c.json")
    assert "0.953 different" in result.stdout and "probable and yet 'different'" in result.stderr


def test_centre_takes_the_cameras_of_queries_from_their_paths(tmp_path: Path) -> None:
    crops, asked = tmp_path / "crops.safetensors", tmp_path / "q.safetensors"
    named(40, 1).save(crops)
    named(40, 2).take([4, 7]).save(asked)
    gallery = Gallery("f", 12)
    gallery.add(named(40, 1), people=[f"{i % 5 + 1:04d}" for i in range(40)], cameras=[str(i % 3) for i in range(40)])
    want = gallery.search(named(40, 2).take([4, 7]), 3, centre=True, query_cameras=["1", "1"])
    assert (want.rows != gallery.search(named(40, 2).take([4, 7]), 3).rows).any()
    said("create", tmp_path / "seen", "--model", crops)
    said("add", tmp_path / "seen", crops, "--quiet")
    found = said("search", tmp_path / "seen", asked, "-k", 3, "--centre")
    for i, one in enumerate(found):
        assert [match["source"] for match in one["matches"]] == want.sources[i].tolist()
    line = ["match", str(asked), str(crops), "-k", "3", "--centre", "--json"]
    matched = json.loads(CliRunner().invoke(main, line).stdout)
    for i, one in enumerate(matched):
        assert [match["row"] for match in one["matches"]] == want.rows[i].tolist()
