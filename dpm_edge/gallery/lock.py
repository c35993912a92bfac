"""Lets one thread at a time into a gallery, as long as the gallery is open."""

from __future__ import annotations

import threading
from types import TracebackType

from dpm_edge.errors import GalleryError


class GalleryLock:
    """A lock to use in a `with`; the same thread may take it again.

    Raises:
        GalleryError: on entering, when the gallery is closed.
    """

    def __init__(self) -> None:
        """Open."""
        self._lock = threading.RLock()
        self.closed = False

    def __enter__(self) -> GalleryLock:
        self._lock.acquire()
        if self.closed:
            self._lock.release()
            raise GalleryError("expected an open gallery, got one that is closed. Open it again: Gallery.open(…)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
