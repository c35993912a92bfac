"""`dpm-edge demo`."""

from __future__ import annotations

from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json, boxes_options, quiet


@click.command("demo", short_help="See it work: sample people, or people in your video.")
@click.option("-o", "--out", type=PATH, default=Path("demo-out"), show_default=True, help="Where results go.")
@click.option("--engine", type=PATH, help="An engine to use; one is built from the model that ships if not given.")
@click.option("--video", type=PATH, help="Follow people in this video instead.")
@boxes_options
@click.option(
    "--threshold",
    type=float,
    help="Least probability of somebody who was seen before in a video.  [default: 0.75]",
)
@as_json
@quiet
def command(
    out: Path,
    engine: Path | None,
    video: Path | None,
    boxes: Path | None,
    boxes_format: str,
    first_frame: int | None,
    threshold: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build an engine, match people with it, and write a picture of the matches. No network, no files of yours.

    With --video, follow the people of a video, recognise them when they come back from behind something, and write the
    annotated video and the identities. People are found by the detector that ships, or stand in --boxes. It is the
    camera application on one file: dpm-edge watch takes several cameras, and shows them on a page.

    \b
    Example:
      dpm-edge demo -o demo-out
      dpm-edge demo --video street.avi --boxes street.csv -o street-out
    """
    from dpm_edge.errors import DpmError

    if boxes and not video:
        raise DpmError("expected --video FILE beside --boxes, got none. Name the video that the boxes belong to")
    if video:
        from dpm_edge.demo.video import run_video

        run_video(
            video,
            out,
            boxes=boxes,
            engine=engine,
            threshold=threshold,
            as_json=as_json,
            quiet=quiet,
            boxes_format=boxes_format,
            first_frame=first_frame,
        )
    else:
        from dpm_edge.demo.samples import run_samples

        run_samples(out, engine=engine, as_json=as_json, quiet=quiet)
