"""The trust file: which plans may be opened here. A TensorRT plan is code, so opening one asks for more than a hash.

One JSON file of the user, $DPM_EDGE_TRUST or dpm-edge/trusted.json in the configuration folder, holds the sha256 of
each plan that was built here (`dpm-edge build` adds it) or that somebody vouched for (`dpm-edge trust ENGINE`). It
names contents, not places: a trusted plan may be moved or copied, and one that is replaced is no longer trusted.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dpm_edge.errors import EngineError
from dpm_edge.files import write_whole
from dpm_edge.manifest import Manifest

VARIABLE = "DPM_EDGE_TRUST"
PLANS = ("tensorrt", "tensorrt-rtx")
"""Backends whose engine file is code."""
FORMAT = 1


@dataclass(frozen=True)
class Trusted:
    """One plan that may be opened."""

    sha256: str
    """Of the plan's bytes."""
    folder: str
    """Where it lay when it was added."""
    date: str
    """When it was added, UTC."""


def place() -> Path:
    """The trust file: $DPM_EDGE_TRUST, else dpm-edge/trusted.json in $XDG_CONFIG_HOME or ~/.config.

    Raises:
        EngineError: there is no home folder, and no variable names another place.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME")
    try:
        return (Path(home) if home else Path.home() / ".config") / "dpm-edge" / "trusted.json"
    except RuntimeError as error:  # no $HOME, and a user without an entry
        raise EngineError(f"expected a home folder for the trust file, got none. Set {VARIABLE} to a file") from error


def listed() -> list[Trusted]:
    """Every trusted plan, oldest first; none where there is no trust file.

    Raises:
        EngineError: the file is damaged, or others may write it.
    """
    path = place()
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EngineError(f"the trust file {path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineError(
            f"the trust file {path} may be written by others (mode {stat.S_IMODE(mode):o}), so it says nothing. "
            f"Look through it, then: chmod go-w {path}"
        )
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {data['format']}")
        return [Trusted(**one) for one in data["trusted"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"the trust file {path} is damaged ({error}). Remove it and trust your engines again"
        ) from error


def add(folder: str | Path) -> str:
    """Trust the plan of an engine directory; returns its sha256. One that is trusted already stays as it is.

    Raises:
        EngineError: no engine directory, a file of it was changed, or the trust file cannot be read or written.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    manifest.check_files(folder)
    digest = manifest.files[manifest.engine]
    with _locked() as path:
        known = listed()
        if digest not in {one.sha256 for one in known}:
            date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            _write(path, [*known, Trusted(digest, str(folder.resolve()), date)])
    return digest


def remove(folder: str | Path) -> bool:
    """Trust the plan of an engine directory no longer; False where it was not trusted.

    Raises:
        EngineError: no engine directory, or the trust file cannot be read or written.
    """
    manifest = Manifest.read(Path(folder))
    digest = manifest.files[manifest.engine]
    with _locked() as path:
        known = listed()
        left = [one for one in known if one.sha256 != digest]
        if len(left) < len(known):
            _write(path, left)
    return len(left) < len(known)


def check(manifest: Manifest, folder: Path, trusted: bool) -> None:
    """Refuse a plan that nobody vouched for. Engines of other backends are data and pass.

    Raises:
        EngineError: the plan's sha256 is not in the trust file and `trusted` is False; the message has the command.
    """
    if trusted or manifest.backend not in PLANS:
        return
    digest = manifest.files[manifest.engine]
    if digest not in {one.sha256 for one in listed()}:
        raise EngineError(
            f"{folder / manifest.engine} is a TensorRT plan, which is code, and its sha256 {digest[:16]}… is not in "
            f"the trust file {place()}. If you know where it comes from: dpm-edge trust {folder}, or "
            "Engine.load(…, trusted=True)"
        )


@contextmanager
def _locked() -> Iterator[Path]:
    """The trust file's path, while no other process changes it.

    Raises:
        EngineError: its folder cannot be written.
    """
    path = place()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
    except OSError as error:
        raise EngineError(f"the trust file {path} cannot be written: {error.strerror or error}") from error


def _write(path: Path, trusted: list[Trusted]) -> None:
    """Replace the trust file; others may read it, nobody else may write it."""
    data = {"format": FORMAT, "trusted": [asdict(one) for one in trusted]}
    write_whole(path, (json.dumps(data, indent=2) + "\n").encode())
