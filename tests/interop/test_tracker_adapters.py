"""Adapters for other trackers against the real libraries, where they are installed, and against their call shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_engine

from dpm_edge import Gallery
from dpm_edge.boxes import FrameBoxes, read_boxes
from dpm_edge.errors import DataError, SpecError
from dpm_edge.interop.box_files import read_coco, write_coco, write_mot
from dpm_edge.interop.frame_embeddings import as_numpy, embed_boxes
from dpm_edge.interop.joined_tracks import JoinedTracks
from dpm_edge.interop.supervision_detections import (
    embed_detections,
    from_detections,
    name_detections,
    to_detections,
    wanted,
)
from dpm_edge.interop.tracker_hooks import (
    BoxmotReid,
    DeepSortEmbedder,
    NorfairDistance,
    UltralyticsEncoder,
    embed_results,
    norfair_embeddings,
    use_in_ultralytics,
)
from dpm_edge.runtime import Embeddings, Engine

BOXES = np.array([[10.0, 10, 50, 110], [70, 20, 110, 120], [130, 5, 170, 105]])
OUTSIDE = [900.0, 900, 950, 950]


def scene() -> np.ndarray:
    """A frame with a different person in each of BOXES."""
    frame = np.full((140, 200, 3), 40, np.uint8)
    rng = np.random.default_rng(3)
    for x0, y0, x1, y1 in BOXES.astype(int):
        blocks = rng.integers(0, 256, (4, 4, 3), np.uint8)
        frame[y0:y1, x0:x1] = blocks.repeat(25, axis=0).repeat(10, axis=1)
    return frame


FRAME = scene()
CROPS = [FRAME[y0:y1, x0:x1] for x0, y0, x1, y1 in BOXES.astype(int)]
WANTED = tiny_engine.expected(CROPS)[0]
"""(3, D) features of the three people, in float64."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.load(tiny_engine.write_engine(tmp_path_factory.mktemp("engine") / "tiny")) as opened:
        yield opened


def test_each_box_has_a_row_and_one_outside_the_frame_has_zeros(engine: Engine) -> None:
    features, found = embed_boxes(engine, FRAME, [*BOXES.tolist(), OUTSIDE])
    np.testing.assert_allclose(features[:3], WANTED, atol=2e-5)
    assert (features[3] == 0).all() and found.rows.tolist() == [0, 1, 2]
    assert embed_boxes(engine, FRAME, np.zeros((0, 4)))[0].shape == (0, engine.dimension)


def test_a_tensor_of_another_library_is_taken_without_importing_it() -> None:
    class Tensor:
        def detach(self) -> Tensor:
            return self

        def cpu(self) -> Tensor:
            return self

        def numpy(self) -> np.ndarray:
            return BOXES

    assert (as_numpy(Tensor()) == BOXES).all()


def test_supervision_detections_carry_features_and_names(engine: Engine) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    given = supervision.Detections(
        xyxy=np.array([*BOXES.tolist(), OUTSIDE], np.float32),
        confidence=np.array([0.9, 0.4, 0.8, 0.9]),
        class_id=np.array([0, 0, 2, 0]),
        tracker_id=np.array([7, 8, 9, 10]),
    )
    assert wanted(given, classes=[0], least_confidence=0.5).tolist() == [True, False, False, True]
    made, found = embed_detections(engine, FRAME, given)
    np.testing.assert_allclose(made.data["reid_feature"][:3], WANTED, atol=2e-5)
    assert made.data["reid_embedded"].tolist() == [True, True, True, False]
    assert made[made.data["reid_embedded"]].tracker_id.tolist() == [7, 8, 9] and given.data == {}
    gallery = Gallery(engine.fingerprint, engine.dimension)
    gallery.add(engine.embed(CROPS), people=["ann", "bob", "cid"])
    named = name_detections(made, found, gallery.search(found, 1))
    assert named.data["person"].tolist() == ["ann", "bob", "cid", ""]


def test_supervision_and_boxes_files_exchange_frames() -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    frame = FrameBoxes(["4", "5"], BOXES[:2])
    made = to_detections(frame)
    assert made.tracker_id.tolist() == [4, 5] and made.class_id.tolist() == [0, 0]
    back = from_detections(made)
    assert back.ids == ["4", "5"] and (back.boxes == BOXES[:2]).all()
    assert to_detections(FrameBoxes(["ann"], BOXES[:1])).tracker_id is None


def test_deep_sort_realtime_calls_our_embedder(engine: Engine) -> None:
    deepsort = pytest.importorskip(
        "deep_sort_realtime.deepsort_tracker", reason="deep-sort-realtime is not installed", exc_type=ImportError
    )
    tracker = deepsort.DeepSort(embedder=None, n_init=1)
    tracker.embedder = DeepSortEmbedder(engine)
    detections = [([x0, y0, x1 - x0, y1 - y0], 0.9, 0) for x0, y0, x1, y1 in BOXES.astype(int).tolist()]
    for _ in range(3):
        tracks = tracker.update_tracks(detections, frame=FRAME)
    kept = {int(track.to_ltrb()[0] // 60): np.asarray(track.get_feature()) for track in tracks if track.is_confirmed()}
    assert sorted(kept) == [0, 1, 2]
    for place, feature in kept.items():
        assert float(feature @ WANTED[place]) == pytest.approx(1, abs=1e-4)


def test_the_deep_sort_embedder_gives_a_row_for_a_crop_without_pixels(engine: Engine) -> None:
    made = DeepSortEmbedder(engine).predict([CROPS[0], np.zeros((0, 5, 3), np.uint8), CROPS[1]])
    np.testing.assert_allclose(np.stack(made)[[0, 2]], WANTED[:2], atol=2e-5)
    assert (made[1] == 0).all()


def test_boxmots_interface_gives_features_of_boxes(engine: Engine) -> None:
    reid = BoxmotReid(engine)
    reid.warmup()
    made = reid.get_features(BOXES.astype(np.float32), FRAME)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, WANTED, atol=2e-5)
    assert reid.get_features(np.zeros((0, 4), np.float32), FRAME).shape == (0, engine.dimension)


def test_a_real_boxmot_tracker_compares_people_by_our_features(engine: Engine) -> None:
    boxmot = pytest.importorskip("boxmot", reason="BoxMOT (AGPL) is a user's own choice and is not installed")
    tracker = boxmot.BotSort(reid_model=BoxmotReid(engine), use_cmc=False)
    detections = np.hstack([BOXES, np.full((3, 1), 0.9), np.zeros((3, 1))])
    for _ in range(3):
        tracks = tracker.update(detections, FRAME)
    assert len(tracks) == 3
    kept = np.stack([track.smooth_feat for track in tracker.active_tracks])
    assert np.abs(kept @ WANTED.T).max(axis=1) == pytest.approx(np.ones(3), abs=1e-4)


def xywh(boxes: np.ndarray) -> np.ndarray:
    return np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], np.arange(len(boxes))[:, None]])


def test_ultralytics_encoder_takes_centres_and_sizes(engine: Engine) -> None:
    encoder = UltralyticsEncoder(engine)
    made = encoder(FRAME, xywh(np.vstack([BOXES, OUTSIDE])))
    np.testing.assert_allclose(np.stack(made[:3]), WANTED, atol=2e-5)
    assert np.linalg.norm(made[3]) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.stack(encoder.inference(FRAME, xywh(BOXES))), WANTED, atol=2e-5)


def test_the_hook_replaces_the_encoder_of_each_tracker_and_refuses_one_without(engine: Engine) -> None:
    bots = [SimpleNamespace(args=SimpleNamespace(with_reid=False, model="auto"), encoder=None) for _ in range(2)]
    use_in_ultralytics(SimpleNamespace(trackers=bots), engine)
    for bot in bots:
        assert bot.args.with_reid and bot.args.model != "auto" and isinstance(bot.encoder, UltralyticsEncoder)
    with pytest.raises(SpecError, match="tracker of ultralytics with an encoder"):
        use_in_ultralytics(SimpleNamespace(args=SimpleNamespace()), engine)


def test_a_real_bot_sort_of_ultralytics_calls_our_encoder(engine: Engine) -> None:
    bot_sort = pytest.importorskip(
        "ultralytics.trackers.bot_sort", reason="ultralytics (AGPL) is a user's own choice and is not installed"
    )
    arguments = SimpleNamespace(
        track_high_thresh=0.25, track_low_thresh=0.1, new_track_thresh=0.25, track_buffer=30, match_thresh=0.8,
        fuse_score=True, gmc_method="none", proximity_thresh=0.5, appearance_thresh=0.8, with_reid=False, model="auto",
    )  # fmt: skip
    tracker = bot_sort.BOTSORT(arguments)
    use_in_ultralytics(tracker, engine)
    results = pytest.importorskip("ultralytics.engine.results")
    boxes = results.Boxes(np.hstack([BOXES, np.full((3, 1), 0.9), np.zeros((3, 1))]), FRAME.shape[:2])
    for _ in range(2):
        tracked = tracker.update(boxes, FRAME)
    assert len(tracked) == 3
    np.testing.assert_allclose(np.stack([track.curr_feat for track in tracker.tracked_stracks]), WANTED, atol=2e-5)


def test_real_results_of_ultralytics_are_embedded(engine: Engine) -> None:
    results = pytest.importorskip(
        "ultralytics.engine.results", reason="ultralytics (AGPL) is a user's own choice and is not installed"
    )
    torch = pytest.importorskip("torch", reason="ultralytics gives tensors of torch")
    boxes = torch.from_numpy(np.hstack([BOXES, [[7], [8], [9]], [[0.9], [0.1], [0.8]], np.zeros((3, 1))]))
    one = results.Results(FRAME, path="frame.jpg", names={0: "person"}, boxes=boxes)
    found, ids = embed_results(engine, one, least_confidence=0.5)
    assert ids.tolist() == [7, 9] and found.rows.tolist() == [0, 2]
    np.testing.assert_allclose(found.features, WANTED[[0, 2]], atol=2e-5)


def test_ultralytics_results_are_embedded_by_class_and_confidence(engine: Engine) -> None:
    boxes = SimpleNamespace(
        xyxy=np.vstack([BOXES, OUTSIDE]), conf=np.array([0.9, 0.2, 0.9, 0.9]), cls=np.array([0.0, 0, 0, 0]),
        id=np.array([3.0, 4, 5, 6]),
    )  # fmt: skip
    found, ids = embed_results(engine, SimpleNamespace(orig_img=FRAME, boxes=boxes), least_confidence=0.5)
    assert found.rows.tolist() == [0, 2] and ids.tolist() == [3, 5]
    np.testing.assert_allclose(found.features, WANTED[[0, 2]], atol=2e-5)
    boxes.id = None
    assert embed_results(engine, SimpleNamespace(orig_img=FRAME, boxes=boxes), classes=[1])[1].tolist() == []


def test_norfairs_distance_is_one_minus_the_masked_similarity(engine: Engine) -> None:
    embeddings = norfair_embeddings(engine, FRAME, [*BOXES.tolist(), OUTSIDE])
    assert embeddings[3] is None
    seen = [SimpleNamespace(embedding=one) for one in embeddings]
    tracked = lambda *detections: SimpleNamespace(last_detection=detections[0], past_detections=list(detections[1:]))
    distance = NorfairDistance()
    feature, mask = tiny_engine.expected(CROPS)
    q, t, m = feature[0], feature[1], mask[0]
    masked = (m * q * t).sum() / np.linalg.norm(m * t)  # the formula at the top of dpm_edge/metrics.py
    assert distance(tracked(seen[0]), tracked(seen[1])) == pytest.approx(1 - masked, abs=1e-4)
    assert distance(tracked(seen[0]), tracked(seen[1], seen[0])) < distance(tracked(seen[0]), tracked(seen[1]))
    assert distance(tracked(seen[0]), tracked(seen[3])) == 2


def test_norfair_itself_joins_a_lost_object_by_our_distance(engine: Engine) -> None:
    norfair = pytest.importorskip("norfair", reason="norfair is not installed")
    tracker = norfair.Tracker(
        distance_function="iou", distance_threshold=0.7, initialization_delay=1, hit_counter_max=2,
        reid_distance_function=NorfairDistance(), reid_distance_threshold=0.2, reid_hit_counter_max=50,
        past_detections_length=4,
    )  # fmt: skip

    def frame(boxes: np.ndarray, picture: np.ndarray) -> list[Any]:
        rows = norfair_embeddings(engine, picture, boxes)
        made = [norfair.Detection(box.reshape(2, 2), embedding=one) for box, one in zip(boxes, rows)]
        return tracker.update(detections=made)

    for _ in range(6):
        first = frame(BOXES[:1], FRAME)
    for _ in range(6):
        frame(BOXES[:0], FRAME)
    moved = np.roll(FRAME, 90, axis=1)
    for _ in range(6):
        again = frame(BOXES[:1] + [90, 0, 90, 0], moved)
    assert [one.id for one in again] == [one.id for one in first]


def embeddings_of(places: list[int]) -> Embeddings:
    features = WANTED[places].astype(np.float32)
    return Embeddings(
        features=features, masks=np.ones_like(features), visibility=None, rows=np.arange(len(places)), fingerprint="f"
    )


def test_a_new_track_of_somebody_who_left_takes_the_earlier_id() -> None:
    joined = JoinedTracks(threshold=0.95, least_crops=2)
    for _ in range(3):
        assert joined.update([1, 2], embeddings_of([0, 1])).tolist() == [1, 2]
    joined.update([2], embeddings_of([1]))
    assert joined.update([2, 5], embeddings_of([1, 0])).tolist() == [2, 5]  # one crop is too few
    assert joined.update([2, 5], embeddings_of([1, 0])).tolist() == [2, 1]
    assert joined.update([5], embeddings_of([0])).tolist() == [1]


def test_somebody_in_the_picture_is_never_joined_with_another_there() -> None:
    joined = JoinedTracks(threshold=0.5, least_crops=1)
    for _ in range(2):
        assert joined.update([1, 2], embeddings_of([0, 0])).tolist() == [1, 2]


def test_a_stranger_and_somebody_forgotten_keep_their_own_id() -> None:
    joined = JoinedTracks(threshold=0.999, least_crops=1, memory=2)
    joined.update([1], embeddings_of([0]))
    joined.update([2], embeddings_of([1]))
    assert joined.update([3], embeddings_of([2])).tolist() == [3]
    for _ in range(3):
        joined.update([], embeddings_of([]))
    assert joined.update([4], embeddings_of([0])).tolist() == [4]
    assert joined.update([-1], embeddings_of([0])).tolist() == [-1]
    with pytest.raises(SpecError, match="threshold in"):
        JoinedTracks(threshold=2)


def test_tracks_of_roboflows_trackers_are_joined(engine: Engine) -> None:
    trackers = pytest.importorskip("trackers", reason="roboflow's trackers is not installed", exc_type=ImportError)
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    tracker = trackers.ByteTrackTracker(lost_track_buffer=1, minimum_consecutive_frames=1)
    joined = JoinedTracks(threshold=0.95, least_crops=1, metric="plain")

    def frame(boxes: np.ndarray, picture: np.ndarray) -> list[int]:
        found = supervision.Detections(
            xyxy=boxes.astype(np.float32), confidence=np.full(len(boxes), 0.9), class_id=np.zeros(len(boxes), int)
        )
        found = tracker.update(found)
        _, embedded = embed_detections(engine, picture, found)
        return joined.update(found.tracker_id, embedded).tolist()

    for _ in range(4):
        before = frame(BOXES[:2], FRAME)
    assert len(set(before)) == 2 and min(before) >= 0
    for _ in range(40):
        frame(BOXES[1:2], FRAME)
    moved = np.roll(FRAME, 140, axis=1)
    moved[:, 60:120] = FRAME[:, 60:120]
    both = np.vstack([BOXES[:1] + [140, 0, 140, 0], BOXES[1:2]])
    for _ in range(4):
        after = frame(both, moved)
    assert sorted(after) == sorted(before)


def test_motchallenge_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_mot(tmp_path / "tracks.txt", {0: FrameBoxes(["1", "2"], BOXES[:2]), 3: FrameBoxes(["2"], BOXES[2:])})
    assert (tmp_path / "tracks.txt").read_text().splitlines()[0] == "1,1,11.00,11.00,40.00,100.00,1,-1,-1,-1"
    read = read_boxes(tmp_path / "tracks.txt")
    assert read.format == "mot" and sorted(read.frames) == ["1", "4"]
    assert read.frames["1"].ids == ["1", "2"] and (read.frames["1"].boxes == BOXES[:2]).all()
    with pytest.raises(DataError, match="whole numbers as track ids"):
        write_mot(tmp_path / "bad.txt", {0: FrameBoxes(["ann"], BOXES[:1])})
    assert not (tmp_path / "bad.txt").exists()


def test_coco_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    frames = {"a.jpg": FrameBoxes(["1", "2"], BOXES[:2]), "b.jpg": FrameBoxes(["2"], BOXES[2:])}
    write_coco(tmp_path / "boxes.json", frames, {"a.jpg": (140, 200)})
    read = read_coco(tmp_path / "boxes.json")
    assert {name: one.ids for name, one in read.frames.items()} == {"a.jpg": ["1", "2"], "b.jpg": ["2"]}
    assert all((read.frames[name].boxes == frames[name].boxes).all() for name in frames)


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', '{"images": 3, "annotations": 1, "categories": []}'])
def test_what_is_no_coco_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(DataError, match="expected a COCO file"):
        read_coco(tmp_path / "boxes.json")


def test_a_coco_file_without_people_says_what_it_has(tmp_path: Path) -> None:
    write_coco(tmp_path / "boxes.json", {"a.jpg": FrameBoxes(["1"], BOXES[:1])})
    with pytest.raises(DataError, match=r"category 'car' in .* got none\. It has person"):
        read_coco(tmp_path / "boxes.json", category="car")
