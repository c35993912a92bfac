"""How many cameras the camera application carries on this machine, and whether it lasts.

    python benchmarks/watch_load.py --video vtest.avi --engine ENGINE_DIR [--cameras 1 2 3] [--seconds 60]
    python benchmarks/watch_load.py --video vtest.avi --engine ENGINE_DIR --minutes 120 [--rate 1]

writes benchmarks/results/watch-load.json, or watch-soak.json with --minutes. Cameras are stand-ins for RTSP: each reads
the video in a loop, shifted, and gives --rate decoded frames a second (10), whether anybody takes them or not. All
else is the application's own: sources, detector, tracker, identities with a gallery in a folder, rules, store, outputs.
No page is open. The detector looks at every frame as long as the machine keeps up, as it does without settings;
--detect-every N has it look at every N-th.

Load: each number of cameras for so many seconds, after ten to warm up. A camera does not fall behind while less than
2 % of its frames are dropped. Latency is from the moment that a frame was read until its events are in the store.

Soak: three cameras that go away at random, --away times in all, for 1 to 8 seconds each; tracks, events and rows are
kept for --keep-minutes. Wanted: memory within 5 % of what it was after a tenth of the time, every camera back within
5 s of its return, and each event delivered once. The report is written every minute, with how many minutes it is about.
Memory is what the process holds (resident), and of it what is no file's (anonymous): pages of the gallery's and the
store's files are counted with it as long as the system has room for them.

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
from array import array
from collections.abc import Callable, Iterator
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
WARM_SECONDS, MOST_DROPPED, REPORT_SECONDS = 10.0, 0.02, 60.0
SOAK_CAMERAS, SHORTEST_AWAY, LONGEST_AWAY = 3, 1.0, 8.0


class FakeCamera:
    """A video in a loop as a live camera, which may be switched off."""

    total = 0

    def __init__(self, video: Path, skip: int, rate: float) -> None:
        self._video, self._skip, self._rate = video, skip, rate
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
            due += 1 / self._rate
            wait = due - time.monotonic()
            if wait < -max(1.0, 1 / self._rate):
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

    when: array[float]
    """When each frame had been looked at."""
    latencies: array[float]
    """Seconds of each."""

    def _look_at(self, frame: CameraFrame) -> None:
        super()._look_at(frame)
        self.when.append(time.monotonic())
        self.latencies.append(self.latency()[frame.camera])

    def latencies_since(self, begin: float) -> NDArray[np.float64]:
        """Seconds of the frames that were looked at since then."""
        latencies = np.array(self.latencies)
        return latencies[np.array(self.when)[: len(latencies)] >= begin]


def memory() -> tuple[float, float]:
    """Megabytes of memory that this process holds, and of them what is no file's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    whole, own = (int(lines[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "RssAnon"))
    return whole, own


def on_disk(folder: Path) -> float:
    """Megabytes of disk that a folder takes."""
    blocks = 0
    for place in folder.rglob("*"):
        try:
            blocks += place.stat().st_blocks
        except FileNotFoundError:  # the application removed it meanwhile
            continue
    return blocks * 512 / 1e6


class Run:
    """A site of fake cameras that is watched in a thread of its own."""

    def __init__(
        self, video: Path, engine: Engine, cameras: int, folder: Path, said: argparse.Namespace, keep: float | None
    ) -> None:
        self.cameras = {f"rtsp://camera-{i}/": FakeCamera(video, 97 * i, said.rate) for i in range(cameras)}
        configs = tuple(
            CameraConfig(name=f"camera-{i}", source=address, detect_every=said.detect_every)
            for i, address in enumerate(self.cameras)
        )
        self.events = folder / "events.jsonl"
        output = OutputConfig(name="events", kind="jsonl", path=self.events)
        site = Site(cameras=configs, folder=folder, outputs=(output,), keep=keep)
        self.store = WatchStore(folder / "watch.sqlite3")
        self.site = TimedSite(site, self.store, opener=lambda address: self.cameras[address].open())
        self.site.when, self.site.latencies = array("d"), array("d")
        self.gallery = Gallery.for_engine(engine, folder / "gallery")
        self._seeing = open_seeing(site, engine, self.gallery, threads=said.threads)
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
        self.gallery.close()
        self.store.close()

    def counts(self) -> dict[str, tuple[int, int, float]]:
        """Camera → frames looked at, frames dropped, and the processor seconds of the whole program so far."""
        spent = time.process_time()
        return {one["camera"]: (one["processed"], one["dropped"], spent) for one in self.site.status()}


def load(engine: Engine, cameras: int, said: argparse.Namespace) -> dict[str, Any]:
    """Watch with so many cameras for a while."""
    with tempfile.TemporaryDirectory() as folder, Run(said.video, engine, cameras, Path(folder), said, None) as run:
        time.sleep(WARM_SECONDS)
        before, begin = run.counts(), time.monotonic()
        time.sleep(said.seconds)
        after, spent = run.counts(), time.monotonic() - begin
        latency = run.site.latencies_since(begin)
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
            "memory, MB": round(memory()[0]),
            "detected in every n-th frame, at the end": list(run.site.detect_every().values()),
        }


class Absences:
    """Cameras that go away at random and come back, and how long the application needs to see them again."""

    def __init__(self, run: Run, times: int, seconds: float) -> None:
        self._rng, self._run = random.Random(0), run
        self._times = sorted(self._rng.uniform(0.05, 0.93) * seconds for _ in range(times))
        self._returning: list[tuple[float, FakeCamera]] = []
        self.missing: dict[str, float] = {}
        """Address → when it returned without having been seen yet."""
        self.back: list[float] = []

    def step(self, passed: float) -> None:
        """Do what is due after so many seconds."""
        now = time.monotonic()
        while self._times and passed >= self._times[0]:
            self._times.pop(0)
            camera = self._rng.choice(list(self._run.cameras.values()))
            if not camera.away.is_set():
                camera.away.set()
                self._returning.append((now + self._rng.uniform(SHORTEST_AWAY, LONGEST_AWAY), camera))
        for at, camera in list(self._returning):
            if now >= at:
                camera.away.clear()
                self._returning.remove((at, camera))
                self.missing[next(k for k, v in self._run.cameras.items() if v is camera)] = now
        for status in self._run.site.source_statuses():
            address = f"rtsp://{status.camera}/"
            if address in self.missing and status.state == "live" and status.silent < 0.5:
                self.back.append(now - self.missing.pop(address))


def growth(whole: NDArray[np.float64]) -> dict[str, Any]:
    """Of one value a second: after a tenth of the time, at the end, and by what share it grew."""
    tenth = max(1, len(whole) // 10)
    first, last = float(np.median(whole[tenth : 2 * tenth + 1])), float(np.median(whole[-tenth:]))
    return {
        "after a tenth": round(first, 1),
        "at the end": round(last, 1),
        "growth": round(last / first - 1, 4) if first else None,
    }


def soak(engine: Engine, said: argparse.Namespace, write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Watch cameras that go away and come back; `write` is given the report of every minute."""
    seconds, keep = 60 * said.minutes, 60 * said.keep_minutes
    whole, own, disk, rows = array("d"), array("d"), array("d"), array("d")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def report(run: Run) -> dict[str, Any]:
            counts = dict(run.site.counts)
            lines = run.events.read_text(encoding="utf-8").splitlines() if run.events.exists() else []
            told = [json.loads(line)["id"] for line in lines]
            latency = run.site.latencies_since(0.0)
            return {
                "minutes": said.minutes,
                "finished": len(whole) >= 0.99 * seconds,
                "minutes done": round(len(whole) / 60, 1),
                "cameras": SOAK_CAMERAS,
                "kept for, minutes": said.keep_minutes,
                "times away": len(absences.back) + len(absences.missing),
                "back after, s": {
                    "most": round(max(absences.back, default=0.0), 2),
                    "median": round(float(np.median(absences.back or [0])), 2),
                },
                "not back at the end": len(absences.missing),
                "frames looked at": len(run.site.latencies),
                "memory, MB": growth(np.array(whole)),
                "of it anonymous, MB": growth(np.array(own)),
                "memory every tenth of the time, MB": [round(float(np.median(p))) for p in np.array_split(whole, 10)],
                "disk, MB": growth(np.array(disk)),
                "rows of the gallery": growth(np.array(rows)),
                "events": sum(counts.values()),
                "events delivered": len(told),
                "events lost or doubled": [sum(counts.values()) - len(set(told)), len(told) - len(set(told))],
                "kinds": counts,
                "frame to events, ms": {
                    f"p{q}": round(float(np.percentile(latency, q)) * 1e3, 1) for q in (50, 95, 99)
                },
            }

        with Run(said.video, engine, SOAK_CAMERAS, folder, said, keep) as run:
            begin, reported = time.monotonic(), 0.0
            absences = Absences(run, said.away, seconds)
            while (passed := time.monotonic() - begin) < seconds:
                absences.step(passed)
                if passed >= len(whole):  # one value a second
                    for values, value in zip((whole, own), memory()):
                        values.append(value)
                    disk.append(on_disk(folder))
                    rows.append(len(run.gallery))
                if passed - reported >= REPORT_SECONDS and len(run.site.latencies):
                    reported = passed
                    write(report(run))
                time.sleep(0.1)
        return report(run)


def pace(text: str) -> int | None:
    """A number for --detect-every; None for "auto"."""
    return None if text == "auto" else int(text)


def main() -> None:
    """Watch, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("video", "engine"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=10.0, help="frames a second of each camera")
    parser.add_argument(
        "--detect-every", type=pace, default="auto", help='detect people in every n-th frame, or "auto"'
    )
    parser.add_argument("--minutes", type=float, help="soak instead")
    parser.add_argument("--away", type=int, default=30, help="times that a camera goes away in a soak")
    parser.add_argument("--keep-minutes", type=float, default=5.0, help="how long a soak keeps what it saw")
    parser.add_argument("--threads", type=int, help="of detector and engine; all cores if not given")
    parser.add_argument("--beside", default="nothing", help="what else runs on this machine")
    parser.add_argument("-o", "--out", type=Path)
    said = parser.parse_args()
    manifest = Manifest.read(said.engine)
    options = f" --rate {said.rate:g} --detect-every {said.detect_every or 'auto'}"
    if said.minutes:
        options += f" --minutes {said.minutes:g} --away {said.away} --keep-minutes {said.keep_minutes:g}"
    about: dict[str, Any] = {
        "command": f"python benchmarks/watch_load.py --video VIDEO --engine ENGINE_DIR{options}",
        "machine": machine_card(),
        "engine": {"model": manifest.spec.name, "backend": manifest.backend, "precision": manifest.precision},
        "beside": said.beside,
        "load of the system before": [round(value, 1) for value in os.getloadavg()],
        "frames a second that each camera gives": said.rate,
        "detected in every n-th frame": said.detect_every or "auto",
    }
    out = said.out or RESULTS / ("watch-soak.json" if said.minutes else "watch-load.json")

    def write(found: dict[str, Any]) -> None:
        write_whole(out, (json.dumps(about | found, indent=1) + "\n").encode())

    with Engine.load(said.engine, threads=said.threads) as engine:
        if said.minutes:
            write(soak(engine, said, write))
        else:
            write({"runs": [load(engine, one, said) for one in said.cameras]})
    print(out.read_text())


if __name__ == "__main__":
    main()
