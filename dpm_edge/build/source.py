"""What an engine is built from: a checkpoint or a portable ONNX, and the float32 reference that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from dpm_edge import shipped
from dpm_edge.build import foreign as foreign_model
from dpm_edge.build import portable, verify
from dpm_edge.build.foreign import ForeignOptions
from dpm_edge.build.verify import Reference
from dpm_edge.errors import CheckpointError, ImageError, MissingLibrary, SpecError
from dpm_edge.images import find_images, preprocess, read_image
from dpm_edge.manifest import GOLDEN, PORTABLE
from dpm_edge.progress import say, track
from dpm_edge.shipped import ASSETS
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


def read(model: Path, copy: Path, foreign: ForeignOptions | None = None, *, quiet: bool = True) -> Source:
    """Read a model and leave its portable ONNX at `copy`.

    Args:
        model: a checkpoint (exported with torch), a portable ONNX, the shipped model, or somebody else's ONNX or
            OpenVINO IR.
        copy: the file to write.
        foreign: what was said of somebody else's model.
        quiet: no progress.

    Raises:
        CheckpointError: it is missing, damaged or not what it says it is.
        SpecError: something about somebody else's model was not said, or was said about one of ours.
        MissingLibrary: it is a checkpoint, and torch or what exports it is not installed.
    """
    if is_foreign(model):
        if not quiet:
            say(f"{model.name} is another project's network: making it portable, and comparing it with the file")
        theirs = foreign_model.read(model, foreign or ForeignOptions())
        portable.write(theirs.model, copy, theirs.spec, theirs.fingerprint)
        read = portable.read(copy)
        reference = verify.onnx_reference(read.model.SerializeToString())
        return Source(model, read.model, read.spec, read.fingerprint, reference)
    if foreign is not None and foreign.given():
        raise SpecError(
            f"expected another project's ONNX or OpenVINO IR for {', '.join(foreign.given())}, got {model}, whose "
            "input and output are known. Leave these options out"
        )
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
    net = checkpoint.load_any(model)
    if not quiet:
        say("exporting the checkpoint to ONNX, some ten seconds")
    export(net, copy)
    read = portable.read(copy)
    return Source(model, read.model, read.spec, read.fingerprint, verify.torch_reference(net))


def is_foreign(model: Path) -> bool:
    """Whether a file is another project's network: an OpenVINO IR, or an ONNX that dpm-edge did not write."""
    suffix = model.suffix.lower()
    return model.is_file() and (
        suffix == ".xml" or (suffix == ".onnx" and portable.is_foreign(portable.parse(model)[0]))
    )


def write_golden(folder: Path, source: Source, path: Path) -> None:
    """Keep one crop and what the reference makes of it; the runtime runs it whenever the engine is opened."""
    crop = read_image(path)
    feature, mask = source.reference.forward(preprocess([crop], source.spec.preprocessing))
    np.savez(folder / GOLDEN, crop=crop, feature=feature[0], mask=mask[0])


CALIBRATION_CROPS = 512
"""Crops that int8 and fp8 are calibrated on, where the folder holds so many."""
VERIFICATION_CROPS = 64
SEED = 0
"""Of the draw: the same folder gives the same crops, and so the same engine."""
SAMPLE_CROPS = ASSETS / "samples"
"""The crops that ship with the package: what is verified on where the user gives none."""


def choose_crops(folder: Path, *, calibrate: bool, quiet: bool) -> tuple[list[Path], list[Path]]:
    """Pictures to calibrate on (none unless `calibrate`) and pictures to verify on, drawn from the whole folder.

    They are disjoint where the folder holds at least two.

    Raises:
        ImageError: there is no such folder, or no picture in it.
        SpecError: no picture can be read, or the package came without samples and no folder is given.
    """
    if folder == SAMPLE_CROPS and not folder.is_dir():
        raise SpecError(
            "expected real crops to verify the engine on, got an installation without samples. "
            "Give a folder of crops (--calibrate DIR)"
        )
    paths = find_images(folder)
    wanted = min(len(paths), VERIFICATION_CROPS + (CALIBRATION_CROPS if calibrate else 0))
    drawn = sorted(np.random.default_rng(SEED).permutation(len(paths))[:wanted])
    good = readable([paths[i] for i in drawn], quiet=quiet)
    if not good:
        raise SpecError(f"expected real crops of people in {folder}, got no picture that can be read")
    if not calibrate:
        return [], good
    held_out = {
        good[i] for i in np.random.default_rng(SEED).permutation(len(good))[: min(VERIFICATION_CROPS, len(good) // 2)]
    }
    verification = [path for path in good if path in held_out] or good
    return [path for path in good if path not in held_out], verification


def readable(paths: Sequence[Path], *, quiet: bool) -> list[Path]:
    """The pictures that can be read; the others are named on stderr."""
    good = []
    for path in track(paths, what="reading crops", quiet=quiet):
        try:
            read_image(path)
        except ImageError as error:
            say(f"left out: {error}")
        else:
            good.append(path)
    return good
