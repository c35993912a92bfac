"""How many cameras the camera application carries on this machine, and whether it lasts.

    python benchmarks/watch_load.py --video vtest.avi --engine ENGINE_DIR [--cameras 1 2 3] [--seconds 60]
    python benchmarks/watch_load.py --video vtest.avi --engine ENGINE_DIR --minutes 120

writes benchmarks/results/watch-load.json, or watch-soak.json with --minutes. Cameras are stand-ins for RTSP: each reads
the video in a loop, shifted, and gives a decoded frame every tenth of a second, whether anybody takes it or not. All
else is the application's own: sources, detector, tracker, identities with a gallery in a folder, rules, store, outputs.
No page is open.

Load: each number of cameras for so many seconds, after ten to warm up. A camera does not fall behind while less than
2 % of its frames are dropped. Latency is from the moment that a frame was read until its events are in the store.

Soak: three cameras that go away at random, --away times in all, for 1 to 8 seconds each. Wanted: memory within 5 % of
what it was after a tenth of the time, every camera back within 5 s of its return, and each event delivered once.

--beside says what else ran on the machine; the load that the system reports is written down, too. Processor seconds a
frame hardly depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge import Engine, Gallery
from dpm_edge.env import machine_card
from dpm_edge.errors import SourceError
from dpm_edge.files import write_whole
from dpm_edge.manifest import Manifest
from dpm_edge.video import Video
from dpm_edge.watch.seeing import open_seeing
from dpm_edge.watch.site_config import CameraConfig, OutputConfig, Site
from dpm_edge.watch.sources import CameraFrame
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.watch_site import WatchSite

RESULTS = Path(__file__).parent / "results"
RATE, WARM_SECONDS, MOST_DROPPED = 10.0, 10.0, 0.02
SOAK_CAMERAS, SHORTEST_AWAY, LONGEST_AWAY = 3, 1.0, 8.0


class FakeCamera:
    """A video in a loop as a live camera, which may be switched off."""

    total = 0

    def __init__(self, video: Path, skip: int) -> None:
        self._video, self._skip = video, skip
        self.away = threading.Event()
        self.returned = 0.0

    def open(self) -> FakeCamera:
        """Connect.

        Raises:
            SourceError: it is switched off.
        """
        if self.away.is_set():
            raise SourceError("expected a camera, got none: it is switched off")
        return self

    def _frames(self) -> Iterator[NDArray[np.uint8]]:
        skip = self._skip
        while True:
            with Video(self._video) as frames:
                for number, frame in enumerate(frames):
                    if number >= skip:
                        yield frame
            skip = 0

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], None]]:
        due = time.monotonic()
        for frame in self._frames():
            due += 1 / RATE
            wait = due - time.monotonic()
            if wait < -1:
                due = time.monotonic()
            time.sleep(max(0.0, wait))
            if self.away.is_set():
                return
            yield frame, None

    def shortfall(self) -> str:
        """A stream has none."""
        return ""

    def __enter__(self) -> FakeCamera:
        return self

    def __exit__(self, *error: object) -> None: ...


class TimedSite(WatchSite):
    """Keeps every frame's latency."""

    latencies: list[tuple[float, float]]
    """(when, seconds) of each frame."""

    def _look_at(self, frame: CameraFrame) -> None:
        super()._look_at(frame)
        self.latencies.append((time.monotonic(), self.latency()[frame.camera]))


def resident() -> float:
    """Megabytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Run:
    """A site of fake cameras that is watched in a thread of its own."""

    def __init__(self, video: Path, engine: Engine, cameras: int, folder: Path, threads: int | None) -> None:
        self.cameras = {f"rtsp://camera-{i}/": FakeCamera(video, 97 * i) for i in range(cameras)}
        configs = tuple(CameraConfig(name=f"camera-{i}", source=address) for i, address in enumerate(self.cameras))
        self.events = folder / "events.jsonl"
        site = Site(
            cameras=configs, folder=folder, outputs=(OutputConfig(name="events", kind="jsonl", path=self.events),)
        )
        self.store = WatchStore(folder / "watch.sqlite3")
        self.site = TimedSite(site, self.store, opener=lambda address: self.cameras[address].open())
        self.site.latencies = []
        self._gallery = Gallery.for_engine(engine, folder / "gallery")
        self._seeing = open_seeing(site, engine, self._gallery, threads=threads)
        self._thread = threading.Thread(target=self.site.run, args=(self._seeing,), daemon=True)

    def __enter__(self) -> Run:
        self.site.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.site.stop()
        self._thread.join(60)
        for delivery in self.site.deliveries:
            delivery.drain(30.0)
        self.site.__exit__(None, None, None)
        self._gallery.close()
        self.store.close()

    def counts(self) -> dict[str, tuple[int, int, float]]:
        """Camera → frames looked at, frames dropped, and the processor seconds of the whole program so far."""
        spent = time.process_time()
        return {one["camera"]: (one["processed"], one["dropped"], spent) for one in self.site.status()}


def load(video: Path, engine: Engine, cameras: int, seconds: float, threads: int | None) -> dict[str, Any]:
    """Watch with so many cameras for a while."""
    with tempfile.TemporaryDirectory() as folder, Run(video, engine, cameras, Path(folder), threads) as run:
        time.sleep(WARM_SECONDS)
        before, begin = run.counts(), time.monotonic()
        time.sleep(seconds)
        after, spent = run.counts(), time.monotonic() - begin
        latency = np.array([value for at, value in run.site.latencies if at >= begin])
        looked = [after[name][0] - before[name][0] for name in after]
        dropped = [after[name][1] - before[name][1] for name in after]
        processor = next(iter(after.values()))[2] - next(iter(before.values()))[2]
        return {
            "cameras": cameras,
            "frames a second and camera": round(sum(looked) / spent / cameras, 2),
            "dropped, worst camera": round(max(d / max(d + n, 1) for n, d in zip(looked, dropped)), 4),
            "does not fall behind": bool(all(d <= MOST_DROPPED * (d + n) for n, d in zip(looked, dropped))),
            "frame to events, ms": {f"p{q}": round(float(np.percentile(latency, q)) * 1e3, 1) for q in (50, 95, 99)},
            "processor seconds a frame": round(processor / max(sum(looked), 1), 4),
            "cores busy": round(processor / spent, 2),
            "memory, MB": round(resident()),
        }


def soak(video: Path, engine: Engine, minutes: float, away: int, threads: int | None) -> dict[str, Any]:
    """Watch cameras that go away and come back."""
    rng, memory, back = random.Random(0), [], []
    with tempfile.TemporaryDirectory() as folder:
        with Run(video, engine, SOAK_CAMERAS, Path(folder), threads) as run:
            begin, end = time.monotonic(), time.monotonic() + 60 * minutes
            cameras = list(run.cameras.values())
            times = sorted(rng.uniform(0.05, 0.93) * 60 * minutes for _ in range(away))
            returning: list[tuple[float, FakeCamera]] = []
            missing: dict[str, float] = {}
            while time.monotonic() < end:
                now = time.monotonic()
                while times and now - begin >= times[0]:
                    times.pop(0)
                    camera = rng.choice(cameras)
                    if not camera.away.is_set():
                        camera.away.set()
                        returning.append((now + rng.uniform(SHORTEST_AWAY, LONGEST_AWAY), camera))
                for at, camera in list(returning):
                    if now >= at:
                        camera.away.clear()
                        returning.remove((at, camera))
                        missing[next(k for k, v in run.cameras.items() if v is camera)] = now
                for status in run.site.source_statuses():
                    address = f"rtsp://{status.camera}/"
                    if address in missing and status.state == "live" and status.silent < 0.5:
                        back.append(now - missing.pop(address))
                memory.append((now - begin, resident()))
                time.sleep(0.1)
        latency = np.array([value for _, value in run.site.latencies])
        counts = dict(run.site.counts)
        told = [json.loads(line)["id"] for line in run.events.read_text(encoding="utf-8").splitlines()]
    tenth = float(np.median([mb for at, mb in memory if 0.1 <= at / (60 * minutes) <= 0.2]))
    last = float(np.median([mb for at, mb in memory if at / (60 * minutes) >= 0.9]))
    return {
        "minutes": minutes,
        "cameras": SOAK_CAMERAS,
        "times away": len(back) + len(missing),
        "back after, s": {"most": round(max(back, default=0.0), 2), "median": round(float(np.median(back or [0])), 2)},
        "not back at the end": len(missing),
        "memory after a tenth and at the end, MB": [round(tenth), round(last)],
        "growth": round(last / tenth - 1, 4),
        "events": sum(counts.values()),
        "events delivered": len(told),
        "events lost or doubled": [sum(counts.values()) - len(set(told)), len(told) - len(set(told))],
        "kinds": counts,
        "frame to events, ms": {f"p{q}": round(float(np.percentile(latency, q)) * 1e3, 1) for q in (50, 95, 99)},
    }


def main() -> None:
    """Watch, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "engine"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--minutes", type=float, help="soak instead")
    parser.add_argument("--away", type=int, default=30, help="times that a camera goes away in a soak")
    parser.add_argument("--threads", type=int, help="of detector and engine; all cores if not given")
    parser.add_argument("--beside", default="nothing", help="what else runs on this machine")
    parser.add_argument("-o", "--out", type=Path)
    said = parser.parse_args()
    manifest = Manifest.read(said.engine)
    report: dict[str, Any] = {
        "command": "python benchmarks/watch_load.py --video VIDEO --engine ENGINE_DIR"
        + (f" --minutes {said.minutes:g} --away {said.away}" if said.minutes else ""),
        "machine": machine_card(),
        "engine": {"model": manifest.spec.name, "backend": manifest.backend, "precision": manifest.precision},
        "beside": said.beside,
        "load of the system before": [round(value, 1) for value in os.getloadavg()],
        "frames a second that each camera gives": RATE,
    }
    with Engine.load(said.engine, threads=said.threads) as engine:
        if said.minutes:
            report |= soak(said.video, engine, said.minutes, said.away, said.threads)
        else:
            runs = [load(said.video, engine, one, said.seconds, said.threads) for one in said.cameras]
            report["runs"] = runs
    out = said.out or RESULTS / ("watch-soak.json" if said.minutes else "watch-load.json")
    write_whole(out, (json.dumps(report, indent=1) + "\n").encode())
    print(out.read_text())


if __name__ == "__main__":
    main()
