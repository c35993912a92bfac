"""Numbers about a running watch in the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dpm_edge.drift import DRIFTED
from dpm_edge.watch.outputs import OutputStatus
from dpm_edge.watch.sources import SourceStatus
from dpm_edge.web.prometheus_text import family

STATES = ("connecting", "live", "stalled", "lost", "ended", "failed", "closed")


def exposition(
    cameras: Iterable[SourceStatus],
    outputs: Iterable[OutputStatus],
    events: Mapping[str, int],
    processed: Mapping[str, int],
    latency: Mapping[str, float],
    drift: Mapping[str, float],
    detect_every: Mapping[str, int],
) -> str:
    """Everything at this moment.

    Args:
        cameras, outputs: how they are.
        events: kind → how many in this run.
        processed: camera → frames looked at.
        latency: camera → seconds from its last frame's arrival to the end of its processing.
        detect_every: camera → n, where the detector looks at every n-th frame.
        drift: camera → how far its features have moved away from its statistics (`dpm_edge.drift`).
    """
    cameras, outputs = list(cameras), list(outputs)
    by_camera = [({"camera": one.camera}, one) for one in cameras]
    by_output = [({"output": one.name}, one) for one in outputs]
    parts = [
        family(
            "camera_state", "gauge", "1 for the state that a camera is in.",
            [({**labels, "state": state}, float(one.state == state)) for labels, one in by_camera for state in STATES],
        ),
        family("camera_frames_total", "counter", "Frames read.", [(n, one.frames) for n, one in by_camera]),
        family(
            "camera_dropped_total", "counter", "Frames left out for a newer one.",
            [(n, one.dropped) for n, one in by_camera],
        ),
        family(
            "camera_reconnects_total", "counter", "Times that a camera was connected again.",
            [(n, one.reconnects) for n, one in by_camera],
        ),
        family(
            "camera_silent_seconds", "gauge", "Seconds since the last frame.", [(n, one.silent) for n, one in by_camera]
        ),
        family(
            "camera_clock_offset_seconds", "gauge",
            "Our clock minus the camera's own, and the least time on the way; only where its stream tells its own.",
            [(n, one.clock_offset) for n, one in by_camera if one.clock_offset is not None],
        ),
        family(
            "frames_processed_total", "counter", "Frames looked at.",
            [({"camera": name}, count) for name, count in processed.items()],
        ),
        family(
            "frame_latency_seconds", "gauge", "From a frame's arrival to its events, of the last frame.",
            [({"camera": name}, seconds) for name, seconds in latency.items()],
        ),
        family(
            "camera_detect_every", "gauge", "The detector looks at every so many-th of the frames looked at.",
            [({"camera": name}, float(n)) for name, n in detect_every.items()],
        ),
        family(
            "camera_drift", "gauge",
            f"How far the features of the last tracks are from the camera's statistics; {DRIFTED} or more is a change.",
            [({"camera": name}, value) for name, value in drift.items()],
        ),
        family("events_total", "counter", "Events by kind.", [({"kind": k}, count) for k, count in events.items()]),
        family(
            "output_delivered_total", "counter", "Events delivered.", [(n, one.delivered) for n, one in by_output]
        ),
        family("output_failures_total", "counter", "Failed attempts.", [(n, one.failures) for n, one in by_output]),
        family("output_backlog", "gauge", "Events that wait.", [(n, one.backlog) for n, one in by_output]),
    ]  # fmt: skip
    return "".join(parts)
