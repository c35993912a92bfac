"""What the server says of itself, and servers without a gallery, without add, of a model without masks."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from dpm_edge import Engine, Gallery
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.calibration import Calibration
from dpm_edge.manifest import Manifest

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx, which starlette's test client needs, is not installed")

from served import API, NAMES, PEOPLE, PNG, application, client_of, files, foreign_engine, gallery_of, png, post
from starlette.testclient import TestClient


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


@pytest.mark.parametrize(("name", "method"), [("search", "post"), ("who", "post"), ("add", "post"), ("gallery", "get")])
def test_without_a_gallery_the_answer_says_how_to_have_one(folder: Path, name: str, method: str) -> None:
    with application(folder) as app:
        answer = client_of(app).request(method, f"{API}/{name}", content=png(PEOPLE[0]), headers=PNG)
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


def test_fastapi_sends_nothing_wherever_the_environment_points(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Left to itself it would start to export requests here, and warn that the library for it is missing."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with application(folder) as app, client_of(app) as client:
        assert client.get(f"{API}/model").status_code == 200
    assert "elemetry" not in caplog.text
