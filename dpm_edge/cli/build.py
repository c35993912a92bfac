"""`dpm-edge build`."""

from __future__ import annotations

from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json, quiet
from dpm_edge.manifest import BACKENDS, PRECISIONS


@click.command("build", short_help="Turn a checkpoint or a portable ONNX into an engine.")
@click.argument("model", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="The engine directory to write.")
@click.option("--backend", type=click.Choice(BACKENDS), default="openvino", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--calibrate", type=PATH, metavar="DIR", help="Real crops to calibrate int8 with.")
@click.option("--batch", default="1:8:64", show_default=True, help="Crops of one call: low:best:high, or one number.")
@click.option("--labelled", type=PATH, metavar="DIR", help="Market-1501 folder: verify the change in mAP too.")
@click.option("--budget", type=float, default=0.5, show_default=True, help="mAP points that the engine may lose.")
@click.option("--cosine", type=float, default=0.995, show_default=True, help="Least mean cosine to MODEL's features.")
@click.option("--force", is_flag=True, help="Keep an engine that went over the budget; the manifest says so.")
@as_json
@quiet
def command(
    model: Path,
    out: Path,
    backend: str,
    precision: str,
    calibrate: Path | None,
    batch: str,
    labelled: Path | None,
    budget: float,
    cosine: float,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn MODEL into an engine directory, and verify the engine against MODEL.

    MODEL is a checkpoint (needs torch, the extra `build`) or a portable ONNX, such as the model.onnx of another
    engine directory (needs only the engine's library).

    \b
    Example:
      dpm-edge build runs/dpm-s/best.safetensors -o engine --precision int8 --calibrate crops --labelled market
    """
    from dpm_edge.build import Budget, build
    from dpm_edge.cli.inspect import show

    manifest = build(
        model,
        out,
        backend=backend,
        precision=precision,
        calibrate=calibrate,
        batch=batch,
        labelled=labelled,
        budget=Budget(cosine=cosine, map_points=budget),
        force=force,
        progress=not quiet,
    )
    show(manifest, out, as_json=as_json)
