"""When a camera took its pictures, told by the camera's own clock where the stream carries it.

A picture comes some time after it was taken: its encoding, the network and buffers hold it up, now less, now more. A
camera that stamps its pictures (RTCP sender reports, RFC 3550 section 6.4.1) lets the part that varies be taken off:

    difference = arrival − stamp          of the two clocks, and the time on the way
    late       = difference − least difference of the last minute

arrival − late is when the picture would have come, had it been as quick as the quickest. The camera's clock need not be
right; it only has to run evenly for a minute.
"""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 60.0
"""The least difference is looked for among so many last seconds: clocks drift apart."""
MOST_LATE = 10.0
"""A picture that seems later than this says that the camera's clock was set back: begin anew."""


class CameraClock:
    """Differences between the arrivals of one camera's pictures and their stamps."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._least: deque[tuple[float, float]] = deque()
        """(arrival, difference), both rising: the first is the least of the window."""

    @property
    def offset(self) -> float | None:
        """Seconds from stamp to arrival of the quickest picture of the last minute; None before the first stamp."""
        return self._least[0][1] if self._least else None

    def late(self, stamp: float, arrival: float) -> float:
        """Seconds by which a picture came later than the quickest of the last minute.

        Args:
            stamp: when the camera took it, Unix seconds of the camera's clock.
            arrival: when it came, Unix seconds that never jump.
        """
        difference = arrival - stamp
        if self._least and difference - self._least[0][1] > MOST_LATE:
            self._least.clear()
        while self._least and arrival - self._least[0][0] > WINDOW_SECONDS:
            self._least.popleft()
        while self._least and self._least[-1][1] >= difference:
            self._least.pop()
        self._least.append((arrival, difference))
        return difference - self._least[0][1]
