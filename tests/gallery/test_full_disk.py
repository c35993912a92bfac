"""A gallery in a folder on a disk that is really full: nothing is lost, nobody is killed, searching goes on.

The engine writes through memory maps: where a page finds no room, the system ends the process with SIGBUS. So each
case runs in a process of its own, on a small file system that only root can mount.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

MEGABYTES = {"ext4": 160, "tmpfs": 420}
"""A tmpfs wants room for the holes in the engine's files, which reading fills."""
HEAD = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from oracle import rows
from dpm_edge import Gallery
from dpm_edge.errors import DpmError, GalleryError

disk = sys.argv[1]
filler = disk + "/filler"

def fill(left):
    \"\"\"Fill the disk but for so many bytes; with 0, to the last one that anybody may write.\"\"\"
    with open(filler, "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while not left or os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > left:
                    file.write(bytes(size))
            except OSError:
                pass
        try:
            os.fsync(file.fileno())
        except OSError:
            pass

def refused(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except DpmError as error:
        print("refused:", error, flush=True)
        return
    raise AssertionError("not refused")
"""


@pytest.fixture(params=["ext4", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip(reason="only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES[request.param]}m", "tmpfs", str(place)]
    else:
        if shutil.which("mkfs.ext4") is None:
            pytest.skip(reason="mkfs.ext4 is not installed")
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(MEGABYTES["ext4"] << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
        mount = ["mount", "-o", "loop", str(image), str(place)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(reason=f"nothing can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def run(disk: Path, script: str) -> str:
    """What a script says; it must not be killed."""
    ended = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(script), str(disk)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, f"exit {ended.returncode}: {ended.stdout[-500:]} {ended.stderr[-2000:]}"
    return ended.stdout


def test_rows_are_refused_before_the_disk_is_full_and_the_others_stay(disk: Path) -> None:
    said = run(
        disk,
        """
        gallery = Gallery.create(disk + "/g", "f", 512)
        kept, refusals = 0, 0
        fill(60 << 20)
        for i in range(1000):
            try:
                kept += len(gallery.add(rows(200, 512, seed=i), people=range(200)))
            except GalleryError as error:
                refusals += 1
                assert "Free some space" in str(error), error
                break
        assert refusals and kept >= 200 and len(gallery) == kept
        assert gallery.search(rows(1, 512), 5).found.all()
        print(kept)
        gallery.close()
        """,
    )
    opened = f"""
        gallery = Gallery.open(disk + "/g")
        assert len(gallery) == {int(said)}
        gallery.close()
    """
    run(disk, opened)
    os.remove(disk / "filler")
    run(disk, opened + "    gallery = Gallery.open(disk + '/g'); gallery.add(rows(1, 512), people=['a'])")


def test_a_disk_that_others_fill_to_the_last_byte_ends_no_process(disk: Path) -> None:
    said = run(
        disk,
        """
        gallery = Gallery.create(disk + "/g", "f", 512, flush_every=1000)
        gallery.add(rows(300, 512), people=["anna"] * 300)
        gallery.flush()
        gallery.add(rows(300, 512, seed=1), people=["ben"] * 300)
        fill(0)
        refused(gallery.add, rows(1, 512), people=["x"])
        refused(gallery.flush)
        refused(gallery.delete, gallery.ids()[:1])
        refused(gallery.forget, "anna")
        refused(gallery.retain, "gate", "30d")
        refused(gallery.snapshot, disk + "/copy")
        refused(Gallery.create, disk + "/other", "f", 512)
        assert gallery.search(rows(1, 512), 5).found.all() and len(gallery) == 600
        refused(gallery.close)
        """,
    )
    assert said.count("refused:") == 8 and not (disk / "copy").exists()


def test_a_snapshot_that_does_not_fit_names_one_file_and_leaves_nothing(disk: Path, tmp_path: Path) -> None:
    said = run(
        disk,
        f"""
        gallery = Gallery.create({str(tmp_path / "g")!r}, "f", 512)
        gallery.add(rows(300, 512), people=["anna"] * 300)
        fill(100_000)
        refused(gallery.snapshot, disk + "/copy")
        """,
    )
    assert said.count("No space left") == 1 and not (disk / "copy").exists()


def test_a_gallery_on_a_full_disk_opens_for_searching_and_for_changes_once_there_is_room(disk: Path) -> None:
    run(
        disk,
        """
        gallery = Gallery.create(disk + "/g", "f", 512, flush_every=1000)
        gallery.add(rows(300, 512), people=["anna"] * 300)
        gallery.flush()
        gallery.add(rows(300, 512, seed=1), people=["ben"] * 300)  # in the log alone
        fill(0)
        os._exit(0)
        """,
    )
    run(
        disk,
        """
        with Gallery.open(disk + "/g") as gallery:
            assert len(gallery) == 600 and gallery.count(person="ben") == 300
            assert gallery.search(rows(1, 512), 5).found.all()
            try:
                gallery.add(rows(1, 512), people=["x"])
                raise AssertionError("not refused")
            except GalleryError as error:
                assert "disk" in str(error) and "is full" in str(error), error
        os.remove(filler)
        with Gallery.open(disk + "/g") as gallery:
            gallery.add(rows(1, 512), people=["x"])
            assert gallery.forget("anna") == 300 and len(gallery) == 301
        """,
    )


def test_a_flush_that_a_full_disk_refused_succeeds_once_there_is_room(disk: Path) -> None:
    run(
        disk,
        """
        import time
        gallery = Gallery.create(disk + "/g", "f", 512, flush_every=0.05)
        fill(40 << 20)
        gallery.add(rows(10, 512), people=["a"] * 10)
        fill(0)
        time.sleep(0.3)
        refused(gallery.flush)
        os.remove(filler)
        gallery.flush()
        os._exit(0)
        """,
    )
    run(disk, "with Gallery.open(disk + '/g') as gallery: assert len(gallery) == 10")
