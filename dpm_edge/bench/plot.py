"""Two pictures of a run's results: latency against load, and the people per frame that each number of cameras may have.

The only file here that needs matplotlib.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpm_edge.bench.results import best_point
from dpm_edge.errors import MissingLibrary
from dpm_edge.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97")
LATENCY, PEOPLE = "bench-latency.png", "bench-people.png"


def check() -> None:
    """Refuse early where matplotlib is missing.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingLibrary("matplotlib", "--plot", "pip install 'dpm-edge[bench]'") from error


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write both pictures into `folder`, which is made where it is missing; their paths.

    Raises:
        MissingLibrary: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    check()
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {LATENCY: _latency(results), PEOPLE: _people(results)}
    for name, figure in pictures.items():
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110)
        write_whole(folder / name, data.getvalue())
    return [folder / name for name in pictures]


def _figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _latency(results: dict[str, Any]) -> Figure:
    """p50 and p99 over the crops that came in a second, a panel for each number of cameras."""
    from matplotlib.ticker import LogLocator, NullFormatter

    settings, engines = results["settings"], results["engines"]
    cameras = settings["cameras"]
    columns = min(2, len(cameras))
    rows = -(-len(cameras) // columns)
    figure = _figure(4.6 * columns, 3.1 * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, count in zip(panels, cameras):
        for colour, one in zip(COLOURS, engines):
            _curve(axes, one, count, colour)
        axes.axhline(settings["deadline_ms"], color="black", linewidth=0.8, linestyle=":")
        axes.set_title(f"{count} camera{'s' if count > 1 else ''}", fontsize=10)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(True, which="both", alpha=0.2)
    for axes in panels[len(cameras) :]:
        axes.set_visible(False)
    panels[0].set_xlim(left=0)
    figure.supxlabel("people offered a second, all cameras together", fontsize=10)
    figure.supylabel("frame in → ids out, ms", fontsize=10)
    deadline = f"deadline {settings['deadline_ms']:g} ms"
    _legend(figure, engines, [("p99", "-", "o"), ("p50", "--", ""), ("not sustained", "", "x"), (deadline, ":", "")])
    return figure


def _curve(axes: Axes, engine: dict[str, Any], cameras: int, colour: str) -> None:
    """One engine with so many cameras."""
    runs = [run for run in engine["end_to_end"] if run["cameras"] == cameras and "p99_ms" in run]
    runs.sort(key=lambda run: run["offered_crops_per_second"])
    load = [run["offered_crops_per_second"] for run in runs]
    axes.plot(load, [run["p50_ms"] for run in runs], linestyle="--", color=colour, linewidth=1)
    axes.plot(load, [run["p99_ms"] for run in runs], color=colour, linewidth=1.4)
    for run in runs:
        axes.plot(run["offered_crops_per_second"], run["p99_ms"], "o" if run["sustained"] else "x", color=colour)


def _people(results: dict[str, Any]) -> Figure:
    """Sustained people per frame over cameras; what all cameras bring together is written beside."""
    settings, engines = results["settings"], results["engines"]
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    cameras = settings["cameras"]
    width = min(0.5, 0.84 / len(engines))
    for i, (colour, one) in enumerate(zip(COLOURS, engines)):
        for place, count in enumerate(cameras):
            run = best_point(one, count)
            people = run["people_per_frame"] if run else 0.0
            at = place + (i - (len(engines) - 1) / 2) * width
            axes.bar(at, people, width * 0.92, color=colour)
            axes.annotate(f"{people:.2g}" if run else "none", (at, people), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(cameras)), [str(count) for count in cameras])
    axes.set_xlabel("cameras")
    axes.set_ylabel("people per frame, on average")
    axes.set_title(
        f"sustained at {settings['fps']:g} frames a second from each camera:\n"
        f"the ids of 99 in 100 frames within {settings['deadline_ms']:g} ms",
        fontsize=10,
    )
    axes.grid(True, axis="y", alpha=0.2)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    _legend(figure, engines, [])
    return figure


def _legend(figure: Figure, engines: list[dict[str, Any]], marks: list[tuple[str, Any, str]]) -> None:
    """The engines by colour and, in grey, what the marks mean."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=4, label=one["name"]) for colour, one in zip(COLOURS, engines)]
    handles += [
        Line2D([], [], color="grey", linestyle=line or "none", marker=mark, label=name) for name, line, mark in marks
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 5 if len(handles) > 7 else 7),
        fontsize=8,
        frameon=False,
    )
