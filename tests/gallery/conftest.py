"""Galleries over every store. Milvus: a real standalone server in an environment of its own, or DPM_MILVUS_URL."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from dpm_edge import Gallery
from dpm_edge.gallery import edge, milvus, qdrant
from dpm_edge.gallery.store import new_meta

ROOT = Path(__file__).parents[2]
SERVER = """
import sys, time
from milvus import MilvusServer
server = MilvusServer()
server.set_base_dir(sys.argv[1])
server.listen_port = int(sys.argv[2])
server.start()
print("ready", flush=True)
sys.stdin.read()
server.stop()
"""

Make = Callable[..., Gallery]


@pytest.fixture(scope="session")
def milvus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """http://host:port of a Milvus server."""
    if "DPM_MILVUS_URL" in os.environ:
        yield os.environ["DPM_MILVUS_URL"]
        return
    if os.environ.get("DPM_TEST_MILVUS") != "1":
        pytest.skip(reason="a Milvus server takes minutes: DPM_TEST_MILVUS=1 starts one, DPM_MILVUS_URL names one")
    python = ROOT / ".venv-milvus" / "bin" / "python"
    if not (python.parent / "milvus-server").exists():
        made = subprocess.run(
            f"'{sys.executable}' -m venv '{python.parent.parent}' && "
            f"'{python}' -m pip install -q 'setuptools<80' milvus==2.3.5",
            shell=True,
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(reason=f"the server's wheel milvus==2.3.5 cannot be installed: {made.stderr.strip()[-200:]}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [python, "-c", SERVER, tmp_path_factory.mktemp("milvus"), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n", "the Milvus server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stdin.close()
        server.wait(timeout=60)


@pytest.fixture(params=["memory", "edge", "qdrant", "milvus"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes empty galleries of model "f" over one kind of store; they are closed in the end."""
    made: list[Gallery] = []

    def new(dimension: int = 12, masks: bool = True) -> Gallery:
        name, meta = f"g{uuid.uuid4().hex}", new_meta("f", dimension, masks)
        if request.param == "memory":
            gallery = Gallery("f", dimension, "float16")
        elif request.param == "edge":
            gallery = Gallery.create(tmp_path / name, "f", dimension, masks=masks)
        elif request.param == "qdrant":
            client = (
                qdrant.connect(os.environ["DPM_QDRANT_URL"], None)
                if "DPM_QDRANT_URL" in os.environ
                else QdrantClient(":memory:")
            )
            gallery = Gallery("f", dimension, store=qdrant.QdrantStore.create(client, name, meta))
        else:
            client = milvus.connect(request.getfixturevalue("milvus_url"), None)
            gallery = Gallery("f", dimension, store=milvus.MilvusStore.create(client, name, meta))
        made.append(gallery)
        return gallery

    yield new
    for gallery in made:
        if request.param == "milvus":
            gallery.store._client.drop_collection(gallery.store._collection)
        if not (request.param == "edge" and isinstance(gallery.store, edge.EdgeStore) and closed(gallery)):
            gallery.close()


def closed(gallery: Gallery) -> bool:
    """Whether a folder's gallery was closed by its test."""
    return not (gallery.store.folder / edge.WRITER).exists()
