"""A real Milvus standalone server for tests, in an environment of its own, or the one at DPM_MILVUS_URL."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_folders import locked

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.stores import milvus

ROOT = Path(__file__).parents[1]
SERVER = """
import sys
from milvus import MilvusServer
server = MilvusServer()
server.set_base_dir(sys.argv[1])
server.listen_port = int(sys.argv[2])
# A read waits for the next tick of the server's clock, 200 ms as it comes: the tests make hundreds of small reads.
for setting, value in {"proxy.timeTickInterval": 10, "queryCoord.checkInterval": 50}.items():
    server.config.set(setting, value)
server.wait_for_started = False  # it asks the server's web page; a client's first answer is waited for instead
server.start()
print("ready", flush=True)
sys.stdin.read()
server.stop()
"""

START_TRIES, START_SECONDS = 3, 90
SERVERS: list[subprocess.Popen] = []


@pytest.fixture(scope="session")
def milvus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """http://host:port of a Milvus server."""
    if "DPM_MILVUS_URL" in os.environ:
        yield os.environ["DPM_MILVUS_URL"]
        return
    python = ROOT / ".venv-milvus" / "bin" / "python"
    with locked(ROOT / ".venv-milvus.lock"):
        if not (python.parent / "milvus-server").exists():
            made = subprocess.run(
                f"'{sys.executable}' -m venv '{python.parent.parent}' && "
                f"'{python}' -m pip install -q 'setuptools<80' milvus==2.3.5",
                shell=True,
                capture_output=True,
                text=True,
            )
            if made.returncode:
                reason = made.stderr.strip()[-200:]
                pytest.skip(reason=f"the server's wheel milvus==2.3.5 cannot be installed: {reason}")
    server, url = started(python, tmp_path_factory)
    SERVERS.append(server)
    try:
        yield url
    finally:
        stop_servers()


def started(python: Path, factory: pytest.TempPathFactory) -> tuple[subprocess.Popen, str]:
    """A server and its address. A port can be taken between its choice and its use: another one is tried."""
    said = ""
    for _ in range(START_TRIES):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = factory.mktemp("milvus")
        with (folder.parent / f"{folder.name}.log").open("w+") as log:
            server = subprocess.Popen(
                [python, "-c", SERVER, folder, str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # so that the process it starts can be ended with it
            )
            assert server.stdout is not None
            url = f"http://127.0.0.1:{port}"
            if server.stdout.readline() == b"ready\n" and answers(server, url):
                return server, url
            stop(server)
            log.seek(0)
            said += log.read()[-1000:]
        said += "".join(f"\n{one.name}: {one.read_text()[-2000:]}" for one in sorted(folder.glob("logs/milvus-std*")))
    raise AssertionError(f"the Milvus server did not start in {START_TRIES} tries: {said}")


def answers(server: subprocess.Popen, url: str) -> bool:
    """Whether a server serves; it says "ready" long before it does on a busy machine."""
    import pymilvus

    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            client = milvus.connect(url, None)
            client.list_collections(timeout=START_SECONDS)
            client.close()
        except (GalleryError, pymilvus.MilvusException):
            continue
        return True
    return False


def stop(server: subprocess.Popen) -> None:
    """End a server, by force where it does not end by itself: one that is left would slow the next one's start."""
    assert server.stdin is not None
    server.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def stop_servers() -> None:
    """End what `milvus_url` started."""
    while SERVERS:
        stop(SERVERS.pop())


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the server after the last test that needs it: idle, it takes half a core. A worker has these in a row."""
    if (
        hasattr(item.config, "workerinput")
        and "[milvus" in item.nodeid
        and "[milvus" not in getattr(nextitem, "nodeid", "")
    ):
        stop_servers()
