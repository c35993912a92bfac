"""The page's API: what it answers, whom it lets in, and that its description is true."""

from __future__ import annotations

import colorsys
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from stand_ins import make_seeing, scene, walk, write_scenes

pytest.importorskip("starlette", reason="starlette is not installed (the extra `watch`)")
pytest.importorskip("httpx", reason="httpx, which starlette's test client needs, is not installed")

from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dpm_edge.watch.page import app as page
from dpm_edge.watch.page.openapi import document
from dpm_edge.watch.page.server import PageServer
from dpm_edge.watch.site_config import CameraConfig, Site, Zone
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.watch_site import WatchSite
from dpm_edge.web.listening import is_loopback

TOKEN = "a-token-of-more-than-sixteen-letters"
WS = "ws://localhost:8080"
MARK = {"X-Dpm-Edge": "1"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("videos")
    door = write_scenes(folder / "door.avi", walk("red", 8) + [scene()] * 25)
    yard = write_scenes(folder / "yard.avi", [scene()] * 20 + walk("red", 8) + [scene()] * 12 + walk("blue", 8))
    return door, yard


def watched(videos: tuple[Path, Path]) -> Iterator[WatchSite]:
    """A site that was watched, and whose cameras still show their last picture."""
    zone = Zone(name="bench", camera="door", points=((0, 0), (10, 0), (10, 10)))
    cameras = tuple(CameraConfig(name=v.stem, source=str(v), start=1e9) for v in videos)
    site = Site(name="warehouse", cameras=cameras, zones=(zone,), thumbnails=True)
    with WatchStore(":memory:", run="") as store, WatchSite(site, store) as one:
        one.run(make_seeing())
        yield one


@pytest.fixture(scope="module")
def watch(videos: tuple[Path, Path]) -> Iterator[WatchSite]:
    """A watched site that is only looked at."""
    yield from watched(videos)


@pytest.fixture
def changing(videos: tuple[Path, Path]) -> Iterator[WatchSite]:
    """A watched site that a test may change."""
    yield from watched(videos)


def client_of(watch: WatchSite, **how: Any) -> TestClient:
    return TestClient(page.make_app(watch, **how), base_url="http://localhost:8080", follow_redirects=False)


@pytest.fixture
def client(watch: WatchSite) -> TestClient:
    return client_of(watch)


def jpeg(image: Any) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


def test_cameras_and_their_state(client: TestClient) -> None:
    door, yard = client.get("/api/v1/cameras").json()
    assert (door["camera"], door["state"], door["processed"], door["live"]) == ("door", "ended", 33, False)
    assert (yard["width"], yard["height"]) == (320, 240)


def test_snapshot_is_a_jpeg_of_the_last_picture(client: TestClient) -> None:
    answer = client.get("/api/v1/cameras/yard/snapshot.jpg?width=640")
    image = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert answer.headers["content-type"] == "image/jpeg" and image.shape == (240, 320, 3)


def test_people_with_sightings(client: TestClient) -> None:
    people = {one["identity"]: one for one in client.get("/api/v1/people").json()}
    assert set(people) == {"red", "blue"}
    assert people["red"]["cameras"] == ["door", "yard"]
    red = client.get("/api/v1/people/red").json()
    assert {track["camera"] for track in red["tracks"]} == {"door", "yard"}
    assert {event["kind"] for event in red["events"]} >= {"entered", "moved", "left"}


def test_events_by_kind_and_in_both_orders(client: TestClient) -> None:
    (moved,) = client.get("/api/v1/events?kind=moved").json()
    assert (moved["identity"], moved["details"]["from"], moved["camera"]) == ("red", "door", "yard")
    newest = [one["seq"] for one in client.get("/api/v1/events").json()]
    assert newest == sorted(newest, reverse=True)
    assert client.get("/api/v1/events?order=oldest").json()[0]["seq"] == min(newest)


@pytest.mark.parametrize("query", ["kind=nonsense", "limit=0", "limit=x", "since=nan", "after=-1", "until=1e99"])
def test_impossible_queries_are_refused_with_a_sentence(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/v1/events?{query}")
    assert answer.status_code == 400 and answer.json()["error"].startswith("expected")


def test_search_with_a_picture(client: TestClient) -> None:
    answer = client.post("/api/v1/search", content=jpeg(scene(("blue", 100, 200))), headers=MARK).json()
    assert answer["masked"][0]["identity"] == "blue" and len(answer["box"]) == 4


@pytest.mark.parametrize("body", [b"", b"no picture"])
def test_search_without_a_picture_is_a_sentence(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/v1/search", content=body, headers=MARK)
    assert answer.status_code == 400 and "expected" in answer.json()["error"]


def test_bodies_that_are_too_large_are_refused(client: TestClient) -> None:
    answer = client.patch("/api/v1/people/red", content=b"x" * 100_000, headers=MARK)
    assert answer.status_code == 413


def test_naming_merging_splitting_and_forgetting(changing: WatchSite) -> None:
    client = client_of(changing)
    assert client.patch("/api/v1/people/red", json={"name": "Anna <b>"}, headers=MARK).json() == {"ok": True}
    assert client.get("/api/v1/people/red").json()["name"] == "Anna <b>"
    split = client.post("/api/v1/people/red/split", json={"camera": "door", "track": "1"}, headers=MARK)
    assert split.json() == {"identity": "somebody"}
    assert client.post("/api/v1/people/blue/merge", json={"into": "red"}, headers=MARK).status_code == 200
    assert client.get("/api/v1/people/blue").status_code == 404
    assert client.delete("/api/v1/people/red", headers=MARK).json()["deleted"] > 0
    assert [one["identity"] for one in client.get("/api/v1/people").json()] == ["somebody"]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"name": 3}', b"\xff"])
def test_a_body_that_is_not_as_described_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.patch("/api/v1/people/red", content=body, headers=MARK)
    assert answer.status_code == 400 and 'expected JSON {"name": "…"}' in answer.json()["error"]


def test_thumbnails_are_given_where_they_are_kept(client: TestClient) -> None:
    assert client.get("/api/v1/people/red/thumbnail.jpg").headers["content-type"] == "image/jpeg"
    assert client.get("/api/v1/people/nobody/thumbnail.jpg").status_code == 404


def test_live_sends_one_picture_and_waits_for_the_answer(client: TestClient, watch: WatchSite) -> None:
    with client.websocket_connect(f"{WS}/api/v1/cameras/yard/live") as socket:
        about = socket.receive_json()
        picture = socket.receive_bytes()
        assert about["people"][0]["identity"] == "blue" and picture[:2] == b"\xff\xd8"
        assert all(0 <= value <= 1 for value in about["people"][0]["box"])
        socket.send_text("next")


def test_live_events_come_after_the_given_number(changing: WatchSite) -> None:
    client, last = client_of(changing), changing.store.last_seq()
    with client.websocket_connect(f"{WS}/api/v1/events/live?after={last - 1}") as socket:
        assert socket.receive_json()["seq"] == last
        changing.merge("blue", "red")
        assert socket.receive_json()["kind"] == "merged"


def test_live_of_an_unknown_camera_is_closed(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"{WS}/api/v1/cameras/none/live") as socket:
        socket.receive_json()


def test_metrics_and_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"ready": True}
    assert 'dpm_edge_frames_processed_total{camera="door"} 33' in client.get("/metrics").text


# Who may come in


def test_the_page_and_its_files_are_served_with_their_headers(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200 and "dpm-edge watch" in answer.text
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    for name in ("main.js", "style.css", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd",
        "/static/..%5capp.py", "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 405)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example:8080"])
def test_on_loopback_a_foreign_name_for_this_machine_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/api/v1/cameras", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "localhost"])
def test_on_loopback_its_own_names_are_taken(client: TestClient, host: str) -> None:
    assert client.get("/api/v1/cameras", headers={"Host": host}).status_code == 200


def test_changes_of_another_site_are_refused(client: TestClient, watch: WatchSite) -> None:
    foreign = {"Origin": "http://evil.example", **MARK}
    assert client.delete("/api/v1/people/red", headers=foreign).status_code == 403
    assert client.delete("/api/v1/people/red", headers={"Origin": "null", **MARK}).status_code == 403
    assert client.delete("/api/v1/people/red").status_code == 403
    assert watch.store.tracks(identity="red")


def test_sockets_of_another_site_are_refused(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect):
        client.websocket_connect(f"{WS}/api/v1/events/live", headers={"Origin": "http://evil.example"}).__enter__()


@pytest.mark.parametrize(
    "path", ["/", "/api/v1/people", "/metrics", "/static/main.js", "/api/v1/cameras/yard/snapshot.jpg"]
)
def test_with_a_token_nothing_is_given_without_it(watch: WatchSite, path: str) -> None:
    client = client_of(watch, token=TOKEN, loopback=False)
    assert client.get(path).status_code == 401
    assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_token_in_the_address_becomes_a_cookie_and_leaves_the_address(watch: WatchSite) -> None:
    client = client_of(watch, token=TOKEN, loopback=False)
    answer = client.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/api/v1/people").status_code == 200


def test_sockets_need_the_token(watch: WatchSite) -> None:
    client = client_of(watch, token=TOKEN, loopback=False)
    with pytest.raises(WebSocketDisconnect):
        client.websocket_connect(f"{WS}/api/v1/events/live").__enter__()
    with client.websocket_connect(
        "/api/v1/events/live?after=0", headers={"Authorization": f"Bearer {TOKEN}"}
    ) as socket:
        assert socket.receive_json()["seq"] == 1


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)]
)
def test_what_is_loopback(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


# The description


def test_every_route_is_described_and_every_description_has_its_route(watch: WatchSite) -> None:
    app = page.make_app(watch)._app
    (mount,) = [route for route in app.routes if getattr(route, "path", "") == "/api/v1"]
    routes: set[tuple[str, str]] = set()
    for route in mount.routes:
        for method in getattr(route, "methods", None) or ():
            if method != "HEAD":
                routes.add((route.path, method.lower()))
    described = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    assert routes == described


def test_answers_are_as_described(client: TestClient) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    whole = document()
    for path in ("/site", "/cameras", "/people", "/people/red", "/events", "/outputs"):
        template = "/people/{identity}" if path == "/people/red" else path
        answer = whole["paths"][template]["get"]["responses"]["200"]
        schema = {**answer["content"]["application/json"]["schema"], "components": whole["components"]}
        jsonschema.validate(client.get(f"/api/v1{path}").json(), schema)
    answer = whole["paths"]["/search"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    found = client.post("/api/v1/search", content=jpeg(scene(("blue", 100, 200))), headers=MARK).json()
    jsonschema.validate(found, {**answer, "components": whole["components"]})
    assert json.loads(client.get("/api/v1/openapi.json").text) == json.loads(json.dumps(whole))


def test_white_letters_are_readable_on_the_colour_of_every_identity() -> None:
    """Contrast of at least 4.5 to 1, by the formula of WCAG 2.2."""
    text = (page.STATIC / "api.js").read_text(encoding="utf-8")
    saturation, lightness = (int(one) / 100 for one in re.search(r"hsl\(\$\{.*?\} (\d+)% (\d+)%\)", text).groups())  # type: ignore[union-attr]
    for hue in range(360):
        linear = [
            one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4
            for one in colorsys.hls_to_rgb(hue / 360, lightness, saturation)
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 4.5, hue


def test_the_server_leaves_the_logging_of_the_application_around_it_alone(watch: WatchSite) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `watch`)")
    closed: list[str] = []

    class Mine(logging.NullHandler):
        def close(self) -> None:
            closed.append("closed")

    handler = Mine()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        PageServer(watch)._socket.close()
        assert handler in root.handlers and not closed
    finally:
        root.removeHandler(handler)
