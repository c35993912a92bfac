"""`dpm-edge build detector` and `dpm-edge build detector:FILE`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource

OPTIONS = ("model", "out", "backend", "precision", "calibrate", "force", "as_json", "quiet")
"""Those of `dpm-edge build` that go with a detector."""


def build_detector(
    model: str,
    out: Path,
    backend: str,
    precision: str,
    calibrate: Path | None,
    *,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the engine that `model` says, and print what it is.

    Raises:
        click.UsageError: the command was given an option that says something of other engines.
    """
    from dpm_edge.watch import build_detector as builder

    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
        if given and option.name not in OPTIONS:
            raise click.UsageError(f"{option.opts[0]} does not go with a detector. Leave it out")
    _, _, file = model.partition(":")
    manifest = builder.build_detector(
        out,
        source=file or None,
        backend=backend,
        precision=precision,
        pictures=calibrate,
        force=force,
        quiet=quiet,
    )
    if as_json:
        click.echo(json.dumps(asdict(manifest), indent=2))
        return
    checked = manifest.verification
    click.echo(f"detector      {out}  ({manifest.backend}, {manifest.precision}, {manifest.layout})")
    click.echo(f"source        {manifest.source}, person is class {manifest.person}")
    click.echo(
        f"verified      {checked['found_again']:.1%} of {checked['boxes']} boxes of {checked['reference']} in "
        f"{checked['frames']} pictures ({checked['pictures']}){'' if checked['passed'] else ', kept by --force'}"
    )
    click.echo(f"use           dpm-edge watch door.mp4 --detector {out}")
