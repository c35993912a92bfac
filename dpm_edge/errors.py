"""Every error that dpm-edge raises on purpose.

Each message has one form: "expected (N, 4) boxes in pixels, got (3, 5). Pass x0 y0 x1 y1": what was expected, what
came, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DpmError(Exception):
    """Base of all errors raised on purpose; the CLI prints it without a traceback and exits with 1."""


class SpecError(DpmError):
    """A model, build or training description that contradicts itself or names something unknown."""


class CheckpointError(DpmError):
    """A checkpoint or portable ONNX that is missing, damaged, or not the model it says it is."""


class EngineError(DpmError):
    """An engine directory that is damaged, edited, or not for this machine or these library versions."""


class BuildRefused(DpmError):
    """A build whose verification went over the accuracy budget."""


class ImageError(DpmError):
    """A picture, frame or box that cannot be used."""


class EmbeddingsError(DpmError):
    """Embeddings whose arrays do not belong together, or an embeddings file that is damaged."""


class GalleryError(DpmError):
    """A gallery that is damaged, or embeddings that do not belong in it."""


class GalleryInUse(GalleryError):
    """A gallery in a folder that another process holds."""


class DataError(DpmError):
    """A dataset folder that does not have the layout it should have."""


class KernelError(DpmError):
    """A kernel that was given tensors outside its contract, or cannot run on this device."""


class ExportError(DpmError):
    """An engine that another server cannot serve, or a folder that an export must not replace."""


class SourceError(DpmError):
    """A camera or video that cannot be opened or read."""


class SiteError(DpmError):
    """A site file whose cameras, zones, rules or outputs contradict each other or name something unknown."""


class WatchStoreError(DpmError):
    """A store of the camera application that is damaged, of a newer version, or held by another process."""


class NotSeen(DpmError):
    """An identity or a track that nobody has seen, or that was forgotten."""


class OutputError(DpmError):
    """An event that an output could not deliver; it is tried again unless the receiver refuses the event itself."""


class MissingLibrary(DpmError):
    """A library that an extra brings is not installed, or is installed and broken."""

    def __init__(self, library: str, needed_for: str, install: str, *, found: str = "none installed here") -> None:
        """Name the `library`, what needs it, the command that installs it, and what was `found` instead."""
        super().__init__(f"expected {library} for {needed_for}, got {found}. Install it: {install}")
        self.library = library


def nearest(name: str, known: Iterable[str]) -> str:
    """Offer the nearest known names in a sentence: " Did you mean 'stride'? Known: height, stride."."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    offer = f" Did you mean {close[0]!r}?" if close else ""
    return f"{offer} Known: {', '.join(known)}."
