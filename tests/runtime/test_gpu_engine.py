"""Engines on a GPU, end to end on a fake one that executes: frames in, the CPU engine's embeddings out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_machine
import numpy as np
import pytest
import tiny_engine
from gpu_machine import Machine

from dpm_edge import Embeddings, Engine, Gallery, Matches
from dpm_edge.errors import EngineError, GalleryError, ImageError, MissingLibrary
from dpm_edge.runtime.gpu import gallery_rows

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


def seen(rows: int, seed: int = 0, fingerprint: str = "") -> Embeddings:
    """Random rows of a gallery of the tiny engine's model."""
    rng = np.random.default_rng(seed)
    return Embeddings(
        features=rng.standard_normal((rows, 24)).astype(np.float32),
        masks=rng.random((rows, 24)).astype(np.float32),
        visibility=rng.random(rows).astype(np.float32),
        rows=np.arange(rows),
        fingerprint=fingerprint or tiny_engine.FINGERPRINT,
    )


def gallery_of(rows: int, device: str, dtype: str = "float16") -> Gallery:
    """People p0 to p4, seen by three cameras in turn, a second apart."""
    gallery = Gallery(tiny_engine.FINGERPRINT, 24, dtype, device=device)
    numbers = np.arange(rows)
    gallery.add(
        seen(rows), people=[f"p{i % 5}" for i in numbers], cameras=[f"c{i % 3}" for i in numbers],
        timestamps=numbers.astype(float),
    )  # fmt: skip
    return gallery


def assert_same(one: Matches, other: Matches) -> None:
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.people, other.people)
    np.testing.assert_allclose(one.similarity, other.similarity, atol=1e-6)


def test_after_the_first_call_nothing_is_allocated_and_each_call_waits_once(machine: Machine) -> None:
    with machine.open() as engine, gallery_of(30, "cuda") as gallery:

        def search() -> None:
            engine.search(FRAME, BOXES, gallery, 3, camera="c1")

        search()
        engine.embed(FRAME, BOXES)  # the other lane
        allocations = ("cuMemAlloc", "cuMemHostAlloc", "cuEventCreate", "cuStreamCreate", "cuGraphInstantiate")
        before = machine.cuda.count(*allocations), machine.trt.contexts
        for _ in range(5):
            for call in (lambda: engine.embed(FRAME, BOXES), lambda: engine.embed(tiny_engine.people(5)), search):
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


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (5, 9), (500, 16), (3000, 100), (3000, 150)])
def test_a_search_behind_the_network_gives_what_a_gallery_on_the_cpu_gives(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, rows: int, k: int, dtype: str
) -> None:
    monkeypatch.setattr(gallery_rows, "BLOCK", 1024)
    with machine.open() as engine, gallery_of(rows, "cuda", dtype) as there, gallery_of(rows, "cpu", dtype) as here:
        people, found = engine.search(FRAME, BOXES, there, k)
        assert_same(found, here.search(engine.embed(FRAME, BOXES), k))
        assert people.rows.tolist() == [0, 1, 3, 4] and [row for row, _ in people.skipped] == [2]


FILTERS: list[dict[str, Any]] = [
    {"camera": "c1"}, {"camera": ["c0", "c2"], "since": 10, "until": 90}, {"camera": "nowhere"},
    {"min_visibility": 0.5}, {"metric": "plain"}, {"metric": "mutual"},
    {"by": "person"}, {"expand": 3}, {"neighbours": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_options_of_a_search_act_on_the_gpu_as_on_the_cpu(machine: Machine, options: dict[str, Any]) -> None:
    with machine.open() as engine, gallery_of(120, "cuda") as there, gallery_of(120, "cpu") as here:
        people, found = engine.search(FRAME, BOXES, there, 4, **options)
        assert_same(found, here.search(people, 4, **options))


def test_rows_of_the_frames_own_camera_are_left_out(machine: Machine) -> None:
    with machine.open() as engine, gallery_of(60, "cuda") as there, gallery_of(60, "cpu") as here:
        people, found = engine.search(FRAME, BOXES, there, 40, exclude_camera="c2")
        assert set(found.cameras[found.found]) == {"c0", "c1"}
        own = {"exclude_same_camera": True, "query_cameras": ["c2"] * 4}
        assert_same(found, here.search(people, 40, **own, centre=False))  # as rows on a GPU are searched


def test_queries_of_several_cameras_each_leave_out_their_own(machine: Machine) -> None:
    with machine.open() as engine, gallery_of(60, "cuda") as there, gallery_of(60, "cpu") as here:
        people, options = engine.embed(FRAME, BOXES), {"exclude_same_camera": True, "centre": False}
        cameras = ["c2", "c0", "c2", "c1"]
        found = there.search(people, 40, query_cameras=cameras, **options)
        assert_same(found, here.search(people, 40, query_cameras=cameras, **options))


def test_rows_nearer_to_each_other_than_the_kernel_rounds_come_in_the_order_of_float64(machine: Machine) -> None:
    rng = np.random.default_rng(1)
    near = (np.ones(24) + 1e-4 * rng.standard_normal((200, 24))).astype(np.float32)
    galleries = [Gallery(tiny_engine.FINGERPRINT, 24, "float16", device=device) for device in ("cuda", "cpu")]
    for gallery in galleries:
        gallery.add(replace(seen(200), features=near), people=["p"] * 200)
    with machine.open() as engine, galleries[0] as there:
        assert_same(engine.search(FRAME, BOXES, there, 5)[1], galleries[1].search(engine.embed(FRAME, BOXES), 5))


def test_the_gpus_copy_follows_what_is_added_and_deleted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_rows, "BLOCK", 256)
    monkeypatch.setattr(gallery_rows, "LEAST_CAPACITY", 16)
    monkeypatch.setattr(gallery_rows, "PIECE", 100)
    with machine.open() as engine, gallery_of(3, "cuda") as there, gallery_of(3, "cpu") as here:
        people = engine.embed(FRAME, BOXES)
        for step, count in enumerate((10, 300, 1, 500)):
            for gallery in (there, here):
                ids = gallery.add(seen(count, step + 1), people=["p"] * count)
                if step == 2:
                    gallery.delete([*gallery.ids()[5:20], *ids])
            assert_same(engine.search(FRAME, BOXES, there, 7)[1], here.search(people, 7))
            assert_same(there.search(people, 7), here.search(people, 7))
        uploads = machine.cuda.count("cuMemcpyHtoD")
        there.add(seen(1, 9), people=["p"])
        engine.search(FRAME, BOXES, there, 7)
        assert machine.cuda.count("cuMemcpyHtoD") == uploads + 1, "one row was added: one row is uploaded"


def test_more_boxes_than_a_batch_are_searched_in_parts(machine: Machine) -> None:
    boxes = [[i, 0, i + 20, 100] for i in range(20)]
    with machine.open() as engine, gallery_of(50, "cuda") as gallery:
        got = engine.search(FRAME, boxes, gallery, 2)[1]
        alone = [engine.search(FRAME, [box], gallery, 2)[1] for box in boxes]
        assert engine.search(FRAME, [], gallery, 2)[1].rows.shape == (0, 2)
    assert got.rows.tolist() == [one.rows[0].tolist() for one in alone]


@pytest.mark.parametrize("where", ["engine on the CPU", "gallery on the CPU", "no kernels", "empty gallery"])
def test_where_engine_and_rows_are_apart_the_answer_is_the_same(machine: Machine, cpu: Engine, where: str) -> None:
    there = gallery_of(0 if where == "empty gallery" else 50, "cpu" if where == "gallery on the CPU" else "cuda")
    with machine.open() as gpu, there:
        engine = cpu if where == "engine on the CPU" else gpu
        color = "rgb" if where == "no kernels" else "bgr"  # which the crop kernel does not serve for this model
        people, found = engine.search(FRAME, BOXES, there, 3, color=color)
        assert_same(found, there.search(people, 3))


def test_a_search_refuses_what_the_gallery_refuses(machine: Machine, cpu: Engine) -> None:
    with machine.open() as engine, gallery_of(10, "cuda") as gallery, Gallery("f" * 64, 24, device="cuda") as other:
        other.add(seen(3, fingerprint="f" * 64), people=["p"] * 3)
        before = len(machine.trt.executed)
        for one in (engine, cpu):
            with pytest.raises(GalleryError, match="got those of model"):
                one.search(FRAME, BOXES, other)
            with pytest.raises(GalleryError, match="expected k of 1 or more"):
                one.search(FRAME, BOXES, gallery, 0)
        assert len(machine.trt.executed) == before, "nothing was computed for it"
        with pytest.raises(EngineError, match="expected an engine on a GPU"):
            cpu.search(FRAME, BOXES, gallery, stream=0)


def test_a_gallery_outlives_its_engine_and_the_engine_its_gallery(machine: Machine) -> None:
    gallery = gallery_of(10, "cuda")
    with machine.open() as engine:
        people = engine.embed(FRAME, BOXES)
    assert len(gallery.search(people, 2)) == 4
    gallery.close()
    gallery.close()
    with machine.open() as engine:
        assert len(engine.embed(FRAME, BOXES)) == 4


def test_without_kernels_of_the_gallery_the_other_way_is_taken_or_both_are_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (machine.folder / "kernels").glob("masked_*"):
        path.unlink()
    monkeypatch.setattr("dpm_edge.gallery.search.on_gpu.installed", lambda name: False)
    with pytest.raises(MissingLibrary, match=r"pip install torch .*python -m dpm_edge\.kernels --arch 87"):
        gallery_of(0, "cuda")


def test_a_gallery_that_does_not_fit_the_gpu_says_so(machine: Machine) -> None:
    with machine.open() as engine, gallery_of(10, "cuda") as gallery:
        machine.cuda.fails = "cuMemAlloc"
        with pytest.raises(EngineError, match="cuMemAlloc"):
            engine.search(FRAME, BOXES, gallery)
        assert len(engine.search(FRAME, BOXES, gallery, 3)[1]) == 4, "the next search uploads again"


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
    with machine.open() as engine:
        np.testing.assert_array_equal(engine.embed(FRAME, BOXES).rows, [0, 1, 3, 4])
        wanted = cpu.embed(FRAME, BOXES).features
        np.testing.assert_allclose(engine.embed(FRAME, BOXES).features, wanted, atol=2e-3)
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
    with pytest.raises(EngineError, match="expected TensorRT to run batch 1, got a refusal"):
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
    assert len(errors) == 4 and all("closed" in text for text in errors)
    with gallery_of(2, "cuda") as gallery, pytest.raises(EngineError, match="closed"):
        engine.search(FRAME, BOXES, gallery)


def test_the_golden_crop_is_run_on_the_gpu(machine: Machine) -> None:
    with pytest.raises(EngineError, match="golden crop"):
        machine.open(plan=b"plan 5")
