"""Labels files: both forms, what is written, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpm_edge.errors import DataError
from dpm_edge.track_answers import read_answers, write_answers


def test_what_was_written_is_read(tmp_path: Path) -> None:
    answers = [("door/track-1", "yard/track-2", True), ('a "b", c/t', "yard/ü", False)]
    write_answers(tmp_path / "labels.csv", answers)
    assert read_answers(tmp_path / "labels.csv") == answers


def test_names_of_people_become_pairs(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("track,person\na/1,anna\na/2,bo\nb/1,anna\nb/2,anna\n")
    assert read_answers(tmp_path / "l.csv") == [("a/1", "b/1", True), ("b/1", "b/2", True), ("a/1", "a/2", False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the heading one,other,answer or track,person"),
        ("a,b\n", "got 'a,b'"),
        ("one,other,answer\na,b,same\na,b,maybe\n", "in line 3 of .*got 'a,b,maybe'. An answer is same or different"),
        ("track,person\na/1,\n", "in line 2 of .*Leave out tracks of nobody known"),
    ],
)
def test_another_form_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "l.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a labels file that can be read, got .*none\.csv"):
        read_answers(tmp_path / "none.csv")
