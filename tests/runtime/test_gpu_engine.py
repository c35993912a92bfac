"""Engines on a GPU, end to end on a fake one that executes: frames in, the CPU engine's embeddings out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import gpu_machine
import numpy as np
import pytest
import tiny_engine
from gpu_machine import Machine

from dpm_edge import Engine
from dpm_edge.errors import EngineError, ImageError

FRAME = np.random.default_rng(3).integers(0, 256, (120, 160, 3), np.uint8)
BOXES = np.array([[10, 5, 50, 100], [-20.5, -10, 30, 60], [7, 7, 7, 9], [100, 50, 900, 900], [3.2, 4.9, 80, 119.5]])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that ends without violations and with everything given back."""
    made = gpu_machine.make(tmp_path, monkeypatch)
    yield made
    assert made.cuda.violations == []
    assert set(made.cuda.alive().values()) == {0}, made.cuda.alive()


@pytest.fixture
def cpu(tmp_path: Path) -> Iterator[Engine]:
    with Engine.load(tiny_engine.write_engine(tmp_path / "cpu")) as engine:
        yield engine


@pytest.mark.parametrize("count", [0, 1, 4, 8, 9, 21])
def test_crops_give_the_networks_features_and_masks(machine: Machine, count: int) -> None:
    images = tiny_engine.people(count)
    with machine.open() as engine:
        got = engine.embed(images)
    feature, mask = tiny_engine.expected(images) if count else (np.zeros((0, 24)), np.zeros((0, 24)))
    np.testing.assert_allclose(got.features, feature, atol=2e-3)
    np.testing.assert_allclose(got.masks, mask, atol=2e-3)


def test_a_frame_cut_up_on_the_gpu_gives_what_the_cpu_gives(machine: Machine, cpu: Engine) -> None:
    wanted = cpu.embed(FRAME, BOXES)
    with machine.open() as engine:
        for frame, color in ((FRAME, "bgr"), (FRAME[:, :, ::-1], "rgb")):
            got = engine.embed(frame, BOXES, color=color)
            np.testing.assert_allclose(got.features, wanted.features, atol=2e-3)
            np.testing.assert_allclose(got.masks, wanted.masks, atol=2e-3)
            assert got.rows.tolist() == [0, 1, 3, 4] and got.skipped == wanted.skipped
    assert "cuLaunchKernel" in machine.cuda.calls


def test_small_and_large_frames_in_turn(machine: Machine, cpu: Engine) -> None:
    with machine.open() as engine:
        for height in (40, 200, 90, 201):
            frame = np.resize(FRAME, (height, 77, 3))
            boxes = [[1, 2, 60, height]]
            wanted = cpu.embed(frame, boxes).features
            np.testing.assert_allclose(engine.embed(frame, boxes).features, wanted, atol=2e-3)


def test_the_smallest_bucket_that_holds_a_call_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = gpu_machine.make(tmp_path, monkeypatch, profiles="1:1:1,2:6:20")
    spans = gpu_machine.BatchRange.parse_all("1:1:1,2:6:20")
    with machine.open(profiles=spans, batch=gpu_machine.BatchRange.whole(spans)) as engine:
        for count, bucket in ((1, 1), (2, 2), (3, 4), (5, 6), (7, 8), (9, 16), (17, 20), (20, 20)):
            before = len(machine.trt.executed)
            images = tiny_engine.people(count)
            np.testing.assert_allclose(engine.embed(images).features, tiny_engine.expected(images)[0], atol=2e-3)
            assert machine.trt.executed[before:] == [bucket]
        before = len(machine.trt.executed)
        assert len(engine.embed(tiny_engine.people(23))) == 23
        assert machine.trt.executed[before:] == [20, 4]
    assert machine.cuda.violations == []


def test_after_the_first_call_nothing_is_allocated_and_each_call_waits_once(machine: Machine) -> None:
    with machine.open() as engine, engine.hold(np.eye(24, dtype=np.float32)) as gallery:
        engine.search_on_device(FRAME, BOXES, gallery, k=3)
        engine.search_on_device(FRAME, BOXES, gallery, k=3)  # the other lane
        allocations = ("cuMemAlloc", "cuMemHostAlloc", "cuEventCreate", "cuStreamCreate", "cuGraphInstantiate")
        before = machine.cuda.count(*allocations), machine.trt.contexts
        for _ in range(5):
            for call in (
                lambda: engine.embed(FRAME, BOXES),
                lambda: engine.embed(tiny_engine.people(5)),
                lambda: engine.search_on_device(FRAME, BOXES, gallery, k=3),
            ):
                waits = machine.cuda.count("cuStreamSynchronize", "cuEventSynchronize", "cuMemcpyHtoD", "cuMemcpyDtoH")
                call()
                assert machine.cuda.count("cuStreamSynchronize") and waits + 1 == machine.cuda.count(
                    "cuStreamSynchronize", "cuEventSynchronize", "cuMemcpyHtoD", "cuMemcpyDtoH"
                )
        assert (machine.cuda.count(*allocations), machine.trt.contexts) == before


def test_many_threads_give_what_one_gives(machine: Machine) -> None:
    work = [tiny_engine.people(1 + seed % 11, seed) for seed in range(32)]
    with machine.open() as engine:
        serial = [engine.embed(images) for images in work]
        results = tiny_engine.embedded_by_eight_threads(engine, work)
    assert len(results) == len(work)
    for index, one in enumerate(serial):
        np.testing.assert_array_equal(results[index].features, one.features)


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (5, 5), (500, 16), (500, 17), (3000, 100), (40_000, 33)])
def test_a_search_on_the_gpu_finds_what_float64_finds(machine: Machine, cpu: Engine, rows: int, k: int) -> None:
    rng = np.random.default_rng(rows)
    targets = rng.standard_normal((rows, 24))
    targets[0] = 0
    people = cpu.embed(FRAME, BOXES)
    q, m = people.features.astype(np.float64), people.masks.astype(np.float64)
    unit = targets / np.maximum(np.linalg.norm(targets, axis=1, keepdims=True), 1e-12)
    norm = np.sqrt((m * m) @ (unit * unit).T)
    wanted = np.where(norm > 0, ((q * m) @ unit.T) / np.maximum(norm, 1e-12), 0)
    with machine.open() as engine, engine.hold(targets, [f"p{i}" for i in range(rows)]) as gallery:
        got = engine.search_on_device(FRAME, BOXES, gallery, k=k)
    best = -np.sort(-wanted, axis=1)[:, :k]
    np.testing.assert_allclose(got.similarity, best, atol=3e-3)
    named = [[int(name[1:]) for name in row] for row in got.ids]
    np.testing.assert_allclose(np.take_along_axis(wanted, np.array(named), 1), best, atol=3e-3)
    assert got.rows.tolist() == [0, 1, 3, 4] and [row for row, _ in got.skipped] == [2]
    assert all(len(set(row)) == k for row in got.ids)


def test_more_boxes_than_a_batch_are_searched_in_parts(machine: Machine) -> None:
    boxes = [[i, 0, i + 20, 100] for i in range(20)]
    rng = np.random.default_rng(0)
    with machine.open() as engine, engine.hold(rng.standard_normal((50, 24))) as gallery:
        got = engine.search_on_device(FRAME, boxes, gallery, k=2)
        alone = [engine.search_on_device(FRAME, [box], gallery, k=2) for box in boxes]
    assert got.ids == [one.ids[0] for one in alone]
    assert len(engine_rows := got.rows) == 20 and engine_rows.tolist() == list(range(20))


def test_a_search_says_what_it_wants(machine: Machine, cpu: Engine) -> None:
    with machine.open() as engine:
        for features, ids in ((np.ones((3, 7)), None), (np.ones((0, 24)), None), (np.ones((3, 24)), ["a"])):
            with pytest.raises(EngineError, match=r"\(G, 24\)"):
                engine.hold(features, ids)
        with engine.hold(np.ones((3, 24))) as gallery:
            for k in (0, 4):
                with pytest.raises(EngineError, match="1 to 3 is wanted"):
                    engine.search_on_device(FRAME, BOXES, gallery, k=k)
            with pytest.raises(EngineError, match=r"runs on CPU.*Gallery\.search"):
                cpu.search_on_device(FRAME, BOXES, gallery)
            assert engine.search_on_device(FRAME, [], gallery).ids == []
        gallery.close()


def test_on_a_jetson_nothing_is_copied_between_cpu_and_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Engine
) -> None:
    machine = gpu_machine.make(tmp_path, monkeypatch, integrated=True)
    with machine.open() as engine:
        got = engine.embed(FRAME, BOXES)
        images = tiny_engine.people(9)
        np.testing.assert_allclose(engine.embed(images).features, tiny_engine.expected(images)[0], atol=2e-3)
    np.testing.assert_allclose(got.features, cpu.embed(FRAME, BOXES).features, atol=2e-3)
    assert machine.cuda.count("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyHtoD") == 0
    assert machine.cuda.violations == []


def test_without_compiled_kernels_crops_are_cut_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Engine
) -> None:
    machine = gpu_machine.make(tmp_path, monkeypatch, kernels=False)
    monkeypatch.delenv("DPM_EDGE_KERNELS", raising=False)
    with machine.open() as engine, engine.hold(np.ones((3, 24))) as gallery:
        np.testing.assert_array_equal(engine.embed(FRAME, BOXES).rows, [0, 1, 3, 4])
        wanted = cpu.embed(FRAME, BOXES).features
        np.testing.assert_allclose(engine.embed(FRAME, BOXES).features, wanted, atol=2e-3)
        with pytest.raises(EngineError, match=r"python -m dpm_edge\.kernels --arch 87 .*DPM_EDGE_KERNELS=DIR"):
            engine.search_on_device(FRAME, BOXES, gallery)
    assert "cuLaunchKernel" not in machine.cuda.calls


@pytest.mark.parametrize("change", [{"color": "bgr"}, {"interpolation": "area"}])
def test_preprocessing_that_the_crop_kernel_has_not_is_done_on_the_cpu(machine: Machine, change: dict) -> None:
    import dataclasses

    pre = dataclasses.replace(tiny_engine.SPEC.preprocessing, **change)
    spec = tiny_engine.SPEC.replace(preprocessing=pre)
    # the golden crop was made with the other preprocessing: any cosine will do here
    with machine.open(spec=spec, verification={"golden_cosine": -1.0}) as engine:
        crops = [FRAME[5:100, 10:50]]
        np.testing.assert_array_equal(engine.embed(FRAME, BOXES[:1]).features, engine.embed(crops).features)
        assert "cuLaunchKernel" not in machine.cuda.calls


def test_a_call_that_fails_in_the_middle_leaves_the_next_one_right(machine: Machine) -> None:
    images = tiny_engine.people(3)
    with machine.open() as engine:
        for broken in ("cuGraphLaunch", "cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuStreamSynchronize"):
            machine.cuda.fails = broken
            with pytest.raises(EngineError, match=rf"{broken}: an illegal memory access was .*CUDA error 700"):
                engine.embed(images)
            if broken != "cuStreamSynchronize":
                assert not any(stream.queue for stream in machine.cuda.streams.values()), "work was left behind"
            for _ in range(3):
                np.testing.assert_allclose(engine.embed(images).features, tiny_engine.expected(images)[0], atol=2e-3)
        with pytest.raises(ImageError):
            engine.embed(FRAME.astype(np.float32), BOXES)


@pytest.mark.parametrize(
    "call", ["cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuGraphInstantiate", "cuEventCreate"]
)
def test_an_engine_that_cannot_be_opened_gives_everything_back(machine: Machine, call: str) -> None:
    folder = machine.engine()
    machine.cuda.fails = call
    with pytest.raises(EngineError, match=call):
        Engine.load(folder, trusted=True)
    machine.trt.fails = True
    with pytest.raises(EngineError, match="refuses to run batch 1"):
        Engine.load(folder, trusted=True)


def test_a_plan_that_cannot_be_captured_runs_without_a_graph(machine: Machine) -> None:
    machine.trt.captures = False
    images = tiny_engine.people(3)
    with pytest.warns(UserWarning, match=r"batches \[1, 2, 4, 8\] of this plan cannot be CUDA graphs"):
        engine = machine.open()
    with engine:
        np.testing.assert_allclose(engine.embed(images).features, tiny_engine.expected(images)[0], atol=2e-3)
    assert "cuGraphLaunch" not in machine.cuda.calls


def test_closing_waits_for_calls_and_refuses_later_ones(machine: Machine) -> None:
    engine = machine.open()
    with engine.hold(np.ones((2, 24))) as gallery:
        errors: list[str] = []

        def work() -> None:
            try:
                while True:
                    engine.embed(tiny_engine.people(2))
            except EngineError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        engine.close()
        for thread in threads:
            thread.join(30)
        assert len(errors) == 4 and all("is closed" in text for text in errors)
        with pytest.raises(EngineError, match="closed"):
            engine.search_on_device(FRAME, BOXES, gallery)


def test_the_golden_crop_is_run_on_the_gpu(machine: Machine) -> None:
    with pytest.raises(EngineError, match="golden crop"):
        machine.open(plan=b"plan 5")
