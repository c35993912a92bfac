"""The API under made-up requests, valid and not: no answer that its description does not name, and no failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpm_edge import Engine, Gallery

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from served import API, application, png

pytestmark = pytest.mark.slow
PICTURES = [(f"{API}/{name}", "post") for name in ("embed", "search", "who", "add")]
OTHERS = [(f"{API}/model", "get"), (f"{API}/gallery", "get"), ("/healthz", "get"), ("/metrics", "get")]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The API of a server with a gallery, as its own document describes it."""
    folder = tiny_engine.write_engine(tmp_path_factory.mktemp("fuzz") / "engine")
    with Engine.load(folder, threads=1) as engine:
        gallery = Gallery.for_engine(engine)
        gallery.add(tiny_engine.people(3), people=["a", "b", "c"], cameras=["1", "2", "1"])
    with application(folder, gallery) as app:

        async def local(scope: Any, receive: Any, send: Any) -> None:
            """Requests come under the name of this machine."""
            if scope["type"] == "http":
                rest = [(k, v) for k, v in scope["headers"] if k != b"host"]
                scope = {**scope, "headers": [*rest, (b"host", b"localhost")]}
            await app(scope, receive, send)

        schema = schemathesis.openapi.from_dict(app.api.openapi())
        schema.app = local
        yield schema


def test_every_route_is_fuzzed(described: Any) -> None:
    assert {(path, method) for path, methods in described.raw_schema["paths"].items() for method in methods} == {
        *PICTURES,
        *OTHERS,
    }


@pytest.mark.parametrize(("path", "method"), PICTURES)
def test_made_up_options_beside_a_real_picture(described: Any, path: str, method: str) -> None:
    """Bodies of made-up bytes end at the decoder; behind it are the engine, the gallery and the options."""
    from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

    answered: set[int] = set()
    pictures = st.sampled_from([png(image) for image in tiny_engine.people(3)])

    @given(case=described[path][method].as_strategy(), picture=pictures)
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def fuzz(case: Any, picture: bytes) -> None:
        case.body, case.media_type = picture, "image/png"
        # What was made up for the body does not count; texts of times and JSON of boxes are free in the description.
        excluded = [positive_data_acceptance, negative_data_rejection]
        answered.add(case.call_and_validate(excluded_checks=excluded).status_code)

    fuzz()
    assert answered >= {200, 422} and not answered & {500, 503, 507}


@pytest.mark.parametrize(("path", "method"), PICTURES + OTHERS)
def test_no_request_gets_an_answer_that_is_not_described(described: Any, path: str, method: str) -> None:
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    @given(case=described[path][method].as_strategy())
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def fuzz(case: Any) -> None:
        # Bytes that are no picture are refused, and no description of theirs can say which those are.
        excluded = [positive_data_acceptance] if method == "post" else []
        case.call_and_validate(excluded_checks=excluded)

    fuzz()
