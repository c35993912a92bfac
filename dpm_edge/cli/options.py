"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dpm_edge.metrics import METRICS

FORMATS = ("auto", "corners", "mot", "xml")
"""What `dpm_edge.boxes` reads; written here because its import would make every --help slower."""

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
    "--metric",
    type=click.Choice(METRICS),
    help="How features are compared: masked, or plain of a model without masks, if not given.",
)


def boxes_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --boxes, --boxes-format and --first-frame, for commands that read a boxes file."""
    for option in (
        click.option(
            "--first-frame",
            type=click.IntRange(0),
            help="Number of a video's first frame in the boxes file: 0 or 1; found from the file where that is sure.",
        ),
        click.option(
            "--boxes-format",
            type=click.Choice(FORMATS),
            default="auto",
            show_default=True,
            help="corners: frame,id,x0,y0,x1,y1; mot: MOTChallenge's frame,id,left,top,width,height,…; xml: PETS.",
        ),
        click.option("--boxes", type=PATH, metavar="FILE", help="Where people are in a video or in whole frames."),
    ):
        command = option(command)
    return command


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --device and --threads, for commands that open an engine."""
    command = click.option(
        "--threads", type=click.IntRange(1), help="Cores for one call; the library decides if not given."
    )(command)
    return click.option(
        "--device", help="CPU, GPU, GPU.1 (the second), with OpenVINO also NPU and AUTO; as it was built if not given."
    )(command)
