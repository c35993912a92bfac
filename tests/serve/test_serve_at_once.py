"""A hundred requests at once through a real server: none is lost, none gets another one's answer."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_engine

from dpm_edge import Engine, Gallery

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx is not installed")

import httpx
from served import API, PNG, application, features, files, png, serving

REQUESTS = 100


def test_each_answer_is_the_engines_own_of_its_own_pictures(tmp_path: Path) -> None:
    folder, draw = tiny_engine.write_engine(tmp_path / "engine"), random.Random(3)
    people = tiny_engine.people(2 * REQUESTS, seed=11)
    work = [[people[2 * i], people[2 * i + 1]][: 1 + i % 2] for i in range(REQUESTS)]
    with application(folder) as app, serving(app) as address:

        async def one(client: Any, images: list[Any]) -> Any:
            encoding = draw.choice(["list", "base64"])
            if len(images) == 1 and draw.random() < 0.7:
                url = f"{address}{API}/embed?encoding={encoding}"
                return await client.post(url, content=png(images[0]), headers=PNG)
            return await client.post(f"{address}{API}/embed", files=files(images), data={"encoding": encoding})

        async def all_at_once() -> list[Any]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(limits=limits, timeout=60) as client:
                return await asyncio.gather(*(one(client, images) for images in work))

        answers = asyncio.run(all_at_once())
        batches, crops = app.embedder.batches, app.embedder.crops
    assert [answer.status_code for answer in answers] == [200] * REQUESTS
    with Engine.load(folder, threads=1) as engine:
        for images, answer in zip(work, answers):
            np.testing.assert_allclose(features(answer.json()), engine.embed(images).features, rtol=0, atol=2e-6)
    assert crops == sum(map(len, work)) and batches < crops / 2, "requests share batches"


def test_rows_that_are_added_at_once_are_all_there_and_each_is_its_own(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")
    folder, people = tiny_engine.write_engine(tmp_path / "engine"), tiny_engine.people(24, seed=5)
    with Engine.load(folder, threads=1) as engine, Gallery.for_engine(engine, tmp_path / "seen") as gallery:
        with application(folder, gallery) as app, serving(app) as address:

            async def all_at_once() -> list[Any]:
                async with httpx.AsyncClient(timeout=60) as client:
                    told = [{"person": str(i), "payload": json.dumps({"n": i})} for i in range(len(people))]
                    return await asyncio.gather(
                        *(
                            client.post(f"{address}{API}/add", files=files([image]), data=data)
                            for image, data in zip(people, told)
                        )
                    )

            answers = asyncio.run(all_at_once())
        ids = [answer.json()["rows"][0] for answer in answers]
        assert len(set(ids)) == len(people) == len(gallery)
        own = engine.embed(people).features
        for i, row in enumerate(ids):
            kept = gallery.rows([row])
            assert kept.people == [str(i)] and kept.payloads == [{"n": i}]
            np.testing.assert_allclose(kept.features[0], own[i], rtol=0, atol=5e-4)  # kept as float16
