"""Rows that are added over HTTP: all of a request or none, and on the disk before the answer."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpm_edge import Engine, Gallery
from dpm_edge.errors import GalleryError

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx, which starlette's test client needs, is not installed")

from served import API, PEOPLE, application, files, png, post
from starlette.testclient import TestClient

from dpm_edge.serve.app import ServeApp
from dpm_edge.serve.options import AddOptions
from dpm_edge.serve.request_body import SentPicture


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
