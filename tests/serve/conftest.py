"""An engine of the tiny network and servers around it, for the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_engine

from dpm_edge import Engine, Gallery


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine.write_engine(tmp_path_factory.mktemp("served") / "engine")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.load(folder, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(folder: Path, engine: Engine) -> Iterator[Any]:
    """A client of a server with six people, which is only asked."""
    from served import application, client_of, gallery_of  # needs the extra, without which the tests are skipped

    with application(folder, gallery_of(engine)) as app:
        yield client_of(app)


@pytest.fixture
def changing(folder: Path, engine: Engine) -> Iterator[tuple[Any, Gallery]]:
    """A client of a server with an empty gallery in memory, and the gallery."""
    from served import application, client_of

    gallery = Gallery.for_engine(engine)
    with application(folder, gallery) as app:
        yield client_of(app), gallery
