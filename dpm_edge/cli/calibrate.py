"""`dpm-edge calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.options import PATH, as_json, engine_options, layout, metric, quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dpm_edge.gallery.calibration import Calibration


@click.command("calibrate", short_help="Which similarity is a match, by visibility.")
@click.argument("model", type=PATH)
@click.argument("data", type=PATH, required=False)
@click.option("-o", "--out", type=PATH, required=True, help="FILE.json; a plot FILE.png beside it with --plot.")
@click.option("--tracks", type=PATH, metavar="DIR", help="In DATA's place, without labels: CAMERA/TRACK/frame-N.jpg.")
@click.option(
    "--fmr",
    type=click.FloatRange(0, 1, min_open=True),
    default=1e-3,
    show_default=True,
    help="False matches among strangers.",
)
@click.option("--bands", type=click.IntRange(1, 10), help="Bands of visibility: 3, or 1 of a model without one.")
@click.option("--centre", is_flag=True, help="For centred searches: centre by the gallery pictures' cameras.")
@click.option("--plot", is_flag=True, help="Draw the similarities of every band (needs matplotlib).")
@metric
@layout
@engine_options
@as_json
@quiet
def command(
    model: Path,
    data: Path | None,
    out: Path,
    tracks: Path | None,
    fmr: float,
    bands: int | None,
    centre: bool,
    plot: bool,
    metric: str | None,
    layout: str,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the thresholds of MODEL on DATA, labelled pictures of people that it was not trained on, or on tracks.

    DATA is a labelled data set, such as Market-1501, or your own cameras: test/PERSON/CAMERA/picture.jpg. Pairs of one
    camera do not count.

    --tracks DIR needs no label: a track is one person, and two tracks of one camera that share a frame are two. DIR is
    what `adapt --video` leaves in OUT/crops. It cannot know one person in two cameras: true matches look surer than
    they are. Use labels where you have them.

    \b
    Example:
      dpm-edge calibrate demo-out/engine market --fmr 0.001 -o calibration.json
      dpm-edge calibrate engine-2 --tracks site/crops --centre -o calibration.json
    """
    import json
    from dataclasses import asdict

    from dpm_edge.cli.embedder import open_embedder
    from dpm_edge.gallery.calibration import calibrate

    if (data is None) == (tracks is None):
        raise click.UsageError(
            "expected DATA, labelled pictures, or --tracks DIR, got " + ("neither" if data is None else "both")
        )
    with open_embedder(model, device=device, threads=threads) as embedder:
        if tracks is None:
            assert data is not None, "just checked"
            fingerprint, metric, s, same, seen = _of_labels(embedder, data, layout, metric, centre, quiet)
        else:
            fingerprint, metric, s, same, seen = _of_tracks(embedder, tracks, metric, centre, quiet)
    found = calibrate(
        s, same, seen, fingerprint=fingerprint, metric=metric, false_match_rate=fmr, bands=bands, centred=centre,
        by="labels" if tracks is None else "tracks",
    )  # fmt: skip
    found.save(out)
    if plot:
        _plot(out.with_suffix(".png"), found, s, same, seen)
    if as_json:
        click.echo(json.dumps({"out": str(out), **asdict(found)}, indent=2))
        return
    click.echo(f"{'visibility':>10} {'threshold':>10} {'found':>7} {'false':>9} {'same':>7} {'strangers':>10}")
    for band in found.bands:
        note = "" if band.decides else "  too occluded to decide"
        low = "any" if seen is None else f"{band.low:.3f}"
        click.echo(
            f"{low:>10} {band.threshold:>10.4f} {band.true_match_rate:>7.3f} {band.false_match_rate:>9.2e} "
            f"{band.same:>7} {band.different:>10}{note}"
        )


Pairs = tuple[str, str, "NDArray[Any]", "NDArray[Any]", "NDArray[Any] | None"]
"""The model, the metric, then similarity, whether it is one person, and visibility of the query, each (P,)."""


def _of_labels(embedder: Any, data: Path, layout: str, metric: str | None, centre: bool, quiet: bool) -> Pairs:
    """Every pair of a query and a gallery picture of another camera."""
    import numpy as np

    from dpm_edge.centring import CameraStatistics
    from dpm_edge.layouts import read_dataset
    from dpm_edge.metrics import chosen_metric, similarity
    from dpm_edge.runtime.folder import embed_files

    labelled = read_dataset(data, layout)
    query, gallery = labelled.query, labelled.gallery
    q = embed_files(embedder, query.paths, quiet=quiet)
    t = embed_files(embedder, gallery.paths, quiet=quiet)
    metric = chosen_metric(metric, q.has_masks)
    features = q.features, t.features
    if centre:
        asked, kept = query.cameras[q.rows].astype(str).tolist(), gallery.cameras[t.rows].astype(str).tolist()
        known = CameraStatistics(fingerprint=t.fingerprint, dimension=t.dimension)
        known.add(t.features, kept)
        features = known.centre(q.features, asked), known.centre(t.features, kept)
    s = similarity(*features, metric=metric, query_masks=q.masks, target_masks=t.masks)
    one = query.people[q.rows][:, None], gallery.people[t.rows][None]
    other = query.cameras[q.rows][:, None] != gallery.cameras[t.rows][None]
    counted = other & (one[1] > 0)  # 0 and −1 are Market-1501's distractors and junk
    same = np.broadcast_to(one[0] == one[1], s.shape)
    seen = None if q.visibility is None else np.broadcast_to(q.visibility[:, None], s.shape)[counted]
    return q.fingerprint, metric, s[counted], same[counted], seen


def _of_tracks(embedder: Any, folder: Path, metric: str | None, centre: bool, quiet: bool) -> Pairs:
    """Pairs within tracks, and between tracks that share a frame."""
    from dataclasses import replace

    from dpm_edge.centring import CameraStatistics
    from dpm_edge.gallery.track_pairs import pairs_of_tracks
    from dpm_edge.metrics import chosen_metric
    from dpm_edge.runtime.folder import embed_files
    from dpm_edge.track_crops import read_track_crops, seen_together

    crops = read_track_crops(folder)
    rows = embed_files(embedder, crops.paths, quiet=quiet)
    metric = chosen_metric(metric, rows.has_masks)
    cameras, tracks = [crops.cameras[row] for row in rows.rows], crops.tracks[rows.rows]
    if centre:
        known = CameraStatistics(fingerprint=rows.fingerprint, dimension=rows.dimension)
        known.add(rows.features, cameras)
        rows = replace(rows, features=known.centre(rows.features, cameras))
    together = seen_together(cameras, tracks, crops.frames[rows.rows])
    return rows.fingerprint, metric, *pairs_of_tracks(rows, tracks, together, metric=metric)


def _plot(path: Path, found: Calibration, s: NDArray[Any], same: NDArray[Any], visibility: NDArray[Any] | None) -> None:
    """Histograms of both kinds of pairs in each band, with its threshold."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        from dpm_edge.errors import MissingLibrary

        raise MissingLibrary("matplotlib", "--plot", "pip install matplotlib") from error
    figure = Figure(figsize=(7, 2.2 * len(found.bands)), layout="constrained")
    axes = figure.subplots(len(found.bands), 1, sharex=True, squeeze=False)[:, 0]
    which = found.band_of(s * 0 if visibility is None else visibility)
    for number, (band, ax) in enumerate(zip(found.bands, axes)):
        for kind, name, colour in ((False, "strangers", "#b0413e"), (True, "one person", "#2b6cb0")):
            ax.hist(s[(which == number) & (same == kind)], bins=60, density=True, alpha=0.6, label=name, color=colour)
        ax.axvline(band.threshold, color="black", lw=1)
        title = "" if visibility is None else f"visibility from {band.low:.2f}: "
        ax.set_title(f"{title}threshold {band.threshold:.3f}", fontsize=9)
        ax.set_yticks([])
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("similarity")
    figure.savefig(path, dpi=120)
