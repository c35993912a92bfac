"""On which frames the detector looks: on all where the machine keeps up, else on every n-th, by measured times.

One thread looks at the frames of all cameras. With R_c frames a second of live camera c, D_c seconds for the detector
and O_c for everything else of a frame, it is busy for the share

    load(n) = Σ_c R_c · (D_c / n_c + O_c)

of the time. n is raised, one by one, while the load is above BUSY for BUSY_SECONDS, which one slow frame does not bring
about, and lowered once the load with a lower n would have been at most CALM for CALM_SECONDS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

BUSY, CALM = 0.95, 0.8
"""Loads above which n is raised, and below which it is lowered."""
BUSY_SECONDS, CALM_SECONDS = 2.0, 10.0
"""So long the load must be high before n is raised, and low before it is lowered."""
LEAST_RATE = 3.0
"""Detections a second that are left to a camera at least: with fewer, people who cross are mistaken for each other."""
GAIN = 0.1
"""Weight of a new time in the running means."""
WARM_UP = 3
"""First frames of a camera, which open what later ones use, and are not timed."""
LEAST_FRAMES = 10
"""Frames of a camera that were timed before its times count."""


@dataclass
class _Times:
    """Running means of one camera, in seconds."""

    detector: float = 0.0
    rest: float = 0.0
    frames: int = 0


class DetectorPace:
    """Chooses n for each camera."""

    def __init__(self, given: Mapping[str, int | None]) -> None:
        """Camera → n as the site file gives it; None where it is to be chosen."""
        self._given = dict(given)
        self._times = {camera: _Times() for camera in given}
        self._rates: dict[str, float] = {}
        self._chosen = 1
        self._busy_since: float | None = None
        self._calm_since: float | None = None

    def every(self, camera: str) -> int:
        """The n of a camera: the detector looks at every n-th frame that is looked at."""
        given = self._given[camera]
        return given if given is not None else min(self._chosen, self._most(camera))

    def took(self, camera: str, detector: float | None, whole: float) -> None:
        """Count a frame: seconds of the detector, None where it did not look, and of everything."""
        times = self._times[camera]
        times.frames += 1
        if times.frames <= WARM_UP:
            return
        gain = max(GAIN, 1 / (times.frames - WARM_UP))
        if detector is not None:
            times.detector += gain * (detector - times.detector)
        times.rest += gain * (whole - (detector or 0.0) - times.rest)

    def choose(self, rates: Mapping[str, float], now: float) -> None:
        """Choose n anew.

        Args:
            rates: live camera → frames a second that it gives; files wait, and are left out.
            now: steady seconds.
        """
        self._rates = dict(rates)
        most = max((self._most(camera) for camera, n in self._given.items() if n is None), default=1)
        busy = self._chosen < most and self._load(self._chosen) > BUSY
        calm = self._chosen > 1 and self._load(self._chosen - 1) <= CALM
        self._busy_since = (self._busy_since if self._busy_since is not None else now) if busy else None
        self._calm_since = (self._calm_since if self._calm_since is not None else now) if calm else None
        if self._busy_since is not None and now - self._busy_since >= BUSY_SECONDS:
            self._chosen, self._busy_since, self._calm_since = self._chosen + 1, now, None
        elif self._calm_since is not None and now - self._calm_since >= CALM_SECONDS:
            self._chosen, self._calm_since = self._chosen - 1, now

    def _most(self, camera: str) -> int:
        """The greatest n that may be chosen for a camera: 1 for files."""
        return max(1, math.floor(self._rates.get(camera, 0.0) / LEAST_RATE))

    def _load(self, n: int) -> float:
        """The load where the chosen n is this."""
        load = 0.0
        for camera, rate in self._rates.items():
            times, given = self._times[camera], self._given[camera]
            used = given if given is not None else min(n, self._most(camera))
            if times.frames >= WARM_UP + LEAST_FRAMES:
                load += rate * (times.detector / used + times.rest)
        return load
