"""Requests a second of `dpm-edge serve` on this machine, against the same engine called in its own process.

    python benchmarks/serve_load.py --engine ENGINE_DIR [--clients 1 8 32] [--seconds 2.5] [--beside "what else ran"]

writes benchmarks/results/serve-load.json. Clients are coroutines of this process on connections that stay open; each
sends a JPEG of the package's samples to /api/v1/embed and sends the next when it has its answer, with the feature as
base64. The server is a process of its own. In process, as many threads decode the same JPEG files and embed them
through the runtime's batcher with the server's settings; and one thread calls `Engine.embed` itself, a picture a call.
Both take turns, twice, so that what else runs meets both. Clients and server share the machine's cores. Processor
milliseconds of a request, of the process that holds the engine, hardly depend on what else runs.

--beside says what else ran on the machine; the load that the system reports is written down, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge import Engine
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.images import decode_image, find_images
from dpm_edge.manifest import Manifest
from dpm_edge.runtime.batcher import Batcher
from dpm_edge.serve.crop_embedder import WAIT_SECONDS
from dpm_edge.shipped import ASSETS

RESULTS = Path(__file__).parent / "results"
WARM_SECONDS, TURNS = 1.0, 2


@dataclass
class Measured:
    """What some clients saw."""

    took: list[float] = field(default_factory=list)
    """Seconds of each request."""
    wall: float = 0.0
    """Seconds in all."""
    processor: float = 0.0
    """Seconds of the processor that the process with the engine took, warming up included."""
    calls: int = 0
    """Requests, warming up included."""

    def figures(self) -> dict[str, float]:
        """Requests a second, and milliseconds that half and 99 % of them took at most."""
        half, most = np.percentile(self.took, [50, 99]) * 1000
        return {
            "per_second": round(len(self.took) / self.wall, 1),
            "p50_ms": round(half, 2),
            "p99_ms": round(most, 2),
            "processor_ms": round(1000 * self.processor / self.calls, 2),
        }

    def add(self, other: Measured) -> None:
        """Count another turn, too."""
        self.took += other.took
        self.wall += other.wall
        self.processor += other.processor
        self.calls += other.calls


def processor_seconds(process: int) -> float:
    """Seconds of the processor that a process has taken, in all its threads (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def http_clients(port: int, process: int, pictures: list[bytes], clients: int, seconds: float) -> Measured:
    """So many clients over HTTP."""
    head = (
        "POST /api/v1/embed?encoding=base64 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        "Content-Length: {}\r\n\r\n"
    )
    requests = [head.format(len(one)).encode() + one for one in pictures]
    took: list[float] = []
    calls = 0
    begin, before = time.monotonic() + WARM_SECONDS, processor_seconds(process)

    async def client(number: int) -> None:
        nonlocal calls
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        at = number
        while (start := time.monotonic()) < begin + seconds:
            writer.write(requests[at % len(requests)])
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer, re.I)
            assert answer.startswith(b"HTTP/1.1 200 ") and length is not None, answer
            await reader.readexactly(int(length[1]))
            calls += 1
            if start >= begin:
                took.append(time.monotonic() - start)
            at += clients
        writer.close()

    await asyncio.gather(*(client(i) for i in range(clients)))
    return Measured(took, time.monotonic() - begin, processor_seconds(process) - before, calls)


def threads_in_process(embed: Callable[[bytes], Any], pictures: list[bytes], clients: int, seconds: float) -> Measured:
    """So many threads that call `embed` in this process."""
    took: list[float] = []
    calls = [0] * clients
    begin, before = time.monotonic() + WARM_SECONDS, processor_seconds(os.getpid())

    def client(number: int) -> None:
        at = number
        while (start := time.monotonic()) < begin + seconds:
            embed(pictures[at % len(pictures)])
            calls[number] += 1
            if start >= begin:
                took.append(time.monotonic() - start)
            at += clients

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return Measured(took, time.monotonic() - begin, processor_seconds(os.getpid()) - before, sum(calls))


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, int]]:
    """A server as a process of its own; its port, and its number."""
    command = [sys.executable, "-m", "dpm_edge.cli", "serve", "--engine", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r":(\d+)/api", line)
        assert found is not None, line
        yield int(found[1]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def measure(folder: Path, pictures: list[bytes], counts: list[int], seconds: float) -> list[dict[str, Any]]:
    """Every way with every number of clients."""
    with Engine.load(folder) as engine, server(folder) as (port, process):

        def directly(one: bytes) -> Any:
            return engine.embed([decode_image(one)])

        def batched(one: bytes) -> Any:
            return batcher.submit(decode_image(one)).result()

        best, found = engine.batch.best, defaultdict[tuple[str, int], Measured](Measured)
        with Batcher(engine, max_batch=best, max_wait=WAIT_SECONDS, capacity=256) as batcher:
            for _ in range(TURNS):
                found["Engine.embed", 1].add(threads_in_process(directly, pictures, 1, seconds))
                for count in counts:
                    found["Batcher", count].add(threads_in_process(batched, pictures, count, seconds))
                    found["dpm-edge serve", count].add(
                        asyncio.run(http_clients(port, process, pictures, count, seconds))
                    )
    return [{"how": how, "clients": count, **one.figures()} for (how, count), one in sorted(found.items())]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--beside", default="nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve-load.json")
    given = parser.parse_args()
    paths = find_images(ASSETS / "samples")[:64]
    pictures = [path.read_bytes() for path in paths]
    load = os.getloadavg()[0]
    rows = measure(given.engine, pictures, given.clients, given.seconds)
    manifest = Manifest.read(given.engine)
    result = {
        "what": __doc__.splitlines()[0],
        "machine": machine_card(),
        "beside": given.beside,
        "load_before": round(load, 2),
        "engine": {"model": manifest.spec.name, "backend": manifest.backend, "precision": manifest.precision},
        "pictures": {"count": len(pictures), "mean_bytes": round(float(np.mean([len(one) for one in pictures])))},
        "rows": rows,
    }
    write_whole(given.out, (json.dumps(result, indent=2) + "\n").encode())
    for row in rows:
        print(f"{row['how']:<16} {row['clients']:>3} clients  {row['per_second']:>7} a second  "
              f"p50 {row['p50_ms']:>7} ms  p99 {row['p99_ms']:>7} ms  processor {row['processor_ms']} ms")  # fmt: skip
    print(json.dumps({"out": str(given.out)}))


if __name__ == "__main__":
    main()
