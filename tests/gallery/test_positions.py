"""Where an id stands in a column, against a dictionary."""

from __future__ import annotations

import time

import numpy as np
import pytest
from oracle import rows

from dpm_edge import Gallery
from dpm_edge.gallery.stores.positions import Positions


@pytest.mark.parametrize("rising", [True, False])
def test_positions_are_those_of_a_dictionary_while_the_column_grows(rising: bool) -> None:
    rng = np.random.default_rng(3)
    column = rng.choice(10_000, 500, replace=False).astype(np.int64)
    column = np.sort(column) if rising else column
    positions = Positions()
    for size in (0, 1, 1, 7, 300, 301, 500):
        wanted = rng.integers(0, 10_000, 400)
        where = {int(one): at for at, one in enumerate(column[:size])}
        expected = [where[int(one)] for one in wanted if int(one) in where]
        assert positions.find(column[:size], wanted).tolist() == expected


def test_a_column_that_stops_rising_is_still_found() -> None:
    column = np.array([3, 5, 9, 4, 1], np.int64)
    positions = Positions()
    assert positions.find(column[:3], np.array([9, 3, 8])).tolist() == [2, 0]
    assert positions.find(column[:4], np.array([4, 9])).tolist() == [3, 2]
    assert positions.find(column, np.array([1, 2, 5])).tolist() == [4, 1]


def test_rows_are_found_by_id_after_others_were_deleted() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(6), people=list("abcdef"), ids=[10, 40, 20, 60, 50, 30])
    gallery.delete([40, 60])
    gallery.add(rows(1), people=["g"], ids=[25])
    assert dict(zip([25, 30, 10], "gfa")) == {i: gallery.rows([i]).people[0] for i in (25, 30, 10)}
    assert len(gallery.rows([40, 60])) == 0


def test_a_look_up_after_add_does_not_read_the_whole_column() -> None:
    """A rebuilt index of 300,000 ids takes 30 ms and more; benchmarks/gallery_add_search.py has the figures."""
    positions, column, wanted = Positions(), np.arange(300_001, dtype=np.int64), np.array([5], np.int64)
    positions.find(column[:-1], wanted)
    spent = []
    for _ in range(5):
        positions.find(column[:-1], wanted)
        start = time.perf_counter()
        positions.find(column, wanted)
        spent.append(time.perf_counter() - start)
        positions._count -= 1
    assert min(spent) < 2e-3
