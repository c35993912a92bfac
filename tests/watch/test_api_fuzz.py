"""The API under made-up requests, valid and not: no answer that its description does not name, and no failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from stand_ins import make_seeing, scene, walk, write_scenes

from dpm_edge.watch.page.openapi import document
from dpm_edge.watch.site_config import CameraConfig, Site
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.watch_site import WatchSite

pytest.importorskip("starlette", reason="starlette is not installed (the extra `watch`)")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

pytestmark = pytest.mark.slow
NEVER_ENDS = "/cameras/{camera}/stream.mjpg"
OPERATIONS = [
    (path, method) for path, methods in document()["paths"].items() for method in methods if path != NEVER_ENDS
]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The API of a site that was watched, as its own document describes it."""
    from dpm_edge.watch.page.app import make_app

    folder: Path = tmp_path_factory.mktemp("fuzz")
    video = write_scenes(folder / "door.avi", walk("red", 8) + [scene()] * 12 + walk("blue", 8))
    site = Site(cameras=(CameraConfig(name="door", source=str(video)),), thumbnails=True)
    with WatchStore(":memory:", run="") as store, WatchSite(site, store) as watch:
        watch.run(make_seeing())
        app = make_app(watch)

        async def local(scope: Any, receive: Any, send: Any) -> None:
            """Requests come under the name of this machine."""
            if scope["type"] == "http":
                rest = [(k, v) for k, v in scope["headers"] if k != b"host"]
                scope = {**scope, "headers": [*rest, (b"host", b"localhost")]}
            await app(scope, receive, send)

        schema = schemathesis.openapi.from_dict(document())
        schema.app = local
        yield schema


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_gets_an_answer_that_is_not_described(described: Any, path: str, method: str) -> None:
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    @given(case=described[path][method].as_strategy())
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def fuzz(case: Any) -> None:
        # Bytes that are no picture are refused, and no description of theirs can say which those are.
        excluded = [positive_data_acceptance] if path == "/search" else []
        case.call_and_validate(excluded_checks=excluded)

    fuzz()
