"""The picture of the page in README: `dpm-edge watch` on two videos, as a browser shows it.

    python -m dpm_edge.train.synthetic.street --out street --wardrobe makehuman-assets
    python benchmarks/watch_picture.py street/door.mp4 street/yard.mp4 -o docs/watch.jpg [--engine ENGINE_DIR]

The command runs in a process of its own until the videos have ended; then Chromium opens the page. The people of these
videos are rendered; a picture of real ones does not belong into the repository. Needs `pip install playwright` and a
Chromium of the system.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SIZE = {"width": 1180, "height": 1130}
SITE = """
[site]
name = "warehouse"
thumbnails = true
[page]
port = 0
"""
SHOWN_MS, WAIT_S = 3000, 600


def start(videos: list[Path], engine: Path | None, work: Path) -> tuple[subprocess.Popen[str], str]:
    """Run the command until the videos have ended; the process, and the address of its page."""
    begin = "2026-05-01T12:00:00Z"
    cameras = [f'[cameras.{one.stem}]\nsource = "{one.resolve()}"\nstart = "{begin}"\n' for one in videos]
    (work / "site.toml").write_text(SITE + "".join(cameras), encoding="utf-8")
    command = [sys.executable, "-c", "from dpm_edge.cli import main; main()", "watch", str(work / "site.toml")]
    command += ["--engine", str(engine.resolve())] if engine else []
    program = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=work)
    assert program.stderr is not None
    address = ""
    for line in program.stderr:
        sys.stderr.write(line)
        found = re.match(r".*page: (http\S+)", line)
        address = found.group(1) if found else address
        if "all files have ended" in line:
            return program, address
    raise SystemExit("dpm-edge watch ended before its videos did")


def photograph(address: str, out: Path) -> None:
    """Open the page and save what it shows."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.wait_for_selector("#people-list button")
        page.wait_for_timeout(SHOWN_MS)
        page.screenshot(path=str(out), type="jpeg", quality=80)
        browser.close()


def main() -> None:
    """Watch, photograph, stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--engine", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    said = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        program, address = start(said.videos, said.engine, Path(folder))
        try:
            photograph(address, said.out)
        finally:
            program.terminate()
            program.wait()
    print(f"{said.out}: {said.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
