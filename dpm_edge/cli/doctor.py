"""`dpm-edge doctor`."""

from __future__ import annotations

from typing import Any

import click

from dpm_edge.cli.options import as_json

ABILITIES = (
    ("read pictures and videos", ("cv2",), "opencv"),
    ("run and build OpenVINO engines", ("openvino",), "engines"),
    ("run and build ONNX Runtime engines", ("onnxruntime",), "engines"),
    ("build int8 engines", ("onnxruntime", "onnx"), "engines"),
    ("all of the above, in a fresh environment", ("openvino", "onnxruntime", "onnx", "cv2"), "cpu"),
    ("export checkpoints", ("torch", "onnx", "onnxscript"), "build"),
    ("train", ("torch", "torchvision", "open_clip", "matplotlib"), "train"),
    ("render synthetic people", ("torch", "numba", "anny"), "synthetic"),
    ("run the Triton kernels", ("torch", "triton"), "gpu"),
    ("run compiled kernels and engines on a GPU", ("cuda.bindings",), "gpu"),
    ("build and run TensorRT engines", ("tensorrt",), "tensorrt"),
    ("share a GPU context with pycuda", ("pycuda",), "pycuda"),
    ("plot benchmarks and read a GPU's energy", ("matplotlib", "pynvml"), "bench"),
    ("read and write parquet", ("pyarrow",), "parquet"),
    ("search a gallery in memory by compiled loops", ("numba",), "fast"),
    ("keep a gallery in a folder or on a Qdrant server", ("qdrant_edge", "qdrant_client"), "qdrant"),
    ("serve the page of `dpm-edge watch`", ("starlette", "uvicorn", "websockets"), "watch"),
    ("read RTSP with PyAV and the camera's own clock", ("av",), "rtsp"),
    ("serve an engine and a gallery over HTTP", ("fastapi", "uvicorn", "python_multipart"), "serve"),
    ("send events over MQTT", ("paho.mqtt",), "mqtt"),
    ("keep a gallery on a Milvus server", ("pymilvus",), "milvus"),
)
"""What one can do · the modules it needs · the extra that brings them. Every extra has a row."""

WITH_OPENCV = ("cpu", "build", "train", "synthetic")
"""Extras that bring opencv-python-headless."""
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
"""Distributions that are all the module `cv2`: the one that was installed last overwrote the others."""


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
    opencvs = [name for name in OPENCVS if env.version(name)]
    if as_json:
        answer = {"machine": card, "abilities": abilities, "openvino_devices": devices, "opencv": opencvs}
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"{card['cpu']}, {card['cores']} cores, {card['system']}, Python {card['python']}")
    click.echo(", ".join(f"{name} {version}" for name, version in card["libraries"].items()))
    if devices:
        click.echo(f"OpenVINO sees: {', '.join(devices)}")
    if len(opencvs) > 1:
        click.echo(
            f"expected one OpenCV, got {' and '.join(opencvs)}, which overwrite each other. "
            f"Keep one: pip uninstall {' '.join(opencvs)}; pip install ONE"
        )
    for row in abilities:
        if row["can"]:
            click.echo(f"  yes  {row['what']}")
        else:
            click.echo(f"  no   {row['what']}: lacks {', '.join(row['lacks'])}. {row['install']}")


def _ability(what: str, modules: tuple[str, ...], extra: str) -> dict[str, Any]:
    """One row of the answer; looks for modules without importing them."""
    from dpm_edge import env

    lacks = [module for module in modules if not env.installed(module)]
    install = f"pip install 'dpm-edge[{extra}]'"
    if extra in WITH_OPENCV and any(env.version(name) for name in OPENCVS if name != "opencv-python-headless"):
        install += ", in an environment of its own: it would overwrite the OpenCV that is here"
    return {"what": what, "can": not lacks, "lacks": lacks, "install": install}


def _openvino_devices() -> list[str]:
    """List the devices that OpenVINO finds, with their names."""
    from dpm_edge.errors import MissingLibrary
    from dpm_edge.telemetry import import_openvino

    try:
        openvino = import_openvino("listing its devices")
    except MissingLibrary:
        return []
    core = openvino.Core()
    return [f"{device} ({core.get_property(device, 'FULL_DEVICE_NAME').strip()})" for device in core.available_devices]
