"""Times and durations in every form that cameras, files and pandas give, against hand-worked Unix seconds."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pytest
from oracle import rows

from dpm_edge import Gallery
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.times import duration, moment, timestamps

UTC = datetime.timezone.utc
NOON = 1_735_732_800
"""2025-01-01 12:00 UTC, by hand: 20,089 days and a half of 86,400 seconds."""
SAME_MOMENT = {
    "int": NOON,
    "float": float(NOON),
    "numpy float32-safe int": np.int64(NOON),
    "aware datetime": datetime.datetime(2025, 1, 1, 12, tzinfo=UTC),
    "datetime of another zone": datetime.datetime(
        2025, 1, 1, 14, tzinfo=datetime.timezone(datetime.timedelta(hours=2))
    ),
    "datetime64[s]": np.datetime64("2025-01-01T12:00:00", "s"),
    "datetime64[ms]": np.datetime64("2025-01-01T12:00:00", "ms"),
    "datetime64[ns]": np.datetime64("2025-01-01T12:00:00", "ns"),
    "ISO text, Z": "2025-01-01T12:00:00Z",
    "ISO text, offset": "2025-01-01T14:00:00+02:00",
    "text of a number": "1735732800",
}


class Series:
    """A column of pandas: values behind `to_numpy`."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def to_numpy(self) -> np.ndarray:
        return self._values


@pytest.mark.parametrize("form", SAME_MOMENT)
def test_every_form_of_a_moment_is_the_same_second(form: str) -> None:
    assert moment(SAME_MOMENT[form], "since") == NOON
    assert timestamps([SAME_MOMENT[form]], 1).tolist() == [NOON]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("container", [np.asarray, Series, list])
def test_a_column_of_datetime64_with_nat_is_seconds_with_nan(unit: str, container: Any) -> None:
    values = np.array(["2025-01-01T12:00:00", "NaT"], f"datetime64[{unit}]")
    np.testing.assert_array_equal(timestamps(container(values), 2), [NOON, np.nan])


def test_fractions_of_a_second_survive() -> None:
    assert moment(np.datetime64("2025-01-01T12:00:00.250", "ms"), "since") == NOON + 0.25


def test_unknown_times_are_nan_in_a_column() -> None:
    assert np.isnan(timestamps([None, math.nan, np.float32("nan"), np.datetime64("NaT")], 4)).all()
    assert np.isnan(timestamps(None, 3)).all()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (NOON * 1e3, "looks like milliseconds. Divide by 1000"),
        (NOON * 10**6, "looks like microseconds"),
        (NOON * 10**9, "looks like nanoseconds"),
        (math.inf, "got inf"),
        (datetime.datetime(2025, 1, 1), "without a zone"),
        (datetime.date(2025, 1, 1), "got datetime.date"),
        ("2025-01-01T12:00:00", "without a zone"),
        ("yesterday", "got the text 'yesterday'"),
        (True, "got True"),
        ([1.0], "got \\[1.0\\]"),
        (1j, "got 1j"),
    ],
)
def test_what_is_no_plausible_time_is_refused_everywhere(value: Any, says: str) -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(GalleryError, match=says):
        gallery.add(rows(1), people=["a"], timestamps=[value])
    for call in (gallery.count, lambda **at: gallery.search(rows(1), **at)):
        with pytest.raises(GalleryError, match=says):
            call(since=value)
    with pytest.raises(GalleryError, match=says):
        gallery.expire(1, now=value)
    assert len(gallery) == 0


def test_a_limit_of_nan_is_refused_instead_of_finding_nothing() -> None:
    gallery = Gallery("f", 12)
    for limits in ({"since": math.nan}, {"until": np.datetime64("NaT")}, {"min_visibility": math.nan}):
        with pytest.raises(GalleryError, match="Leave"):
            gallery.search(rows(1), **limits)


@pytest.mark.parametrize("values", [5.0, "2025", {1.0}, np.ones((2, 1)), [1.0], np.ones(3)])
def test_timestamps_that_are_not_one_for_each_row_add_nothing(values: Any) -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(GalleryError, match="expected 2 timestamps"):
        gallery.add(rows(2), people=["a", "b"], timestamps=values)
    assert len(gallery) == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90),
        (datetime.timedelta(days=30), 2_592_000),
        (np.timedelta64(12, "h"), 43_200),
        ("30d", 2_592_000),
        ("12h", 43_200),
        ("1.5h", 5400),
        ("45min", 2700),
        ("2w", 1_209_600),
        ("90s", 90),
        ("604800", 604_800),
    ],
)
def test_every_form_of_a_duration(value: Any, seconds: float) -> None:
    assert duration(value, "older_than") == seconds


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "30 fortnights", "", "-3d", None, True, [1], 1e11])
def test_what_is_no_duration_is_refused_before_anything_is_written(value: Any) -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(1), people=["a"], cameras=["gate"], timestamps=[1.0])
    if value is not None:
        with pytest.raises(GalleryError, match="expected seconds, a timedelta"):
            gallery.retain("gate", value)
        with pytest.raises(GalleryError, match="expected seconds, a timedelta"):
            gallery.expire(value)
    with pytest.raises(GalleryError, match="expected seconds, a timedelta"):
        duration(value, "retain")
    assert len(gallery) == 1 and "retention" not in gallery.describe()


def test_a_retention_in_text_acts_and_is_kept_in_seconds() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(2), people=["a", "b"], cameras=["gate", "gate"], timestamps=[NOON - 3 * 86_400, NOON - 86_400])
    gallery.retain("gate", "2d")
    assert gallery.describe()["retention"] == {"gate": 172_800}
    assert gallery.expire(now=NOON) == 1 and gallery.rows().people == ["b"]


def test_a_retention_that_an_older_version_wrote_as_text_still_acts() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(1), people=["a"], cameras=["gate"], timestamps=[NOON - 3 * 86_400])
    gallery.describe(retention={"gate": "2d"})
    assert gallery.expire(now=NOON) == 1


def test_a_week_ago_finds_what_was_added_as_datetimes() -> None:
    gallery = Gallery("f", 12)
    now = datetime.datetime(2025, 6, 1, tzinfo=UTC)
    gallery.add(
        rows(2), people=["old", "new"], timestamps=[now - datetime.timedelta(days=30), now - datetime.timedelta(days=1)]
    )
    found = gallery.search(rows(1), 2, since=now - datetime.timedelta(days=7))
    assert found.people[0].tolist() == ["new", ""]
    assert gallery.count(until=now - datetime.timedelta(days=7)) == 1
