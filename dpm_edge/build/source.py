"""What an engine is built from: a checkpoint or a portable ONNX, and the float32 reference that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from dpm_edge import shipped
from dpm_edge.build import portable, verify
from dpm_edge.build.verify import Reference
from dpm_edge.errors import CheckpointError, MissingLibrary
from dpm_edge.images import preprocess, read_image
from dpm_edge.manifest import GOLDEN, PORTABLE
from dpm_edge.progress import say
from dpm_edge.spec import ModelSpec


@dataclass(frozen=True)
class Source:
    """A model that can be built from."""

    path: Path
    """Where it was read."""
    model: ModelProto
    """Its float32 graph."""
    spec: ModelSpec
    fingerprint: str
    reference: Reference


def read(model: Path, copy: Path, *, quiet: bool = True) -> Source:
    """Read a checkpoint (exported with torch), a portable ONNX or the shipped model, and leave the ONNX at `copy`.

    Raises:
        CheckpointError: it is missing, damaged or not what it says it is.
        MissingLibrary: it is a checkpoint, and torch or what exports it is not installed.
    """
    if (onnx := shipped.resolve(model, ".onnx")).suffix.lower() == ".onnx":
        read = portable.read(onnx)
        copy.write_bytes(read.data)
        reference = verify.onnx_reference(read.model.SerializeToString())
        return Source(model, read.model, read.spec, read.fingerprint, reference)
    if not any(path.exists() for path in (model, model.with_name(f"{model.name}.safetensors"))):
        raise CheckpointError(
            f"expected a checkpoint (NAME.safetensors), a portable .onnx or a model that ships "
            f"({', '.join(shipped.MODELS)}), got {model}, which does not exist"
        )
    if (model / PORTABLE).is_file():
        raise CheckpointError(f"expected a model, got the engine directory {model}. Give its {model / PORTABLE}")
    try:
        from dpm_edge.build.export import export
        from dpm_edge.model import checkpoint
    except ImportError as error:
        library = error.name or "torch"
        raise MissingLibrary(
            library,
            f"exporting the checkpoint {model}",
            "pip install 'dpm-edge[build]', or build from a portable .onnx",
        ) from error
    net = checkpoint.load(model)
    if not quiet:
        say("exporting the checkpoint to ONNX, some ten seconds")
    export(net, copy)
    read = portable.read(copy)
    return Source(model, read.model, read.spec, read.fingerprint, verify.torch_reference(net))


def write_golden(folder: Path, source: Source, path: Path) -> None:
    """Keep one crop and what the reference makes of it; the runtime runs it whenever the engine is opened."""
    crop = read_image(path)
    feature, mask = source.reference.forward(preprocess([crop], source.spec.preprocessing))
    np.savez(folder / GOLDEN, crop=crop, feature=feature[0], mask=mask[0])
