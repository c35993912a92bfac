"""`dpm-edge build` and `dpm-edge refit`: an engine from a model, and other weights for a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dpm_edge.cli.options import PATH, as_json, layout, quiet
from dpm_edge.manifest import BACKENDS, HARDWARE, PRECISIONS

DETECTOR = "detector"
FAMILIES = ("torchreid", "fast-reid", "clip-reid", "openvino", "tao")
"""Names of dpm_edge.families, written here so that --help loads no onnx."""


def foreign_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe another project's network."""
    for option in (
        click.option("--licence", metavar="TEXT", help="Another's network: licence of its weights, for the manifest."),
        click.option(
            "--feature", metavar="NAME", help="Another's network: its output, or any tensor, with the feature."
        ),
        click.option(
            "--interpolation",
            type=click.Choice(["bilinear", "area", "bicubic"]),
            help="Another's network: how crops are resized; bilinear if neither this nor the family says.",
        ),
        click.option("--std", metavar="NAME|R,G,B", help="Another's network: as --mean, whose name brings it."),
        click.option(
            "--mean",
            metavar="NAME|R,G,B",
            help="Another's network: imagenet, half, clip, unit (values 0..1), pixels (0..255), or three numbers.",
        ),
        click.option("--color", type=click.Choice(["rgb", "bgr"]), help="Another's network: order of its channels."),
        click.option(
            "--input",
            metavar="HxW",
            help="Another's network: size of its input, such as 256x128, if its file is silent.",
        ),
        click.option(
            "--family",
            type=click.Choice(FAMILIES),
            help="Another's network: whose it is; says size, color, mean, std and interpolation.",
        ),
    ):
        command = option(command)
    return command


@click.command("build", short_help="Turn a checkpoint or an ONNX, yours or another's, into an engine.")
@click.argument("model", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="The engine directory to write.")
@click.option("--backend", type=click.Choice(BACKENDS), default="openvino", show_default=True)
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS, "auto"]),
    default="fp32",
    show_default=True,
    help="auto: the fastest inside the budget, by timing.",
)
@click.option("--calibrate", type=PATH, metavar="DIR", help="Real crops to calibrate int8 and fp8 with.")
@click.option(
    "--batch",
    default="1:8:64",
    show_default=True,
    help="Crops of one call: low:best:high, or one number; TensorRT takes several, 1:1:1,2:8:64.",
)
@foreign_options
@click.option("--labelled", type=PATH, metavar="DIR", help="Labelled data set: verify the change in mAP too.")
@layout
@click.option("--budget", type=float, default=0.5, show_default=True, help="mAP points that the engine may lose.")
@click.option("--cosine", type=float, default=0.995, show_default=True, help="Least mean cosine to MODEL's features.")
@click.option(
    "--closed-set", type=PATH, metavar="GALLERY", help="Also give each crop's masked similarity to these people."
)
@click.option(
    "--statistics", type=PATH, metavar="FILE", help="What a site's cameras have in common: cameras.json of `adapt`."
)
@click.option(
    "--mask-head",
    type=click.Choice(["native", "plugin"]),
    default="native",
    show_default=True,
    help="TensorRT: its own convolutions for the mask generator, or our fused kernel.",
)
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="TensorRT: most scratch memory of a layer.")
@click.option("--opt-level", type=click.IntRange(0, 5), help="TensorRT: how long it searches; its default is 3.")
@click.option("--low-memory", is_flag=True, help="TensorRT: build and run on a board with little memory.")
@click.option("--strip-weights", is_flag=True, help="TensorRT: leave weights out of the plan; refit changes them.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: later versions of the same major may open it.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(HARDWARE),
    default="none",
    show_default=True,
    help="TensorRT: other GPUs that may open it; slower.",
)
@click.option(
    "--timing-cache",
    metavar="DIR",
    help="TensorRT: where timings are kept for the next build, or none.  [default: in the user's cache]",
)
@click.option("--force", is_flag=True, help="Keep an engine that went over the budget; the manifest says so.")
@as_json
@quiet
def build(
    model: Path,
    out: Path,
    backend: str,
    precision: str,
    calibrate: Path | None,
    batch: str,
    labelled: Path | None,
    layout: str,
    budget: float,
    cosine: float,
    closed_set: Path | None,
    statistics: Path | None,
    mask_head: str,
    workspace: int | None,
    opt_level: int | None,
    low_memory: bool,
    strip_weights: bool,
    version_compatible: bool,
    hardware_compatibility: str,
    timing_cache: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **described: str | None,
) -> None:
    """Turn MODEL into an engine directory, and verify the engine against MODEL.

    MODEL is dpm-n or dpm-t, which ship; a checkpoint (needs torch, the extra `build`); a portable ONNX, such as the
    model.onnx of another engine directory; or another project's network, as ONNX or OpenVINO IR (.xml), with --family
    or with --color and --mean. All but the checkpoint need only the engine's library.

    MODEL may also be `detector`, the person detector of `dpm-edge watch`, or `detector:FILE`, another project's:
    --backend openvino or onnxruntime, --precision fp32, bf16 or auto, --calibrate pictures with people to verify it on.

    \b
    Example:
      dpm-edge build osnet.onnx --family torchreid -o engine
      dpm-edge build runs/dpm-s/best.safetensors -o engine --precision int8 --calibrate crops --labelled market
      dpm-edge build engine/model.onnx -o engine-orin --backend tensorrt --precision auto --calibrate crops
      dpm-edge build detector -o eye --precision auto
    """
    if str(model) == DETECTOR or str(model).startswith(DETECTOR + ":"):
        from dpm_edge.cli.build_detector import build_detector

        build_detector(str(model), out, backend, precision, calibrate, force=force, as_json=as_json, quiet=quiet)
        return
    from dpm_edge.build import AccuracyBudget, PlanOptions
    from dpm_edge.build import build as build_engine
    from dpm_edge.build.foreign import ForeignOptions
    from dpm_edge.build.trt.options import default_timing_cache
    from dpm_edge.cli.engine import print_manifest

    if timing_cache is None:  # other backends keep no timings, and may run where there is no home folder
        timings = default_timing_cache() if backend.startswith("tensorrt") else None
    else:
        timings = None if timing_cache == "none" else Path(timing_cache)
    manifest = build_engine(
        model,
        out,
        foreign=ForeignOptions(**described),
        backend=backend,
        precision=precision,
        calibrate=calibrate,
        batch=batch,
        labelled=labelled,
        layout=layout,
        budget=AccuracyBudget(cosine=cosine, map_points=budget),
        closed_set=closed_set,
        statistics=statistics,
        mask_head=mask_head,
        plan=PlanOptions(
            workspace=workspace,
            level=opt_level,
            timing_cache=timings,
            version_compatible=version_compatible,
            hardware_compatibility=hardware_compatibility,
            strip_weights=strip_weights,
            low_memory=low_memory,
        ),
        force=force,
        progress=not quiet,
    )
    print_manifest(manifest, out, as_json=as_json)


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
def refit(
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
    from dpm_edge.build import AccuracyBudget
    from dpm_edge.build.refit import refit as refit_engine
    from dpm_edge.cli.engine import print_manifest

    limits = AccuracyBudget(cosine=cosine, map_points=budget)
    manifest = refit_engine(
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
    print_manifest(manifest, out, as_json=as_json)
