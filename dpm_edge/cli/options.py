"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dpm_edge.metrics import METRICS

PATH = click.Path(path_type=Path)

LAYOUTS = (
    "auto",
    "market",
    "occluded_duke",
    "msmt17",
    "cuhk03",
    "occluded_reid",
    "partial_reid",
    "p_duke",
    "cameras",
)
"""Names of dpm_edge.layouts, written here so that --help loads no numpy."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
quiet: Decorator = click.option("--quiet", is_flag=True, help="No progress on stderr.")
layout: Decorator = click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default="auto",
    show_default=True,
    help="How the labelled folder is laid out; found by looking at it.",
)
metric: Decorator = click.option(
    "--metric", type=click.Choice(METRICS), default="masked", show_default=True, help="How features are compared."
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device and --threads, for commands that open an engine."""
    command = click.option(
        "--threads", type=click.IntRange(1), help="Cores for one call; the library decides if not given."
    )(command)
    return click.option(
        "--device", help="CPU, GPU, GPU.1 (the second), with OpenVINO also NPU and AUTO; as it was built if not given."
    )(command)
