"""`dpm-edge embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpm_edge.cli.options import PATH, as_json, engine_options, quiet

if TYPE_CHECKING:
    from dpm_edge.runtime import Embeddings, Engine


@click.command("embed", short_help="Pictures or boxed people to features and masks.")
@click.argument("engine", type=PATH)
@click.argument("source", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="FILE.safetensors or FILE.parquet (extra `parquet`).")
@click.option("--boxes", type=PATH, help="Boxes file: CSV frame,id,x0,y0,x1,y1, or XML. Needed by a video.")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take each n-th frame of a video.")
@engine_options
@as_json
@quiet
def command(
    engine: Path,
    source: Path,
    out: Path,
    boxes: Path | None,
    every: int,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Embed SOURCE with ENGINE and write one file: features, masks, visibility, and where each row came from.

    SOURCE is a folder of crops; or a video with --boxes, whose `frame` counts from 0; or a folder of whole frames with
    --boxes, whose `frame` is a file name in it. What cannot be read is reported and the rest is done.

    \b
    Example:
      dpm-edge embed demo-out/engine crops -o crops.safetensors
      dpm-edge embed demo-out/engine street.avi --boxes street.csv --every 5 -o street.safetensors
    """
    import json

    from dpm_edge.errors import DpmError
    from dpm_edge.runtime import Engine

    if out.suffix not in (".safetensors", ".parquet"):
        raise DpmError(f"{out} ends in {out.suffix or 'nothing'!r}; .safetensors or .parquet is wanted")
    with Engine.load(engine, device=device, threads=threads) as opened:
        found = _boxed(opened, source, boxes, every, quiet) if boxes else _folder(opened, source, quiet)
    found.save(out)
    for row, reason in found.skipped:
        click.echo(f"skipped {row}: {reason}", err=True)
    result = {
        "out": str(out),
        "rows": len(found),
        "skipped": [{"row": row, "reason": reason} for row, reason in found.skipped],
        "mean_visibility": round(float(found.visibility.mean()), 4) if len(found) else None,
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(f"{out}: {len(found)} rows, {len(found.skipped)} skipped")


def _folder(engine: Engine, source: Path, quiet: bool) -> Embeddings:
    """Every picture below a folder."""
    from dpm_edge.errors import DataError
    from dpm_edge.images import find_images
    from dpm_edge.runtime.folder import embed_files
    from dpm_edge.video import SUFFIXES

    if source.suffix.lower() in SUFFIXES:
        raise DataError(f"{source} is a video: --boxes FILE must say where people are in it")
    return embed_files(engine, find_images(source), quiet=quiet)


def _boxed(engine: Engine, source: Path, boxes: Path, every: int, quiet: bool) -> Embeddings:
    """Every box of every n-th frame; rows count through the boxes in their frames' order."""
    import dataclasses

    from dpm_edge.boxes import read_boxes
    from dpm_edge.cli.frames import frames
    from dpm_edge.runtime import Embeddings

    wanted = read_boxes(boxes)
    parts, row = [engine.embed([])], 0
    for name, frame in frames(source, wanted, every=every, quiet=quiet):
        here = wanted[name]
        if isinstance(frame, str):
            parts[-1].skipped.extend((row + i, frame) for i in range(len(here.ids)))
        else:
            found = engine.embed(frame, here.boxes)
            parts.append(
                dataclasses.replace(
                    found,
                    rows=found.rows + row,
                    skipped=[(row + at, f"frame {name}, {here.ids[at]}: {reason}") for at, reason in found.skipped],
                    sources=[f"{source}#frame={name}&id={here.ids[at]}" for at in found.rows],
                )
            )
        row += len(here.ids)
    return Embeddings.join(parts)
