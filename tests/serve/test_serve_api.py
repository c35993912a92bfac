"""What the server answers about pictures: the engine's own features, the command line's own matches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner

from dpm_edge import Engine, Gallery
from dpm_edge.cli.commands import main
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.calibration import Band, Calibration, calibrate

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx, which starlette's test client needs, is not installed")

from served import API, NAMES, PEOPLE, application, client_of, features, files, gallery_of, png, post
from starlette.testclient import TestClient

CLOSE = {"rtol": 0, "atol": 2e-6}


def test_a_picture_as_the_body_becomes_the_engines_own_feature(client: TestClient, engine: Engine) -> None:
    answer = post(client, "embed", params={"masks": True}).json()
    own = engine.embed([PEOPLE[0]])
    np.testing.assert_allclose(features(answer), own.features, **CLOSE)
    np.testing.assert_allclose(features(answer, "mask"), own.masks, **CLOSE)
    assert answer["rows"][0]["visibility"] == pytest.approx(float(own.weight[0]), abs=1e-5)
    assert (answer["fingerprint"], answer["dimension"]) == (engine.fingerprint, engine.dimension)


def test_pictures_of_a_form_are_answered_in_their_order(client: TestClient) -> None:
    answer = client.post(f"{API}/embed", files=files(PEOPLE)).json()
    np.testing.assert_allclose(features(answer), tiny_engine.expected(PEOPLE)[0], rtol=0, atol=1e-5)
    assert [row["name"] for row in answer["rows"]] == [f"{i}.png" for i in range(6)]
    assert all(row["mask"] is None for row in answer["rows"])


def test_base64_holds_the_same_numbers(client: TestClient) -> None:
    plain = client.post(f"{API}/embed", files=files(PEOPLE[:2])).json()
    coded = client.post(f"{API}/embed", files=files(PEOPLE[:2]), data={"encoding": "base64"}).json()
    assert isinstance(coded["rows"][0]["feature"], str)
    np.testing.assert_allclose(features(coded), features(plain), **CLOSE)


def test_boxes_cut_people_out_of_a_frame(client: TestClient, engine: Engine) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    boxes = [[10.4, 5, 50, 90], [150, 100, 400, 300]]
    own = engine.embed(frame, boxes).features
    for answer in (
        post(client, "embed", frame, params={"boxes": json.dumps(boxes)}),
        client.post(f"{API}/embed", files=files([frame]), data={"boxes": json.dumps(boxes)}),
    ):
        np.testing.assert_allclose(features(answer.json()), own, **CLOSE)
        assert [row["box"] for row in answer.json()["rows"]] == [0, 1]


def test_each_picture_of_a_form_has_its_own_boxes(client: TestClient, engine: Engine) -> None:
    boxes = [[[0, 0, 9, 9]], [], [[1, 2, 15, 30], [0, 0, 20, 20]]]
    data = {"boxes": [json.dumps(one) for one in boxes]}
    answer = client.post(f"{API}/embed", files=files(PEOPLE[:3]), data=data).json()
    assert [(row["picture"], row["box"]) for row in answer["rows"]] == [(0, 0), (2, 0), (2, 1)]
    np.testing.assert_allclose(features(answer)[1:], engine.embed(PEOPLE[2], boxes[2]).features, **CLOSE)


def test_a_frame_without_people_has_no_rows(client: TestClient) -> None:
    answer = post(client, "embed", params={"boxes": "[]"})
    assert answer.status_code == 200 and answer.json()["rows"] == [] == answer.json()["skipped"]


def test_what_cannot_be_used_is_named_and_the_rest_is_done(client: TestClient) -> None:
    parts = [*files(PEOPLE[:2]), ("pictures", ("bad.jpg", b"nothing", "image/jpeg"))]
    answer = client.post(f"{API}/embed", files=[parts[0], parts[2], parts[1]]).json()
    assert [row["picture"] for row in answer["rows"]] == [0, 2]
    (skipped,) = answer["skipped"]
    assert (skipped["picture"], skipped["box"]) == (1, None) and "got bad.jpg of 7 bytes" in skipped["reason"]
    np.testing.assert_allclose(features(answer), tiny_engine.expected(PEOPLE[:2])[0], rtol=0, atol=1e-5)


def printed(*arguments: object) -> Any:
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def without_names(results: list[dict[str, Any]]) -> Any:
    """Results but for the query's name, which is a path on the command line; similarities to five places."""
    for one in results:
        one.pop("query")
        for match in one["matches"]:
            match |= {key: round(match[key], 5) for key in ("similarity", "score")}
    return results


def test_search_and_who_answer_what_the_command_line_prints(folder: Path, engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")
    with Gallery.for_engine(engine, tmp_path / "seen") as gallery:
        gallery.add(PEOPLE, people=NAMES, cameras=["gate", "yard"] * 3, payloads=[{"badge": i} for i in range(6)])
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), PEOPLE[i] // 2)
    made = calibrate(
        np.r_[np.full(50, 0.9), np.zeros(50)], np.arange(100) < 50, np.ones(100),
        fingerprint=engine.fingerprint, metric="masked", false_match_rate=0.1, bands=1,
    )  # fmt: skip
    made.save(tmp_path / "calibration.json")
    pictures = [tmp_path / "0.png", tmp_path / "1.png"]
    ours = ["--calibration", tmp_path / "calibration.json", "--json"]
    who = printed("who", *pictures, "--engine", folder, "--gallery", tmp_path / "seen", "-k", 2, *ours)
    engine.embed(pictures).save(tmp_path / "queries.safetensors")
    match = printed(
        "match", tmp_path / "queries.safetensors", tmp_path / "seen", "-k", 4, "--camera", "gate", *ours
    )  # fmt: skip
    sent = files([PEOPLE[0] // 2, PEOPLE[1] // 2])
    with (
        Gallery.open(tmp_path / "seen") as gallery,
        application(folder, gallery, calibration=Calibration.load(tmp_path / "calibration.json")) as app,
    ):
        client = client_of(app)
        named = client.post(f"{API}/who", files=sent, data={"top": "2"}).json()["results"]
        found = client.post(f"{API}/search", files=sent, data={"top": "4", "camera": "gate"}).json()["results"]
    assert without_names(named) == without_names(who) and without_names(found) == without_names(match)
    assert who[0]["matches"][0]["decision"] in ("same", "different") and len(match[0]["matches"]) == 3


def test_queries_are_named_by_their_files(client: TestClient) -> None:
    sent = [("pictures", ("C:\\people\\door.png", png(PEOPLE[1]), "image/png"))]
    (one,) = client.post(f"{API}/who", files=sent, data={"top": "1"}).json()["results"]
    assert one["query"] == "door.png"
    assert one["matches"][0]["person"] == "ben"


def test_rows_of_the_queries_own_camera_are_left_out(client: TestClient) -> None:
    options = {"exclude_same_camera": True, "seen_by": "gate", "top": 6, "centre": False}
    (one,) = post(client, "search", params=options).json()["results"]
    assert {match["camera"] for match in one["matches"]} == {"yard"}


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"exclude_same_camera": True}, 422, "expected seen_by with exclude_same_camera"),
        ({"seen_by": ["a", "b", "c"]}, 422, "expected seen_by once, or 1 times"),
        ({"since": "yesterday"}, 400, "ISO 8601 text with a zone for since, got the text 'yesterday'"),
        ({"camera": ""}, 400, "expected a camera to look for"),
        ({"top": 0}, 422, "expected top to be greater than or equal to 1, got '0'"),
        ({"metric": "euclid"}, 422, "expected metric to be 'plain', 'masked' or 'mutual', got 'euclid'"),
        ({"metrics": "plain"}, 422, "expected an option of this request, got 'metrics'"),
        ({"boxes": "[[1, 2, 3]]"}, 422, "expected boxes.0.0 to be"),
        ({"boxes": "{"}, 422, "Invalid JSON"),
        ({"boxes": ["[]", "[]"]}, 422, "expected boxes once for each of 1 pictures, got them 2 times"),
        ({"boxes": "[[0.1, 0.1, 0.4, 0.5]]"}, 400, "expected pixels"),
        ({"boxes": "[[900, 0, 950, 9]]"}, 400, "which lies outside the frame"),
        ({"boxes": "[[NaN, 0, 9, 9]]"}, 400, "finite"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(
    client: TestClient, options: dict[str, Any], status: int, words: str
) -> None:
    answer = post(client, "search", params=options)
    assert answer.status_code == status and set(answer.json()) == {"error"}
    assert words in answer.json()["error"] and answer.json()["error"].startswith("expected ")


def test_a_gallery_that_does_not_answer_is_no_fault_of_the_client(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = gallery_of(engine)

    def gone(*_: Any, **__: Any) -> Any:
        raise GalleryError("expected a server at qdrant://10.0.0.9, got no answer. Start it")

    monkeypatch.setattr(gallery, "search", gone)
    with application(folder, gallery) as app:
        answer = post(client_of(app), "who")
    assert answer.status_code == 503 and "got no answer" in answer.json()["error"]


def test_a_given_calibration_counts_for_its_own_metric_and_space(folder: Path, engine: Engine) -> None:
    band = Band(
        low=0, threshold=0.5, true_match_rate=1, false_match_rate=0, slope=1, offset=0, decides=True, same=9,
        different=9,
    )  # fmt: skip
    known = Calibration(fingerprint=engine.fingerprint, metric="masked", wanted_false_match_rate=0.01, bands=[band])
    with application(folder, gallery_of(engine), calibration=known) as app:
        client = client_of(app)
        (masked,) = post(client, "search").json()["results"]
        (plain,) = post(client, "search", params={"metric": "plain"}).json()["results"]
        refused = post(client, "search", params={"centre": True})
    assert masked["matches"][0]["decision"] == "same" and "decision" not in plain["matches"][0]
    assert refused.status_code == 400 and "expected centre=false" in refused.json()["error"]


def test_an_unknown_field_of_a_form_is_refused_with_the_nearest(client: TestClient) -> None:
    answer = client.post(f"{API}/search", files=files(PEOPLE[:1]), data={"metrc": "plain"})
    assert answer.status_code == 422 and "Did you mean 'metric'?" in answer.json()["error"]


def test_an_option_in_query_and_form_is_refused(client: TestClient) -> None:
    answer = client.post(f"{API}/who?top=2", files=files(PEOPLE[:1]), data={"top": "3"})
    assert answer.status_code == 422 and "in the query or in the form, got it in both" in answer.json()["error"]
