"""How long after `dpm-edge watch VIDEO` in a fresh folder the page shows a picture, and people are first looked for.

    python benchmarks/watch_first_picture.py --video VIDEO [-o FILE]

writes benchmarks/results/watch-first-picture.json: the medians of RUNS starts, each of a new process, nothing built:
it opens the page, builds and verifies an engine from the model that ships, opens detector and gallery, and looks. The
page is asked again and again for the camera's picture, then for how many of its frames were looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole

RESULTS = Path(__file__).parent / "results" / "watch-first-picture.json"
RUNS, LONGEST, EVERY = 3, 120.0, 0.05


def answer(address: str) -> bytes:
    """What the page answers; nothing while it has no answer."""
    with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(address, timeout=5) as got:
        return got.read()
    return b""


def seconds_until(what: Callable[[], Any], begin: float) -> float:
    """Seconds from `begin` until it is true.

    Raises:
        TimeoutError: it is not within LONGEST.
    """
    while not what():
        if time.monotonic() - begin > LONGEST:
            raise TimeoutError(f"nothing within {LONGEST:.0f} s")
        time.sleep(EVERY)
    return time.monotonic() - begin


def start(video: Path, folder: Path) -> dict[str, float]:
    """Seconds to the page, its first picture, and the first frame that was looked at, of one start."""
    watch = ["-m", "dpm_edge.cli", "watch", str(video), "--folder", str(folder / "watch"), "--port", "0"]
    command = [sys.executable, *watch]
    begin = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None, "a pipe"
        try:
            line = next(text for text in process.stderr if text.startswith("page: "))
            page = time.monotonic() - begin
            os.set_blocking(process.stderr.fileno(), False)
            found = re.search(r"http://\S+?(?=/?(?:\s|$))", line)
            assert found is not None, line
            api = f"{found[0]}/api/v1"
            cameras = f"{api}/cameras"
            snapshot = f"{cameras}/{video.stem}/snapshot.jpg"
            picture = seconds_until(lambda: answer(snapshot)[:2] == b"\xff\xd8", begin)
            looked = seconds_until(lambda: any(one["processed"] for one in json.loads(answer(cameras) or b"[]")), begin)
        finally:
            process.terminate()
    return {"page": page, "first picture": picture, "first frame looked at": looked}


def main() -> None:
    """Start, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    runs = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(start(given.video, Path(folder)))
    report = {
        "command": "python benchmarks/watch_first_picture.py --video VIDEO",
        "machine": machine_card(),
        "load of the system": [round(one, 1) for one in os.getloadavg()],
        "starts": RUNS,
        "seconds, median": {name: round(median(run[name] for run in runs), 2) for name in runs[0]},
        "seconds, most": {name: round(max(run[name] for run in runs), 2) for name in runs[0]},
    }
    write_whole(given.out, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
