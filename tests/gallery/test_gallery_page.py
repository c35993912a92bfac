"""docs/gallery.md's first example runs as it stands, and has ten lines at most."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_engine
from oracle import scores

PAGE = Path(__file__).parents[2] / "docs" / "gallery.md"


def test_from_embeddings_to_who_is_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert example is not None and len(example[1].splitlines()) <= 10
    tiny_engine.write_engine(tmp_path / "demo-out" / "engine")
    monkeypatch.chdir(tmp_path)
    crops = tiny_engine.people(2)
    printed = []
    for _ in range(2):  # the second run opens what the first one made
        exec(compile(example[1], str(PAGE), "exec"), {"crops": crops, "unknown": crops[1]})
        printed.append(capsys.readouterr().out)
    assert [len(text.splitlines()) for text in printed] == [2, 4], "a line for each row that is there"
    assert "inf" not in "".join(printed)
    first = printed[0].splitlines()[0].split()
    feature, mask = tiny_engine.expected([crops[1]])
    wanted = scores(feature, mask, feature, None, "masked")[0, 0]
    assert first[:2] == ["ben", "gate-2"] and float(first[2]) == pytest.approx(wanted, abs=2e-3)
