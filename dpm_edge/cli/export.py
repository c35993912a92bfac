"""`dpm-edge export`: an engine for another server."""

from __future__ import annotations

from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json


@click.group("export", short_help="An engine for Triton Inference Server or DeepStream.")
def command() -> None:
    """Write what another server needs to serve an engine.

    \b
    Example:
      dpm-edge export triton-repo models --engine demo-out/engine
      dpm-edge export deepstream ds --engine demo-out/engine
    """


@command.command("triton-repo", short_help="A model repository of NVIDIA's Triton Inference Server.")
@click.argument("repository", type=PATH, metavar="DIR")
@click.option("--engine", "engines", type=PATH, multiple=True, required=True, help="May be given again.")
@click.option(
    "--max-wait",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="Milliseconds that a request may wait for company.",
)
@click.option("--threads", type=click.IntRange(1), help="Cores of a CPU engine; the library decides if not given.")
@as_json
def triton_repo(
    repository: Path, engines: tuple[Path, ...], max_wait: float, threads: int | None, as_json: bool
) -> None:
    """Write each engine as a model of DIR, a model repository of NVIDIA's Triton Inference Server.

    A CPU engine becomes a model of the python backend: pictures of people in, JPEG, PNG or BMP of any size; feature,
    mask and visibility out. A TensorRT plan becomes a model of Triton's own backend: preprocessed crops in. Other
    models in DIR are left alone.

    \b
    Example:
      dpm-edge export triton-repo models --engine demo-out/engine
      tritonserver --model-repository models
    """
    import dataclasses
    import json

    from dpm_edge.interop.triton import export
    from dpm_edge.manifest import Manifest

    served = export(repository, engines, max_wait=max_wait / 1000, threads=threads or 0)
    commands = [Manifest.read(engine).trtexec for engine in engines]
    server = f"tritonserver --model-repository {repository}"
    if as_json:
        rows = [{**dataclasses.asdict(one), "trtexec": line} for one, line in zip(served, commands)]
        click.echo(json.dumps({"server": server, "models": rows}, indent=2, default=str))
        return
    for model, line in zip(served, commands):
        click.echo(f"{model.name}  {', '.join(model.inputs)} → {', '.join(model.outputs)}, up to {model.batch} rows")
        click.echo(f"  needs {model.needs}")
        if line:
            click.echo(f"  to check its speed: {line}")
    click.echo(server)


@command.command("deepstream", short_help="Configurations of NVIDIA DeepStream.")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--engine", type=PATH, required=True)
@click.option("--tracker", type=PATH, help="A tracker configuration to put the ReID block into.")
@click.option(
    "--person-class", type=click.IntRange(0), default=0, show_default=True, help="Class of a person in your detector."
)
@as_json
def deepstream(folder: Path, engine: Path, tracker: Path | None, person_class: int, as_json: bool) -> None:
    """Write DIR for NVIDIA DeepStream: nvtracker's ReID block, an nvinfer configuration that keeps the mask, the
    networks, and a README that says which of the two to take.

    \b
    Example:
      dpm-edge export deepstream ds --engine engine --tracker config_tracker_NvDeepSORT.yml
    """
    import json

    from dpm_edge.interop.deepstream import export
    from dpm_edge.manifest import Manifest

    files = [str(path) for path in export(folder, engine, tracker=tracker, person_class=person_class)]
    line = Manifest.read(engine).trtexec
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": files, "trtexec": line}, indent=2))
        return
    for path in files:
        click.echo(path)
    if line:
        click.echo(f"to check its speed: {line}")
