"""`dpm-edge doctor`."""

from __future__ import annotations

from typing import Any

import click

from dpm_edge.cli.options import as_json

ABILITIES = (
    ("run and build OpenVINO engines", ("openvino",), "cpu"),
    ("run and build ONNX Runtime engines", ("onnxruntime",), "cpu"),
    ("build int8 engines", ("onnxruntime", "onnx"), "cpu"),
    ("export checkpoints", ("torch", "onnx", "onnxscript"), "build"),
    ("train", ("torch", "torchvision"), "train"),
    ("render synthetic people", ("torch", "numba", "anny"), "synthetic"),
    ("run the Triton kernels", ("torch", "triton"), "gpu"),
    ("build TensorRT engines", ("tensorrt",), "tensorrt"),
    ("write parquet", ("pyarrow",), "parquet"),
)
"""What one can do · the modules it needs · the extra that brings them."""


@click.command("doctor", short_help="What can this machine do, and what is missing for the rest?")
@as_json
def command(as_json: bool) -> None:
    """List what this machine can do with dpm-edge, and the install command for what it cannot.

    \b
    Example:
      dpm-edge doctor
    """
    import json

    from dpm_edge import env

    card = env.machine_card()
    abilities = [_ability(*row) for row in ABILITIES]
    devices = _openvino_devices()
    if as_json:
        click.echo(json.dumps({"machine": card, "abilities": abilities, "openvino_devices": devices}, indent=2))
        return
    click.echo(f"{card['cpu']}, {card['cores']} cores, {card['system']}, Python {card['python']}")
    click.echo(", ".join(f"{name} {version}" for name, version in card["libraries"].items()))
    if devices:
        click.echo(f"OpenVINO sees: {', '.join(devices)}")
    for row in abilities:
        if row["can"]:
            click.echo(f"  yes  {row['what']}")
        else:
            click.echo(f"  no   {row['what']}: lacks {', '.join(row['lacks'])}. {row['install']}")


def _ability(what: str, modules: tuple[str, ...], extra: str) -> dict[str, Any]:
    """One row of the answer; looks for modules without importing them."""
    from dpm_edge import env

    lacks = [module for module in modules if not env.installed(module)]
    return {"what": what, "can": not lacks, "lacks": lacks, "install": f"pip install 'dpm-edge[{extra}]'"}


def _openvino_devices() -> list[str]:
    """Devices that OpenVINO finds, with their names."""
    from dpm_edge.errors import MissingLibrary
    from dpm_edge.telemetry import import_openvino

    try:
        openvino = import_openvino("listing its devices")
    except MissingLibrary:
        return []
    core = openvino.Core()
    return [f"{device} ({core.get_property(device, 'FULL_DEVICE_NAME').strip()})" for device in core.available_devices]
