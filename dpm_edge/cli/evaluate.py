"""`dpm-edge eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpm_edge.cli.options import PATH, as_json, engine_options, layout, quiet
from dpm_edge.metrics import METRICS


@click.command("eval", short_help="Rank 1/5/10 and mAP of an engine or a checkpoint.")
@click.argument("model", type=PATH)
@click.argument("data", type=PATH)
@click.option("--metric", type=click.Choice((*METRICS, "all")), default="all", show_default=True)
@layout
@engine_options
@as_json
@quiet
def command(
    model: Path,
    data: Path,
    metric: str,
    layout: str,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Evaluate MODEL on the folder DATA by the Market-1501 protocol.

    MODEL is an engine directory, or a checkpoint or dpm-n (needs torch), so that the two can be compared. DATA is a
    labelled data set, such as Market-1501, or your own cameras: test/PERSON/CAMERA/picture.jpg.

    \b
    Example:
      dpm-edge eval demo-out/engine people
      dpm-edge eval demo-out/engine market --metric all --json
    """
    import json

    from dpm_edge.cli.embedder import open_embedder
    from dpm_edge.layouts import read_dataset
    from dpm_edge.metrics import chosen_metric
    from dpm_edge.runtime.folder import embed_files

    found = read_dataset(data, layout)
    query, gallery = found.query, found.gallery
    with open_embedder(model, device=device, threads=threads) as embedder:
        q = embed_files(embedder, query.paths, quiet=quiet)
        t = embed_files(embedder, gallery.paths, quiet=quiet)
    for name, side in (("query", q), ("gallery picture", t)):
        for row, reason in side.skipped:
            click.echo(f"skipped {name} {row}: {reason}", err=True)
    if metric == "all":
        metrics = METRICS if q.has_masks else (chosen_metric(None, False),)
    else:
        metrics = (chosen_metric(metric, q.has_masks),)
    scores = {m: _scores(q, t, query, gallery, m) for m in metrics}
    first = next(iter(scores.values()))
    if as_json:
        click.echo(
            json.dumps(
                {
                    "model": str(model),
                    "data": str(data),
                    "layout": found.layout,
                    "gallery": len(t),
                    "skipped": len(q.skipped) + len(t.skipped),
                    "metrics": scores,
                },
                indent=2,
            )
        )
        return
    click.echo(
        f"layout {found.layout}: {first['queries']} queries counted, {first['queries_without_match']} without a match; "
        f"{len(t)} gallery pictures, {first['dropped_junk']} dropped as junk; {first['dropped_same_camera']} pairs of "
        f"one person and camera dropped; {len(q.skipped) + len(t.skipped)} pictures skipped"
    )
    if not q.has_masks:
        click.echo("plain alone: the model has no masks", err=True)
    click.echo(f"{'metric':<8} {'rank-1':>7} {'rank-5':>7} {'rank-10':>7} {'mAP':>7}")
    for name, score in scores.items():
        click.echo(
            f"{name:<8} {score['rank1']:>7.2f} {score['rank5']:>7.2f} {score['rank10']:>7.2f} {score['mAP']:>7.2f}"
        )


def _scores(q: Any, t: Any, query: Any, gallery: Any, metric: str) -> dict[str, float | int]:
    """The protocol's answer under one metric, in percent."""
    from dpm_edge.evaluation import market_scores
    from dpm_edge.metrics import similarity

    s = similarity(q.features, t.features, metric=metric, query_masks=q.masks, target_masks=t.masks)
    labels = query.people[q.rows], query.cameras[q.rows], gallery.people[t.rows], gallery.cameras[t.rows]
    return market_scores(s, *labels).as_dict()
