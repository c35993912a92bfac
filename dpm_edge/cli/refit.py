"""`dpm-edge refit`."""

from __future__ import annotations

from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json, layout, quiet


@click.command("refit", short_help="Other weights for a TensorRT plan, without a build.")
@click.argument("engine", type=PATH)
@click.argument("model", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="The engine directory to write; may be ENGINE.")
@click.option("--calibrate", type=PATH, metavar="DIR", help="Real crops to verify on.")
@click.option("--labelled", type=PATH, metavar="DIR", help="Labelled data set: verify the change in mAP too.")
@layout
@click.option("--budget", type=float, default=0.5, show_default=True, help="mAP points that the engine may lose.")
@click.option("--cosine", type=float, default=0.995, show_default=True, help="Least mean cosine to MODEL's features.")
@click.option("--force", is_flag=True, help="Keep an engine that went over the budget; the manifest says so.")
@as_json
@quiet
def command(
    engine: Path,
    model: Path,
    out: Path,
    calibrate: Path | None,
    labelled: Path | None,
    layout: str,
    budget: float,
    cosine: float,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put the weights of MODEL, a checkpoint or portable ONNX of the same network, behind the plan of ENGINE.

    ENGINE was built with --backend tensorrt --strip-weights in fp32, fp16 or bf16. The plan stays the same file; the
    weights lie beside it.

    \b
    Example:
      dpm-edge refit engine runs/dpm-s/next.safetensors -o engine-next
    """
    from dpm_edge.build import Budget
    from dpm_edge.build.refit import refit
    from dpm_edge.cli.inspect import show

    limits = Budget(cosine=cosine, map_points=budget)
    manifest = refit(
        engine,
        model,
        out,
        calibrate=calibrate,
        labelled=labelled,
        layout=layout,
        budget=limits,
        force=force,
        progress=not quiet,
    )
    show(manifest, out, as_json=as_json)
