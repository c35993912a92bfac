"""How an address is opened, and what reads a network stream."""

from __future__ import annotations

from pathlib import Path

from dpm_edge.errors import SourceError
from dpm_edge.watch.addresses import kind
from dpm_edge.watch.av_capture import AvCapture, import_av, is_installed
from dpm_edge.watch.captures import Capture, FileCapture, FolderCapture, StreamCapture
from dpm_edge.watch.site_config import READERS


def open_capture(address: str, reader: str = "auto") -> Capture:
    """Open an address.

    Args:
        address: as `Source` takes it.
        reader: one of READERS.

    Raises:
        MissingLibrary: `reader` is not installed.
        SourceError: it does not answer, or nothing there can be read.
        DataError: a file is no video.
    """
    what = kind(address)
    if what == "stream" and read_with(address, reader) == "pyav":
        return AvCapture(address)
    if what in ("stream", "device"):
        return StreamCapture(address, device=what == "device")
    if what == "folder":
        return FolderCapture(Path(address))
    return FileCapture([Path(address)])


def read_with(address: str, reader: str) -> str:
    """What reads an address, "opencv" or "pyav".

    Raises:
        SourceError: `reader` is none of READERS.
        MissingLibrary: it is not installed.
    """
    if reader not in READERS:
        raise SourceError(f"expected a reader out of {', '.join(READERS)}, got {reader!r}")
    if kind(address) != "stream" or reader == "opencv":
        return "opencv"
    if reader == "auto":
        return "pyav" if address.lower().startswith("rtsp") and is_installed() else "opencv"
    import_av()
    return "pyav"
