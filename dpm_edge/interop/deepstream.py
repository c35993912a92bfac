"""Configurations of NVIDIA DeepStream, from an engine directory.

FOLDER/
    tracker.yml           nvtracker's `ReID:` block, or a whole tracker configuration with that block put in
    reid-feature.onnx     for the tracker: the network with its feature as the only output
    sgie.txt              nvinfer as secondary inference, which hands on the feature and the mask
    reid.onnx, reid.plan  for nvinfer: the network, and the plan where the engine is one
    README.md

DeepStream's formula (Gst-nvtracker and Gst-nvinfer alike): y = scale · (x − offset), x in 0..255, one scale for all
channels. Ours: y = (x / 255 − mean) / std, so scale = 1 / (255 · std) and offset = 255 · mean.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from dpm_edge.errors import ExportError, MissingLibrary
from dpm_edge.files import whole_folder
from dpm_edge.interop import MARK, check_replaceable
from dpm_edge.manifest import PORTABLE, Manifest
from dpm_edge.spec import Preprocessing

TRACKER, SECONDARY, README = "tracker.yml", "sgie.txt", "README.md"
FEATURE_ONNX, ONNX, PLAN = "reid-feature.onnx", "reid.onnx", "reid.plan"
FILTER = {"bilinear": 1, "bicubic": 2, "area": 3}
"""Our interpolation → nvinfer's scaling-filter on the GPU: bilinear, cubic, super-sampling."""
OTHER_MODELS = ("tltEncodedModel", "tltModelKey", "calibrationTableFile", "uffModelFile")
"""Keys of a sample's `ReID:` block that name another network."""


@dataclass(frozen=True)
class Normalisation:
    """Preprocessing in DeepStream's terms."""

    scale: float
    """netScaleFactor, net-scale-factor."""
    offsets: tuple[float, float, float]
    """Per channel of the network's input, of values in 0..255."""
    color: int
    """0: RGB, 1: BGR."""


def normalisation(pre: Preprocessing) -> Normalisation:
    """Preprocessing in DeepStream's terms.

    Raises:
        ExportError: the channels have different std: DeepStream has one scale.
    """
    if len(set(pre.std)) != 1:
        raise ExportError(
            f"the network wants std {pre.std}, and DeepStream has one scale for all channels. Train with one std, or "
            "preprocess with dpm_edge.images and serve the engine by itself"
        )
    offsets = (255 * pre.mean[0], 255 * pre.mean[1], 255 * pre.mean[2])
    return Normalisation(1 / (255 * pre.std[0]), offsets, 0 if pre.color == "rgb" else 1)


def export(folder: Path, engine: Path, *, tracker: Path | None = None, person_class: int = 0) -> list[Path]:
    """Write the folder described above; returns its files.

    Args:
        folder: replaced as a whole where an earlier export wrote it.
        engine: an engine directory of any backend; a TensorRT plan goes to nvinfer as it is.
        tracker: a tracker configuration to put the block into, such as DeepStream's config_tracker_NvDeepSORT.yml.
        person_class: class of a person in the detector whose objects nvinfer embeds.

    Raises:
        EngineError, CheckpointError: the engine directory is missing, damaged or edited.
        ExportError: DeepStream cannot do the preprocessing, the tracker file is none, or the folder is not ours.
        MissingLibrary: onnx is not installed.
    """
    manifest = Manifest.read(engine)
    manifest.check_files(engine)
    numbers = normalisation(manifest.spec.preprocessing)
    check_replaceable(folder, README)
    sample = _read_tracker(tracker) if tracker is not None else ""
    with whole_folder(folder) as part:
        _write_networks(part, engine)
        plan = manifest.backend == "tensorrt" and (manifest.gpu is None or manifest.gpu.plugin is None)
        if plan:  # nvinfer opens plugin libraries without asking for their creators: it builds from the ONNX instead
            shutil.copyfile(engine / manifest.engine, part / PLAN)
        block = reid_block(manifest, numbers, folder.resolve())
        (part / TRACKER).write_text(put_block(sample, block), encoding="utf-8")
        (part / SECONDARY).write_text(secondary(manifest, numbers, person_class, plan=plan), encoding="utf-8")
        (part / README).write_text(_readme(manifest, folder, whole=bool(sample)), encoding="utf-8")
    return sorted(folder.iterdir())


def reid_block(manifest: Manifest, numbers: Normalisation, folder: Path) -> dict[str, Any]:
    """Key → value of nvtracker's `ReID:` block; paths are absolute, as nvtracker before 9.2 wants them."""
    pre, rows = manifest.spec.preprocessing, manifest.batch.high
    return {
        "reidType": 1,
        "outputReidTensor": 1,
        "batchSize": rows,
        "workspaceSize": 1000,
        "reidFeatureSize": manifest.spec.dimension,
        "reidHistorySize": 100,
        "inferDims": [3, pre.height, pre.width],
        "networkMode": 0,
        "inputOrder": 0,
        "colorFormat": numbers.color,
        "offsets": list(numbers.offsets),
        "netScaleFactor": numbers.scale,
        "keepAspc": 0,
        "addFeatureNormalization": 0,
        "onnxFile": f'"{folder / FEATURE_ONNX}"',
        "modelEngineFile": f'"{folder / FEATURE_ONNX}_b{rows}_gpu0_fp32.engine"',
    }


def put_block(sample: str, block: dict[str, Any]) -> str:
    """A tracker configuration with our `ReID:` block in it.

    What the sample's own block says beyond ours is kept, but for the keys that name its network; its reidType stays
    where it is not 0, and becomes 2 (re-association) where it is.

    Args:
        sample: YAML text; "" gives the block alone.
    """
    kept: list[str] = []
    lines = sample.splitlines()
    start = next((row for row, line in enumerate(lines) if re.match(r"ReID\s*:", line)), len(lines))
    end = next((row for row in range(start + 1, len(lines)) if re.match(r"[A-Za-z]", lines[row])), len(lines))
    values = dict(block)
    for line in lines[start + 1 : end]:
        key = re.match(r"\s+(\w+)\s*:\s*(\S*)", line)
        if key is None:
            continue
        if key[1] == "reidType":
            values["reidType"] = int(key[2]) or 2
        elif key[1] not in values and key[1] not in OTHER_MODELS:
            kept.append(line)
    ours = [f"# {MARK}", "ReID:", *(f"  {key}: {value}" for key, value in values.items())]
    after = lines[end:]
    return "\n".join([*lines[:start], *ours, *kept, *([""] if after else []), *after]) + "\n"


def secondary(manifest: Manifest, numbers: Normalisation, person_class: int, *, plan: bool) -> str:
    """Gst-nvinfer's configuration as secondary inference with both outputs in its tensor metadata.

    nvinfer reads paths relative to the file. Where there is no plan, it builds one from the ONNX and writes it under
    the name given here, so that the next start is quick.
    """
    pre = manifest.spec.preprocessing
    rows = manifest.profiles[0].high if manifest.profiles else manifest.batch.high
    values = {
        "gpu-id": 0,
        "gie-unique-id": 2,
        "process-mode": 2,
        "operate-on-gie-id": 1,
        "operate-on-class-ids": person_class,
        "onnx-file": ONNX,
        "model-engine-file": PLAN if plan else f"{ONNX}_b{rows}_gpu0_fp32.engine",
        "batch-size": rows,
        "infer-dims": f"3;{pre.height};{pre.width}",
        "network-mode": 0,
        "network-type": 100,
        "net-scale-factor": numbers.scale,
        "offsets": ";".join(str(value) for value in numbers.offsets),
        "model-color-format": numbers.color,
        "maintain-aspect-ratio": 0,
        "scaling-compute-hw": 1,
        "scaling-filter": FILTER[pre.interpolation],
        "output-blob-names": "feature;mask",
        "output-tensor-meta": 1,
    }
    return f"# {MARK}\n[property]\n" + "".join(f"{key}={value}\n" for key, value in values.items())


def _read_tracker(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"expected a tracker configuration (.yml), got {path}: {error}") from error
    if not re.search(r"^TargetManagement\s*:", text, re.MULTILINE):
        raise ExportError(f"expected a configuration of nvtracker's library, got {path} without `TargetManagement:`")
    return text


def _write_networks(folder: Path, engine: Path) -> None:
    """The float32 network with both outputs, and with the feature alone: nvtracker keeps one vector for an object."""
    try:
        import onnx
        from onnx.utils import Extractor
    except ImportError as error:
        raise MissingLibrary("onnx", "exporting for DeepStream", "pip install 'dpm-edge[engines]'") from error
    from dpm_edge.build import portable

    model = portable.read(engine / PORTABLE).model
    onnx.save(model, folder / ONNX)
    onnx.save(Extractor(model).extract_model([portable.INPUT], ["feature"]), folder / FEATURE_ONNX)


def _readme(manifest: Manifest, folder: Path, *, whole: bool) -> str:
    """The page that explains the folder."""
    block_only = (
        "It holds the `ReID:` block alone: put it in place of that block of your tracker's configuration, or export "
        "again with `--tracker FILE`, which does so."
    )
    text = (resources.files("dpm_edge") / "interop" / "deepstream.md").read_text(encoding="utf-8")
    return Template(text).substitute(
        mark=MARK,
        name=manifest.spec.name,
        dimension=manifest.spec.dimension,
        fingerprint=manifest.fingerprint,
        mask_mean=repr(float(manifest.spec.mask_mean)),
        folder=folder.resolve(),
        tracker="It is complete." if whole else block_only,
    )


class Name(str):
    """The name of an enum's value, which is written without quotes."""


def to_text(message: Mapping[str, Any]) -> str:
    """A message as protobuf's text format.

    Args:
        message: field → str, bool, int, float, `Name`, a message, or a list of these for a repeated field. A protobuf
            map is a list of messages {"key": …, "value": …}.

    Raises:
        TypeError: a value of another type.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for field, value in message.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for one in values:
            if isinstance(one, Mapping):
                yield f"{indent}{field} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{field}: {_scalar(one)}"


def _scalar(value: object) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"expected str, bool, int, float, Name or a message, got {value!r} ({type(value).__name__})")
