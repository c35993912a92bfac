"""docs/runtime.md: its example runs as it stands, and the files that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_engine

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")


def test_the_example_runs_and_says_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_engine.write_engine(tmp_path / "engine")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(example, names)
    people = names["people"]
    assert people.rows.tolist() == [0, 1] and people.skipped[0][0] == 2
    assert people.skipped[0][1].startswith("expected x1 > x0 and y1 > y0, got box [5.0, 5.0, 5.0, 90.0]")
    assert (people.features[0] == names["same"].features[0]).all()
    assert len(names["both"]) == 3 and set(names["clear"].rows) <= {0, 1}
    assert repr(people).startswith("Embeddings(2 × ") and repr(people).endswith("…, 1 skipped)")


def test_files_that_the_page_names_exist() -> None:
    for name in re.findall(r"`(dpm_edge/[\w/.]+)`", PAGE):
        assert (ROOT / name).exists(), name
