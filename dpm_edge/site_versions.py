"""The folder of a site: its settings, its versions, and which of them is in use.

SITE/
    site.json           what was asked for: the model, the videos or crops, the gallery
    versions/0001/      one version: crops/, adapted.safetensors, cameras.json, engine/, gallery/, calibration.json
        settings.json   what this version is made of; written first
        done.json       what came out; written last: a version without it is unfinished
    current             a link to the version in use: an application opens current/engine and current/gallery
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dpm_edge.errors import DataError
from dpm_edge.files import sync_folder, write_whole

SETTINGS, CURRENT, LOCK = "site.json", "current", "lock"
MADE_OF, DONE = "settings.json", "done.json"


class SiteFolder:
    """A site on the disk."""

    def __init__(self, folder: Path) -> None:
        """Look at nothing yet."""
        self.folder = folder.resolve()

    @property
    def settings(self) -> dict[str, Any]:
        """What `begin` kept.

        Raises:
            DataError: there is no site here, or its settings are damaged.
        """
        path = self.folder / SETTINGS
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(kept, dict):
                raise ValueError("no object")
        except (OSError, ValueError) as error:
            raise DataError(
                f"expected a site at {self.folder}, got no {SETTINGS} ({error}). Begin one: site init"
            ) from (error)
        return kept

    def begin(self, settings: dict[str, Any]) -> None:
        """Keep the settings of a new site; the same ones again change nothing.

        Raises:
            DataError: the folder holds a site of other settings, or other files.
        """
        path = self.folder / SETTINGS
        if path.is_file():
            if self.settings != settings:
                raise DataError(
                    f"expected a new site, got {self.folder}, which was begun with other settings. Change it with "
                    f"`dpm-edge site update {self.folder} …`, or name another folder"
                )
            return
        if self.folder.is_dir() and any(one.name != LOCK for one in self.folder.iterdir()):
            raise DataError(f"expected an empty folder for a new site, got {self.folder}, which holds other files")
        self.change(settings)

    def change(self, settings: dict[str, Any]) -> None:
        """Replace the settings, whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())

    def versions(self) -> list[Path]:
        """Every version, finished or not, oldest first."""
        return sorted(path for path in (self.folder / "versions").glob("[0-9]*") if path.is_dir())

    def finished(self) -> list[Path]:
        """Those that are whole, oldest first."""
        return [path for path in self.versions() if (path / DONE).is_file()]

    @property
    def current(self) -> Path | None:
        """The version in use; None where there is none yet."""
        link = self.folder / CURRENT
        return self.folder / "versions" / link.resolve().name if link.is_symlink() and link.exists() else None

    def next_version(self, made_of: dict[str, Any]) -> Path:
        """Return the folder of the version to make: the unfinished one where it is made of the same, else a new one.

        An unfinished version of something else is deleted.
        """
        there = self.versions()
        if there and not (there[-1] / DONE).is_file():
            if _read(there[-1] / MADE_OF) == made_of:
                return there[-1]
            shutil.rmtree(there.pop())
        version = self.folder / "versions" / f"{int(there[-1].name) + 1 if there else 1:04d}"
        version.mkdir(parents=True)
        write_whole(version / MADE_OF, (json.dumps(made_of, indent=1) + "\n").encode())
        return version

    def use(self, version: Path) -> None:
        """Make a finished version the one in use, in one step."""
        beside = self.folder / f"{CURRENT}-{os.getpid()}"
        with suppress(FileNotFoundError):
            beside.unlink()
        beside.symlink_to(Path("versions") / version.name, target_is_directory=True)
        os.replace(beside, self.folder / CURRENT)
        sync_folder(self.folder)

    def back(self) -> Path:
        """Use the finished version before the one in use; return it.

        Raises:
            DataError: there is none.
        """
        current = self.current
        before = [one for one in self.finished() if current is None or one.name < current.name]
        if not before:
            raise DataError(
                f"expected a version before the one in use of {self.folder} to go back to, got none. What was in use "
                "before the first version is the model and gallery that you began with"
            )
        self.use(before[-1])
        return before[-1]

    def forget_others(self, *kept: Path | None) -> list[Path]:
        """Delete every version but these; return what was deleted."""
        names = {one.name for one in kept if one is not None}
        others = [one for one in self.versions() if one.name not in names]
        for version in others:
            (version / DONE).unlink(missing_ok=True)  # what a kill leaves of it is no version to go back to
            shutil.rmtree(version)
        return others

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the site meanwhile.

        Raises:
            DataError: another process does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("a") as file:
            try:
                import fcntl
            except ImportError:  # Windows
                yield
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(
                    f"expected a site that nobody changes, got {self.folder}, which another process is working on. "
                    "Wait for it, or end it"
                ) from error
            yield


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
