"""What the server's tests share: the application with its engine and gallery, and a real server around it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tiny_engine
from numpy.typing import NDArray
from starlette.testclient import TestClient

from dpm_edge import Engine, Gallery
from dpm_edge.serve.app import ServeApp
from dpm_edge.spec import foreign_spec
from dpm_edge.web.listening import ServingThread, bind

API = "/api/v1"
PNG = {"content-type": "image/png"}
PEOPLE = tiny_engine.people(6)
NAMES = ["anna", "ben", "cleo", "dan", "eve", "finn"]
LOCAL = "http://localhost:8090"


def png(image: NDArray[np.uint8]) -> bytes:
    """A picture as PNG, which loses nothing."""
    return cv2.imencode(".png", image)[1].tobytes()


def files(images: list[NDArray[np.uint8]]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Pictures as parts of a form."""
    return [("pictures", (f"{i}.png", png(image), "image/png")) for i, image in enumerate(images)]


def features(answer: dict[str, Any], key: str = "feature") -> NDArray[np.float32]:
    """(n, D) of an answer of `embed`, whichever its encoding."""
    return np.array(
        [
            np.frombuffer(base64.b64decode(row[key]), "<f4") if isinstance(row[key], str) else row[key]
            for row in answer["rows"]
        ],
        np.float32,
    )


def foreign_engine(folder: Path) -> Path:
    """An engine of a network without masks."""
    spec = foreign_spec("theirs", tiny_engine.SPEC.width, tiny_engine.SPEC.preprocessing, tiny_engine.SPEC.weights)
    return tiny_engine.write_engine(folder, spec=spec)


@contextmanager
def application(folder: Path, gallery: Gallery | None = None, **options: Any) -> Iterator[ServeApp]:
    """The application of an engine directory."""
    with Engine.load(folder, threads=1) as engine:
        app = ServeApp(engine, gallery, **options)
        try:
            yield app
        finally:
            app.close()


def client_of(app: ServeApp) -> TestClient:
    """A client that calls the application itself."""
    return TestClient(app, base_url=LOCAL, raise_server_exceptions=False)


@contextmanager
def serving(app: ServeApp, **options: Any) -> Iterator[str]:
    """A real server, with options for uvicorn; its address."""
    listening = bind("127.0.0.1", 0, "the test")
    with ServingThread(app, listening, what="the test", finish_seconds=10, **options):
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def gallery_of(engine: Engine) -> Gallery:
    """Six people in memory, half of them of one camera."""
    gallery = Gallery.for_engine(engine)
    gallery.add(PEOPLE, people=NAMES, cameras=["gate", "yard"] * 3, timestamps=[1e9 + i for i in range(6)])
    return gallery


def post(client: TestClient, name: str, image: Any = None, **more: Any) -> Any:
    """A request with one picture as its body."""
    body = png(PEOPLE[0] if image is None else image)
    return client.post(f"{API}/{name}", content=body, headers=PNG, **more)
