"""What the server answers: the engine's own features, the command line's own matches, and errors in one form."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
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
from dpm_edge.manifest import Manifest

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx, which starlette's test client needs, is not installed")

from served import API, PNG, application, client_of, features, files, foreign_engine, png
from starlette.testclient import TestClient

from dpm_edge.serve.app import ServeApp
from dpm_edge.serve.options import AddOptions
from dpm_edge.serve.request_body import SentPicture

PEOPLE = tiny_engine.people(6)
NAMES = ["anna", "ben", "cleo", "dan", "eve", "finn"]
CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine.write_engine(tmp_path_factory.mktemp("api") / "engine")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.load(folder, threads=1) as opened:
        yield opened


def gallery_of(engine: Engine) -> Gallery:
    """Six people in memory, half of them of one camera."""
    gallery = Gallery.for_engine(engine)
    gallery.add(PEOPLE, people=NAMES, cameras=["gate", "yard"] * 3, timestamps=[1e9 + i for i in range(6)])
    return gallery


@pytest.fixture(scope="module")
def client(folder: Path, engine: Engine) -> Iterator[TestClient]:
    """A server that is only asked."""
    with application(folder, gallery_of(engine)) as app:
        yield client_of(app)


@pytest.fixture
def changing(folder: Path, engine: Engine) -> Iterator[tuple[TestClient, Gallery]]:
    gallery = Gallery.for_engine(engine)
    with application(folder, gallery) as app:
        yield client_of(app), gallery


def post(client: TestClient, name: str, image: Any = None, **more: Any) -> Any:
    """A request with one picture as its body."""
    body = png(PEOPLE[0] if image is None else image)
    return client.post(f"{API}/{name}", content=body, headers=PNG, **more)


# embed


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


# search and who


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


# pictures that are none


NO_FILE = b'--x\r\nContent-Disposition: form-data; name="boxes"\r\n\r\n[]\r\n--x--\r\n'
JPEG = cv2.imencode(".jpg", PEOPLE[0])[1].tobytes()


@pytest.mark.parametrize("name", ["embed", "search", "who", "add"])
@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", "image/jpeg", 400, "which is empty"),
        (JPEG[: len(JPEG) // 2], "image/jpeg", 400, "which ends too early"),
        (b"\x89PNG and then nothing", "image/png", 400, "which is not a picture"),
        (JPEG, "application/x-www-form-urlencoded", 415, "Content-Type: image/jpeg"),
        (b"{}", "application/json", 415, "got 'application/json'"),
        (JPEG, "multipart/form-data", 400, "boundary"),
        (JPEG, "multipart/form-data; boundary=x", 400, "none that can be read"),
        (NO_FILE, "multipart/form-data; boundary=x", 400, "expected a file in the field pictures, got none"),
    ],
)
def test_a_body_without_a_picture_is_one_sentence(
    client: TestClient, name: str, body: bytes, kind: str, status: int, words: str
) -> None:
    answer = client.post(f"{API}/{name}", content=body, headers={"content-type": kind})
    assert answer.status_code == status and words in answer.json()["error"], answer.text


def test_text_in_the_field_of_files_is_refused(client: TestClient) -> None:
    answer = client.post(f"{API}/embed", files=[("x", ("a.png", b"", "image/png"))], data={"pictures": "a.png"})
    assert answer.status_code == 422 and "Files go to pictures" in answer.json()["error"]


# add


def test_added_rows_keep_what_was_told_of_them(changing: tuple[TestClient, Gallery]) -> None:
    client, gallery = changing
    frame = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    told = {
        "person": ["anna", ""], "camera": "gate", "timestamp": "2026-11-26T08:00:00Z",
        "payload": ['{"badge": 7}', "{}"], "boxes": "[[0, 0, 30, 60], [40, 10, 80, 90]]",
    }  # fmt: skip
    answer = client.post(f"{API}/add", files=[("pictures", ("door.png", png(frame)))], data=told)
    assert answer.status_code == 200 and answer.json()["total"] == 2
    rows = gallery.rows(answer.json()["rows"])
    order = np.argsort(rows.sources)
    assert [rows.people[i] for i in order] == ["anna", ""] and rows.cameras == ["gate", "gate"]
    assert [rows.payloads[i] for i in order] == [{"badge": 7}, {}]
    assert rows.boxes[order].tolist() == [[0, 0, 30, 60], [40, 10, 80, 90]]
    assert [rows.sources[i] for i in order] == ["door.png#box=0", "door.png#box=1"]
    assert (rows.timestamps == 1795680000).all()


@pytest.mark.parametrize(
    ("told", "status", "words"),
    [
        ({"person": ["a", "b", "c"]}, 422, "expected person once, or 2 times"),
        ({"timestamp": "08:00"}, 400, "ISO 8601"),
        ({"payload": "[1]"}, 422, "expected payload.0 to be"),
        ({"payload": json.dumps({"x": "y" * 100_000})}, 400, "expected a payload of"),
        ({"payload": '{"x": NaN}'}, 400, "expected a payload of"),
        ({"person": "x" * 201}, 422, "expected person.0 to be"),
        ({"boxes": ["[[0, 0, 9, 9], [900, 900, 999, 999]]", "[]"]}, 400, "No row was added"),
    ],
)
def test_nothing_is_added_where_one_label_or_crop_cannot_be(
    changing: tuple[TestClient, Gallery], told: dict[str, Any], status: int, words: str
) -> None:
    client, gallery = changing
    answer = client.post(f"{API}/add", files=files(PEOPLE[:2]), data=told)
    assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert len(gallery) == 0


def test_rows_that_the_disk_refuses_are_507(
    changing: tuple[TestClient, Gallery], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gallery = changing

    def full(*_: Any, **__: Any) -> Any:
        raise GalleryError("expected 32 MB free, got 1 MB; nothing was changed")

    monkeypatch.setattr(gallery, "add", full)
    answer = post(client, "add")
    assert (answer.status_code, answer.json()["error"]) == (507, "expected 32 MB free, got 1 MB; nothing was changed")


def test_adds_that_come_at_once_share_flushes_and_each_waits_for_one_that_began_after_it(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery.for_engine(engine)
    log: list[str] = []
    real = gallery.add

    def added(*arguments: Any, **more: Any) -> Any:
        ids = real(*arguments, **more)
        log.append(more["people"][0])
        return ids

    def flushed() -> None:
        log.append("flush")
        time.sleep(0.02)

    monkeypatch.setattr(gallery, "add", added)
    monkeypatch.setattr(gallery, "flush", flushed)

    async def one(app: ServeApp, person: str) -> None:
        crops = await app.embedder.embed([SentPicture("a.png", png(PEOPLE[0]))], [], "test")
        assert app._gallery is not None
        await app._gallery.add(crops, AddOptions(person=[person]))
        assert "flush" in log[log.index(person) :]

    async def all_at_once(app: ServeApp) -> None:
        await asyncio.gather(*(one(app, str(i)) for i in range(20)))

    with application(folder, gallery) as app:
        asyncio.run(all_at_once(app))
    assert len(gallery) == 20 and 1 <= log.count("flush") < 20


# the server's facts


def test_model_says_what_engine_this_is(client: TestClient, folder: Path) -> None:
    answer, manifest = client.get(f"{API}/model").json(), Manifest.read(folder)
    assert answer["fingerprint"] == manifest.fingerprint and answer["masks"] is True
    assert answer["batch"] == {"low": 1, "best": 4, "high": 8} and answer["spec"] == json.loads(
        json.dumps(manifest.spec.to_dict())
    )


def test_gallery_tells_what_its_command_tells(client: TestClient) -> None:
    answer = client.get(f"{API}/gallery").json()
    assert (answer["rows"], answer["people"], answer["cameras"], answer["adds"]) == (6, 6, {"gate": 3, "yard": 3}, True)


def test_metrics_count_requests_and_crops(folder: Path) -> None:
    with application(folder) as app:
        client = client_of(app)
        client.post(f"{API}/embed", files=files(PEOPLE[:3]))
        client.post(f"{API}/embed", content=b"", headers=PNG)
        client.get("/somewhere/else")
        text = client.get("/metrics").text
    assert 'dpm_edge_serve_requests_total{path="/api/v1/embed",status="200"} 1\n' in text
    assert 'dpm_edge_serve_requests_total{path="/api/v1/embed",status="400"} 1\n' in text
    assert 'dpm_edge_serve_requests_total{path="other",status="404"} 1\n' in text
    assert "dpm_edge_serve_crops_total{} 3\n" in text and "gallery_rows" not in text
    assert 'dpm_edge_serve_request_seconds_bucket{path="/api/v1/embed",le="+Inf"} 2\n' in text


def test_health_needs_nothing(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"ready": True}


@pytest.mark.parametrize(("method", "path", "status"), [("get", f"{API}/embed", 405), ("get", "/", 404)])
def test_a_wrong_path_or_method_is_one_sentence(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status and f"GET {API}/openapi.json lists them" in answer.json()["error"]


def test_the_document_describes_every_error_in_its_one_form(client: TestClient) -> None:
    whole = client.get(f"{API}/openapi.json").json()
    assert "HTTPValidationError" not in whole["components"]["schemas"]
    for methods in whole["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")


def test_an_error_that_nobody_foresaw_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with application(folder) as app:
        monkeypatch.setattr(app, "_embedded", lambda *_: 1 / 0)
        answer = post(client_of(app), "embed")
    assert answer.status_code == 500 and answer.json()["error"].startswith("expected no such error, got ZeroDivision")


# servers without a gallery, without add, and of a model without masks


@pytest.mark.parametrize(("name", "method"), [("search", "post"), ("who", "post"), ("add", "post"), ("gallery", "get")])
def test_without_a_gallery_the_answer_says_how_to_have_one(folder: Path, name: str, method: str) -> None:
    with application(folder) as app:
        answer = client_of(app).request(method, f"{API}/{name}", content=JPEG, headers={"content-type": "image/jpeg"})
    assert answer.status_code == 409 and "Start it with --gallery PLACE" in answer.json()["error"]


def test_without_add_nothing_is_added(folder: Path, engine: Engine) -> None:
    gallery = gallery_of(engine)
    with application(folder, gallery, add=False) as app:
        answer = post(client_of(app), "add")
        assert client_of(app).get(f"{API}/gallery").json()["adds"] is False
    assert answer.status_code == 409 and "--no-add" in answer.json()["error"] and len(gallery) == 6


def test_a_gallery_that_is_read_only_is_not_added_to(folder: Path, engine: Engine, tmp_path: Path) -> None:
    gallery_of(engine).save(tmp_path / "saved.safetensors")
    with (
        Gallery.open(tmp_path / "saved.safetensors", read_only=True) as gallery,
        application(folder, gallery) as app,
    ):
        answer = post(client_of(app), "add")
    assert answer.status_code == 409 and "read-only" in answer.json()["error"]


def test_a_model_without_masks_has_no_visibility_and_no_masked_metric(tmp_path: Path) -> None:
    folder = foreign_engine(tmp_path / "engine")
    with Engine.load(folder, threads=1) as engine:
        gallery = Gallery.for_engine(engine)
        gallery.add(PEOPLE, people=NAMES)
        with application(folder, gallery) as app:
            client = client_of(app)
            (row,) = post(client, "embed", params={"masks": True}).json()["rows"]
            assert row["visibility"] is None and row["mask"] is None
            (found,) = post(client, "search").json()["results"]
            assert found["matches"][0]["person"] == "anna" and "visibility" not in found
            refused = post(client, "search", params={"metric": "masked"})
            assert refused.status_code == 400 and "Use metric 'plain'" in refused.json()["error"]
            assert client.get(f"{API}/model").json()["masks"] is False


def test_a_gallery_of_another_model_is_refused_before_anything_is_served(folder: Path) -> None:
    with pytest.raises(GalleryError, match="model"), application(folder, Gallery("another" * 8, 24)):
        raise AssertionError


def test_a_calibration_of_another_model_is_refused_before_anything_is_served(folder: Path, engine: Engine) -> None:
    known = Calibration(fingerprint="another" * 8, metric="masked", wanted_false_match_rate=0.01, bands=[])
    with (
        pytest.raises(GalleryError, match="expected a calibration of model tiny"),
        application(folder, gallery_of(engine), calibration=known),
    ):
        raise AssertionError


def test_no_thread_is_left_behind(folder: Path, engine: Engine) -> None:
    before = set(threading.enumerate())
    with application(folder, gallery_of(engine)) as app:
        post(client_of(app), "who")
    left = {one.name for one in set(threading.enumerate()) - before if one.name.startswith("dpm-edge")}
    assert not left
