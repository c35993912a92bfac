"""Times and durations as cameras, files and pandas give them, turned into Unix seconds before anything is written.

N rows
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError

LIMIT_SECONDS = 1e10
"""Largest plausible Unix time or duration, the year 2286: milliseconds since April 1970 are above it."""
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
TIMES = "Unix seconds, an aware datetime, datetime64 (UTC), or ISO 8601 text with a zone"
DURATIONS = 'seconds, a timedelta, or text like "30d", "12h", "45min" or "90s"'


def timestamps(values: Any, count: int) -> NDArray[np.float64]:
    """Return (N,) Unix seconds of rows; NaN where a value is None, NaN or NaT, and everywhere when `values` is None.

    Raises:
        GalleryError: a value is no time, a datetime has no zone, or a number is implausible, such as milliseconds.
    """
    if values is None:
        return np.full(count, np.nan)
    if hasattr(values, "to_numpy"):  # a column of pandas, polars or pyarrow
        values = values.to_numpy()
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(values, Iterable):
        raise GalleryError(f"expected {count} timestamps, one for each row, got {values!r:.80}. Pass a list")
    if not isinstance(values, np.ndarray):
        values = list(values)
        if all(type(value) in (float, int) for value in values):
            values = np.array(values, np.float64)
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise GalleryError(f"expected {count} timestamps, one for each row, got an array of shape {values.shape}")
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        seconds = values.astype(np.float64)
    elif isinstance(values, np.ndarray) and values.dtype.kind == "M":
        seconds = _of_datetime64(values, "timestamps")
    else:
        seconds = np.array([_seconds(value, "timestamps") for value in values], np.float64)
    bad = np.flatnonzero(np.isinf(seconds) | (np.abs(seconds) > LIMIT_SECONDS))
    if len(bad):
        _plausible(float(seconds[bad[0]]), f"timestamps[{bad[0]}]")
    return seconds


def moment(value: Any, name: str) -> float | None:
    """Return one time as Unix seconds; None stays None.

    Raises:
        GalleryError: it is no time, has no zone, is NaN, or is implausible.
    """
    if value is None:
        return None
    seconds = _seconds(value, name)
    if math.isnan(seconds):
        raise GalleryError(f"expected {TIMES} for {name}, got {value!r:.80}. Leave {name} out for no limit")
    return _plausible(seconds, name)


def duration(value: Any, name: str) -> float:
    """Return a length of time in seconds.

    Raises:
        GalleryError: it is no duration, negative, not finite, or above 300 years.
    """
    if isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, np.timedelta64):
        seconds = value / np.timedelta64(1, "s")
    elif isinstance(value, str):
        text = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)?\s*", value)
        seconds = float(text[1]) * UNITS[text[2] or "s"] if text else math.nan
    else:
        seconds = _number(value)
    if not 0 <= seconds <= LIMIT_SECONDS:
        raise GalleryError(f"expected {DURATIONS} for {name}, 0 or more, got {value!r:.80}")
    return float(seconds)


def _seconds(value: Any, name: str) -> float:
    """Unix seconds of one value; NaN where it says that nobody knows."""
    if value is None:
        return math.nan
    if isinstance(value, np.datetime64):
        return float(_of_datetime64(np.array([value]), name)[0])
    if isinstance(value, datetime.datetime):
        if value != value:  # NaT of pandas
            return math.nan
        if value.tzinfo is None:
            raise GalleryError(
                f"expected {TIMES} for {name}, got {value.isoformat()} without a zone. Say which: "
                f"value.replace(tzinfo=datetime.timezone.utc), or value.astimezone() for this machine's"
            )
        return value.timestamp()
    if isinstance(value, str):
        return _of_text(value, name)
    seconds = _number(value)
    if math.isnan(seconds) and not _is_nan(value):
        raise GalleryError(f"expected {TIMES} for {name}, got {value!r:.80} ({type(value).__name__})")
    return seconds


def _of_text(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
    except ValueError as error:
        raise GalleryError(f"expected {TIMES} for {name}, got the text {text!r:.80} ({error})") from error
    return _seconds(when, name)


def _of_datetime64(values: NDArray, name: str) -> NDArray[np.float64]:
    if np.datetime_data(values.dtype)[0] == "generic" and not np.isnat(values).all():
        raise GalleryError(f"expected {TIMES} for {name}, got a datetime64 without a unit")
    seconds = values.astype("datetime64[us]").astype(np.int64) / 1e6
    return np.where(np.isnat(values), np.nan, seconds)


def _number(value: Any) -> float:
    """A number as float, NaN for anything else: True is no time, and neither is a list."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan
    return float(value)


def _is_nan(value: Any) -> bool:
    """Whether a value says itself that it is unknown: NaN of any kind of number, NaT, pandas' NA."""
    return isinstance(value, float | np.floating) or str(value) in ("nan", "NaN", "NaT", "<NA>")


def _plausible(seconds: float, name: str) -> float:
    if abs(seconds) <= LIMIT_SECONDS:
        return seconds
    looks = ""
    for unit, scale in (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)):
        if 5e8 <= seconds / scale < 5e9:
            looks = f", which looks like {unit}. Divide by {scale:.0f}, or pass datetime64"
    raise GalleryError(f"expected Unix seconds for {name}, got {seconds:.10g}{looks}")
