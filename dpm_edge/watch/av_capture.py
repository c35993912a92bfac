"""Network streams read with PyAV (extra `rtsp`): quicker to open than with OpenCV, and with the camera's own clock.

PyAV's wheels contain x264 and x265, which are under the GPL: they are never part of this package.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import numpy as np

from dpm_edge.errors import MissingLibrary, SourceError
from dpm_edge.watch.addresses import redacted
from dpm_edge.watch.captures import BAD_FRAMES, TIMEOUT_MS, Frames

WAITING_STAMPS = 64
"""Stamps of packets whose picture has not come out of the decoder yet, at most."""


def is_installed() -> bool:
    """Whether PyAV is there."""
    return find_spec("av") is not None


def import_av() -> Any:
    """PyAV.

    Raises:
        MissingLibrary: it is not installed, or does not load.
    """
    try:
        import av
    except ImportError as error:
        raise MissingLibrary("PyAV", 'reader = "pyav"', "pip install 'dpm-edge[rtsp]'") from error
    return av


class AvCapture:
    """A network stream.

    Args:
        address: rtsp://…, http://… or whatever FFmpeg opens.
        options: FFmpeg's, beside those that are set here.

    Raises:
        MissingLibrary: PyAV is not installed.
        SourceError: nobody answers, or the answer is no video.
    """

    total = 0

    def __init__(self, address: str, options: Mapping[str, str] | None = None) -> None:
        self._av, self._address = import_av(), address
        limit = TIMEOUT_MS / 1000
        transport = {"rtsp_transport": "tcp"} if address.startswith("rtsp") else {}
        try:
            self._container = self._av.open(address, options={**transport, **(options or {})}, timeout=(limit, limit))
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(
                f"expected a stream that answers, with the right name and password, at {redacted(address)}, got "
                f"{type(error).__name__}. Check the address"
            ) from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"expected video at {redacted(address)}, got a stream without. Check the address")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "SLICE"  # threads for frames would hold every picture up

    def __iter__(self) -> Frames:
        """Give pictures (H, W, 3) uint8 BGR, each with the camera's own Unix seconds; None before it has told them.

        Raises:
            SourceError: the connection broke.
        """
        stamps: OrderedDict[int, float] = OrderedDict()
        bad = 0
        try:
            for packet in self._container.demux(self._stream):
                stamp = stamp_of(packet)
                if stamp is not None and packet.pts is not None:
                    stamps[packet.pts] = stamp
                    if len(stamps) > WAITING_STAMPS:
                        stamps.popitem(last=False)
                try:
                    frames = packet.decode()
                except self._av.InvalidDataError:
                    bad += 1
                    if bad >= BAD_FRAMES:
                        return
                    continue
                for frame in frames:
                    bad = 0
                    yield np.asarray(frame.to_ndarray(format="bgr24"), np.uint8), stamps.pop(frame.pts, None)
        except self._av.FFmpegError as error:
            raise SourceError(
                f"expected pictures from {redacted(self._address)}, got {type(error).__name__}: the connection broke"
            ) from error

    def shortfall(self) -> str:
        """A stream has no end to fall short of."""
        return ""

    def __enter__(self) -> AvCapture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._container.close()


def stamp_of(packet: Any) -> float | None:
    """The sender's Unix seconds of a packet, from its side data; None where there are none.

    FFmpeg's AVProducerReferenceTime begins with the time in microseconds, int64.
    """
    if not packet.has_sidedata("prft"):
        return None
    return float(struct.unpack_from("=q", bytes(packet.get_sidedata("prft")))[0]) / 1e6
