"""Whom the server lets in."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_engine

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx, which starlette's test client needs, is not installed")

from served import API, PNG, application, client_of, png

TOKEN = "a-token-of-more-than-sixteen-letters"
PICTURE = png(tiny_engine.people(1)[0])
PATHS = [f"{API}/model", f"{API}/gallery", f"{API}/openapi.json", "/metrics"]


def test_with_a_token_nothing_is_given_without_it(folder: Path) -> None:
    with application(folder, token=TOKEN, loopback=False) as app:
        client = client_of(app)
        for path in PATHS:
            refused = client.get(path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 409)
        assert client.post(f"{API}/embed", content=PICTURE, headers=PNG).status_code == 401
        right = {**PNG, "Authorization": f"Bearer {TOKEN}"}
        assert client.post(f"{API}/embed", content=PICTURE, headers=right).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_a_token_in_the_address_or_in_a_cookie_is_none(folder: Path) -> None:
    """A browser would send a cookie by itself with a request of another site's page."""
    with application(folder, token=TOKEN, loopback=False) as app:
        client = client_of(app)
        assert client.get("/", params={"token": TOKEN}).status_code == 401
        assert client.get(f"{API}/model", params={"token": TOKEN}).status_code == 401
        assert client.get(f"{API}/model", headers={"Cookie": f"dpm_edge_token={TOKEN}"}).status_code == 401


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9999", "http://127.0.0.1:8090"])
def test_pages_of_another_site_can_change_nothing(folder: Path, origin: str) -> None:
    """A browser names the page's origin with every request that may change something; no header of ours is needed."""
    with application(folder) as app:
        client = client_of(app)
        refused = client.post(f"{API}/embed", content=PICTURE, headers={**PNG, "Origin": origin})
        own = client.post(f"{API}/embed", content=PICTURE, headers={**PNG, "Origin": "http://localhost:8090"})
        program = client.post(f"{API}/embed", content=PICTURE, headers=PNG)
    assert (refused.status_code, own.status_code, program.status_code) == (403, 200, 200)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example:8090", ""])
def test_on_loopback_a_foreign_name_for_this_machine_is_refused(folder: Path, host: str) -> None:
    with application(folder) as app:
        answer = client_of(app).post(f"{API}/embed", content=PICTURE, headers={**PNG, "Host": host})
    assert answer.status_code == 421 and "expected a request to localhost" in answer.json()["error"]


def test_no_answer_is_kept_read_as_something_else_or_given_to_another_site(folder: Path) -> None:
    with application(folder) as app:
        headers = client_of(app).post(f"{API}/embed", content=PICTURE, headers=PNG).headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert "access-control-allow-origin" not in headers and "set-cookie" not in headers
