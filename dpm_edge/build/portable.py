"""The portable ONNX: standard operators, the model's spec in its metadata. Everything here works without torch.

Input `images` (batch, 3, H, W) float32, preprocessed · outputs `feature` (batch, D), L2-normalised, `mask` (batch, D)
and, where the spec's visibility is "map", `visibility` (batch, 2, h, w), float32. Weights may be stored as float16
behind a Cast, which halves the file; `read` undoes it, so that no engine library ever sees a float16 graph (ONNX
Runtime's CPU provider crashes on some).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, numpy_helper

from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.files import write_whole
from dpm_edge.spec import ModelSpec

INPUT, OUTPUTS = "images", ("feature", "mask")
MAP = "visibility"
"""The further output of a model whose spec says visibility "map"; dpm_edge.model.visibility says what it is."""
FORMAT = "1"
_HALF_FROM = 1024
"""Tensors with at least this many elements are stored as float16 when halved; biases and norms stay exact."""
_HALF_SUFFIX = ".float16"


@dataclass(frozen=True)
class Portable:
    """A portable ONNX that was read and checked."""

    model: ModelProto
    """float32 throughout, no metadata needed to run it."""
    spec: ModelSpec
    fingerprint: str
    data: bytes
    """The file as it is on disk; goes into the engine directory unchanged."""


def write(model: ModelProto, path: Path, spec: ModelSpec, fingerprint: str, *, half: bool = False) -> None:
    """Write a float32 `model` with its spec and fingerprint in the metadata; `half` stores large weights as float16.

    Raises:
        CheckpointError: with `half`, where a weight is beyond float16's range.
    """
    stored = ModelProto()
    stored.CopyFrom(model)
    if half:
        _store_half(stored)
    del stored.metadata_props[:]
    facts = {"format": FORMAT, "spec": json.dumps(spec.to_dict()), "fingerprint": fingerprint}
    facts["digest"] = _digest(stored, facts)
    for name, value in facts.items():
        stored.metadata_props.add(key=f"dpm_edge.{name}", value=value)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, stored.SerializeToString(deterministic=True))


_AGAIN = "Export it again from its checkpoint, or copy it again"


def parse(path: Path) -> tuple[ModelProto, bytes]:
    """The graph of an ONNX file, without the weights that lie in other files, and the file's bytes.

    Raises:
        CheckpointError: the file is missing or no ONNX.
    """
    if not path.is_file():
        raise CheckpointError(f"expected a portable ONNX or a checkpoint, got {path}, which does not exist")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"expected a file that can be read, got {path} ({error.strerror})") from error
    try:
        return onnx.load_model_from_string(data), data
    except (DecodeError, ValueError) as error:
        raise CheckpointError(
            f"expected an ONNX file, got {path} ({len(data)} bytes), which is something else or cut short "
            f"({error}). {_AGAIN}"
        ) from error


def is_foreign(model: ModelProto) -> bool:
    """Whether a whole graph was exported by another program than dpm-edge."""
    return not _facts(model) and bool(model.graph.node) and bool(model.graph.output)


def _facts(model: ModelProto) -> dict[str, str]:
    """What dpm-edge wrote into the metadata."""
    return {p.key.removeprefix("dpm_edge."): p.value for p in model.metadata_props if p.key.startswith("dpm_edge.")}


def read(path: Path) -> Portable:
    """A portable ONNX, checked: its graph, its metadata, and that neither was edited.

    Raises:
        CheckpointError: the file is missing, damaged, cut short, edited, from a newer version, not exported by
            dpm-edge, or keeps its weights in other files.
    """
    model, data = parse(path)
    facts, again = _facts(model), _AGAIN
    if is_foreign(model):
        raise CheckpointError(_foreign(model, path))
    missing = [name for name in ("format", "spec", "fingerprint", "digest") if name not in facts]
    if missing:
        raise CheckpointError(
            f"expected a portable ONNX of dpm-edge, got {path}, which is damaged or cut short: its metadata lacks "
            f"{', '.join(missing)}. {again}"
        )
    if facts["format"] != FORMAT:
        raise CheckpointError(f"expected format {FORMAT}, got format {facts['format']} in {path}. Upgrade dpm-edge")
    if facts["digest"] != _digest(model, facts):
        raise CheckpointError(
            f"expected {path} as it was exported, got one that was edited or damaged since (its digest differs). "
            f"{again}"
        )
    try:
        spec = ModelSpec.from_dict(json.loads(facts["spec"]))
    except (SpecError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}. {again}") from error
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise CheckpointError(f"expected one whole file, got {path}, which keeps weights in other files. {again}")
    _check_interface(model, spec, path)
    _restore_float32(model)
    return Portable(model, spec, facts["fingerprint"], data)


def without_map(model: ModelProto) -> ModelProto:
    """A copy of a graph without the output `visibility` and what only leads to it; the graph itself where it has none.

    For backends that hand on features and masks alone.
    """
    if MAP not in {o.name for o in model.graph.output}:
        return model
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for output in [o for o in graph.output if o.name == MAP]:
        graph.output.remove(output)
    while True:
        used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
        idle = [node for node in graph.node if not used.intersection(node.output)]
        if not idle:
            return made
        for node in idle:
            graph.node.remove(node)


def check_standard(model: ModelProto) -> None:
    """Raise CheckpointError where a graph is invalid or has an operator outside the ONNX standard."""
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign:
        raise CheckpointError(f"expected standard ONNX operators in the exported graph, got {', '.join(foreign)}")
    onnx.checker.check_model(model)


def _digest(model: ModelProto, facts: dict[str, str]) -> str:
    """sha256 over the graph and the metadata beside it."""
    digest = hashlib.sha256(f"{facts['format']}\n{facts['spec']}\n{facts['fingerprint']}\n".encode())
    digest.update(model.graph.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _foreign(model: ModelProto, path: Path) -> str:
    """What an ONNX file of somebody else is, and what to build from instead."""
    made_by = f"exported by {model.producer_name}" if model.producer_name else "exported by an unknown program"
    inputs, outputs = (_shapes(values) for values in (model.graph.input, model.graph.output))
    return (
        f"expected a portable ONNX that dpm-edge exported, got another model in {path} ({made_by}, input {inputs}, "
        f"output {outputs}). Build it with `dpm-edge build`, and say how its input is made: --family, or --color and "
        "--mean (docs/integrations.md)"
    )


def _shapes(values: Iterable[onnx.ValueInfoProto]) -> str:
    """The first three inputs or outputs of a graph, such as "images (batch, 3, 256, 128)"."""
    named = []
    for value in values:
        sizes = (str(d.dim_param or d.dim_value or "?") for d in value.type.tensor_type.shape.dim)
        named.append(f"{value.name} ({', '.join(sizes)})")
    return ", ".join(named[:3]) + (" …" if len(named) > 3 else "") if named else "none"


def _check_interface(model: ModelProto, spec: ModelSpec, path: Path) -> None:
    """Names and sizes of input and outputs must be those of the spec."""
    pre = spec.preprocessing
    expected: dict[str, tuple[int, ...]] = {INPUT: (3, pre.height, pre.width)}
    expected |= dict.fromkeys(OUTPUTS, (spec.dimension,))
    if spec.visibility == "map":
        expected[MAP] = (2, *spec.grid)
    values = [*model.graph.input, *model.graph.output]
    found = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:]) for v in values}
    if found != expected:
        raise CheckpointError(
            f"expected {expected} per crop, by the spec {spec.name!r} of {path}, got a graph with {found}. "
            "Export it again from its checkpoint"
        )


def _store_half(model: ModelProto) -> None:
    """Replace each large float32 initialiser X by a float16 one and a Cast whose output is X."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < _HALF_FROM:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise CheckpointError(
                f"expected weights within float16's range, got {np.abs(values).max():.3g} in {tensor.name}. "
                "Store them as float32"
            )
        half = numpy_helper.from_array(values.astype(np.float16), tensor.name + _HALF_SUFFIX)
        casts.append(onnx.helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(half)
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(casts + nodes)


def _restore_float32(model: ModelProto) -> None:
    """Undo `_store_half`: fold each Cast of a float16 initialiser into a float32 initialiser."""
    graph = model.graph
    halves = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT16}
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in halves:
            tensor = halves[node.input[0]]
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
