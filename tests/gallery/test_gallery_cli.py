"""`dpm-edge gallery`: from a file of embeddings to an answer, and what each command leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from oracle import rows

from dpm_edge import Embeddings
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
    names = [f"{i % 5:04d}_c{i % 3}s1_{i:06d}_00.jpg" for i in range(n)]
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
    assert (first["person"], first["camera"], first["decision"]) == ("0002", "1", "same")
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


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for arguments, says in (
        (["stats", tmp_path / "nothing"], "no gallery"),
        (["stats", "redis://x/y"], "is not understood"),
        (["stats", "milvus://localhost:1"], "is not understood"),
        (["search", tmp_path, tmp_path / "none.safetensors"], "got nothing at"),
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
