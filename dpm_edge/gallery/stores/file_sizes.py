"""How long a store's files were when they were last flushed: a file that is shorter now, or gone, was damaged since.

Qdrant Edge opens a shard whose list of ids was cut short, with fewer rows and without a word.
"""

from __future__ import annotations

import json
from pathlib import Path

from dpm_edge.errors import GalleryError
from dpm_edge.files import write_whole

NAME = "sizes.json"
LASTING = ("mutable_id_tracker.*", "chunk_*", "page_*", "tracker.dat", "status.dat")
"""Files of ids, vectors and payloads: they grow as long as their shard lives. Others come and go, or are JSON, whose
damage the engine sees."""


def record(folder: Path, shard: str) -> None:
    """Write down the sizes of a flushed shard's lasting files.

    Raises:
        OSError: the disk is full; the older sizes stay, which are no larger.
    """
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for pattern in LASTING
        for path in sorted((folder / shard / "segments").rglob(pattern))
    }
    said = (json.dumps(sizes, indent=0) + "\n").encode()
    place = folder / NAME
    if not place.is_file() or place.read_bytes() != said:
        write_whole(place, said)


def check(folder: Path, shard: str) -> None:
    """Compare with what was recorded for this shard.

    Raises:
        GalleryError: a file is gone or shorter than it was.
    """
    try:
        sizes = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except OSError:
        return  # nothing was flushed yet
    except ValueError as error:
        raise GalleryError(f"{folder / NAME} is damaged ({error}). Restore a snapshot: copy its folder here") from error
    for name, size in sizes.items():
        path = folder / name
        if not name.startswith(f"{shard}/"):
            continue  # of the shard before a compaction
        now = path.stat().st_size if path.is_file() else None
        if now is None or now < size:
            came = "is gone" if now is None else f"has {now} bytes"
            raise GalleryError(f"{path} {came}; it had {size}. Restore a snapshot: copy its folder here")
