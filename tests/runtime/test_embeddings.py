"""Embeddings: validation, joining, and what is left of a file when writing it goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpm_edge import Embeddings
from dpm_edge.errors import DpmError, EmbeddingsError


def some(n: int = 5, d: int = 4, seed: int = 0, **changes: object) -> Embeddings:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, d)).astype(np.float32)
    fields = {
        "features": features / np.linalg.norm(features, axis=1, keepdims=True),
        "masks": rng.random((n, d), np.float32),
        "visibility": rng.random(n, np.float32),
        "rows": np.arange(n),
        "fingerprint": "f" * 64,
        "sources": [f"crop {i}, é\n.jpg" for i in range(n)],
    }
    return Embeddings(**{**fields, **changes})


@pytest.mark.parametrize("n", [0, 1, 7])
def test_saved_and_loaded_is_the_same(tmp_path: Path, n: int) -> None:
    one = some(n, skipped=[(9, "box is empty")])
    one.save(tmp_path / "e.safetensors")
    back = Embeddings.load(tmp_path / "e.safetensors")
    for name in ("features", "masks", "visibility", "rows"):
        np.testing.assert_array_equal(getattr(back, name), getattr(one, name))
    assert (back.sources, back.skipped, back.fingerprint) == (one.sources, one.skipped, one.fingerprint)


def test_parquet_holds_the_same_numbers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is the extra `parquet`")
    one = some(3)
    one.save(tmp_path / "e.parquet")
    table = parquet.read_table(tmp_path / "e.parquet")
    np.testing.assert_array_equal(np.stack(table["feature"].to_numpy()), one.features)
    np.testing.assert_array_equal(np.stack(table["mask"].to_numpy()), one.masks)
    assert table["source"].to_pylist() == one.sources
    assert table.schema.metadata[b"fingerprint"].decode() == one.fingerprint


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"masks": np.zeros((5, 3))}, "masks"),
        ({"visibility": np.zeros(4)}, "visibility"),
        ({"rows": np.zeros((5, 1))}, "rows"),
        ({"features": np.zeros(5)}, "features"),
        ({"sources": ["one"]}, "a source for each of 5 rows, got 1"),
        ({"masks": np.full((5, 4), np.nan)}, "NaN"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change: dict, names: str) -> None:
    with pytest.raises(EmbeddingsError, match=names):
        some(**change)


def test_take_and_join(tmp_path: Path) -> None:
    a, b = some(5), some(3, seed=1)
    joined = Embeddings.join([a, b])
    assert len(joined) == 8 and joined.sources == a.sources + b.sources
    picked = joined.take(joined.rows == 2)
    np.testing.assert_array_equal(picked.features, np.stack([a.features[2], b.features[2]]))
    with pytest.raises(EmbeddingsError, match="of one model, got those of several"):
        Embeddings.join([a, some(1, fingerprint="g")])


@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", b"PK\x03\x04", b"\xff" * 64], ids=repr)
def test_damaged_file_or_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.safetensors").write_bytes(content)
    with pytest.raises(EmbeddingsError, match="expected an embeddings file"):
        Embeddings.load(tmp_path / "e.safetensors")


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    some(50).save(tmp_path / "e.safetensors")
    data = (tmp_path / "e.safetensors").read_bytes()
    (tmp_path / "e.safetensors").write_bytes(data[:-40])
    with pytest.raises(EmbeddingsError, match="damaged"):
        Embeddings.load(tmp_path / "e.safetensors")


def test_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DpmError, match="nothing was written"):
        some().save(tmp_path / "file" / "e.safetensors")
