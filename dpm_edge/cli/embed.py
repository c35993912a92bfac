"""`dpm-edge embed`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpm_edge.cli.options import PATH, as_json, boxes_options, engine_options, quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dpm_edge.boxes import BoxesFile, FrameBoxes
    from dpm_edge.runtime import Embeddings, Engine


@click.command("embed", short_help="Pictures or boxed people to features and masks.")
@click.argument("engine", type=PATH)
@click.argument("source", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="FILE.safetensors or FILE.parquet (extra `parquet`).")
@boxes_options
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Take each n-th frame of a video.")
@engine_options
@as_json
@quiet
def command(
    engine: Path,
    source: Path,
    out: Path,
    boxes: Path | None,
    boxes_format: str,
    first_frame: int | None,
    every: int,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Embed SOURCE with ENGINE and write one file: features, masks, visibility, and where each row came from.

    SOURCE is a folder of crops; or a video with --boxes, whose `frame` counts from 0 unless --first-frame says
    otherwise; or a folder of whole frames with --boxes, whose `frame` is a file name in it, or the number in one. What
    cannot be read is reported and the rest is done.

    \b
    Example:
      dpm-edge embed demo-out/engine crops -o crops.safetensors
      dpm-edge embed demo-out/engine street.avi --boxes street.csv --every 5 -o street.safetensors
    """
    import json

    from dpm_edge.boxes import read_boxes
    from dpm_edge.errors import DpmError
    from dpm_edge.runtime import Engine

    if out.suffix not in (".safetensors", ".parquet"):
        raise DpmError(f"expected -o FILE.safetensors or FILE.parquet, got {out}. Give the file one of these endings")
    file = read_boxes(boxes, format=boxes_format) if boxes else None
    with Engine.load(engine, device=device, threads=threads) as opened:
        embedded = (
            _folder(opened, source, quiet) if file is None else _boxed(opened, source, file, every, first_frame, quiet)
        )
    embedded.save(out)
    for row, reason in embedded.skipped:
        click.echo(f"skipped {row}: {reason}", err=True)
    result = {
        "out": str(out),
        "rows": len(embedded),
        "skipped": [{"row": row, "reason": reason} for row, reason in embedded.skipped],
        "mean_visibility": None
        if embedded.visibility is None or not len(embedded)
        else round(float(embedded.visibility.mean()), 4),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(f"{out}: {len(embedded)} rows, {len(embedded.skipped)} skipped")


def _folder(engine: Engine, source: Path, quiet: bool) -> Embeddings:
    """Embed every picture below a folder."""
    from dpm_edge.errors import DataError
    from dpm_edge.images import find_images
    from dpm_edge.runtime.folder import embed_files
    from dpm_edge.video import SUFFIXES

    if source.suffix.lower() in SUFFIXES and not source.is_dir():
        raise DataError(f"expected --boxes FILE that says where people are, got {source}, a video, without one")
    return embed_files(engine, find_images(source), quiet=quiet)


def _boxed(
    engine: Engine, source: Path, file: BoxesFile, every: int, first_frame: int | None, quiet: bool
) -> Embeddings:
    """Embed every box of every n-th frame; rows count through the boxes in their frames' order."""
    import dataclasses

    from dpm_edge.images import path_text
    from dpm_edge.runtime import Embeddings
    from dpm_edge.video import boxed_frames

    frames = (
        _frames_of_folder(source, file, every, quiet)
        if source.is_dir()
        else boxed_frames(source, file, every=every, first_frame=first_frame, quiet=quiet)
    )
    parts, row = [engine.embed([])], 0
    for name, boxes, frame in frames:
        if isinstance(frame, str):
            parts[-1].skipped.extend((row + i, frame) for i in range(len(boxes.ids)))
        else:
            here = engine.embed(frame, boxes.boxes)
            parts.append(
                dataclasses.replace(
                    here,
                    rows=here.rows + row,
                    skipped=[(row + at, f"frame {name}, {boxes.ids[at]}: {reason}") for at, reason in here.skipped],
                    sources=[f"{path_text(source)}#frame={name}&id={boxes.ids[at]}" for at in here.rows],
                )
            )
        row += len(boxes.ids)
    return Embeddings.join(parts)


def _frames_of_folder(
    source: Path, file: BoxesFile, every: int, quiet: bool
) -> Iterator[tuple[str, FrameBoxes, NDArray[np.uint8] | str]]:
    """Yield each n-th frame that has boxes: file name, boxes, and the frame or the reason why it cannot be read.

    A frame is a file of that name, or the one file whose name is that number, as MOTChallenge's 000001.jpg.

    Raises:
        DataError: the boxes name no file that is there.
    """
    from dpm_edge.errors import DataError, ImageError
    from dpm_edge.images import SUFFIXES, read_image
    from dpm_edge.progress import track

    numbered = {
        int(path.stem): path.name
        for path in source.iterdir()
        if path.suffix.lower() in SUFFIXES and path.stem.isdecimal()
    }
    names = {
        frame: frame if (source / frame).is_file() else numbered.get(int(frame) if frame.isdecimal() else -1, frame)
        for frame in file.frames
    }
    wanted = sorted(file.frames, key=lambda frame: names[frame])[::every]
    if not any((source / names[frame]).is_file() for frame in wanted):
        raise DataError(
            f"expected the boxes' frames, such as {wanted[0]!r}, as files in {source}, got none of them. "
            "Give the folder that holds these files, or a video"
        )
    for frame in track(wanted, what="frames", quiet=quiet):
        picture: NDArray[np.uint8] | str
        try:
            picture = read_image(source / names[frame])
        except ImageError as error:
            picture = str(error)
        yield names[frame], file.frames[frame], picture
