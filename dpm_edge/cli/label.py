"""`dpm-edge label`: ask "same person?" on a page in the browser, where the model is unsure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.options import PATH, as_json, engine_options, quiet

if TYPE_CHECKING:
    from dpm_edge.label_questions import Questions
    from dpm_edge.track_crops import TrackCrops

PER_TRACK = 6
"""Crops of a track that are embedded, evenly spread over it."""


@click.command("label", short_help="Say who is who, on a page that asks what the model is unsure of.")
@click.argument("crops", type=PATH)
@click.option("--engine", type=PATH, required=True, help="An engine directory, or dpm-t: what is unsure.")
@click.option(
    "-o", "--out", type=PATH, required=True, metavar="FILE", help="The labels file; one that is there goes on."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where the page is.  [default: a free port]")
@click.option("--questions", type=click.IntRange(1), default=100, show_default=True, help="Answers at most.")
@click.option("--no-browser", is_flag=True, help="Only print the page's address.")
@engine_options
@as_json
@quiet
def command(
    crops: Path,
    engine: Path,
    out: Path,
    port: int,
    questions: int,
    no_browser: bool,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask on a page whether two tracks of CROPS, laid out as CAMERA/TRACK/*.jpg, are one person.

    The page is served to this machine alone. Keys: S same, D different, U cannot tell, Z take back, Q finish. Pairs
    come where the model is least sure; what follows from your answers is not asked. FILE is written after each answer;
    `dpm-edge adapt --labels FILE` and `dpm-edge site update --labels FILE` learn from it.

    \b
    Example:
      dpm-edge label site/crops --engine engine -o labels.csv
      dpm-edge adapt dpm-t --crops site/crops --labels labels.csv -o site-2
    """
    import json
    import webbrowser

    from dpm_edge.label_page import LabelPage
    from dpm_edge.progress import say
    from dpm_edge.track_answers import SAME, read_answers
    from dpm_edge.track_crops import read_track_crops

    known = read_answers(out) if out.exists() else []
    found = read_track_crops(crops)
    asked = _questions(engine, found, device, threads, quiet)
    for one, other, same in known:
        if not asked.answer(one, other, same):
            say(f"left as it is in {out}: {one} and {other} are {SAME if same else 'different'}, of other crops")
            asked.answers.append((one, other, same))
    files = [[path for path, track in zip(found.paths, found.tracks) if track == i] for i in range(len(found.names))]
    with LabelPage(asked, files, out, port=port, most=questions) as page:
        say(f"open {page.url} (Ctrl-C ends; every answer is in {out} at once)")
        if not no_browser:
            webbrowser.open(page.url)
        try:
            while not page.finished.wait(0.5):
                pass
            page.served_last.wait(5)
        except KeyboardInterrupt:
            say("ended")
        given = len(asked.answers)
    result = {"out": str(out), "answers": given, "new": given - len(known), "left": len(asked)}
    click.echo(json.dumps(result, indent=2) if as_json else f"{out}: {given} answers, {given - len(known)} of them new")


def _questions(engine: Path, found: TrackCrops, device: str | None, threads: int | None, quiet: bool) -> Questions:
    """Embed some crops of each track, centred per camera, and find what to ask."""
    import numpy as np

    from dpm_edge.centring import CameraStatistics
    from dpm_edge.cli.embedder import open_embedder
    from dpm_edge.label_questions import Questions, first_border
    from dpm_edge.metrics import normalise
    from dpm_edge.runtime.folder import embed_files
    from dpm_edge.track_crops import seen_together

    chosen: list[Any] = []
    for track in range(len(found.names)):
        rows = np.flatnonzero(found.tracks == track)
        chosen.append(rows[np.linspace(0, len(rows) - 1, min(PER_TRACK, len(rows))).round().astype(np.int64)])
    at = np.concatenate(chosen)
    with open_embedder(engine, device=device, threads=threads) as embedder:
        made = embed_files(embedder, [found.paths[i] for i in at], quiet=quiet)
    rows = at[made.rows]
    cameras = [found.cameras[i] for i in rows]
    known = CameraStatistics(fingerprint=made.fingerprint, dimension=made.dimension)
    known.add(made.features, cameras)
    features, tracks = known.centre(made.features, cameras), found.tracks[rows]
    means = np.zeros((len(found.names), made.dimension), np.float32)
    np.add.at(means, tracks, features)
    apart = [(int(a), int(b)) for a, b in seen_together(found.cameras, found.tracks, found.frames)]
    return Questions(normalise(means), found.names, apart, first_border(features, tracks, apart))
