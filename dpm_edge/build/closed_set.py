"""Closed-set identification inside the engine: a third output with the masked similarity to each person's prototype.

    logits = (feature ⊙ mask) T̂ᵀ / sqrt((mask ⊙ mask) (T̂ ⊙ T̂)ᵀ)      hats: L2-normalised   (DPM, arXiv 2207.09046)

the directional metric of `dpm_edge.metrics`, B crops · C prototypes · D feature dimensions. The features that a graph
gives are normalised already.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from dpm_edge.build.mask_head_node import MASKED_SIMILARITY, declare, plugin_node
from dpm_edge.build.portable import OUTPUTS
from dpm_edge.errors import SpecError
from dpm_edge.files import write_whole
from dpm_edge.gallery import Gallery
from dpm_edge.gallery.search.prototypes import prototypes
from dpm_edge.manifest import PEOPLE
from dpm_edge.metrics import EPSILON, normalise
from dpm_edge.runtime.embeddings import Embeddings

LOGITS = "logits"
PLUGIN_WIDTH = 128
"""The plugin's kernels read rows in pieces of so many values; others are filled up with zeros, which add nothing."""


def closed_set(model: ModelProto, prototypes: NDArray[np.float32], native: bool) -> ModelProto:
    """A copy of a graph with the further output `logits` (B, C) float32, similarities in [−1, 1].

    Call it last: what it adds is float32 whatever the graph's precision is, and stays so.

    Args:
        model: a graph with the outputs feature and mask, float32, in any precision between; not changed.
        prototypes: (C, D), one row a person; need not be normalised.
        native: standard ONNX operators, for every backend. Else the node of our TensorRT plugin, prototypes in float16.

    Raises:
        SpecError: the prototypes are not (C, D), not finite or zero, or the graph has logits already.
    """
    made = ModelProto()
    made.CopyFrom(model)
    graph, (feature, mask) = made.graph, OUTPUTS
    if LOGITS in {o.name for o in graph.output}:
        raise SpecError("the graph gives logits already; start from one without")
    width = next(o for o in graph.output if o.name == feature).type.tensor_type.shape.dim[1].dim_value
    rows = _checked(np.asarray(prototypes), width)
    if native:
        nodes = _native(made, feature, mask, rows)
    else:
        nodes = _plugin(made, feature, mask, rows)
    graph.node.extend(nodes)
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, len(rows)]))
    return made


def _checked(prototypes: NDArray, width: int) -> NDArray[np.float64]:
    """The rows, normalised in float64."""
    if prototypes.ndim != 2 or prototypes.shape[1] != width or not len(prototypes):
        raise SpecError(f"prototypes are {prototypes.shape}; (people, {width}) is wanted by this model")
    if not np.isfinite(prototypes).all():
        raise SpecError(f"row {np.argwhere(~np.isfinite(prototypes))[0][0]} of the prototypes is not finite")
    empty = np.flatnonzero(~prototypes.any(axis=1))
    if len(empty):
        raise SpecError(f"row {empty[0]} of the prototypes is zero: nobody is similar to it. Leave that person out")
    return normalise(prototypes.astype(np.float64))


def _constant(model: ModelProto, name: str, values: NDArray) -> str:
    name = f"{LOGITS}.{name}"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def _native(model: ModelProto, feature: str, mask: str, rows: NDArray[np.float64]) -> list[NodeProto]:
    """The formula as it stands: two products, a root, a quotient."""
    targets = _constant(model, "targets", rows.T.astype(np.float32))
    squares = _constant(model, "squares", (rows * rows).T.astype(np.float32))
    floor = _constant(model, "floor", np.float32(EPSILON).reshape(()))
    steps = [
        ("Mul", [feature, mask], "masked"),
        ("MatMul", [f"{LOGITS}.masked", targets], "numerator"),
        ("Mul", [mask, mask], "gates"),
        ("MatMul", [f"{LOGITS}.gates", squares], "visible"),
        ("Max", [f"{LOGITS}.visible", floor], "floored"),
        ("Sqrt", [f"{LOGITS}.floored"], "norm"),
    ]
    names = [f"{LOGITS}.{out}" for _, _, out in steps]
    nodes = [onnx.helper.make_node(op, inputs, [name], name=name) for (op, inputs, _), name in zip(steps, names)]
    last = [f"{LOGITS}.numerator", f"{LOGITS}.norm"]
    return [*nodes, onnx.helper.make_node("Div", last, [LOGITS], name=LOGITS)]


def _plugin(model: ModelProto, feature: str, mask: str, rows: NDArray[np.float64]) -> list[NodeProto]:
    """One node of the plugin, and padding in front where the width is no multiple of its pieces."""
    declare(model)
    nodes, missing = [], -rows.shape[1] % PLUGIN_WIDTH
    inputs = [feature, mask]
    if missing:
        widths = _constant(model, "padding", np.array([0, 0, 0, missing], np.int64))
        inputs = [f"{LOGITS}.{name}.padded" for name in (feature, mask)]
        nodes = [
            onnx.helper.make_node("Pad", [name, widths], [padded], name=padded)
            for name, padded in zip((feature, mask), inputs)
        ]
    targets = np.pad(rows, ((0, 0), (0, missing))).astype(np.float16)
    return [*nodes, plugin_node(MASKED_SIMILARITY, [*inputs, _constant(model, "targets", targets)], LOGITS)]


@dataclass(frozen=True)
class ClosedSet:
    """Names and prototypes, one row a person."""

    source: Path
    """The gallery that they come from."""
    names: list[str]
    prototypes: NDArray[np.float32]
    """(C, D), each of norm 1."""

    def write_names(self, folder: Path) -> None:
        """Write people.json: the names in the order of the logits."""
        write_whole(folder / PEOPLE, (json.dumps(self.names, ensure_ascii=False, indent=1) + "\n").encode())


def read_closed_set(path: Path, fingerprint: str) -> ClosedSet:
    """Read the people of a gallery, each dimension averaged over those pictures that show it.

    Args:
        path: a gallery that `dpm-edge gallery` wrote: a saved file, or a folder.
        fingerprint: of the model that the engine is built from.

    Raises:
        GalleryError: there is no gallery, or it is damaged.
        SpecError: the gallery is of another model, or holds nobody with a name.
    """
    with Gallery.open(path) as gallery:
        if gallery.fingerprint != fingerprint:
            raise SpecError(
                f"expected a gallery of model {fingerprint[:16]}, which the engine is built from, got {path} of model "
                f"{gallery.fingerprint[:16]}. Embed its pictures with this model"
            )
        rows = gallery.rows()
    named = np.array([i for i, name in enumerate(rows.people) if name], np.int64)
    if not len(named) or rows.features is None:
        raise SpecError(
            f"expected a gallery of people with names, got {path}, where nobody has one. Add rows with people"
        )
    embeddings = Embeddings(
        features=rows.features[named],
        masks=np.ones_like(rows.features[named]) if rows.masks is None else rows.masks[named],
        visibility=None if rows.visibility is None else rows.visibility[named],
        rows=named,
        fingerprint=fingerprint,
    )
    made, names = prototypes(embeddings, [rows.people[i] for i in named], [rows.cameras[i] for i in named])
    return ClosedSet(path, names, made.features)
