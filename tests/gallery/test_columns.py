"""Columns of the store in memory against plain lists: growing, shrinking, views held, names that recur."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpm_edge.gallery.stores import memory
from dpm_edge.gallery.stores.memory import Column, TextColumn

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 700), st.floats(0, 1)), min_size=1, max_size=8)


@pytest.mark.parametrize("shape", [(), (3,), (0,)])
@settings(max_examples=25, deadline=None)
@given(steps=STEPS, view_held=st.booleans())
def test_a_column_is_a_list_of_rows(shape: tuple[int, ...], steps: list, view_held: bool) -> None:
    column, held = Column(shape, np.float16), np.empty((0, *shape), np.float16)
    rng, views = np.random.default_rng(0), []
    for add, n, share in steps:
        if add:
            new = rng.integers(1, 2000, (n, *shape)).astype(np.float32)
            column.append(new)
            held = np.concatenate([held, new.astype(np.float16)])
        else:
            at = np.flatnonzero(rng.random(len(held)) < share)
            column.keep(at)
            held = held[at]
        if view_held:
            views.append(column.rows)
        assert len(column) == len(held)
        np.testing.assert_array_equal(column.rows, held)


@pytest.mark.parametrize("view_held", [False, True])
def test_nothing_of_a_row_that_went_stays_in_the_pages(view_held: bool) -> None:
    column = Column((), np.int64)
    column.append(np.full(1000, 7))
    view = column.rows if view_held else None
    column.keep(np.arange(10))
    assert (column.rows == 7).all() and (np.frombuffer(column._map, np.int64)[10:] == 0).all()
    assert view is None or (view[10:] == 0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux grows a mapping in place")
def test_growing_moves_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    column = Column((64,), np.float32)
    column.append(np.ones((300, 64)))
    monkeypatch.setattr(Column, "_copied_map", None)  # would copy
    for _ in range(20):
        column.append(np.ones((300, 64)))
    assert len(column) == 6300 and (column.rows == 1).all()


def test_no_memory_leaves_the_column_as_it_was() -> None:
    column = Column((1 << 20,), np.float32)
    column.append(np.ones((2, 1 << 20)))
    with pytest.raises(MemoryError, match="no memory for"):
        column.reserve(1 << 40)
    assert len(column) == 2 and (column.rows == 1).all()


def test_names_come_back_and_unborne_ones_are_forgotten() -> None:
    names = TextColumn()
    names.append(["b", "a", "", "b"])
    assert names.of(np.array([3, 2, 0])) == ["b", "", "b"] and names.code("a") == 1 and names.code("z") == -1
    names.keep(np.array([0, 2]))
    assert names.of(np.arange(2)) == ["b", ""] and names.code("a") == -1 and "a" not in names._texts
    names.append(["c"])
    assert names.codes[names.code("c") == names.codes].size == 1 and names.of(np.array([2])) == ["c"]
    names.keep(np.zeros(0, np.int64))
    assert len(names.codes) == 0 and names._texts == []


def test_pieces_do_not_show() -> None:
    column = Column((), np.int32)
    column.append(np.arange(5 * memory.PIECE + 3))
    odd = np.arange(1, 5 * memory.PIECE + 3, 2)
    column.keep(odd)
    np.testing.assert_array_equal(column.rows, odd)
