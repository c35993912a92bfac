"""float16 or bfloat16 written into the graph, for libraries that take each operator's type from it (TensorRT).

Whole regions run in the low type: attention from the QKV product to the output product but for its softmax, the MLP
with its GELU, the patch embedding, the convolutions of the mask generator. float32 islands stay where a sum over many
values or a difference of near ones is formed: LayerNorm, softmax, the residual stream, and everything between the last
product and an output (neck, L2 norm, the mask's sigmoid). Each tensor is cast at most once in each direction.
benchmarks/precisions.py measures what each island is worth. ONNX gave Conv and MaxPool bfloat16 in opset 22 only;
TensorRT's parser goes by the tensors' types, so that the operator set stays one that 10.3 knows.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from dpm_edge.build.closed_set import ClosedSet, closed_set
from dpm_edge.build.mask_head_node import mask_head_nodes, with_mask_head_plugin
from dpm_edge.build.portable import without_map
from dpm_edge.build.quantise import OUTLIER_CROPS, peaked, quantise, thin_convolutions
from dpm_edge.errors import MissingLibrary, SpecError
from dpm_edge.images import preprocess, read_image
from dpm_edge.manifest import CALIBRATED, WITH_MAP
from dpm_edge.plugin import plugin_library
from dpm_edge.progress import say, track
from dpm_edge.spec import ModelSpec, Preprocessing

TYPES = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
PRODUCTS = ("MatMul", "Gemm", "Conv")
NORMS = ("LayerNormalization", "Softmax", "ReduceL2")
_MOVES = ("Gather", "Slice", "Reshape", "Transpose")
_AS_IT_COMES = ("Shape", "QuantizeLinear")
"""Operators that take float32 and the low type alike and hand on neither: no cast is made for them."""


def lower(model: ModelProto, precision: str, float_nodes: Collection[str] | None = None) -> ModelProto:
    """A copy of a float32 graph that runs in "fp16" or "bf16" outside its float32 islands.

    Inputs and outputs keep their types. A graph of `quantise` stays quantised: what was float32 around its int8 or
    float8 products becomes the low type.

    Args:
        model: a float32 graph, which may hold quantised products and nodes of the TensorRT plugin; not changed.
        precision: "fp16" or "bf16".
        float_nodes: names of the nodes that stay in float32; `islands(model)` where none are given.

    Raises:
        SpecError: a weight is beyond float16's range.
    """
    lowered = ModelProto()
    lowered.CopyFrom(model)
    _Lowering(lowered, precision, islands(model) if float_nodes is None else float_nodes).run()
    return lowered


def islands(model: ModelProto) -> set[str]:
    """Names of the nodes that `lower` leaves in float32."""
    found = norms(model) | residual_sums(model) | tails(model) | _foreign(model)
    return found | _bridges(model, found)


def norms(model: ModelProto) -> set[str]:
    """LayerNorm, softmax and L2 norms: each divides by a sum over a whole row."""
    return {n.name for n in model.graph.node if n.op_type in NORMS}


def residual_sums(model: ModelProto) -> set[str]:
    """Sums of two activations: the residual stream, whose rounding errors would add up over all blocks."""
    weights = {t.name for t in model.graph.initializer}
    return {n.name for n in model.graph.node if n.op_type == "Add" and not weights & set(n.input)}


def tails(model: ModelProto) -> set[str]:
    """What lies between the last product or norm and an output: the neck, the normalisation, the mask's sigmoid."""
    made_by = {out: node for node in model.graph.node for out in node.output}
    found: set[str] = set()
    open_tensors = [o.name for o in model.graph.output]
    while open_tensors:
        node = made_by.get(open_tensors.pop())
        if node is None or node.op_type in (*PRODUCTS, "LayerNormalization", "Softmax") or node.name in found:
            continue
        found.add(node.name)
        open_tensors += node.input
    return found


def _foreign(model: ModelProto) -> set[str]:
    """Casts that are there already, and nodes of the plugin: their types are their own affair."""
    return {n.name for n in model.graph.node if n.op_type == "Cast" or n.domain not in ("", "ai.onnx")}


def _bridges(model: ModelProto, found: set[str]) -> set[str]:
    """What only moves values from one island to another, such as the cls token's row on its way to its LayerNorm."""
    graph = model.graph
    made_in_islands = {out for node in graph.node if node.name in found for out in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    return {
        node.name
        for node in graph.node
        if node.op_type in _MOVES
        and node.input[0] in made_in_islands
        and all(reader in found for out in node.output for reader in readers.get(out, []))
    }


class _Lowering:
    """One pass over a graph in order. A float32 tensor X has, where it is wanted, a low twin "X.fp16"."""

    def __init__(self, model: ModelProto, precision: str, float_nodes: Collection[str]) -> None:
        self.model, self.precision, self.float_nodes = model, precision, float_nodes
        self.kind, self.dtype = TYPES[precision]
        self.weights = {t.name: t for t in model.graph.initializer}
        self.float32 = _float32_tensors(model)
        self.low: set[str] = set()
        """Tensors whose low twin exists, as an output, a cast or a weight."""
        self.gone: set[str] = set()
        """Tensors that exist in the low type only, so far."""
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        """Rewrite the graph in place."""
        graph = self.model.graph
        for node in graph.node:
            if node.op_type in _AS_IT_COMES and node.name not in self.float_nodes:
                self._as_it_comes(node)
            elif node.name in self.float_nodes:
                for name in node.input:
                    self._want_float(name)
            else:
                self._lower(node)
            self.nodes.append(node)
        for out in graph.output:
            self._want_float(out.name)
        del graph.node[:]
        graph.node.extend(self.nodes)
        _drop_unused(self.model)

    def _lower(self, node: NodeProto) -> None:
        for place, name in enumerate(node.input):
            if name in self.float32:
                node.input[place] = self._want_low(name)
        for place, name in enumerate(node.output):
            if name in self.float32:
                node.output[place] = self._twin(name)
                self.low.add(name)
                self.gone.add(name)

    def _as_it_comes(self, node: NodeProto) -> None:
        if node.input[0] in self.low:
            for place, name in enumerate(node.input):
                if name in self.float32:
                    node.input[place] = self._want_low(name)

    def _twin(self, name: str) -> str:
        return f"{name}.{self.precision}"

    def _want_low(self, name: str) -> str:
        """The low twin's name; made where it is not there yet."""
        twin = self._twin(name)
        if name not in self.low:
            self.low.add(name)
            if name in self.weights:
                self.model.graph.initializer.append(self._rounded(self.weights[name], twin))
            else:
                self.nodes.append(onnx.helper.make_node("Cast", [name], [twin], name=f"{twin}.cast", to=self.kind))
        return twin

    def _want_float(self, name: str) -> None:
        """See to it that a tensor exists in float32."""
        if name in self.gone:
            self.gone.discard(name)
            cast = onnx.helper.make_node(
                "Cast", [self._twin(name)], [name], name=f"{name}.float32.cast", to=TensorProto.FLOAT
            )
            self.nodes.append(cast)

    def _rounded(self, tensor: TensorProto, name: str) -> TensorProto:
        exact = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            values = exact.astype(self.dtype)
        lost = (exact != 0) & (values == 0) if exact.size == 1 else np.zeros(())
        if not np.isfinite(values.astype(np.float32)).all() or lost.any():
            raise SpecError(
                f"expected weights that {self.precision} can hold, got {np.abs(exact).max():.3g} in {tensor.name}. "
                "Build bf16 or fp32"
            )
        return numpy_helper.from_array(values, name)


def _float32_tensors(model: ModelProto) -> set[str]:
    """Names of all float32 tensors: inputs, weights and what nodes make of them."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}


def _drop_unused(model: ModelProto) -> None:
    """Remove initialisers that no node reads any more."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def assemble(
    model: ModelProto,
    spec: ModelSpec,
    backend: str,
    precision: str,
    calibration: list[Path],
    *,
    people: ClosedSet | None,
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
    replaced = mask_head_nodes(model, spec) if plugin else []
    if precision in CALIBRATED:
        convolutional = (spec.stem != "patch" or spec.foreign) and not backend.startswith("tensorrt")
        model = _calibrated(model, spec.preprocessing, precision, calibration, replaced, convolutional, quiet)
        precision = "fp16"
    if plugin:
        model = with_mask_head_plugin(model, spec)
    if precision in TYPES and backend.startswith("tensorrt"):
        model = lower(model, precision)
    if people is not None:
        plugin = plugin or (_optional_plugin(quiet) if backend == "tensorrt" else None)
        model = closed_set(model, people.prototypes, native=plugin is None)
    return model, plugin


def _calibrated(
    model: ModelProto,
    pre: Preprocessing,
    precision: str,
    calibration: list[Path],
    replaced: list[str],
    convolutional: bool,
    quiet: bool,
) -> ModelProto:
    """The graph with its products quantised, but for those with outliers and the nodes that the plugin replaces.

    convolutional: a convolutional stem, or another project's network, on a CPU: thin convolutions stay in float, and
    weights take half of int8's range (on a CPU without VNNI OSNet x0.25: cosine 0.38 with the whole of it, 0.98 with
    half; dpm-n: 0.70 and 0.99, 0.997 with thin convolutions in float).
    """
    if not quiet:
        say(f"calibrating on {len(calibration)} crops")
    some = preprocess([read_image(path) for path in calibration[:OUTLIER_CROPS]], pre)
    kept_float = peaked(model, some)
    if not quiet:
        say(f"{len(kept_float)} products with outliers stay in float")
    paths = track(calibration, what="calibrating", quiet=quiet)
    kept_float = [*kept_float, *replaced, *(thin_convolutions(model) if convolutional else [])]
    crops = (preprocess([read_image(path)], pre) for path in paths)
    return quantise(model, crops, kept_float, precision, 0.5 if convolutional else 1.0)


def _optional_plugin(quiet: bool) -> Path | None:
    """The plugin library; None where it was not built, for what TensorRT also computes without it."""
    try:
        return plugin_library()
    except MissingLibrary as error:
        if not quiet:
            say(f"closed-set logits by TensorRT's own layers: {error}")
        return None
