"""`dpm-edge who`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.match import PRIOR, explain_decisions, labels, open_to_read
from dpm_edge.cli.options import PATH, as_json, engine_options

if TYPE_CHECKING:
    from dpm_edge.runtime import Embeddings


@click.command("who", short_help="Who is on a picture: names out of a gallery.")
@click.argument("pictures", type=PATH, nargs=-1, required=True)
@click.option("--engine", type=PATH, required=True, help="The engine that the gallery was filled with.")
@click.option("--gallery", "place", required=True, help="A folder, a saved gallery, or a server's address.")
@click.option("-k", "--top", type=click.IntRange(1), default=3, show_default=True, help="People for each picture.")
@click.option(
    "--centre/--no-centre",
    default=None,
    help="Take off what each camera's rows have in common (docs/gallery.md), or do not; else where rows suffice.",
)
@click.option("--seen-by", metavar="CAMERA", help="The camera of all pictures; else their paths name it.")
@click.option("--calibration", type=PATH, help="A file that `calibrate` wrote; else what the gallery keeps.")
@click.option("--prior", type=PRIOR, default=0.5, help="Share of such pairs that is one person beforehand: 0.5.")
@engine_options
@as_json
def command(
    pictures: tuple[Path, ...],
    engine: Path,
    place: str,
    top: int,
    centre: bool | None,
    seen_by: str | None,
    calibration: Path | None,
    prior: float,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Name the people of the gallery that each of PICTURES, a crop of one person, is most like.

    With a calibration each name has a probability and a decision. A picture that cannot be read is reported and the
    rest is done.

    \b
    Example:
      dpm-edge who door.jpg --engine demo-out/engine --gallery seen
    """
    from dpm_edge.errors import ImageError
    from dpm_edge.gallery.answers import cameras_to_search_with, query_json
    from dpm_edge.gallery.calibration import Calibration
    from dpm_edge.runtime import Engine
    from dpm_edge.runtime.folder import embed_files

    known = Calibration.load(calibration) if calibration else None
    with open_to_read(place) as gallery, Engine.load(engine, device=device, threads=threads) as opened:
        queries = embed_files(opened, pictures, quiet=True)
        for at, reason in queries.skipped:
            click.echo(f"skipped {pictures[at]}: {reason}", err=True)
        if not len(queries):
            raise ImageError(f"expected a picture that can be read, got none among {len(pictures)}")
        cameras = labels(queries)[1] if seen_by is None else [seen_by] * len(queries)
        matches = gallery.search(
            queries,
            top,
            by="person",
            calibration=known,
            prior=prior,
            centre=centre,
            query_cameras=cameras_to_search_with(cameras, known, needed=bool(centre)),
        )
    results = [query_json(queries, matches, i) for i in range(len(queries))]
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    _print(queries, results)


def _print(queries: Embeddings, results: list[dict[str, Any]]) -> None:
    """A line for each picture and person on stdout."""
    for one in results:
        if not one["matches"]:
            click.echo(f"{one['query']}  nobody: the gallery holds no rows of known people")
        for match in one["matches"]:
            sure = f"{match['probability']:.1%} {match['decision']}, " if "decision" in match else ""
            seen = f" at {match['camera']}" if match["camera"] else ""
            click.echo(f"{one['query']}  {match['person']}  {sure}similarity {match['similarity']:.3f}{seen}")
    found = [match for one in results for match in one["matches"]]
    explain_decisions(found)
    if found and "decision" not in found[0]:
        click.echo("similarities only: `dpm-edge calibrate` and `gallery calibration` add probabilities", err=True)
