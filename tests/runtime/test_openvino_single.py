"""The model for calls of one crop: when it is made, and that it gives what the model with a free batch gives."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_engine

from dpm_edge.runtime import Engine
from dpm_edge.runtime.backends.openvino import OpenVinoBackend
from dpm_edge.runtime.backends.openvino_single import CALLS, SingleCrop


def asked(single: SingleCrop, times: int = CALLS) -> object:
    """The answer to the last of so many questions."""
    return [single.model() for _ in range(times)][-1]


def test_it_is_made_once_when_it_was_asked_for_often() -> None:
    made: list[int] = []

    def compile() -> str:
        made.append(1)
        return "a model"

    single = SingleCrop(compile)
    assert asked(single, CALLS - 1) is None and not made
    assert single.model() == "a model" and asked(single) == "a model" and made == [1]
    single.close()
    assert asked(single) is None and made == [1]


def test_what_cannot_be_compiled_is_tried_once_and_left() -> None:
    tried: list[int] = []

    def compile() -> object:
        tried.append(1)
        raise RuntimeError("expected a free batch")

    single = SingleCrop(compile)
    assert asked(single) is None and asked(single) is None and tried == [1]


def test_nobody_waits_for_a_model_that_another_thread_compiles() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def compile() -> str:
        begun.set()
        assert go_on.wait(30)
        return "a model"

    single = SingleCrop(compile)
    thread = threading.Thread(target=asked, args=(single,))
    thread.start()
    assert begun.wait(30)
    assert single.model() is None
    go_on.set()
    thread.join()
    assert single.model() == "a model"


def test_features_stay_what_they_were(tmp_path: Path) -> None:
    crops = tiny_engine.people(2)
    feature, mask = tiny_engine.expected(crops)
    with Engine.load(tiny_engine.write_engine(tmp_path / "engine", "openvino"), threads=1) as engine:
        backend = engine._backend
        assert isinstance(backend, OpenVinoBackend)
        for _ in range(CALLS):
            engine.embed(crops[:1])
        backend._compiled = None
        found = engine.embed(crops[:1])
        with pytest.raises(AttributeError):
            engine.embed(crops)  # only the model for one crop is there to answer
    np.testing.assert_allclose(found.features, feature[:1], atol=2e-3)
    np.testing.assert_allclose(found.masks, mask[:1], atol=2e-3)


def test_threads_share_it_and_get_their_own_crops_back(tmp_path: Path) -> None:
    crops = tiny_engine.people(4)
    with Engine.load(tiny_engine.write_engine(tmp_path / "engine", "openvino"), threads=1) as engine:
        want = [engine.embed([crop]).features for crop in crops]
        found: list[np.ndarray] = [np.empty(0)] * len(crops)

        def work(place: int) -> None:
            found[place] = np.concatenate([engine.embed([crops[place]]).features for _ in range(40)])

        threads = [threading.Thread(target=work, args=(place,)) for place in range(len(crops))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.abs(a - b).max() > 0.01 for a, b in itertools.pairwise(want)), "four people differ"
    for got, expected in zip(found, want):
        np.testing.assert_allclose(got, np.repeat(expected, 40, 0), atol=1e-5)


def test_a_large_engine_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpm_edge.runtime.backends.openvino.MOST_BYTES", 0)
    with Engine.load(tiny_engine.write_engine(tmp_path / "engine", "openvino"), threads=1) as engine:
        assert isinstance(engine._backend, OpenVinoBackend) and engine._backend._single is None
