"""Engines for other servers: a model repository of the Triton Inference Server, configurations of DeepStream.

What both exports share is here: a folder is replaced if an export wrote it, and never if somebody else did.
"""

from __future__ import annotations

from pathlib import Path

from dpm_edge.errors import ExportError

MARK = "Written by dpm-edge export"
"""Stands in the first line of one file of every folder that an export writes."""


def check_replaceable(folder: Path, marked: str) -> None:
    """Refuse to replace what no export wrote.

    Args:
        folder: about to be replaced as a whole.
        marked: the file in it whose first line holds MARK.

    Raises:
        ExportError: the folder holds something, and its marked file is missing or is not ours.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    path = folder / marked
    if path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        return
    raise ExportError(f"expected a folder that `dpm-edge export` wrote, or none, got {folder}. Name another folder")
