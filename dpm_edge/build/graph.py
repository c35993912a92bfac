"""The graph that a backend is given: in its precision, with what was asked for beside features and masks."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from dpm_edge.build import low_precision
from dpm_edge.build.closed_set import closed_set
from dpm_edge.build.mask_head_node import mask_head_nodes, with_mask_head_plugin
from dpm_edge.build.people import People
from dpm_edge.build.portable import without_map
from dpm_edge.build.quantise import OUTLIER_CROPS, peaked, quantise
from dpm_edge.errors import MissingLibrary
from dpm_edge.images import preprocess, read_image
from dpm_edge.manifest import CALIBRATED, WITH_MAP
from dpm_edge.plugin import plugin_library
from dpm_edge.progress import say, track
from dpm_edge.spec import ModelSpec, Preprocessing


def assemble(
    model: ModelProto,
    spec: ModelSpec,
    backend: str,
    precision: str,
    calibration: list[Path],
    *,
    people: People | None,
    mask_head: str,
    quiet: bool,
) -> tuple[ModelProto, Path | None]:
    """The graph for a backend, and the plugin library where the graph holds its nodes.

    TensorRT takes every type from the graph: fp16 and bf16 are written into it, and what int8 and fp8 leave in float
    becomes float16. CPU libraries choose fp16 and bf16 themselves; their graphs stay float32.

    Args:
        model: the portable float32 graph; not changed.
        spec: its description.
        backend, precision: of `dpm_edge.manifest`.
        calibration: crops, for int8 and fp8.
        people: adds the output `logits` (B, C): the masked similarity to each person's prototype.
        mask_head: "plugin" puts our fused kernel in place of the mask generator's convolutions.
        quiet: show no progress.

    Raises:
        MissingLibrary: the plugin library, or what calibrates, is not installed.
        SpecError: the plugin computes no mask generator of this kind.
    """
    if backend not in WITH_MAP:
        model = without_map(model)
    plugin = plugin_library() if mask_head == "plugin" else None
    apart = mask_head_nodes(model, spec) if plugin else []
    if precision in CALIBRATED:
        model = _calibrated(model, spec.preprocessing, precision, calibration, apart, quiet)
        precision = "fp16"
    if plugin:
        model = with_mask_head_plugin(model, spec)
    if precision in low_precision.TYPES and backend.startswith("tensorrt"):
        model = low_precision.lower(model, precision)
    if people is not None:
        plugin = plugin or (_optional_plugin(quiet) if backend == "tensorrt" else None)
        model = closed_set(model, people.prototypes, native=plugin is None)
    return model, plugin


def _calibrated(
    model: ModelProto, pre: Preprocessing, precision: str, calibration: list[Path], apart: list[str], quiet: bool
) -> ModelProto:
    """The graph with its products quantised, but for those with outliers and the nodes kept apart."""
    some = preprocess([read_image(path) for path in calibration[:OUTLIER_CROPS]], pre)
    kept = peaked(model, some)
    if not quiet:
        say(f"calibrating on {len(calibration)} crops; {len(kept)} products with outliers stay in float")
    paths = track(calibration, what="calibrating", quiet=quiet)
    return quantise(model, (preprocess([read_image(path)], pre) for path in paths), [*kept, *apart], precision)


def _optional_plugin(quiet: bool) -> Path | None:
    """The plugin library; None where it was not built, for what TensorRT also computes without it."""
    try:
        return plugin_library()
    except MissingLibrary as error:
        if not quiet:
            say(f"closed-set logits by TensorRT's own layers: {error}")
        return None
