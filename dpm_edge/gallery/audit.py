"""One line for each deletion: when, why, which ids. No names: a forgotten person is not kept here either."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError


class Audit:
    """A file of JSON lines that only grows."""

    def __init__(self, path: Path | None) -> None:
        """Where to write; None: nowhere."""
        self._path = path

    def write(self, why: str, ids: NDArray[np.int64]) -> None:
        """One line, synced to the disk before this returns.

        Raises:
            GalleryError: it could not be written; the rows are removed all the same.
        """
        if self._path is None:
            return
        when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": when, "what": why, "rows": len(ids), "ids": [int(i) for i in ids]})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise GalleryError(
                f"{len(ids)} rows were removed ({why}), but expected to write a line to {self._path}, got "
                f"{error.strerror}. Free some space, or check the rights, and note it yourself: ids {ids[:8].tolist()}"
            ) from error
